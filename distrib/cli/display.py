"""What commands print while they work: bars on a terminal, plain lines elsewhere, on standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_PLAIN_INTERVAL = 10.0


@contextmanager
def progress(title: str) -> Iterator[Callable[[int, int, str], None]]:
    """A function ``show(done, total, note)`` that draws a bar, or prints a line every ten seconds."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(file=sys.stderr)
    if not console.is_terminal:
        yield _plain(title)
        return
    columns = (
        TextColumn(title),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} {task.fields[note]}"),
    )
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
        task = bar.add_task(title, total=None, note="")
        yield lambda done, total, note: bar.update(task, completed=done, total=total, note=note)


def _plain(title: str) -> Callable[[int, int, str], None]:
    shown = time.monotonic()

    def show(done: int, total: int, note: str) -> None:
        nonlocal shown
        now = time.monotonic()
        if now - shown > _PLAIN_INTERVAL:
            shown = now
            print(f"{title}: {done} of {total} {note}".rstrip(), file=sys.stderr, flush=True)

    return show


def visible(text: str) -> str:
    """Text from outside with what could break the line or command the terminal written out."""
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)
