"""Records of a run survive what happens to it: kills in the middle of a line, full disks, odd facts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distrib.runtime.directory.events import EventLog, read_events
from distrib.runtime.directory.json_lines import JsonLines, read_rows

FACTS = st.dictionaries(
    st.text(st.characters(codec="utf-8")),
    st.one_of(st.integers(), st.text(st.characters(codec="utf-8")), st.booleans(), st.none()),
)


def test_an_event_says_when_in_two_ways(tmp_path: Path) -> None:
    """The clock tells a person; the seconds since the start of the process tell what a start costs."""
    log = EventLog(tmp_path / "events.jsonl")
    log.append("start", processes=2)
    log.append("save", name="last.ckpt", kind="stop", seconds=1.5, event="another", time=0, elapsed=-1)
    first, second = read_events(tmp_path / "events.jsonl")
    assert (first["event"], first["processes"]) == ("start", 2)
    # A save has a name, a kind and seconds of its own; nothing takes the place of what all events have.
    assert (second["event"], second["name"], second["kind"], second["seconds"]) == (
        "save",
        "last.ckpt",
        "stop",
        1.5,
    )
    written = datetime.fromisoformat(second["time"])
    assert abs(datetime.now().astimezone() - written) < timedelta(minutes=1)
    assert written.utcoffset() is not None
    assert 0 < first["elapsed"] <= second["elapsed"]


def test_elapsed_counts_the_imports(tmp_path: Path) -> None:
    program = (
        "import time; time.sleep(0.3)\nfrom pathlib import Path\nimport sys\n"
        "from distrib.runtime.directory.events import EventLog\n"
        "EventLog(Path(sys.argv[1])).append('import_done')"
    )
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", program, tmp_path / "e"], check=True, cwd=Path(__file__).parents[2])
    (event,) = read_events(tmp_path / "e")
    assert 0.3 <= event["elapsed"] <= time.monotonic() - began + 0.02


@given(rows=st.lists(FACTS, min_size=1, max_size=5), cut=st.integers(0, 200))
def test_what_a_kill_has_torn_costs_one_row(
    rows: list[dict[str, Any]], cut: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Wherever the file was cut, what was whole is read, and what follows does not stick to the torn line."""
    path = tmp_path_factory.mktemp("torn") / "rows.jsonl"
    for row in rows:
        JsonLines(path, sync=False).append(row)
    data = path.read_bytes()
    path.write_bytes(data[: max(0, len(data) - cut)])
    whole = path.read_bytes().count(b"\n")
    JsonLines(path, sync=False).append({"next": 1})
    found = read_rows(path)
    assert found[:whole] == rows[:whole]
    assert found[-1] == {"next": 1}
    # A line that lacks only its end is whole.
    assert len(found) in (whole + 1, whole + 2)


def test_zeros_after_a_power_failure_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"event": "start"}\n\xff\xfe\n[1]\n{"no": "event"}\n' + b"\0" * 100)
    EventLog(path).append("resume")
    assert [row["event"] for row in read_events(path)] == ["start", "resume"]


def test_no_file_is_no_rows(tmp_path: Path) -> None:
    assert read_events(tmp_path / "missing.jsonl") == []


def test_a_full_disk_keeps_rows_for_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lost event must not end a run, and is not lost: it comes, in order, when there is room."""
    path, write = tmp_path / "rows.jsonl", os.write
    lines = JsonLines(path)
    lines.append({"n": 0})

    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    def almost_full(descriptor: int, data: bytes) -> int:
        return write(descriptor, data[:13])

    monkeypatch.setattr(os, "write", full)
    for number in (1, 2):
        lines.append({"n": number})
    assert not lines.flush()
    monkeypatch.setattr(os, "write", almost_full)
    lines.append({"n": 3})
    monkeypatch.undo()
    assert lines.flush()
    lines.append({"n": 4})
    assert [row["n"] for row in read_rows(path)] == [0, 1, 2, 3, 4]


def test_a_folder_that_is_gone_ends_nothing(tmp_path: Path) -> None:
    lines = JsonLines(tmp_path / "run" / "rows.jsonl")
    lines.append({"n": 1})
    (tmp_path / "run").mkdir()
    lines.append({"n": 2})
    assert [row["n"] for row in read_rows(tmp_path / "run" / "rows.jsonl")] == [1, 2]


def test_the_real_dev_full(tmp_path: Path) -> None:
    EventLog(Path("/dev/full")).append("start")


def test_rows_of_several_threads_do_not_mix(tmp_path: Path) -> None:
    """The thread that writes checkpoints tells of them while training tells of its steps."""
    lines = JsonLines(tmp_path / "rows.jsonl", sync=False)
    threads = [
        threading.Thread(target=lambda who=who: [lines.append({"who": who, "n": n}) for n in range(50)])  # type: ignore[misc]
        for who in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rows = read_rows(tmp_path / "rows.jsonl")
    assert [[row["n"] for row in rows if row["who"] == who] for who in range(4)] == [[*range(50)]] * 4


def test_every_line_is_json_whatever_the_facts(tmp_path: Path) -> None:
    """A loss that is not a number must not make a file that other programs cannot read."""
    facts = {
        "loss": float("nan"),
        "norm": torch.tensor(float("-inf")),
        "score": np.float32(0.5),
        "shape": (1, np.int64(2)),
        "path": Path("/data"),
        "name": "a\udcff\n\u2028b",
        "nested": {1: {2.5}},
        "many": np.arange(2),
    }
    JsonLines(tmp_path / "rows.jsonl").append(facts)
    text = (tmp_path / "rows.jsonl").read_text(encoding="utf-8")
    assert text.count("\n") == 1
    row = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert (row["loss"], row["norm"], row["score"], row["shape"]) == ("nan", "-inf", 0.5, [1, 2])
    assert (row["path"], row["nested"], row["many"]) == ("/data", {"1": [2.5]}, [0, 1])
