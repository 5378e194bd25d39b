"""The printed and the JSON form of an evaluation. Pure: counts in, text out.

``render_report`` follows the layout of kraken's ``ketos test`` line for line, so that scripts which
read that output read this one. It differs in one place: a script of several words (Old Italic) keeps
its whole name, where kraken prints the first word and adds up scripts that share it.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np

from distrib.training.breakdown import FileErrors, LineErrors
from distrib.training.metrics import ErrorCounts


def render_report(counts: ErrorCounts, *, model_name: str = "") -> str:
    """The test report, without its last newline: what ``click.echo`` prints is kraken's report.

    Args:
        counts: errors with detail (``ErrorCounts.detailed()``).
        model_name: put into the heading, where kraken leaves the place empty.
    """
    case_insensitive = counts.errors_case_insensitive, counts.characters_case_insensitive
    lines = [
        f"=== report {model_name} ===",
        "",
        f"{counts.characters}\tCharacters",
        f"{counts.errors}\tErrors",
        f"{_accuracy(counts.errors, counts.characters):.2%}\tCharacter Accuracy",
        f"{_accuracy(*case_insensitive):.2%}\tCharacter Accuracy (Case-insensitive)",
        f"{_accuracy(counts.word_errors, counts.words):.2%}\tWord Accuracy",
        "",
        f"{counts.insertions}\tInsertions",
        f"{counts.deletions}\tDeletions",
        f"{counts.substitutions}\tSubstitutions",
        "",
        "Count\tMissed\t%Right",
    ]
    by_accuracy = sorted(counts.scripts.items(), key=lambda item: -item[1].accuracy)
    lines += [f"{s.characters}\t{s.missed}\t{s.accuracy:.2%}\t{name}" for name, s in by_accuracy]
    lines += ["", "Errors\tCorrect-Generated"]
    for (truth, predicted), count in counts.confusions.most_common():
        lines.append(f"{count}\t{{ {visible_name(truth)} }} - {{ {visible_name(predicted)} }}")
    return "\n".join(lines) + "\n"


def visible_name(character: str) -> str:
    """A character as a reader can see it: itself, or its name (code point if it has none) where it
    combines, is a space or is invisible; the empty string stays empty."""
    if not character:
        return ""
    if unicodedata.category(character)[0] in "LNPS":
        return character
    return unicodedata.name(character, hex(ord(character)))


def report_json(
    counts: ErrorCounts,
    *,
    model_name: str = "",
    files: FileErrors | None = None,
    worst: Sequence[LineErrors] = (),
    unread: int = 0,
) -> dict[str, Any]:
    """Plain JSON values: ``model``, all of ``ErrorCounts.to_json``, ``unread_lines`` (lines that could not be
    read and do not count), ``files``, ``worst_lines``."""
    return {
        "model": model_name,
        **counts.to_json(),
        "unread_lines": unread,
        "files": files.to_json() if files else [],
        "worst_lines": [line.to_json() for line in worst],
    }


def render_files(files: FileErrors) -> str:
    """A heading and one row a file, tab separated, highest CER first, each ending in a newline."""
    rows = ["Characters\tErrors\tAccuracy\tLines\tFile"]
    for source, counts in files.worst_first():
        accuracy = f"{_accuracy(counts.errors, counts.characters):.2%}"
        rows.append(
            f"{counts.characters}\t{counts.errors}\t{accuracy}\t{counts.lines}\t{_on_one_line(source)}"
        )
    return "\n".join(rows) + "\n"


def render_worst(lines: Sequence[LineErrors], limit: int | None = None) -> str:
    """The first ``limit`` lines, three rows each: errors and place, ground truth, prediction.

    Control and other unprintable characters appear as escapes, so that no text can move the cursor.
    """
    rows: list[str] = []
    for line in lines[:limit]:
        place = _on_one_line(f"{line.source} {line.line_id}".rstrip())
        rows += [
            f"{line.errors} errors in {len(line.truth)} characters: {place}",
            f"  truth       {_on_one_line(line.truth)}",
            f"  prediction  {_on_one_line(line.prediction)}",
        ]
    return "\n".join(rows) + "\n" if rows else ""


def _accuracy(errors: int, total: int) -> float:
    # Single precision, as the rates behind kraken's report: otherwise ties in the second decimal of a
    # percentage (1 error in 800 characters) are printed the other way.
    if total == 0:
        return 1.0 - errors
    return float(np.float32(1.0) - np.float32(errors) / np.float32(total))


def _on_one_line(text: str) -> str:
    return "".join(c if c.isprintable() else f"\\u{{{ord(c):x}}}" for c in text)
