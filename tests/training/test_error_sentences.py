"""What ends a fit is told apart by what a launcher can do about it, with a sentence for the user."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from distrib.config.learning import Train
from distrib.errors import KetosError, OutOfMemory, PeerLost, Unexpected
from distrib.training.memory import memory_exhausted, memory_sentence
from distrib.training.run import _explained

NO_SHARED_MEMORY = [
    "unable to allocate shared memory(shm) for file </torch_77_12_0>: Resource temporarily unavailable (11)",
    "unable to write to file </torch_77_12_0>: No space left on device (28)",
    "unable to mmap 4096 bytes from file </torch_77_12_0>: Cannot allocate memory (12)",
]


@pytest.mark.parametrize(
    ("error", "several", "kind"),
    [
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False, Unexpected),
        (RuntimeError("CUDA error: uncorrectable ECC error encountered"), True, Unexpected),
        (RuntimeError("CUDA error: unspecified launch failure"), True, Unexpected),
        (ZeroDivisionError("division by zero"), False, Unexpected),
        (RuntimeError("Application timeout caused pair closure"), True, PeerLost),
        (RuntimeError("CUDA error: out of memory"), True, OutOfMemory),
        (RuntimeError(NO_SHARED_MEMORY[0]), False, OutOfMemory),
    ],
    ids=lambda value: str(value)[:50] if isinstance(value, Exception) else None,
)
def test_what_nobody_foresaw_may_be_tried_again(
    error: Exception, several: bool, kind: type[KetosError], tmp_path: Path
) -> None:
    """Broken: a GPU's one bad moment ends a run of days, as a failure that would surely come again."""
    run = SimpleNamespace(
        options=Train(checkpoint_path=tmp_path, batch_size=16), processes=SimpleNamespace(several=several)
    )
    module = SimpleNamespace(device="cuda:0", computing=None)
    explained = _explained(error, cast(Any, run), cast(Any, module))
    assert type(explained) is kind
    assert "start" in str(explained)


@pytest.mark.parametrize("text", NO_SHARED_MEMORY)
@pytest.mark.parametrize("saved", [None, "a.ckpt"])
def test_want_of_shared_memory_has_a_remedy_of_its_own(text: str, saved: str | None) -> None:
    """Broken: its user makes batches smaller, or looks at a disk with room."""
    error, options = RuntimeError(text), Train()
    assert memory_exhausted(error)
    path = None if saved is None else options.checkpoint_path / saved
    sentence = memory_sentence(error, options, device="cuda:0", micro_batch=(16, 2350), saved=path)
    assert sentence.startswith("Out of shared memory on this machine (/dev/shm)")
    assert "(--shm-size), or lessen --workers, and " in sentence
    assert "cuda" not in sentence
    assert sentence.endswith(
        "start again." if saved is None else "go on from a.ckpt with `ketos train --resume model`."
    )


@pytest.mark.parametrize(
    "text",
    [
        "unable to open shared memory object </torch_1> in read-write mode: Too many open files (24)",
        "unable to mmap 4096 bytes from file <model.bin>: Invalid argument (22)",
    ],
)
def test_other_trouble_with_files_is_no_want_of_memory(text: str) -> None:
    assert not memory_exhausted(RuntimeError(text))
