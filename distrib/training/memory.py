"""What a run says that has not enough memory: with what it failed, and what goes on without a change."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from distrib.config.learning import Learning

_TEXTS: Final = re.compile(
    r"out of memory|can't allocate memory|not enough memory|(CUBLAS|CUDNN)_STATUS_ALLOC_FAILED", re.I
)
_ON_HOST: Final = "CPUAllocator"
_SHARED: Final = re.compile(
    r"unable to allocate shared memory|out of shared memory"
    r"|(shared memory|/torch_)[^\n]*(No space left on device|Cannot allocate memory)",
    re.I,
)


def memory_exhausted(error: BaseException) -> bool:
    """Whether the memory of the device or of the machine has not sufficed; torch says it in many ways."""
    if isinstance(error, MemoryError):
        return True
    said = str(error)
    return isinstance(error, RuntimeError) and (_TEXTS.search(said) or _SHARED.search(said)) is not None


def memory_sentence(
    error: BaseException,
    options: Learning,
    *,
    device: str,
    micro_batch: tuple[int, int] | None,
    saved: Path | None,
) -> str:
    """What failed on ``device``, or on its machine, and what helps.

    ``micro_batch``: lines and columns of what was being computed, if anything was. ``saved``: the newest
    checkpoint, from which the run goes on with the global steps it had, whatever ``--batch-size`` is then.
    """
    # Open at its end: some remedies add options.
    go_on = options.way_on(options.checkpoint_path, saved=saved).removesuffix("`") if saved else ""
    if _SHARED.search(str(error)):
        return (
            "Out of shared memory on this machine (/dev/shm), through which the processes that read hand "
            "over what they have read; give the container more of it (--shm-size), or lessen --workers, and "
            + (f"{go_on}`." if go_on else "start again.")
        )
    place = "this machine" if isinstance(error, MemoryError) or _ON_HOST in str(error) else device
    if micro_batch is not None:
        lines, columns = micro_batch
        place += f" in a micro-batch of {lines} {'line' if lines == 1 else 'lines'}, {columns} columns wide"
    smaller = _smaller(options, resumed=saved is not None)
    if smaller is None:
        remedy = f"{go_on}` on" if go_on else "start again on"
        return (
            f"Out of memory on {place}; a single line is as little as can be computed at once: "
            f"{remedy} a device with more, or begin anew with a smaller --spec."
        )
    remedy = f"{go_on} {smaller}`" if go_on else f"start again with `{smaller}`"
    return (
        f"Out of memory on {place}; {remedy} (the same global steps in smaller parts: the curve "
        "stays the same), or let `ketos launch --auto-batch` find the size."
    )


def _smaller(options: Learning, *, resumed: bool) -> str | None:
    """The options of half a micro-batch; None where it is a line already."""
    if options.batch_size == 1:
        return None
    if options.batch_size:
        whole = f" --global-batch-size {options.global_batch_size}" if options.global_batch_size else ""
        return f"-B {options.batch_size // 2}" + ("" if resumed else whole)
    pixels = f"--batch-pixels {max(options.batch_pixels // 2, 1)}"
    # Steps cut by pixels follow from both options; a run that goes on keeps those it had.
    parts = f" --accumulate-grad-batches {2 * options.accumulate_grad_batches}"
    return pixels + ("" if resumed or options.global_batch_size else parts)
