"""Shapes and widths of a VGSL network, computed from its spec without building it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from distrib.errors import InputError
from distrib.model.spec import (
    Addition,
    Block,
    Convolution,
    Group,
    GroupNorm,
    MaxPool,
    Output,
    Recurrent,
    Reshape,
    Spec,
)

if TYPE_CHECKING:
    import torch

Width = TypeVar("Width", int, "torch.Tensor", "np.ndarray[Any, Any]")
"""A width in pixels, or an integer array or tensor of widths."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Channels, height and width; height and width are 0 where they vary.

    ``declared_width`` is the width kraken states for the layer: a reshape turns a variable width into
    1 there. Only ``VGSLNetwork.output_shape`` shows it.
    """

    channels: int
    height: int
    width: int
    declared_width: int


def input_shape(spec: Spec) -> Shape:
    """The shape of a spec's input block."""
    block = spec.input
    return Shape(channels=block.channels, height=block.height, width=block.width, declared_width=block.width)


def output_shape(part: Block | Group, shape: Shape) -> Shape:
    """The shape of a block's or group's output; raises InputError where the block cannot take the shape."""
    if isinstance(part, Group):
        return _parallel(part, shape) if part.parallel else _series(part, shape)
    if isinstance(part, Convolution):
        return _convolution(part, shape)
    if isinstance(part, MaxPool):
        return _max_pool(part, shape)
    if isinstance(part, Recurrent):
        return _recurrent(part, shape)
    if isinstance(part, Reshape):
        return _reshape(part, shape)
    if isinstance(part, Addition):
        return _addition(part, shape)
    if isinstance(part, GroupNorm) and shape.channels % part.groups:
        raise part.error(f"its {shape.channels} input channels cannot be divided into {part.groups} groups")
    if isinstance(part, Output):
        return replace(shape, channels=part.classes)
    return shape


def output_width(part: Block | Group, shape: Shape, width: Width) -> Width:
    """The width of a block's or group's output for lines of the given width; 0 if too narrow."""
    if isinstance(part, Group):
        if part.parallel:
            return output_width(part.children[0], shape, width)
        for child in part.children:
            width = output_width(child, shape, width)
            shape = output_shape(child, shape)
        return width
    if isinstance(part, Convolution):
        length = _transposed_length if part.transposed else _convolved_length
        return length(width, part.kernel[1], part.stride[1], part.dilation[1])
    if isinstance(part, MaxPool):
        return _pooled_length(width, part.kernel[1], part.stride[1])
    if isinstance(part, Recurrent) and part.summarise and part.axis == "x":
        return _where_positive(width, width * 0 + 1)
    if isinstance(part, Addition) and part.dimension == 2:
        return _where_positive(width // part.chunk, width * 0 + part.chunk)
    if isinstance(part, Reshape) and (source := _size(part.source, shape)):
        a, b = reshape_parts(part, source)
        target, moved = (part.low, b) if part.high == part.source else (part.high, a)
        if target == 2 != part.source:
            return width * moved
        if part.source == 2 != target:
            return width * 0 + source // moved
    return width


def padding(kernel: int, dilation: int) -> int:
    """Zeros a convolution adds on each side: "same" for odd kernels, one short for even ones."""
    return dilation * (kernel - 1) // 2


def reshape_parts(block: Reshape, size: int) -> tuple[int, int]:
    """The sizes of both parts of a dimension of the given size."""
    a = block.a or size // block.b
    b = block.b or size // block.a
    if a * b != size:
        raise block.error(f"it splits a dimension of size {size}, which is not {block.a} x {block.b}")
    return a, b


def _at_least_zero(length: Width) -> Width:
    return max(length, 0) if isinstance(length, int) else length.clip(0)


def _where_positive(length: Width, result: Width) -> Width:
    """``result`` where ``length`` is above 0, else 0."""
    return result * (length > 0)


def _convolved_length(length: Width, kernel: int, stride: int, dilation: int) -> Width:
    reach = dilation * (kernel - 1) - 2 * padding(kernel, dilation)
    return _at_least_zero((length - reach - 1) // stride + 1)


def _transposed_length(length: Width, kernel: int, stride: int, dilation: int) -> Width:
    grown = (length - 1) * stride - 2 * padding(kernel, dilation) + dilation * (kernel - 1) + 1
    return _where_positive(length, _at_least_zero(grown))


def _pooled_length(length: Width, kernel: int, stride: int) -> Width:
    return _at_least_zero((length - kernel) // stride + 1)


def _size(dimension: int, shape: Shape) -> int:
    """The size of a dimension numbered as in a spec (1 height, 2 width, 3 channels)."""
    return (shape.height, shape.width, shape.channels)[dimension - 1]


def _with_size(dimension: int, size: int, shape: Shape) -> Shape:
    if dimension == 1:
        return replace(shape, height=size)
    if dimension == 2:
        return replace(shape, width=size, declared_width=size)
    return replace(shape, channels=size)


def _series(group: Group, shape: Shape) -> Shape:
    for child in group.children:
        shape = output_shape(child, shape)
    return shape


def _parallel(group: Group, shape: Shape) -> Shape:
    outputs = [output_shape(child, shape) for child in group.children]
    first = outputs[0]
    samples = np.arange(1, 65)
    widths = [output_width(child, shape, samples).tolist() for child in group.children]
    for output, produced in zip(outputs[1:], widths[1:], strict=True):
        if output.height != first.height or produced != widths[0]:
            raise InputError(
                f"VGSL spec, parallel block `{group.name}`: its branches' outputs differ in height or, for "
                "some line widths, in width; use the same strides and odd kernels in all branches"
            )
    return replace(first, channels=sum(output.channels for output in outputs))


def _convolution(block: Convolution, shape: Shape) -> Shape:
    length = _transposed_length if block.transposed else _convolved_length
    height = length(shape.height, block.kernel[0], block.stride[0], block.dilation[0])
    _refuse_flat(block, shape, height)
    width = length(shape.width, block.kernel[1], block.stride[1], block.dilation[1])
    declared = length(shape.declared_width, block.kernel[1], block.stride[1], block.dilation[1])
    return Shape(
        channels=block.channels,
        height=height,
        width=width,
        declared_width=max(declared, 1) if shape.declared_width else 0,
    )


def _max_pool(block: MaxPool, shape: Shape) -> Shape:
    height = _pooled_length(shape.height, block.kernel[0], block.stride[0])
    _refuse_flat(block, shape, height)
    return replace(
        shape,
        height=height,
        width=_pooled_length(shape.width, block.kernel[1], block.stride[1]),
        declared_width=_pooled_length(shape.declared_width, block.kernel[1], block.stride[1]),
    )


def _refuse_flat(block: Block, shape: Shape, height: int) -> None:
    if shape.height and height < 1:
        raise block.error(f"its input is {shape.height} pixels high, too low for it")


def _recurrent(block: Recurrent, shape: Shape) -> Shape:
    shape = replace(shape, channels=block.hidden * (2 if block.bidirectional else 1))
    if block.summarise:
        shape = _with_size(1 if block.axis == "y" else 2, 1, shape)
    return shape


def _reshape(block: Reshape, shape: Shape) -> Shape:
    source = _size(block.source, shape)
    if source == 0:
        dimension = ("height", "width")[block.source - 1]
        raise block.error(f"it splits the {dimension}, which is variable here; give it in the input block")
    a, b = reshape_parts(block, source)
    stays, moved, target = (a, b, block.low) if block.high == block.source else (b, a, block.high)
    # As in kraken, which asks a tensor of width 1 where the width varies.
    shape = replace(shape, declared_width=shape.declared_width or 1)
    if target == block.source:
        return shape
    declared = shape.declared_width
    old = _size(target, shape)
    if target == 1 and not old:
        raise block.error("it changes the height, which is variable here; give it in the input block")
    shape = _with_size(target, old * moved, _with_size(block.source, stays, shape))
    return replace(shape, declared_width=declared * moved) if target == 2 else shape


def _addition(block: Addition, shape: Shape) -> Shape:
    size = _size(block.dimension, shape)
    if 0 < size < block.chunk:
        raise block.error(f"its chunks of {block.chunk} are larger than the dimension, which is {size}")
    return _with_size(block.dimension, block.chunk, shape)
