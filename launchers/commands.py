"""Command lines as people and shells read them."""

from __future__ import annotations

import shlex
from collections.abc import Sequence


def shown_command(words: Sequence[str]) -> str:
    """The words as one line of shell."""
    return " ".join(map(shlex.quote, words))
