"""Opening data sets of every form, whole and damaged, local and remote."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import fsspec
import pytest

from distrib.errors import InputError
from distrib.shards import sidecar
from distrib.shards.cache import ShardCache
from distrib.shards.compiling.arrow_writer import ArrowWriter, PackedLine
from distrib.shards.compiling.tar_writer import TarWriter
from distrib.shards.dataset import Dataset, open_dataset
from distrib.shards.index import write_index
from distrib.shards.manifest import (
    DatasetManifest,
    ManifestIndex,
    ManifestShard,
    ShardFormat,
    checksum_of,
    write_manifest,
)
from distrib.shards.shard_index import index_local
from distrib.shards.storage import ShardStorage

from .conftest import Write, make_line


def write_shard(path: Path, lines: Sequence[PackedLine], **options: object) -> None:
    options = {"line_type": "bbox", **options}
    if path.suffix == ".tar":
        with TarWriter(path, **options) as tar:  # type: ignore[arg-type]
            for number, line in enumerate(lines):
                tar.add(line, f"{number:09d}")
        return
    with ArrowWriter(path, **options) as writer:  # type: ignore[arg-type]
        for line in lines:
            writer.add(line)


Make = Callable[..., Path]


@pytest.fixture(params=["arrow", "webdataset"])
def shard_format(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def make_folder(tmp_path: Path, shard_format: ShardFormat) -> Make:
    """Makes a data set of two lines a shard, with a manifest or without."""

    def make(name: str = "ds", shards: int = 3, *, manifest: bool = True, **options: object) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        suffix = "arrow" if shard_format == "arrow" else "tar"
        paths = [folder / f"shard-{number:06d}.{suffix}" for number in range(shards)]
        for number, path in enumerate(paths):
            write_shard(path, [make_line(2 * number), make_line(2 * number + 1)], **options)
        if manifest:
            describe(folder, paths, shard_format)
        return folder

    return make


def describe(folder: Path, paths: Sequence[Path], shard_format: ShardFormat) -> None:
    batches = [index_local(path)[0] for path in paths]
    write_index(folder / "index.arrow", batches)
    index = folder / "index.arrow"
    write_manifest(
        folder / "dataset.json",
        DatasetManifest(
            format=shard_format,
            line_type="bbox",
            im_mode="L",
            source_mode="L",
            legacy_polygons=False,
            height=0,
            normalized=False,
            lines=sum(batch.num_rows for batch in batches),
            characters=6,
            alphabet={"a": 6},
            shards=tuple(
                ManifestShard(
                    name=path.name,
                    lines=batch.num_rows,
                    bytes=path.stat().st_size,
                    checksum=checksum_of(path),
                )
                for path, batch in zip(paths, batches, strict=True)
            ),
            index=ManifestIndex(name=index.name, bytes=index.stat().st_size, checksum=checksum_of(index)),
        ),
    )


def opened(address: str | Path, storage: ShardStorage | None = None) -> Dataset:
    return open_dataset(address, storage or ShardStorage())


def texts(dataset: Dataset) -> list[str]:
    return [text for _, chunk, _ in dataset.index.text_chunks() for text in chunk]


def png(dataset: Dataset, line: int, storage: ShardStorage | None = None) -> bytes:
    entry = dataset.index.entry(line)
    address = dataset.shards[entry.shard].address
    return (storage or ShardStorage()).read(address, entry.offset, entry.size)


SIX = [f"line {i}" for i in range(6)]


@pytest.mark.parametrize("manifest", [True, False])
def test_folder(make_folder: Make, manifest: bool) -> None:
    folder = make_folder(manifest=manifest)
    for address in (folder, f"{folder}/", *([folder / "dataset.json"] if manifest else [])):
        dataset = opened(address)
        assert (len(dataset), texts(dataset), dataset.problems) == (6, SIX, [])
        assert [png(dataset, i) for i in range(6)] == [make_line(i).png for i in range(6)]
        assert [(shard.lines, shard.bytes) for shard in dataset.shards] == [
            (2, path.stat().st_size) for path in sorted(folder.glob("shard*"))
        ]
        assert [shard.checksum is None for shard in dataset.shards] == [not manifest] * 3


def test_one_shard_of_a_folder(make_folder: Make) -> None:
    folder = make_folder()
    path = sorted(folder.glob("shard*"))[1]
    assert texts(opened(path)) == SIX[2:4]
    assert opened(path).shards[0].address == str(path)


def test_kind_is_told_by_content_where_the_name_says_nothing(make_folder: Make, tmp_path: Path) -> None:
    shard = sorted(make_folder().glob("shard*"))[0]
    shutil.copy(shard, tmp_path / "data.bin")
    assert texts(opened(tmp_path / "data.bin")) == SIX[:2]


def test_fingerprint_is_the_content_wherever_it_lies(make_folder: Make, tmp_path: Path) -> None:
    """A run goes on after its data was copied, and refuses other lines."""
    for manifest in (True, False):
        folder = make_folder(f"a{manifest}", manifest=manifest)
        shutil.copytree(folder, tmp_path / f"b{manifest}")
        assert opened(folder).fingerprint == opened(tmp_path / f"b{manifest}").fingerprint
        other = make_folder(f"c{manifest}", 2, manifest=manifest)
        assert opened(folder).fingerprint != opened(other).fingerprint


def test_missing_shard_is_a_problem_and_its_lines_stay(make_folder: Make) -> None:
    folder = make_folder()
    gone = sorted(folder.glob("shard*"))[1]
    gone.unlink()
    dataset = opened(folder)
    assert texts(dataset) == SIX
    assert len(dataset.problems) == 1
    assert gone.name in dataset.problems[0]
    assert "2 lines cannot be read" in dataset.problems[0]
    assert png(dataset, 4) == make_line(4).png
    with pytest.raises(ValueError, match=gone.name):
        png(dataset, 2)


def test_shard_of_another_size_is_a_problem(make_folder: Make) -> None:
    folder = make_folder()
    path = sorted(folder.glob("shard*"))[0]
    os.truncate(path, path.stat().st_size - 1)
    assert "another size" in opened(folder).problems[0]


def test_manifest_without_any_shard(make_folder: Make) -> None:
    folder = make_folder()
    for path in folder.glob("shard*"):
        path.unlink()
    with pytest.raises(InputError, match="none of its 3 shards"):
        opened(folder)


@pytest.mark.parametrize("damage", ["missing", "short", "empty", "another", "flipped"])
def test_damaged_index_is_made_again(make_folder: Make, damage: str) -> None:
    folder = make_folder()
    whole = opened(folder)
    path = folder / "index.arrow"
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "another":
        write_index(path, [index_local(shard)[0] for shard in sorted(folder.glob("shard*"))[:2]])
    else:
        flipped = content[:-60] + b"\xff" * 60
        path.write_bytes({"short": content[:-1], "empty": b"", "flipped": flipped}[damage])
    dataset = opened(folder)
    assert texts(dataset) == SIX
    assert dataset.fingerprint == whole.fingerprint
    assert len(dataset.problems) == 1
    assert "index.arrow is missing or damaged" in dataset.problems[0]


def test_damaged_index_and_missing_shard(make_folder: Make) -> None:
    folder = make_folder()
    (folder / "index.arrow").unlink()
    sorted(folder.glob("shard*"))[0].unlink()
    dataset = opened(folder)
    assert texts(dataset) == SIX[2:]
    assert png(dataset, 0) == make_line(2).png
    assert len(dataset.problems) == 2


def test_shards_that_do_not_belong_together(make_folder: Make) -> None:
    folder = make_folder(manifest=False)
    last = sorted(folder.glob("shard*"))[-1]
    write_shard(last, [make_line(9)], line_type="baselines")
    with pytest.raises(InputError, match=rf"{last.name} holds baselines lines but .*000000.* holds bbox"):
        opened(folder)
    write_shard(last, [make_line(9)], normalized=True, height=48)
    with pytest.raises(InputError, match=r"normalised to 48 pixels but .*000000.* holds raw lines"):
        opened(folder)


def test_folder_of_both_kinds_or_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder without data set"):
        opened(tmp_path)
    write_shard(tmp_path / "a.arrow", [make_line(0)])
    write_shard(tmp_path / "a.tar", [make_line(0)])
    with pytest.raises(InputError, match=r"both \.arrow and \.tar"):
        opened(tmp_path)


def test_facts_of_several_files_are_joined(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.arrow", [make_line(0, "ab", mode="1")], legacy_polygons=True)
    write_shard(tmp_path / "b.arrow", [make_line(1, "b", mode="RGB")])
    dataset = opened(tmp_path)
    assert dataset.alphabet == {"a": 1, "b": 2}
    assert (dataset.im_mode, dataset.source_mode, dataset.legacy_polygons) == ("RGB", "RGB", True)


def test_tar_cut_short_keeps_its_lines_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    write_shard(path, [make_line(i) for i in range(4)])
    os.truncate(path, path.stat().st_size * 2 // 3)
    dataset = opened(path)
    assert 0 < len(dataset) < 4
    assert "cut short" in dataset.problems[0]


def test_nothing_that_is_a_line(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    write_shard(path, [make_line(0)])
    os.truncate(path, 700)
    with pytest.raises(InputError, match=r"x\.tar has no lines: .*cut short"):
        opened(path)


@pytest.mark.parametrize("name", ["gone", "gone.arrow", "gone.tar", "gone.json", "memory://gone/x.arrow"])
def test_missing(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"gone.* does not exist"):
        opened(name if "://" in name else tmp_path / name)


class TestKeptIndexes:
    """The index of a large shard is made once."""

    @pytest.fixture(autouse=True)
    def _keep_all(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sidecar, "KEEP_ABOVE", 0)

    @pytest.fixture
    def shard(self, make_folder: Make) -> Path:
        return sorted(make_folder(manifest=False).glob("shard*"))[0]

    def test_it_is_kept_beside_the_shard_and_used(self, shard: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        first = opened(shard)
        assert shard.with_name(f".{shard.name}.index").is_file()
        monkeypatch.setattr(sidecar, "index_local", None)
        again = opened(shard)
        assert (texts(again), again.fingerprint, again.alphabet) == (
            texts(first),
            first.fingerprint,
            first.alphabet,
        )
        assert len(pickle.dumps(again)) < 2000
        assert texts(pickle.loads(pickle.dumps(again))) == SIX[:2]

    def test_it_is_made_again_when_the_shard_changes(self, shard: Path) -> None:
        opened(shard)
        write_shard(shard, [make_line(7)])
        assert texts(opened(shard)) == ["line 7"]

    def test_equal_size_and_another_time_is_another_shard(self, shard: Path) -> None:
        opened(shard)
        before = shard.stat().st_mtime_ns
        write_shard(shard, [make_line(0, "LINE 0"), make_line(1)])
        os.utime(shard, ns=(before + 1, before + 1))
        assert texts(opened(shard)) == ["LINE 0", "line 1"]

    @pytest.mark.parametrize("content", [b"", b"ARROW1", b"x" * 5000])
    def test_a_damaged_one_is_replaced(self, shard: Path, content: bytes) -> None:
        opened(shard)
        kept = shard.with_name(f".{shard.name}.index")
        kept.write_bytes(content)
        assert texts(opened(shard)) == SIX[:2]
        assert kept.read_bytes() != content

    def test_it_goes_to_the_cache_where_the_shard_cannot_have_it_beside(
        self, shard: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shard.with_name(f".{shard.name}.index").mkdir()
        storage = ShardStorage(ShardCache(tmp_path / "cache", 1 << 30))
        opened(shard, storage)
        assert len(list((tmp_path / "cache" / "indexes").iterdir())) == 1
        monkeypatch.setattr(sidecar, "index_local", None)
        assert texts(opened(shard, storage)) == SIX[:2]

    def test_it_stays_in_memory_where_nothing_can_be_written(self, shard: Path) -> None:
        shard.with_name(f".{shard.name}.index").mkdir()
        dataset = opened(shard)
        assert texts(pickle.loads(pickle.dumps(dataset))) == SIX[:2]

    def test_problems_are_kept_with_it(self, tmp_path: Path) -> None:
        path = tmp_path / "x.tar"
        write_shard(path, [make_line(i) for i in range(4)])
        os.truncate(path, path.stat().st_size * 2 // 3)
        assert opened(path).problems == opened(path).problems != []

    def test_it_is_no_shard_of_the_folder(self, shard: Path) -> None:
        opened(shard)
        assert texts(opened(shard.parent)) == SIX


@pytest.fixture
def remote(make_folder: Make) -> Iterator[Callable[..., str]]:
    filesystem = fsspec.filesystem("memory")

    def upload(**options: object) -> str:
        filesystem.put(str(make_folder(**options)), "/remote", recursive=True)
        return "memory://remote"

    yield upload
    if filesystem.exists("/remote"):
        filesystem.rm("/remote", recursive=True)


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("manifest", [True, False])
def test_remote_folder(remote: Callable[..., str], tmp_path: Path, cached: bool, manifest: bool) -> None:
    address = remote(manifest=manifest)
    storage = ShardStorage(ShardCache(tmp_path / "cache", 1 << 30) if cached else None)
    dataset = opened(address, storage)
    assert (texts(dataset), dataset.problems) == (SIX, [])
    assert [png(dataset, i, storage) for i in range(6)] == [make_line(i).png for i in range(6)]
    if manifest:
        assert texts(opened(f"{address}/dataset.json", storage)) == SIX
        assert dataset.fingerprint == opened(tmp_path / "ds").fingerprint


def test_remote_shard_is_fetched_for_its_index_once(
    remote: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a start would download every shard of a large remote data set that has no manifest."""
    monkeypatch.setattr(sidecar, "KEEP_ABOVE", 0)
    address = remote(manifest=False)
    opened(address, ShardStorage(ShardCache(tmp_path / "cache", 1 << 30)))
    monkeypatch.setattr(ShardStorage, "local_path", None)
    again = opened(address, ShardStorage(ShardCache(tmp_path / "cache", 1 << 30)))
    assert texts(again) == SIX


def test_remote_shard_that_is_missing(remote: Callable[..., str]) -> None:
    address = remote()
    name = json.loads(fsspec.filesystem("memory").cat("/remote/dataset.json"))["shards"][2]["name"]
    fsspec.filesystem("memory").rm(f"/remote/{name}")
    assert name in opened(address).problems[0]


def test_single_arrow_of_the_writer(write: Write) -> None:
    path = write([make_line(0), make_line(1)])
    dataset = opened(path)
    assert dataset.name == str(path)
    assert not list(path.parent.glob(".*"))
