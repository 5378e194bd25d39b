"""What a command line names becomes one address a data set, and slips are told in a sentence."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from braceexpand import braceexpand
from hypothesis import given, settings
from hypothesis import strategies as st

from distrib.errors import InputError
from distrib.shards.addresses import MAX_NAMES, brace_count, expand_datasets


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shards").mkdir()
    for name in ("0000.tar", "0001.tar", "0002.tar", "a.arrow"):
        (tmp_path / "shards" / name).touch()
    return tmp_path


@pytest.fixture
def bucket() -> Iterator[str]:
    filesystem = fsspec.filesystem("memory")
    for number in range(3):
        filesystem.pipe_file(f"/bucket/{number:02d}.tar", b"x")
    yield "memory://bucket"
    filesystem.rm("/bucket", recursive=True)


def test_files_folders_globs_and_ranges(folder: Path) -> None:
    assert expand_datasets(["shards/a.arrow"]) == ["shards/a.arrow"]
    assert expand_datasets(["shards"]) == ["shards"]
    tars = [f"shards/000{i}.tar" for i in range(3)]
    assert expand_datasets(["shards/*.tar"]) == tars
    assert expand_datasets(["shards/{0000..0002}.tar"]) == tars
    assert expand_datasets(["shards/{0000,0002}.tar"]) == [tars[0], tars[2]]
    assert expand_datasets(["shards/{0*1,*2}.tar"]) == tars[1:]
    assert expand_datasets([f"file://{folder}/shards/a.arrow"]) == [str(folder / "shards/a.arrow")]


def test_each_once_in_order_of_first_mention(folder: Path) -> None:
    found = expand_datasets(["shards/0001.tar", "shards/*.tar", f"{folder}/shards/a.arrow", "shards/a.arrow"])
    assert found == ["shards/0001.tar", "shards/0000.tar", "shards/0002.tar", f"{folder}/shards/a.arrow"]


@pytest.mark.parametrize("name", ["{0..3}.tar", "[ab].tar", "what?.tar", "{.tar", "a*"])
def test_a_name_that_exists_is_no_pattern(folder: Path, name: str) -> None:
    (folder / name).touch()
    (folder / "0.tar").touch()
    assert expand_datasets([name]) == [name]


@pytest.mark.parametrize(
    ("argument", "sentence"),
    [
        ("gone.arrow", "gone.arrow does not exist; name a data set"),
        ("shards/*.zip", "matches no file"),
        ("shards/{0000..0003}.tar", "shards/0003.tar does not exist, which shards/{0000..0003}.tar names"),
        ("{0..2000000}.tar", "stands for 2,000,001 names, more than 1,000,000"),
        ("{1..1000}{1..1001}", "stands for 1,001,000 names"),
        ("{a,b", "gone|braces"),
        ("{" * 5000, "braces|exist"),
        ("{1.." + "9" * 5000 + "}", "braces"),
        ("x" * 5000, "does not exist"),
        ("a\0b", "does not exist"),
    ],
)
def test_slips(folder: Path, argument: str, sentence: str) -> None:
    with pytest.raises(InputError) as error:
        expand_datasets([argument])
    assert any(part in str(error.value) for part in sentence.split("|"))


def test_lists_of_addresses(folder: Path, bucket: str) -> None:
    (folder / "lists").mkdir()
    (folder / "lists" / "b.arrow").touch()
    content = f"shards/0001.tar\n\nb.arrow\r\n{bucket}/{{00..01}}.tar\nshards/*.tar\n{folder}/shards\n"
    (folder / "lists" / "l.txt").write_text(content)
    assert expand_datasets(["shards/a.arrow"], [folder / "lists/l.txt"]) == [
        "shards/a.arrow",
        "shards/0001.tar",
        f"{folder}/lists/b.arrow",
        "memory://bucket/00.tar",
        "memory://bucket/01.tar",
        "shards/0000.tar",
        "shards/0002.tar",
        f"{folder}/shards",
    ]


def test_list_that_names_something_missing(folder: Path) -> None:
    (folder / "l.txt").write_text("shards/0001.tar\ngone.arrow\n")
    with pytest.raises(InputError, match=r"gone\.arrow does not exist"):
        expand_datasets([], [folder / "l.txt"])


def test_list_that_is_none(folder: Path) -> None:
    (folder / "x.arrow").write_bytes(b"ARROW1\0\0")
    with pytest.raises(InputError, match="no list of paths"):
        expand_datasets([], [folder / "x.arrow"])


def test_remote_patterns(bucket: str) -> None:
    tars = [f"memory://bucket/{number:02d}.tar" for number in range(3)]
    assert [address.replace(":///", "://") for address in expand_datasets([f"{bucket}/*.tar"])] == tars
    assert expand_datasets([f"{bucket}/{{00..02}}.tar"]) == tars
    assert expand_datasets(["memory://bucket"]) == ["memory://bucket"]
    with pytest.raises(InputError, match="matches nothing"):
        expand_datasets([f"{bucket}/*.zip"])


def test_signed_url_is_no_pattern(bucket: str) -> None:
    """Its query holds a question mark."""
    fsspec.filesystem("memory").pipe_file("/bucket/x.tar?sig=1", b"x")
    assert expand_datasets([f"{bucket}/x.tar?sig=1"]) == [f"{bucket}/x.tar?sig=1"]


def test_unknown_file_system_is_named() -> None:
    with pytest.raises(InputError, match="no file system of that name"):
        expand_datasets(["gopher://x/*.tar"])


PIECES = st.sampled_from(["a", "{", "}", ",", "..", "1", "20", "{1..3}", "{a,b}", "{a..e..2}", "\\", "-"])


@settings(max_examples=300, deadline=None)
@given(pieces=st.lists(PIECES, max_size=10))
def test_names_are_never_undercounted(pieces: list[str]) -> None:
    """The bound is checked before the names are made, so it must hold for every pattern."""
    pattern = "".join(pieces)
    try:
        names = sum(1 for _ in zip(braceexpand(pattern), range(10_000), strict=False))
    except ValueError:
        return
    assert brace_count(pattern) >= names


def test_range_of_the_bound_itself_is_counted_exactly() -> None:
    assert brace_count(f"x{{1..{MAX_NAMES}}}") == MAX_NAMES
    assert brace_count("{000..127}-{a,b,{1..3}}") == 128 * 5
