"""VGSL specs as a typed tree of blocks; ``distrib.model.grammar`` reads one from a string.

VGSL (Variable-size Graph Specification Language) writes a network as a list of blocks::

    [1,48,0,1 Cr3,9,32 Mp2,2 S1(1x0)1,3 Lbx100 Do0.1,2 O1c60]

The first block is the input (batch, height, width, channels; 0 is variable). ``[ ]`` nests a series
and ``( )`` a parallel of blocks whose outputs are joined along the channels. Any block may be named
in braces after its letters (``Cr{stem}3,9,32``). A named spec names every block; the names are the
keys of the weights file, so they are assigned exactly as kraken assigns them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from distrib.errors import InputError

Nonlinearity = Literal["s", "t", "r", "l", "lr", "m"]
Size = tuple[int, int]
"""(height, width) in pixels."""


@dataclass(frozen=True, kw_only=True)
class InputBlock:
    """The first block of a spec; 0 means variable."""

    batch: int
    height: int
    width: int
    channels: int


@dataclass(frozen=True, kw_only=True)
class Block:
    """A leaf of the tree. ``position`` counts the leaves from 1, ``text`` is as the user wrote it."""

    position: int
    text: str
    name: str
    canonical: str
    """The block as it stands in the named spec."""

    def error(self, problem: str) -> InputError:
        """An error that points at this block."""
        return InputError(f"VGSL spec, block {self.position} `{self.text}`: {problem}")


@dataclass(frozen=True, kw_only=True)
class Convolution(Block):
    """``C`` or, transposed, ``CT``: kernel, output channels, stride, dilation, non-linearity."""

    transposed: bool
    nonlinearity: Nonlinearity
    kernel: Size
    channels: int
    stride: Size
    dilation: Size


@dataclass(frozen=True, kw_only=True)
class MaxPool(Block):
    """``Mp``: no padding, incomplete windows are dropped."""

    kernel: Size
    stride: Size


@dataclass(frozen=True, kw_only=True)
class Recurrent(Block):
    """``L`` or ``G``: an LSTM along x or y; ``summarise`` keeps its last output only.

    kraken builds an LSTM for both letters and runs ``r`` forwards like ``f``; since the same weights
    have to give the same output there, so does this package. ``legacy`` (letter ``c``) is the CLSTM
    variant: a constant 1 as an additional first input channel, and no biases.
    """

    bidirectional: bool
    axis: Literal["x", "y"]
    summarise: bool
    legacy: bool
    hidden: int


@dataclass(frozen=True, kw_only=True)
class Dropout(Block):
    """``Do``: probability and whether single values (1) or whole channels (2) are dropped."""

    probability: float
    dimensions: Literal[1, 2]


@dataclass(frozen=True, kw_only=True)
class GroupNorm(Block):
    """``Gn``: group normalisation in so many groups."""

    groups: int


@dataclass(frozen=True, kw_only=True)
class Reshape(Block):
    """``S<source>(<a>x<b>)<high>,<low>``: split one dimension and move one part into another.

    Dimensions count batch, height, width, channels from 0. One of ``high`` and ``low`` is the source;
    the part of the other one moves there. 0 for ``a`` or ``b`` stands for what is left.
    """

    source: int
    a: int
    b: int
    high: int
    low: int


@dataclass(frozen=True, kw_only=True)
class Addition(Block):
    """``A``: sum of consecutive chunks of the given size along one dimension (numbered as in S)."""

    dimension: int
    chunk: int


@dataclass(frozen=True, kw_only=True)
class Identity(Block):
    """``I``: its input."""


@dataclass(frozen=True, kw_only=True)
class Output(Block):
    """``O``: a linear layer for a sequence (1) or a 1x1 convolution for a heat map (2).

    ``kind`` is c (CTC), s (softmax) or l (logistic). ``augmented`` (letter ``a``) adds a constant 1 as
    first input channel.
    """

    dimensions: Literal[1, 2]
    kind: Literal["c", "s", "l"]
    augmented: bool
    classes: int


@dataclass(frozen=True, kw_only=True)
class Group:
    """A series ``[ ]`` or, ``parallel``, a parallel ``( )`` of blocks and groups."""

    parallel: bool
    children: tuple[Block | Group, ...]

    def leaves(self) -> Iterator[Block]:
        """All blocks in order of appearance."""
        for child in self.children:
            if isinstance(child, Group):
                yield from child.leaves()
            else:
                yield child

    @property
    def name(self) -> str:
        """The names of the group's blocks, joined by spaces, which is the group's name in weights files."""
        return " ".join(block.name for block in self.leaves())


@dataclass(frozen=True, kw_only=True)
class Spec:
    """A parsed spec. ``str(spec)`` is the named spec."""

    input: InputBlock
    body: Group

    def __str__(self) -> str:
        shape = self.input
        head = f"{shape.batch},{shape.height},{shape.width},{shape.channels}"
        return f"[{head} {_join(self.body.children)}]"


def _join(children: tuple[Block | Group, ...]) -> str:
    parts = []
    for child in children:
        if isinstance(child, Group):
            inner = _join(child.children)
            parts.append(f"({inner})" if child.parallel else f"[{inner}]")
        else:
            parts.append(child.canonical)
    return " ".join(parts)
