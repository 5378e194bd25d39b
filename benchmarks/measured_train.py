"""`ketos train` that reports when its first batch came and the memory it holds after some steps, and ends.

python measured_train.py REPORT.json STEPS train OPTIONS…

Seconds count from the moment that everything `ketos train` imports has been imported. Memory is that of the
process and its readers: what is resident of anonymous pages, of files and of shared memory.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

IMPORTED = ("distrib.cli.compiling", "distrib.training.setup", "distrib.training.run")
"""With what they import themselves, all that `ketos train` imports when it begins."""

FIELDS = ("RssAnon", "RssFile", "RssShmem")


def family() -> list[int]:
    """This process and its children."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text(encoding="ascii").split()
    return [os.getpid(), *map(int, children)]


def memory() -> dict[str, list[int]]:
    """MiB of each kind for each process of the family, and ``VmHWM``, the most each ever held."""
    found: dict[str, list[int]] = {field: [] for field in (*FIELDS, "VmHWM")}
    for process in family():
        rows = Path(f"/proc/{process}/status").read_text(encoding="ascii").splitlines()
        values = dict(row.split(":", 1) for row in rows)
        for field, row in found.items():
            row.append(int(values[field].split()[0]) >> 10)
    return found


def main() -> None:
    """Run the command until it has done so many steps."""
    report, steps, words = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as `ketos` does
    for module in IMPORTED:
        import_module(module)
    from distrib.cli.main import ketos
    from distrib.training.recognition import RecognitionModule

    began = time.monotonic()
    facts: dict[str, Any] = {}
    step = RecognitionModule.training_step

    def measured_step(self: RecognitionModule, batch: Any, number: int) -> None:
        facts.setdefault("first_batch_seconds", time.monotonic() - began)
        step(self, batch, number)
        now = memory()
        held = sum(sum(now[field]) for field in FIELDS)
        facts["resident"] = max(held, facts.get("resident", 0))
        if batch.number + 1 >= steps:
            facts.update(steps=batch.number + 1, seconds=time.monotonic() - began, last=now)
            report.write_text(json.dumps(facts), encoding="utf-8")
            for child in family()[1:]:
                os.kill(child, signal.SIGKILL)
            os._exit(0)

    RecognitionModule.training_step = measured_step  # type: ignore[method-assign]
    ketos(words, prog_name="ketos")


if __name__ == "__main__":
    main()
