"""The grammar: what is read, how it is named, and how what cannot be read is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distrib.errors import InputError
from distrib.model.grammar import parse_spec
from distrib.model.spec import Convolution, Dropout, Recurrent, Reshape


def block(text: str) -> object:
    (only,) = parse_spec(f"[1,48,0,1 {text}]").body.leaves()
    return only


@pytest.mark.oracle
def test_named_specs_are_krakens(oracle_dir: Path) -> None:
    """Weights would carry names that kraken does not find."""
    for case in json.loads((oracle_dir / "vgsl.json").read_text()):
        assert str(parse_spec(case["spec"])) == case["named_spec"]


@pytest.mark.parametrize(
    ("spec", "named"),
    [
        ("[1,48,0,1 Cr3,3,4 O2l4]", "[1,48,0,1 Cr{C_0}3,3,4 O{l_1}2l4]"),
        ("[1,48,0,1 Mp2,2 O{x}1s4]", "[1,48,0,1 Mp{Mp_0}2,2 O{x}1s4]"),
        ("[1,48,0,1 Cr{C_5}3,3,4 Cr3,3,4]", "[1,48,0,1 Cr{C_5}3,3,4 Cr{C_1}3,3,4]"),
        ("[1,48,0,1 Clr3,3,4 CTm3,3,4 I A3,2]", "[1,48,0,1 Clr{C_0}3,3,4 CTm{C_1}3,3,4 I{I_2} A{A_3}3,2]"),
        (" [1,48,0,1  ( Lfys8\n[I  Lfys4 ] ) ]", "[1,48,0,1 (Lfys{L_0}8 [I{I_1} Lfys{L_2}4])]"),
        # kraken's own named form, Do,{Do_0}2, loses the dimensions when kraken reads it again.
        ("[1,48,0,1 Do,2 Do,{x}2 Do.5 Do]", "[1,48,0,1 Do{Do_0}0.5,2 Do{x}0.5,2 Do{Do_2}0.5 Do{Do_3}]"),
    ],
)
def test_naming(spec: str, named: str) -> None:
    """Names would depend on spacing, nesting or explicit names in another way than kraken's."""
    assert str(parse_spec(spec)) == named
    assert str(parse_spec(named)) == named


def test_defaults_and_numbers() -> None:
    """Strides, dilations and probabilities would be read from the wrong place."""
    convolution = block("Clr3,5,7,2,1,4,6")
    assert isinstance(convolution, Convolution)
    assert (convolution.kernel, convolution.channels) == ((3, 5), 7)
    assert (convolution.stride, convolution.dilation) == ((2, 1), (4, 6))
    assert convolution.nonlinearity == "lr"
    dropout = block("Do0.1,2")
    assert isinstance(dropout, Dropout)
    assert (dropout.probability, dropout.dimensions) == (0.1, 2)
    recurrent = block("Gbys9")
    assert isinstance(recurrent, Recurrent)
    assert (recurrent.bidirectional, recurrent.axis, recurrent.summarise, recurrent.hidden) == (
        True,
        "y",
        True,
        9,
    )
    reshape = block("S{fold}1(1x0)1,3")
    assert isinstance(reshape, Reshape)
    assert (reshape.source, reshape.a, reshape.b, reshape.high, reshape.low) == (1, 1, 0, 1, 3)


@pytest.mark.parametrize(
    ("spec", "place", "reason"),
    [
        ("[1,48,0,1 Mp2,2 Do Cq3,3,8]", "block 3 `Cq3,3,8`", "not a known block"),
        ("[1,48,0,1 Ap2,2]", "block 1 `Ap2,2`", "not a known block"),
        ("[1,48,0,1 Cr3,3,4.5]", "block 1 `Cr3,3,4.5`", "write it as"),
        ("[1,48,0,1 Cr3,3,4,2]", "block 1 `Cr3,3,4,2`", "write it as"),
        ("[1,48,0,1 Cr0,3,4]", "block 1 `Cr0,3,4`", "kernel size"),
        ("[1,48,0,1 Cr3,3,4,0,1]", "block 1", "stride"),
        ("[1,48,0,1 Do1.5]", "block 1 `Do1.5`", "between 0 and 1"),
        ("[1,48,0,1 Do1,3]", "block 1", "write it as"),
        ("[1,48,0,1 Lbx0]", "block 1", "number of cells"),
        ("[1,48,0,1 Lbxo8]", "block 1", "peephole"),
        ("[1,48,0,1 S0(1x0)1,3]", "block 1", "has to stay"),
        ("[1,48,0,1 S1(1x0)1,0]", "block 1", "batch"),
        ("[1,48,0,1 S1(0x0)1,3]", "block 1", "only one"),
        ("[1,48,0,1 S1(1x0)1,7]", "block 1", "dimensions are"),
        ("[1,48,0,1 O2c4]", "block 1", "CTC"),
        ("[1,48,0,1 A0,4]", "block 1", "1 height"),
        ("[1,48,0,1 (I [Cr{a}3,3,8 Cr{a}3,3,8])]", "block 3 `Cr{a}3,3,8`", "the name a"),
        ("[1,48,0,1 I ()]", "behind block 1", "holds no block"),
        ("[1,48,0,1]", "`[1,48,0,1]`", "no block after"),
        ("[1,48,0 I]", "`1,48,0`", "not an input block"),
        ("[1,48,0,0 I]", "`1,48,0,0`", "cannot be"),
        ("[1,48,0,1 (I]", "`[1,48,0,1 (I]`", "balanced brackets"),
        ("[1,48,0,1 I] O1c3", "O1c3", "balanced brackets"),
        ("", "", "balanced brackets"),
        ("[1,48,0,1 " + "(" * 5000 + "I" + ")" * 5000 + "]", "", "16 deep"),
    ],
)
def test_refusals_name_the_place(spec: str, place: str, reason: str) -> None:
    """A user would have to guess which block of a long spec is wrong."""
    with pytest.raises(InputError) as caught:
        parse_spec(spec)
    assert place in str(caught.value)
    assert reason in str(caught.value)


@given(st.text(alphabet="[]() ,.x{}0123456789CTMpLGDoSAIOrfbxyslcn", max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    """A mistyped spec would end in a traceback, or its named form would not be readable."""
    for candidate in (text, f"[1,48,0,1 {text}]"):
        try:
            spec = parse_spec(candidate)
        except InputError:
            continue
        assert str(parse_spec(str(spec))) == str(spec)
