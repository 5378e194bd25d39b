"""The network that a VGSL spec describes."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from distrib.errors import InputError
from distrib.model import layers, spec
from distrib.model.grammar import parse_spec
from distrib.model.shapes import Shape, Width, input_shape, output_shape, output_width
from distrib.model.widths import LineWidths, zero_padding

_LAYERS: dict[type[spec.Block], type[layers.Layer]] = {
    spec.Convolution: layers.ConvolutionLayer,
    spec.MaxPool: layers.MaxPoolLayer,
    spec.Recurrent: layers.RecurrentLayer,
    spec.Dropout: layers.DropoutLayer,
    spec.GroupNorm: layers.GroupNormLayer,
    spec.Reshape: layers.ReshapeLayer,
    spec.Addition: layers.AdditionLayer,
    spec.Identity: layers.IdentityLayer,
}


class VGSLNetwork(nn.Module):
    """A network built from a VGSL spec, with kraken's names for its parameters.

    ``spec`` is the named spec, ``input_shape`` and ``output_shape`` are NCHW with 0 for what varies (as
    kraken states them: after a reshape a variable width shows as 1). Raises InputError that points at
    the block which cannot be built.
    """

    def __init__(self, spec_text: str) -> None:
        super().__init__()
        self._spec = parse_spec(spec_text)
        _refuse_inner_outputs(self._spec.body)
        self.spec = str(self._spec)
        first = input_shape(self._spec)
        last = output_shape(self._spec.body, first)
        batch = self._spec.input.batch
        self.input_shape = (batch, first.channels, first.height, first.width)
        self.output_shape = (batch, last.channels, last.height, last.declared_width)
        self.num_classes = last.channels
        self.nn = layers.Series(_build(self._spec.body, first))

    def forward(self, lines: Tensor, widths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Score each time step of each line.

        ``lines`` is (N, C, H, W), padded on the right to the widest line, and ``widths`` (N,) int64
        holds their widths in pixels (columns); None means that all fill the tensor. Keep ``widths`` on
        the CPU: the layers want it there, and a copy from a GPU waits for it.

        Returns raw scores (N, L, H', W') without softmax, and the number of time steps of each line
        (N,) int64 on the CPU. A line's scores do not depend on the batch it is in; what stands behind
        a line's last time step means nothing. Raises InputError for a line too narrow for the network.
        """
        known = (
            torch.full((len(lines),), lines.shape[-1]) if widths is None else widths.to("cpu", torch.int64)
        )
        steps = self.output_width(known)
        if bool((steps < 1).any()):
            raise InputError(
                f"a line {int(known.min())} pixels wide is too narrow for the network {self.spec}; "
                "leave it out or give lines more padding"
            )
        longest, shortest = int(known.max()), int(known.min())
        if longest > lines.shape[-1]:
            raise ValueError(f"a line width of {longest} in a batch of width {lines.shape[-1]}")
        lines = lines[..., :longest]
        padded = LineWidths(known) if shortest < longest else None
        scores, _ = self.nn(zero_padding(lines, padded), padded)
        return scores, steps

    @property
    def parsed(self) -> spec.Spec:
        """The parsed spec."""
        return self._spec

    def output_width(self, width: Width) -> Width:
        """The number of time steps for lines of a width in pixels; an int, an array or a tensor of them."""
        return output_width(self._spec.body, input_shape(self._spec), width)

    @torch.no_grad()
    def init_weights(self) -> None:
        """Draw initial weights as kraken does.

        LSTM matrices orthogonal, the forget gate's quarter of each LSTM bias 1, convolutions uniform in
        +-0.1 with their biases, linear layers Xavier-uniform with bias 0; other LSTM biases uniform in
        +-1/sqrt(cells), group normalisation 1 and 0.
        """
        for module in self.modules():
            if isinstance(module, nn.LSTM):
                _init_lstm(module)
            elif isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                for parameter in module.parameters():
                    nn.init.uniform_(parameter, -0.1, 0.1)
            elif isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.GroupNorm):
                module.reset_parameters()


def recognition_spec(spec_text: str, num_classes: int) -> str:
    """The spec with a CTC output layer of ``num_classes`` (labels and blank) at its end.

    Raises InputError where the spec has an output layer already or its output is not one pixel high.
    """
    parsed = parse_spec(spec_text)
    for block in parsed.body.leaves():
        if isinstance(block, spec.Output):
            raise block.error("the output layer is added by training, leave it away")
    height = output_shape(parsed.body, input_shape(parsed)).height
    if height != 1:
        size = f"{height} pixels high" if height else "of variable height"
        raise InputError(
            f"VGSL spec `{spec_text}`: its output is {size}, but recognition needs a height of 1; fold the "
            "height into the channels with a block `S1(1x0)1,3`"
        )
    stripped = spec_text.strip()
    return f"{stripped[:-1].rstrip()} O1c{num_classes}]"


def _refuse_inner_outputs(body: spec.Group) -> None:
    for block in list(body.leaves())[:-1]:
        if isinstance(block, spec.Output):
            raise block.error("an output layer has to be the last block")


def _build(group: spec.Group, shape: Shape) -> OrderedDict[str, nn.Module]:
    """The layers of a group by name; each child of a series sees the shape the one before it leaves."""
    modules: OrderedDict[str, nn.Module] = OrderedDict()
    for child in group.children:
        modules[child.name] = _layer(child, shape)
        if not group.parallel:
            shape = output_shape(child, shape)
    return modules


def _layer(part: spec.Block | spec.Group, shape: Shape) -> nn.Module:
    output_shape(part, shape)  # complains of shapes the block cannot take
    if isinstance(part, spec.Group):
        kind = layers.Parallel if part.parallel else layers.Series
        return kind(_build(part, shape))
    if hasattr(nn.Module(), part.name):
        raise part.error(f"{part.name} cannot be a name; choose another one")
    if isinstance(part, spec.Output):
        output = layers.SequenceOutput if part.dimensions == 1 else layers.HeatMapOutput
        return output(part, shape)
    return _LAYERS[type(part)](part, shape)


def _init_lstm(module: nn.LSTM) -> None:
    bound = module.hidden_size**-0.5
    for name, parameter in module.named_parameters():
        if name.startswith("weight"):
            nn.init.orthogonal_(parameter)
        else:
            nn.init.uniform_(parameter, -bound, bound)
            parameter[module.hidden_size : 2 * module.hidden_size] = 1.0
