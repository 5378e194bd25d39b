"""CoreML weights (``.mlmodel``), the format of kraken before version 7.

The protobuf holds a list of layers named after the blocks of the spec; the spec, the codec and the other
metadata are user-defined strings beside it. Needs coremltools, an optional extra.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from torch import Tensor, nn

from distrib.errors import InputError
from distrib.model import layers
from distrib.model.vgsl import VGSLNetwork

FlatParameters = dict[str, "np.ndarray[Any, Any]"]
"""A layer's parameters by torch's names, each flattened to one dimension."""

_OWN_KEYS = ("vgsl", "codec", "kraken_meta")
_MOST_BYTES = 2**31 - 2**24  # protobuf ends at 2 GiB
_VALUES_AT_ONCE = 1 << 16

_GATES = ("inputGate", "forgetGate", "blockInput", "outputGate")  # torch's order, too
_ACTIVATIONS = {"s": "sigmoid", "t": "tanh", "r": "ReLU", "l": "linear", "lr": "leakyReLU"}


@dataclass(frozen=True, kw_only=True)
class CoreMLContent:
    """What a CoreML file holds: metadata with keys as in kraken's safetensors metadata, what other strings
    there are besides, and the layers by name."""

    metadata: dict[str, Any]
    file_metadata: dict[str, str]
    layers: dict[str, FlatParameters]


def read_coreml(path: Path) -> CoreMLContent:
    """Read a CoreML file. Raises InputError where it is damaged or no model of kraken's kind."""
    model_class, decode_error = _protobuf(path)
    model = model_class()
    try:
        model.ParseFromString(path.read_bytes())
    except decode_error as error:
        raise InputError(f"{path}: damaged or not a CoreML file ({error}); copy the file again") from error
    stored = dict(model.description.metadata.userDefined)
    try:
        metadata = json.loads(stored.get("kraken_meta", "{}"))
    except ValueError as error:
        raise InputError(f"{path}: its metadata cannot be read ({error}); copy the file again") from error
    if not isinstance(metadata, dict) or "vgsl" not in {**stored, **metadata}:
        raise InputError(
            f"{path}: a CoreML file without a VGSL spec; give weights written by ketos or kraken"
        )
    metadata = {**{key: stored[key] for key in ("vgsl", "codec") if key in stored}, **metadata}
    return CoreMLContent(
        metadata=metadata,
        file_metadata={key: value for key, value in stored.items() if key not in _OWN_KEYS},
        layers=_read_layers(model.neuralNetwork.layers),
    )


def write_coreml(
    network: VGSLNetwork,
    metadata: Mapping[str, Any],
    file: BinaryIO,
    *,
    path: Path,
    file_metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a network and its metadata to an open file; ``path`` names it in messages.

    The format is built in memory, which takes twice the size of the network.

    Raises InputError for networks that kraken cannot read back from this format.
    """
    _refuse_large(network, path)
    model = _protobuf(path)[0]()
    model.specificationVersion = 2
    for name, kind, shape in (
        ("input", model.description.input, network.input_shape),
        ("output", model.description.output, network.output_shape),
    ):
        feature = kind.add(name=name)
        feature.type.multiArrayType.shape.extend(shape)
        feature.type.multiArrayType.dataType = feature.type.multiArrayType.DOUBLE
    user_defined = model.description.metadata.userDefined
    model.description.metadata.shortDescription = "kraken model"
    for key, value in (file_metadata or {}).items():
        user_defined[key] = value
    user_defined["vgsl"] = network.spec
    user_defined["codec"] = str(metadata["codec"])
    user_defined["kraken_meta"] = json.dumps(dict(metadata))
    for name, layer in network.nn.named_children():
        _write_layer(model.neuralNetwork, name, layer, path)
    # Strings beside the network stand in no order of their own.
    file.write(model.SerializeToString(deterministic=True))


def refuse_unfit(network: VGSLNetwork, path: Path) -> None:
    """Raise what ``write_coreml`` to ``path`` would raise for this network, before it is trained."""
    _refuse_large(network, path)
    model = _protobuf(path)[0]()
    for name, layer in network.nn.named_children():
        _write_layer(model.neuralNetwork, name, layer, path)


def _refuse_large(network: VGSLNetwork, path: Path) -> None:
    if 4 * sum(parameter.numel() for parameter in network.parameters()) > _MOST_BYTES:
        raise InputError(
            f"{path}: CoreML weights hold at most 2 GiB, less than this network; use safetensors "
            "(--weights-format)"
        )


def _protobuf(path: Path) -> tuple[Any, type[Exception]]:
    """The protobuf class of CoreML models and protobuf's error for bytes that are none."""
    logger = logging.getLogger("coremltools")
    level = logger.level
    # Its import complains of the versions of packages that have no part in reading a protobuf.
    logger.setLevel(logging.CRITICAL)
    try:
        from coremltools.proto import Model_pb2
        from google.protobuf.message import DecodeError  # type: ignore[import-untyped,unused-ignore]
    except ImportError as error:
        raise InputError(
            f"{path}: CoreML weights need coremltools; run pip install 'ketos-distrib[coreml]' or use "
            "safetensors weights"
        ) from error
    finally:
        logger.setLevel(level)
    return Model_pb2.Model, DecodeError


def _read_layers(stored: Any) -> dict[str, FlatParameters]:
    result: dict[str, FlatParameters] = {}
    for layer in stored:
        kind = layer.WhichOneof("layer")
        value: Any = getattr(layer, kind) if kind else None
        if kind == "convolution":
            result[layer.name.removesuffix("_conv")] = _weights_and_bias("co", value.weights, value.bias)
        elif kind == "innerProduct":
            result[layer.name.removesuffix("_lin")] = _weights_and_bias("lin", value.weights, value.bias)
        elif kind == "uniDirectionalLSTM":
            result[layer.name.removesuffix("_transposed")] = _lstm_parameters(value, [value.weightParams])
        elif kind == "biDirectionalLSTM":
            result[layer.name.removesuffix("_transposed")] = _lstm_parameters(value, value.weightParams)
        elif kind == "custom" and value.className == "groupnorm" and len(value.weights) == 2:
            result[layer.name] = _weights_and_bias("layer", *value.weights)
    return result


def _floats(parameter: Any) -> np.ndarray[Any, Any]:
    return np.asarray(parameter.floatValue, dtype=np.float32)


def _weights_and_bias(part: str, weight: Any, bias: Any) -> FlatParameters:
    return {f"{part}.weight": _floats(weight), f"{part}.bias": _floats(bias)}


def _lstm_parameters(lstm: Any, directions: Any) -> FlatParameters:
    """torch's parameters of an LSTM. CoreML has one bias where torch adds two; the first becomes zero."""
    result: FlatParameters = {}
    for direction, suffix in zip(directions, ("_l0", "_l0_reverse"), strict=False):
        for name, part in (("weight_ih", "WeightMatrix"), ("weight_hh", "RecursionMatrix")):
            gates = [_floats(getattr(direction, gate + part)) for gate in _GATES]
            result[f"layer.{name}{suffix}"] = np.concatenate(gates)
        if lstm.params.hasBiasVectors:
            bias = np.concatenate([_floats(getattr(direction, gate + "BiasVector")) for gate in _GATES])
            result[f"layer.bias_ih{suffix}"] = np.zeros_like(bias)
            result[f"layer.bias_hh{suffix}"] = bias
    return result


def _write_layer(network: Any, name: str, layer: nn.Module, path: Path) -> None:
    if isinstance(layer, layers.ConvolutionLayer):
        _write_convolution(network, name, layer.co, layer.block.nonlinearity)
    elif isinstance(layer, layers.HeatMapOutput):
        _write_convolution(network, name, layer.co, "m" if layer.block.kind == "s" else "s")
    elif isinstance(layer, layers.SequenceOutput):
        _write_linear(_add(network, f"{name}_lin").innerProduct, layer.lin)
    elif isinstance(layer, layers.RecurrentLayer) and not layer.block.legacy:
        _write_recurrent(network, name, layer)
    elif isinstance(layer, layers.MaxPoolLayer):
        pooling = _add(network, name).pooling
        pooling.kernelSize.extend(layer.block.kernel)
        pooling.stride.extend(layer.block.stride)
        pooling.same.SetInParent()
        pooling.avgPoolExcludePadding = True
    elif isinstance(layer, layers.Layer) and (custom := _custom(layer)) is not None:
        class_name, parameters = custom
        stored = _add(network, name).custom
        stored.className = class_name
        for key, value in parameters.items():
            setattr(stored.parameters[key], "doubleValue" if isinstance(value, float) else "intValue", value)
        if isinstance(layer, layers.GroupNormLayer):
            for parameter in (layer.layer.weight, layer.layer.bias):
                _append(stored.weights.add().floatValue, parameter)
    else:
        raise InputError(
            f"{path}: CoreML weights cannot hold the block `{name}` (nested or legacy); use safetensors "
            "(--weights-format)"
        )


def _custom(layer: layers.Layer) -> tuple[str, dict[str, int | float]] | None:
    """Class name and parameters of a layer that CoreML does not have; dimensions are those of NCHW."""
    axes = (0, 2, 3, 1)
    if isinstance(layer, layers.DropoutLayer):
        return "dropout", {"p": float(layer.block.probability), "dim": layer.block.dimensions}
    if isinstance(layer, layers.GroupNormLayer):
        return "groupnorm", {"in_channels": layer.layer.num_channels, "num_groups": layer.layer.num_groups}
    if isinstance(layer, layers.AdditionLayer):
        return "addition", {"dim": axes[layer.block.dimension], "chunk_size": layer.block.chunk}
    if isinstance(layer, layers.ReshapeLayer):
        block = layer.block
        return "reshape", {
            "src_dim": axes[block.source],
            "part_a": block.a or -1,
            "part_b": block.b or -1,
            "high": axes[block.high],
            "low": axes[block.low],
        }
    return ("identity", {}) if type(layer) is layers.IdentityLayer else None


def _add(network: Any, name: str, *, source: str = "input", target: str | None = None) -> Any:
    """A new layer. Like kraken's, all take the network's input: the order of the layers says the rest."""
    layer = network.layers.add(name=name)
    layer.input.append(source)
    layer.output.append(target or name)
    return layer


def _append(values: Any, parameter: Tensor | None) -> None:
    """Put the values of a parameter, row by row, into a list of the protobuf."""
    assert parameter is not None  # all our layers have biases
    flat = parameter.detach().cpu().float().flatten()
    for start in range(0, flat.numel(), _VALUES_AT_ONCE):
        values.extend(flat[start : start + _VALUES_AT_ONCE].tolist())


def _write_linear(stored: Any, linear: nn.Linear) -> None:
    stored.inputChannels, stored.outputChannels = linear.in_features, linear.out_features
    stored.hasBias = True
    _append(stored.weights.floatValue, linear.weight)
    _append(stored.bias.floatValue, linear.bias)


def _write_convolution(
    network: Any, name: str, convolution: nn.Conv2d | nn.ConvTranspose2d, nonlinearity: str
) -> None:
    stored = _add(network, f"{name}_conv").convolution
    stored.outputChannels, stored.kernelChannels = convolution.out_channels, convolution.in_channels
    stored.nGroups = 1
    stored.kernelSize.extend(convolution.kernel_size)
    stored.stride.extend(convolution.stride)
    stored.dilationFactor.extend(convolution.dilation)
    stored.same.SetInParent()
    stored.isDeconvolution = isinstance(convolution, nn.ConvTranspose2d)
    stored.hasBias = True
    _append(stored.weights.floatValue, convolution.weight)
    _append(stored.bias.floatValue, convolution.bias)
    after = _add(network, f"{name}_act", source=f"{name}_conv", target=name)
    if nonlinearity == "m":
        after.softmax.SetInParent()
        return
    activation = getattr(after.activation, _ACTIVATIONS[nonlinearity])
    activation.SetInParent()
    if nonlinearity in ("l", "lr"):
        activation.alpha = 1.0 if nonlinearity == "l" else 0.01


def _write_recurrent(network: Any, name: str, layer: layers.RecurrentLayer) -> None:
    if layer.block.axis == "y":
        permute = _add(network, name, target=f"{name}_transposed").permute
        permute.axis.extend((0, 1, 3, 2))
        name = f"{name}_transposed"
    both = layer.block.bidirectional
    stored = _add(network, name, source=name if layer.block.axis == "y" else "input")
    lstm = stored.biDirectionalLSTM if both else stored.uniDirectionalLSTM
    lstm.inputVectorSize, lstm.outputVectorSize = layer.layer.input_size, layer.layer.hidden_size
    lstm.params.sequenceOutput = not layer.block.summarise
    lstm.params.hasBiasVectors = True
    lstm.params.cellClipThreshold = 50000
    activations = (lstm.activationsForwardLSTM, lstm.activationsBackwardLSTM) if both else (lstm.activations,)
    for functions in activations:
        for function in ("sigmoid", "tanh", "tanh"):
            getattr(functions.add(), function).SetInParent()
    parameters = layer.layer.state_dict()
    for suffix in ("_l0", "_l0_reverse") if both else ("_l0",):
        direction = lstm.weightParams.add() if both else lstm.weightParams
        bias = parameters[f"bias_ih{suffix}"] + parameters[f"bias_hh{suffix}"]
        for values, part in (
            (parameters[f"weight_ih{suffix}"], "WeightMatrix"),
            (parameters[f"weight_hh{suffix}"], "RecursionMatrix"),
            (bias, "BiasVector"),
        ):
            for gate, chunk in zip(_GATES, values.chunk(4), strict=True):
                _append(getattr(direction, gate + part).floatValue, chunk)
