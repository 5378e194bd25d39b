"""A data set is whole or absent, whatever happens while it is written."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from distrib.errors import InputError, KetosError, RunError
from distrib.files import AsideFile, write_error
from distrib.shards.compiling.arrow_writer import ArrowWriter

from .conftest import ReadBack, Write, make_line

ROOT = Path(__file__).resolve().parents[2]


class Boom(BaseException):
    pass


@pytest.mark.parametrize("error", [Boom, KeyboardInterrupt, ValueError])
def test_an_exception_leaves_nothing_behind(tmp_path: Path, error: type[BaseException]) -> None:
    def fail_midway() -> None:
        with ArrowWriter(tmp_path / "a.arrow", line_type="bbox", recordbatch_size=1) as writer:
            writer.add(make_line(0))
            raise error

    with pytest.raises(error):
        fail_midway()
    assert list(tmp_path.iterdir()) == []


def test_a_failure_while_copying_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: AsideFile) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(AsideFile, "commit", full)
    writer = ArrowWriter(tmp_path / "a.arrow", line_type="bbox")
    with pytest.raises(RunError, match="no space left"), writer:
        writer.add(make_line(0))
    assert list(tmp_path.iterdir()) == []


def test_a_failure_keeps_the_previous_file(write: Write) -> None:
    path = write([make_line(0, "old")])

    def fail_midway() -> None:
        with ArrowWriter(path, line_type="bbox") as writer:
            writer.add(make_line(1, "new"))
            raise Boom

    with pytest.raises(Boom):
        fail_midway()
    assert ReadBack(path).texts() == ["old"]


def test_the_new_file_replaces_the_previous_one(write: Write) -> None:
    write([make_line(0, "old")])
    assert ReadBack(write([make_line(1, "new")])).texts() == ["new"]


def test_an_open_data_set_survives_its_file_being_replaced(write: Write) -> None:
    """Compiling over a file that a run is reading must not pull the mapping from under it."""
    old = ReadBack(write([make_line(0, "old")]))
    png = old.png(0)
    write([make_line(1, "new")])
    assert (old.texts(), old.png(0)) == (["old"], png)


def test_no_lines_is_an_error_and_no_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no lines"), ArrowWriter(tmp_path / "a.arrow", line_type="bbox"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_the_file_has_the_permissions_of_any_new_file(write: Write, tmp_path: Path) -> None:
    """Temporary files are private by default; a data set is shared with the group."""
    plain = tmp_path / "plain"
    plain.touch()
    assert stat.S_IMODE(write([make_line(0)]).stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [("missing/a.arrow", "does not exist"), ("folder", "is a folder"), ("file/a.arrow", "is a file")],
)
def test_impossible_outputs(tmp_path: Path, name: str, sentence: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=sentence):
        ArrowWriter(tmp_path / name, line_type="bbox")


@pytest.mark.parametrize(
    ("number", "kind", "sentence"),
    [
        (errno.ENOSPC, RunError, "no space left"),
        (errno.EDQUOT, RunError, "no space left"),
        (errno.EACCES, InputError, "may not write"),
        (errno.EROFS, InputError, "may not write"),
        (errno.EIO, RunError, "Input/output error"),
    ],
)
def test_write_errors_are_sentences(number: int, kind: type[KetosError], sentence: str) -> None:
    error = write_error(Path("out.arrow"), OSError(number, os.strerror(number)))
    assert isinstance(error, kind)
    assert sentence in str(error)
    assert "out.arrow" in str(error)


def run_writer(tmp_path: Path, body: str) -> subprocess.CompletedProcess[str]:
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(body), encoding="utf-8")
    out = tmp_path / "out"
    out.mkdir()
    return subprocess.run(
        [sys.executable, script, out / "a.arrow"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_killed_while_writing_leaves_nothing(tmp_path: Path) -> None:
    """The out-of-memory killer gives no chance to tidy up; gigabytes must not stay in the folder."""
    result = run_writer(
        tmp_path,
        """
        import os, signal, sys
        from pathlib import Path
        from distrib.shards.compiling.arrow_writer import ArrowWriter, PackedLine
        with ArrowWriter(Path(sys.argv[1]), line_type="bbox", recordbatch_size=1) as writer:
            for i in range(3):
                writer.add(PackedLine(text="x", png=b"y" * 100_000, source="s", line_id="l",
                                      width=1, height=1, mode="L"))
            os.kill(os.getpid(), signal.SIGKILL)
        """,
    )
    assert result.returncode == -signal.SIGKILL
    assert list((tmp_path / "out").iterdir()) == []


def test_killed_while_copying_leaves_no_output(tmp_path: Path) -> None:
    """Nothing may appear under the final name before all of it is on the disk."""
    result = run_writer(
        tmp_path,
        """
        import os, signal, sys
        from pathlib import Path
        from distrib.shards.compiling.arrow_writer import ArrowWriter, PackedLine
        os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)
        with ArrowWriter(Path(sys.argv[1]), line_type="bbox") as writer:
            writer.add(PackedLine(text="x", png=b"y", source="s", line_id="l", width=1, height=1, mode="L"))
        """,
    )
    assert result.returncode == -signal.SIGKILL
    assert not (tmp_path / "out" / "a.arrow").exists()


def test_full_disk(tmp_path: Path) -> None:
    """A file size limit stands in for a full disk: both fail in the middle of a write."""
    result = run_writer(
        tmp_path,
        """
        import resource, sys
        from pathlib import Path
        from distrib.errors import RunError
        from distrib.shards.compiling.arrow_writer import ArrowWriter, PackedLine
        resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, 3_000_000))
        try:
            with ArrowWriter(Path(sys.argv[1]), line_type="bbox", recordbatch_size=2) as writer:
                for i in range(50):
                    writer.add(PackedLine(text="x", png=b"y" * 100_000, source="s", line_id="l",
                                          width=1, height=1, mode="L"))
        except RunError as error:
            print(error)
        """,
    )
    assert "no space left to write" in result.stdout, result.stderr
    assert "Traceback" not in result.stderr
    assert list((tmp_path / "out").iterdir()) == []
