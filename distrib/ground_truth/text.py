"""From the text as transcribed to the text a model learns: normalised, and in display order."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import Literal

from distrib.ground_truth.display_order import display_order
from distrib.ground_truth.records import BaseDirection

Normalization = Literal["NFC", "NFD", "NFKC", "NFKD"]

# Python's \s also holds the four information separators, which are control characters, not spaces.
_WHITESPACE = re.compile(r"[^\S\x1c-\x1f]")
_LINE_BREAKS = re.compile(r"(?:\r\n|[\n\r\x0b\x0c\x85\u2028\u2029])+")


@dataclass(frozen=True, kw_only=True)
class TextPipeline:
    """Unicode normalisation, whitespace, display order, in this sequence; each is optional.

    ``base_dir`` is the direction of the embedding paragraph: ``auto`` takes the direction the line's
    ground truth states, or failing that the one of its first strong character.
    """

    normalization: Normalization | None = None
    normalize_whitespace: bool = False
    reorder: bool = False
    base_dir: Literal["L", "R", "auto"] = "auto"

    def __call__(self, text: str, base_dir: BaseDirection | None = None) -> str:
        """The text to learn for a line; the line's ``base_dir`` counts only where ours is ``auto``."""
        if self.normalization is not None:
            text = unicodedata.normalize(self.normalization, text)
        if self.normalize_whitespace:
            text = normalize_whitespace(text)
        if self.reorder:
            text = display_order(text, base_dir if self.base_dir == "auto" else self.base_dir)
        return text


def normalize_whitespace(text: str) -> str:
    """Every whitespace character becomes a space, those at the ends go; runs keep their length."""
    return _WHITESPACE.sub(" ", text).strip()


def single_line(text: str) -> str:
    """The text without line breaks: those at the ends go, one inside becomes a space.

    Ground truth of one line cannot hold a line break: it comes from the layout of a file or from a
    transcriber's return key, and as a label it would be a character that no image shows.
    """
    if _LINE_BREAKS.search(text) is None:
        return text
    return _LINE_BREAKS.sub("\n", text).strip("\n").replace("\n", " ")
