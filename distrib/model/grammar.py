"""The VGSL grammar: from a spec string to the tree of ``distrib.model.spec``, without torch."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal, TypedDict, cast

from distrib.errors import InputError
from distrib.model.spec import (
    Addition,
    Block,
    Convolution,
    Dropout,
    Group,
    GroupNorm,
    Identity,
    InputBlock,
    MaxPool,
    Nonlinearity,
    Output,
    Recurrent,
    Reshape,
    Spec,
)


def parse_spec(text: str) -> Spec:
    """Parse a VGSL spec; raise InputError that points at the block it cannot use."""
    tokens = _TOKEN.findall(text)
    if tokens[:1] != ["["] or _closing(tokens) != len(tokens) - 1:
        raise InputError(
            f"VGSL spec `{text}`: a spec is one list in balanced brackets (nested up to 16 deep), as in "
            "`[1,48,0,1 Cr3,3,32 S1(1x0)1,3 Lbx100]`"
        )
    shape = _parse_input(text, tokens[1])
    reader = _Reader(tokens[2:-1])
    body = reader.group(parallel=False, end=None)
    if not body.children:
        raise InputError(f"VGSL spec `{text}`: there is no block after the input block")
    _refuse_repeated_names(body)
    return Spec(input=shape, body=body)


# The parentheses of a reshape belong to its word; all others are tokens of their own.
_TOKEN = re.compile(r"S(?:\{[^{}\s]*\})?\d*\([^()\[\]\s]*\)[^\s()\[\]]*|[()\[\]]|[^\s()\[\]]+")
_INPUT = re.compile(r"(\d{1,9}),(\d{1,9}),(\d{1,9}),(\d{1,9})", re.ASCII)


_DEEPEST: Final = 16
_OPENING: Final = {"[": "]", "(": ")"}


def _closing(tokens: list[str]) -> int | None:
    """The index of the token that closes the first one, None where brackets do not match."""
    expected: list[str] = []
    for index, token in enumerate(tokens):
        if token in _OPENING:
            expected.append(_OPENING[token])
        elif token in _OPENING.values():
            if not expected or expected.pop() != token:
                return None
            if not expected:
                return index
        if len(expected) > _DEEPEST:
            return None
    return None


def _parse_input(text: str, token: str) -> InputBlock:
    match = _INPUT.fullmatch(token)
    if match is None:
        raise InputError(
            f"VGSL spec `{text}`: `{token}` is not an input block like `1,48,0,1` "
            "(batch, height, width, channels)"
        )
    batch, height, width, channels = (int(group) for group in match.groups())
    if channels == 0:
        raise InputError(
            f"VGSL spec `{text}`: input block `{token}`: the number of channels cannot be variable"
        )
    return InputBlock(batch=batch, height=height, width=width, channels=channels)


def _refuse_repeated_names(body: Group) -> None:
    seen: dict[str, Block] = {}
    for block in body.leaves():
        if (first := seen.setdefault(block.name, block)) is not block:
            raise block.error(
                f"the name {block.name} is already block {first.position}'s; name one of them otherwise"
            )


class _Reader:
    """Reads the blocks of a group from a stream of tokens and counts the leaves."""

    def __init__(self, tokens: list[str]) -> None:
        self._tokens = iter(tokens)
        self._position = 0

    def group(self, *, parallel: bool, end: str | None) -> Group:
        children: list[Block | Group] = []
        for token in self._tokens:
            if token == end:
                break
            if token in _OPENING:
                children.append(self.group(parallel=_OPENING[token] == ")", end=_OPENING[token]))
            else:
                self._position += 1
                children.append(_parse_block(token, self._position))
        if end is not None and not children:
            raise InputError(f"VGSL spec: a pair of brackets behind block {self._position} holds no block")
        return Group(parallel=parallel, children=tuple(children))


class _Head(TypedDict):
    position: int
    text: str
    name: str
    canonical: str


@dataclass(frozen=True, kw_only=True)
class _Word:
    """A block's parts before it is understood: `Cr`, `stem` or None, `3,9,32`."""

    position: int
    text: str
    letters: str
    given_name: str | None
    numbers: str

    def error(self, problem: str) -> InputError:
        return InputError(f"VGSL spec, block {self.position} `{self.text}`: {problem}")

    def head(self, stem: str, numbers: str | None = None) -> _Head:
        """The fields of every Block; an unnamed block is called after its stem and place, from 0."""
        name = self.given_name or f"{stem}_{self.position - 1}"
        rest = self.numbers if numbers is None else numbers
        return {
            "position": self.position,
            "text": self.text,
            "name": name,
            "canonical": f"{self.letters}{{{name}}}{rest}",
        }

    def match(self, pattern: re.Pattern[str], usage: str) -> tuple[str | None, ...]:
        found = pattern.fullmatch(self.numbers)
        if found is None:
            raise self.error(f"write it as `{usage}`")
        return found.groups()

    def positive(self, **values: int) -> None:
        for what, value in values.items():
            if value < 1:
                raise self.error(f"the {what.replace('_', ' ')} has to be at least 1")


# kraken puts the name of `Do,2` behind the comma, so its own files hold `Do,{Do_1}2`.
_WORD = re.compile(r"([A-Za-z]+)([,.]?)(?:\{(\w+)\})?([^{}]*)", re.ASCII)
_CONVOLUTION = re.compile(
    r"(\d{1,9}),(\d{1,9}),(\d{1,9})(?:,(\d{1,9}),(\d{1,9}))?(?:,(\d{1,9}),(\d{1,9}))?", re.ASCII
)
_POOL = re.compile(r"(\d{1,9}),(\d{1,9})(?:,(\d{1,9}),(\d{1,9}))?", re.ASCII)
_DROPOUT = re.compile(r"(\d{1,9}(?:\.\d*)?|\.\d+)?(?:,(\d{1,9}))?", re.ASCII)
_RESHAPE = re.compile(r"(\d{1,9})\((\d{1,9})x(\d{1,9})\)(\d{1,9}),(\d{1,9})", re.ASCII)
_PAIR = re.compile(r"(\d{1,9}),(\d{1,9})", re.ASCII)
_OUTPUT = re.compile(r"(\d)([a-z])(a?)(\d{1,9})", re.ASCII)
_NUMBER = re.compile(r"(\d{1,9})", re.ASCII)
_EMPTY = re.compile("")
_AXES = ("batch", "height", "width", "channels")


def _parse_block(text: str, position: int) -> Block:
    parts = _WORD.fullmatch(text)
    if parts is None:
        raise InputError(f"VGSL spec, block {position} `{text}`: not a block; {_KNOWN_BLOCKS}")
    letters, mark, given_name, numbers = parts.groups()
    word = _Word(
        position=position, text=text, letters=letters, given_name=given_name, numbers=f"{mark}{numbers}"
    )
    for pattern, parse in _BLOCKS:
        if pattern.fullmatch(letters):
            return parse(word)
    if re.fullmatch("[LG][frb][xy]s?o", letters):
        raise word.error("peephole LSTMs of old ocropus models are not supported; use `L` without `o`")
    raise word.error(f"not a known block; {_KNOWN_BLOCKS}")


def _convolution(word: _Word) -> Convolution:
    usage = f"{word.letters}<height>,<width>,<channels>[,<stride y>,<stride x>[,<dilation y>,<dilation x>]]"
    values = [int(value or 1) for value in word.match(_CONVOLUTION, usage)]
    word.positive(kernel_size=min(values[:2]), number_of_channels=values[2], stride=min(values[3:5]))
    word.positive(dilation=min(values[5:]))
    transposed = word.letters.startswith("CT")
    kind = cast(Nonlinearity, word.letters[2 if transposed else 1 :])
    return Convolution(
        **word.head("C"),
        transposed=transposed,
        nonlinearity=kind,
        kernel=(values[0], values[1]),
        channels=values[2],
        stride=(values[3], values[4]),
        dilation=(values[5], values[6]),
    )


def _max_pool(word: _Word) -> MaxPool:
    height, width, down, right = word.match(_POOL, "Mp<height>,<width>[,<stride y>,<stride x>]")
    kernel = (int(height or 0), int(width or 0))
    stride = (int(down or kernel[0]), int(right or kernel[1]))
    word.positive(window=min(kernel), stride=min(stride))
    return MaxPool(**word.head("Mp"), kernel=kernel, stride=stride)


def _recurrent(word: _Word) -> Recurrent:
    (hidden,) = word.match(_NUMBER, f"{word.letters}<cells>")
    word.positive(number_of_cells=int(hidden or 0))
    return Recurrent(
        **word.head(word.letters[0]),
        bidirectional=word.letters[1] == "b",
        axis="x" if word.letters[2] == "x" else "y",
        summarise="s" in word.letters[3:],
        legacy="c" in word.letters[3:],
        hidden=int(hidden or 0),
    )


def _dropout(word: _Word) -> Dropout:
    usage = "Do[<probability>][,<1 for single values, 2 for channels>]"
    text, dimensions = word.match(_DROPOUT, usage)
    probability = float(text or 0.5)
    if not 0 <= probability <= 1:
        raise word.error("the probability has to be between 0 and 1")
    if dimensions not in (None, "1", "2"):
        raise word.error(f"write it as `{usage}`")
    # Written out because kraken cannot read back its own named form of `Do,2` and `Do.5`.
    written = word.numbers if text is None or not text.startswith(".") else f"0{word.numbers}"
    written = f"0.5{written}" if written.startswith(",") else written
    return Dropout(
        **word.head("Do", written), probability=probability, dimensions=2 if dimensions == "2" else 1
    )


def _group_norm(word: _Word) -> GroupNorm:
    (groups,) = word.match(_NUMBER, "Gn<groups>")
    word.positive(number_of_groups=int(groups or 0))
    return GroupNorm(**word.head("Gn"), groups=int(groups or 0))


def _reshape(word: _Word) -> Reshape:
    usage = "S<dimension>(<a>x<b>)<dimension of a>,<dimension of b>"
    source, a, b, high, low = (int(value or 0) for value in word.match(_RESHAPE, usage))
    if max(source, high, low) > 3:
        raise word.error("dimensions are 0 batch, 1 height, 2 width and 3 channels")
    if source not in (high, low):
        raise word.error(f"one part has to stay in the dimension that is split, {source} ({_AXES[source]})")
    if 0 in (source, high, low):
        raise word.error("lines cannot be split or joined along the batch dimension 0")
    if a == 0 and b == 0:
        raise word.error("only one of the two parts can be 0, which stands for what is left")
    return Reshape(**word.head("S"), source=source, a=a, b=b, high=high, low=low)


def _addition(word: _Word) -> Addition:
    dimension, chunk = (int(value or 0) for value in word.match(_PAIR, "A<dimension>,<chunk size>"))
    if dimension not in (1, 2, 3):
        raise word.error("the dimension is 1 height, 2 width or 3 channels")
    word.positive(chunk_size=chunk)
    return Addition(**word.head("A"), dimension=dimension, chunk=chunk)


def _identity(word: _Word) -> Identity:
    word.match(_EMPTY, "I")
    return Identity(**word.head("I"))


def _output(word: _Word) -> Output:
    usage = "O<1 for sequences, 2 for heat maps><c, s or l><classes>"
    dimensions, kind, augmented, classes = word.match(_OUTPUT, usage)
    if dimensions not in ("1", "2") or kind not in ("c", "s", "l"):
        raise word.error(f"write it as `{usage}`")
    if dimensions == "2" and (kind == "c" or augmented):
        raise word.error("CTC needs a sequence; write `O1c<classes>`, or `O2l<classes>` for a heat map")
    word.positive(number_of_classes=int(classes or 0))
    return Output(
        # kraken calls a heat map's layer after its kind, so its files hold `l_5` or `s_5`.
        **word.head("O" if dimensions == "1" else kind),
        dimensions=1 if dimensions == "1" else 2,
        kind=cast(Literal["c", "s", "l"], kind),
        augmented=bool(augmented),
        classes=int(classes or 0),
    )


_BLOCKS: Final[tuple[tuple[re.Pattern[str], Callable[[_Word], Block]], ...]] = (
    (re.compile("CT?(lr|[strlm])"), _convolution),
    (re.compile("Mp"), _max_pool),
    (re.compile("[LG][frb][xy]s?c?"), _recurrent),
    (re.compile("Do"), _dropout),
    (re.compile("Gn"), _group_norm),
    (re.compile("S"), _reshape),
    (re.compile("A"), _addition),
    (re.compile("I"), _identity),
    (re.compile("O"), _output),
)
_KNOWN_BLOCKS: Final = (
    "known are the convolutions C and CT with the non-linearity s, t, r, l, lr or m, Mp (max pooling), "
    "L and G with f, r or b and x or y (recurrent), Do, Gn, S, A, I and O"
)
