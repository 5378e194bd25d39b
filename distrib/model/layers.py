"""The layers of a VGSL network.

A layer maps ``(lines, widths)`` to the same: ``lines`` is (N, C, H, W) and ``widths`` the widths of the
lines, or None where every line fills the whole tensor, which costs no masking and no packing. Each
layer finds zero in the padding and leaves zero there (see ``distrib.model.widths``). The names of the
parameters are those of kraken's weights files.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distrib.model import spec
from distrib.model.recurrent import SequenceLSTM
from distrib.model.shapes import Shape, output_width, padding, reshape_parts
from distrib.model.widths import LineWidths, zero_padding, zero_padding_

Lines = tuple[Tensor, LineWidths | None]


class Layer(nn.Module):
    """A block of the spec for an input of a known shape."""

    def __init__(self, block: spec.Block, shape: Shape) -> None:
        super().__init__()
        self.block = block
        self._shape = shape

    def forward(self, lines: Tensor, widths: LineWidths | None) -> Lines:
        raise NotImplementedError

    def _widths_after(self, widths: LineWidths | None) -> LineWidths | None:
        if widths is None:
            return None
        return widths.map(lambda values: output_width(self.block, self._shape, values))

    def extra_repr(self) -> str:
        return self.block.canonical


class IdentityLayer(Layer):
    def forward(self, lines: Tensor, widths: LineWidths | None) -> Lines:
        return lines, widths


class ConvolutionLayer(Layer):
    """Convolution or transposed convolution and its non-linearity.

    ``s`` is no sigmoid but the identity, as it is in kraken 7 for every convolution.
    """

    block: spec.Convolution

    def __init__(self, block: spec.Convolution, shape: Shape) -> None:
        super().__init__(block, shape)
        kind = nn.ConvTranspose2d if block.transposed else nn.Conv2d
        zeros = (
            padding(block.kernel[0], block.dilation[0]),
            padding(block.kernel[1], block.dilation[1]),
        )
        self.co = kind(
            shape.channels,
            block.channels,
            block.kernel,
            stride=block.stride,
            padding=zeros,
            dilation=block.dilation,
        )
        self._nonlinearity = block.nonlinearity

    def forward(self, lines: Tensor, widths: LineWidths | None) -> Lines:
        lines = self.co(lines)
        widths = self._widths_after(widths)
        if self._nonlinearity == "m":
            return zero_padding(lines.softmax(1), widths), widths
        if self._nonlinearity == "r":
            # The gradient of ReLU is zero where its output is, so autograd need not know of the zeros.
            with torch.no_grad():
                zero_padding_(lines, widths)
            return F.relu(lines, inplace=True), widths
        lines = zero_padding_(lines, widths)
        if self._nonlinearity == "t":
            return lines.tanh(), widths
        return F.leaky_relu(lines, inplace=True) if self._nonlinearity == "lr" else lines, widths


class MaxPoolLayer(Layer):
    block: spec.MaxPool

    def __init__(self, block: spec.MaxPool, shape: Shape) -> None:
        super().__init__(block, shape)
        self._kernel, self._stride = block.kernel, block.stride

    def forward(self, lines: Tensor, widths: LineWidths | None) -> Lines:
        widths = self._widths_after(widths)
        # The window at a line's end may reach into the padding.
        return zero_padding_(F.max_pool2d(lines, self._kernel, self._stride), widths), widths


class RecurrentLayer(Layer):
    """One LSTM along x (each row a sequence, packed) or y (each column a sequence)."""

    block: spec.Recurrent

    def __init__(self, block: spec.Recurrent, shape: Shape) -> None:
        super().__init__(block, shape)
        self.layer = SequenceLSTM(
            shape.channels + (1 if block.legacy else 0),
            block.hidden,
            bidirectional=block.bidirectional,
            bias=not block.legacy,
        )
        self._axis, self._summarise, self._legacy = block.axis, block.summarise, block.legacy

    def forward(self, lines: Tensor, widths: LineWidths | None) -> Lines:
        if self._legacy:
            lines = torch.cat([torch.ones_like(lines[:, :1]), lines], dim=1)
        along = self._along_y if self._axis == "y" else self._along_x
        return along(lines, widths), self._widths_after(widths)

    def _along_y(self, lines: Tensor, widths: LineWidths | None) -> Tensor:
        count, channels, height, width = lines.shape
        columns = lines.permute(0, 3, 2, 1).reshape(count * width, height, channels)
        output: Tensor = self.layer(columns, None)
        if self._summarise:
            output = output[:, -1:]
        output = output.reshape(count, width, -1, output.shape[-1]).permute(0, 3, 2, 1)
        return zero_padding(output, widths)

    def _along_x(self, lines: Tensor, widths: LineWidths | None) -> Tensor:
        count, channels, height, width = lines.shape
        rows = lines.permute(0, 2, 3, 1).reshape(count * height, width, channels)
        lengths = None if widths is None else widths.values.repeat_interleave(height)
        output: Tensor = self.layer(rows, lengths)
        if self._summarise and widths is None:
            output = output[:, -1:]
        elif self._summarise and widths is not None:
            ends = (widths.on(lines.device) - 1).repeat_interleave(height)
            output = output[torch.arange(len(output), device=lines.device), ends].unsqueeze(1)
        return output.reshape(count, height, -1, output.shape[-1]).permute(0, 3, 1, 2)


class DropoutLayer(Layer):
    block: spec.Dropout

    def __init__(self, block: spec.Dropout, shape: Shape) -> None:
        super().__init__(block, shape)
        self._drop = F.dropout2d if block.dimensions == 2 else F.dropout
        self._probability = block.probability

    def forward(self, lines: Tensor, widths: LineWidths | None) -> Lines:
        if not self.training:
            return lines, widths
        return self._drop(lines, self._probability), widths


class GroupNormLayer(Layer):
    """Group normalisation over a line's own columns; the padding has no part in mean and variance."""

    block: spec.GroupNorm

    def __init__(self, block: spec.GroupNorm, shape: Shape) -> None:
        super().__init__(block, shape)
        self.layer = nn.GroupNorm(block.groups, shape.channels)

    def forward(self, lines: Tensor, widths: LineWidths | None) -> Lines:
        if widths is None:
            return self.layer(lines).to(lines.dtype), None
        groups, epsilon = self.layer.num_groups, self.layer.eps
        count, channels, height, width = lines.shape
        grouped = lines.float().reshape(count, groups, channels // groups, height, width)
        valid = (widths.on(lines.device) * (height * channels // groups)).view(count, 1, 1, 1, 1)
        mean = grouped.sum(dim=(2, 3, 4), keepdim=True) / valid
        centred = zero_padding((grouped - mean).reshape(lines.shape), widths)
        variance = centred.reshape(grouped.shape).square().sum(dim=(2, 3, 4), keepdim=True) / valid
        scale = (variance + epsilon).rsqrt().reshape(count, groups, 1).expand(-1, -1, channels // groups)
        scale = scale.reshape(count, channels, 1, 1) * self.layer.weight.float()[:, None, None]
        normalised = centred * scale + self.layer.bias.float()[:, None, None]
        return zero_padding_(normalised, widths).to(lines.dtype), widths


class ReshapeLayer(Layer):
    """``S``: part of one dimension moves in front of another one's."""

    block: spec.Reshape

    def __init__(self, block: spec.Reshape, shape: Shape) -> None:
        super().__init__(block, shape)
        source = (shape.height, shape.width, shape.channels)[block.source - 1]
        self._source = block.source
        self._parts = reshape_parts(block, source)
        self._high_stays = block.high == block.source
        self._target = block.low if self._high_stays else block.high

    def forward(self, lines: Tensor, widths: LineWidths | None) -> Lines:
        if widths is not None and 2 in (self._source, self._target):
            return self._line_by_line(lines, widths)
        return self._reshape(lines), widths

    def _reshape(self, lines: Tensor) -> Tensor:
        # Dimensions are numbered N, H, W, C in the spec; the result lies in memory in that order, too,
        # which is the order the recurrent layers that follow want.
        natural = lines.permute(0, 2, 3, 1)
        sizes = natural.shape
        parts = natural.reshape(*sizes[: self._source], *self._parts, *sizes[self._source + 1 :])
        moved = self._source + (1 if self._high_stays else 0)
        stays = self._source + (0 if self._high_stays else 1)
        if self._target == self._source:
            order = [axis for axis in range(5) if axis not in (moved, stays)]
            order[self._source : self._source] = [moved, stays]
            target = self._source
        else:
            order = [axis for axis in range(5) if axis != moved]
            target = self._target
            order.insert(target, moved)
        return parts.permute(order).flatten(target, target + 1).permute(0, 3, 1, 2)

    def _line_by_line(self, lines: Tensor, widths: LineWidths) -> Lines:
        after = cast(LineWidths, self._widths_after(widths))
        longest = int(after.values.max())
        outputs = []
        for index, width in enumerate(widths.values.tolist()):
            output = self._reshape(lines[index : index + 1, :, :, :width])
            outputs.append(F.pad(output, (0, longest - output.shape[-1])))
        return torch.cat(outputs), after


class AdditionLayer(Layer):
    """``A``: the sum of a dimension's chunks; what is left over at the end is dropped."""

    block: spec.Addition

    def __init__(self, block: spec.Addition, shape: Shape) -> None:
        super().__init__(block, shape)
        self._axis = (2, 3, 1)[block.dimension - 1]
        self._chunk = block.chunk

    def forward(self, lines: Tensor, widths: LineWidths | None) -> Lines:
        if self._axis == 3 and widths is not None:
            whole = widths.map(lambda values: values // self._chunk * self._chunk)
            lines = zero_padding(lines, whole)
        sizes = lines.shape
        chunks = sizes[self._axis] // self._chunk
        lines = lines.narrow(self._axis, 0, chunks * self._chunk)
        lines = lines.reshape(*sizes[: self._axis], chunks, self._chunk, *sizes[self._axis + 1 :])
        return lines.sum(self._axis), self._widths_after(widths)


class SequenceOutput(Layer):
    """``O1``: a linear layer over the channels of each column; gives raw scores."""

    block: spec.Output

    def __init__(self, block: spec.Output, shape: Shape) -> None:
        super().__init__(block, shape)
        self.lin = nn.Linear(shape.channels + (1 if block.augmented else 0), block.classes)
        self._augmented = block.augmented

    def forward(self, lines: Tensor, widths: LineWidths | None) -> Lines:
        if self._augmented:
            lines = torch.cat([torch.ones_like(lines[:, :1]), lines], dim=1)
        return self.lin(lines.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), widths


class HeatMapOutput(Layer):
    """``O2``: a 1x1 convolution; gives raw scores."""

    block: spec.Output

    def __init__(self, block: spec.Output, shape: Shape) -> None:
        super().__init__(block, shape)
        self.co = nn.Conv2d(shape.channels, block.classes, 1)

    def forward(self, lines: Tensor, widths: LineWidths | None) -> Lines:
        return self.co(lines), widths


class _Layers(nn.Module):
    def __init__(self, children: Mapping[str, nn.Module]) -> None:
        super().__init__()
        for name, child in children.items():
            self.add_module(name, child)


class Series(_Layers):
    """``[ ]``: one layer after the other."""

    def forward(self, lines: Tensor, widths: LineWidths | None) -> Lines:
        for layer in self.children():
            lines, widths = layer(lines, widths)
        return lines, widths


class Parallel(_Layers):
    """``( )``: the layers' outputs for the same input, joined along the channels."""

    def forward(self, lines: Tensor, widths: LineWidths | None) -> Lines:
        results = [branch(lines, widths) for branch in self.children()]
        return torch.cat([output for output, _ in results], dim=1), results[0][1]
