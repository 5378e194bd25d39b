"""Which elements of the state a process holds under ZeRO, and filling them from a checkpoint.

DeepSpeed's optimizers hold flat float32 tensors, each with the weights of many parameters one after the
other, of which every process has a part; the torch optimizer inside keeps what it keeps of a parameter for
a flat tensor as a whole. What belongs to no parameter fills the ends of flat tensors and means nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from distrib.errors import InputError
from distrib.runtime.state import WEIGHTS, LocalState, Piece, StateReader, kinds_by_parameter, state_key
from distrib.runtime.strategies.plain import group_settings, restore_groups


@dataclass(frozen=True, kw_only=True)
class Fragment:
    """``length`` elements of a parameter, from element ``start`` of it, at ``offset`` of a flat tensor."""

    name: str
    shape: tuple[int, ...]
    start: int
    offset: int
    length: int

    def of(self, flat: Tensor) -> Tensor:
        """These elements as a view of the flat tensor, or of one as long."""
        return flat.detach().narrow(0, self.offset, self.length)


@dataclass(frozen=True, kw_only=True)
class FlatTensor:
    """A flat tensor of weights, the parameters whose elements it has at some process, those of this one."""

    weights: Tensor
    parameters: list[str]
    fragments: list[Fragment]


def flat_tensors(zero: Any, network: nn.Module) -> list[FlatTensor]:
    """The flat tensors of DeepSpeed's optimizer ``zero`` for ``network``, of whichever stage."""
    names = {parameter: name for name, parameter in network.named_parameters()}
    return list(_stage_3(zero, names) if _is_stage_3(zero) else _stage_1_2(zero, names))


def weights_of(zero: Any, group: int) -> list[Tensor]:
    """The flat tensors of a parameter group."""
    if not _is_stage_3(zero):
        return [zero.single_partition_of_fp32_groups[group]]
    flats = zero.fp32_partitioned_groups_flat
    return [flat for number, flat in enumerate(flats) if zero.sub_group_to_group_id[number] == group]


def _is_stage_3(zero: Any) -> bool:
    return hasattr(zero, "fp16_partitioned_groups")


def _stage_1_2(zero: Any, names: Mapping[nn.Parameter, str]) -> Iterator[FlatTensor]:
    for weights, parameters in zip(zero.single_partition_of_fp32_groups, zero.bit16_groups, strict=True):
        fragments = []
        for parameter in parameters:
            held = parameter._hp_mapping
            if held is not None:
                fragment = Fragment(
                    name=names[parameter],
                    shape=tuple(parameter.shape),
                    start=held.lp_fragment_address.start,
                    offset=held.hp_fragment_address.start,
                    length=held.hp_fragment_address.numel,
                )
                fragments.append(fragment)
        everywhere = [names[each] for each in parameters]
        yield FlatTensor(weights=weights, parameters=everywhere, fragments=fragments)


def _stage_3(zero: Any, names: Mapping[nn.Parameter, str]) -> Iterator[FlatTensor]:
    frozen = set(names.values())
    for weights, parameters in zip(zero.fp32_partitioned_groups_flat, zero.fp16_groups, strict=True):
        fragments, offset = [], 0
        for parameter in parameters:
            fragments += _own_part(parameter, names[parameter], offset)
            offset += parameter.partition_numel()
        everywhere = [names[each] for each in parameters]
        frozen -= set(everywhere)
        yield FlatTensor(weights=weights, parameters=everywhere, fragments=fragments)
    # What is not trained is divided as well, each parameter by itself.
    for parameter, name in names.items():
        if name in frozen:
            part = cast(Any, parameter).ds_tensor
            yield FlatTensor(weights=part, parameters=[name], fragments=_own_part(parameter, name, 0))


def _own_part(parameter: Any, name: str, offset: int) -> list[Fragment]:
    """What this process holds of a parameter under stage 3, if anything; the last parts are padded."""
    size = parameter.partition_numel()
    start = size * torch.distributed.get_rank(parameter.ds_process_group)
    length = min(size, parameter.ds_numel - start)
    if length <= 0:
        return []
    shape = tuple(parameter.ds_shape)
    return [Fragment(name=name, shape=shape, start=start, offset=offset, length=length)]


def local_state(zero: Any, network: nn.Module) -> LocalState:
    """This process's pieces of weights and optimizer state; buffers and frozen parameters are rank zero's."""
    flats = flat_tensors(zero, network)
    pieces = _untrained_pieces(network, {name for flat in flats for name in flat.parameters})
    for flat in flats:
        kept = {WEIGHTS: flat.weights, **zero.optimizer.state.get(flat.weights, {})}
        for kind, value in kept.items():
            if value is None:
                continue
            values = torch.as_tensor(value).detach()
            for part in flat.fragments:
                pieces[state_key(kind, part.name)] = (
                    Piece(shape=part.shape, start=part.start, values=part.of(values))
                    if values.shape == flat.weights.shape
                    else Piece(shape=(), start=0, values=values.reshape(-1))
                )
    return LocalState(pieces=pieces, groups=group_settings(zero.optimizer))


def _untrained_pieces(network: nn.Module, trained: set[str]) -> dict[str, Piece]:
    first = torch.distributed.get_rank() == 0
    pieces = {}
    for name, tensor in network.state_dict().items():
        if first and name not in trained:
            pieces[state_key(WEIGHTS, name)] = Piece(
                shape=tuple(tensor.shape), start=0, values=tensor.detach().reshape(-1)
            )
    return pieces


@torch.no_grad()
def load_state(zero: Any, network: nn.Module, reader: StateReader) -> None:
    """Fill weights and optimizer state from a checkpoint; a collective, as the live weights follow.

    Each process reads what it holds. Raises InputError where the checkpoint is of another network.
    """
    flats = flat_tensors(zero, network)
    trained = {name for flat in flats for name in flat.parameters}
    for name, tensor in network.state_dict().items():
        if name not in trained:
            tensor.copy_(_read(reader, WEIGHTS, name, tuple(tensor.shape)).reshape(tensor.shape))
    kinds = kinds_by_parameter(reader)
    # Numbers such as Adam's step stay on the CPU, except where they are wanted beside the weights.
    beside = any(group.get("fused") or group.get("capturable") for group in zero.optimizer.param_groups)
    for flat in flats:
        _fill(flat, flat.weights.detach(), WEIGHTS, reader)
        kept = sorted({kind for name in flat.parameters for kind in kinds.get(name, ())})
        zero.optimizer.state.pop(flat.weights, None)
        if kept:
            loaded = {kind: _loaded(flat, kind, reader) for kind in kept}
            zero.optimizer.state[flat.weights] = {
                kind: value.to(flat.weights.device) if beside else value for kind, value in loaded.items()
            }
    restore_groups(zero.optimizer.param_groups, reader)
    _spread_weights(zero)


def _loaded(flat: FlatTensor, kind: str, reader: StateReader) -> Tensor:
    """What the optimizer keeps for a flat tensor: as long as that, or a number that its parameters share."""
    known = [name for name in flat.parameters if state_key(kind, name) in reader.shapes]
    key = state_key(kind, known[0])
    if reader.shapes[key] == () and reader.shapes[state_key(WEIGHTS, known[0])] != ():
        return reader.read(key).reshape(()).clone()
    values = torch.zeros_like(flat.weights)
    _fill(flat, values, kind, reader)
    return values


def _fill(flat: FlatTensor, values: Tensor, kind: str, reader: StateReader) -> None:
    for part in flat.fragments:
        if kind == WEIGHTS or state_key(kind, part.name) in reader.shapes:
            end = part.start + part.length
            part.of(values).copy_(_read(reader, kind, part.name, part.shape, part.start, end))


def _read(
    reader: StateReader,
    kind: str,
    name: str,
    shape: tuple[int, ...],
    start: int = 0,
    stop: int | None = None,
) -> Tensor:
    key = state_key(kind, name)
    found = reader.shapes.get(key)
    if found is None or tuple(found) != shape:
        what = "lacks it" if found is None else f"has it with shape {tuple(found)}"
        raise InputError(
            f"The checkpoint is of another network: the one trained has {name} with shape {shape}, the "
            f"checkpoint {what}; resume with the options of the run that wrote it."
        )
    return reader.read(key, start, stop)


def _spread_weights(zero: Any) -> None:
    """Make the weights that are computed with those of the flat tensors, at every process."""
    if not _is_stage_3(zero):
        zero.update_lp_params()
        return
    zero._partition_all_parameters()
    for number in range(len(zero.fp16_groups)):
        zero._reassign_or_swap_out_partitioned_parameters(number)
    # Small parameters are whole at every process between steps.
    if zero.persistent_parameters:
        zero.persistent_parameters[0].all_gather(zero.persistent_parameters)
