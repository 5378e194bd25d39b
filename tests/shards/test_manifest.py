"""``dataset.json``: what is written is read, and nothing in it is trusted that need not be."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from distrib.errors import InputError
from distrib.shards.manifest import (
    DatasetManifest,
    ManifestIndex,
    ManifestShard,
    ManifestSources,
    WidthHistogram,
    checksum_of,
    read_manifest,
    write_manifest,
)

CHECKSUM = "blake2b:" + "0123456789abcdef" * 2
MANIFEST = DatasetManifest(
    format="arrow",
    line_type="baselines",
    im_mode="L",
    source_mode="RGB",
    legacy_polygons=False,
    height=120,
    normalized=True,
    lines=5,
    characters=40,
    alphabet={"a": 30, "ſ": 10},
    languages={"deu": 5},
    splits={"train": 2, "validation": 0, "test": 1, "none": 2},
    width_histogram=WidthHistogram(counts=(0, 3, 2)),
    shards=(
        ManifestShard(name="shard-000000.arrow", lines=3, bytes=1000, checksum=CHECKSUM),
        ManifestShard(name="shard-000001.arrow", lines=2, bytes=800, checksum=CHECKSUM),
    ),
    index=ManifestIndex(name="index.arrow", bytes=99, checksum=CHECKSUM),
    sources=ManifestSources(count=2, digest="d", file="sources.jsonl"),
    created_by={"program": "ketos-distrib", "version": "1"},
)


@pytest.fixture
def raw(tmp_path: Path) -> dict[str, Any]:
    write_manifest(tmp_path / "dataset.json", MANIFEST)
    content: dict[str, Any] = json.loads((tmp_path / "dataset.json").read_text(encoding="utf-8"))
    return content


@pytest.fixture
def remote_folder() -> Iterator[str]:
    filesystem = fsspec.filesystem("memory")
    yield "memory://manifests"
    filesystem.rm("/manifests", recursive=True)


def reread(tmp_path: Path, raw: object) -> DatasetManifest:
    (tmp_path / "dataset.json").write_text(json.dumps(raw), encoding="utf-8")
    return read_manifest(tmp_path / "dataset.json")


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write_manifest(tmp_path / "dataset.json", MANIFEST)
    assert read_manifest(tmp_path / "dataset.json") == MANIFEST
    assert read_manifest(f"file://{tmp_path}/dataset.json") == MANIFEST


def test_counters_are_written_as_what_they_count(tmp_path: Path) -> None:
    write_manifest(tmp_path / "dataset.json", dataclasses.replace(MANIFEST, alphabet=Counter("aab")))
    assert read_manifest(tmp_path / "dataset.json").alphabet == {"a": 2, "b": 1}


def test_remote_manifest(tmp_path: Path, raw: dict[str, Any], remote_folder: str) -> None:
    with fsspec.open(f"{remote_folder}/dataset.json", "w") as file:
        json.dump(raw, file)
    assert read_manifest(f"{remote_folder}/dataset.json") == MANIFEST
    with pytest.raises(InputError, match="does not exist"):
        read_manifest(f"{remote_folder}/other.json")


def test_keys_of_newer_versions_do_no_harm_but_other_versions_are_refused(
    tmp_path: Path, raw: dict[str, Any]
) -> None:
    assert reread(tmp_path, {**raw, "colour": "blue"}) == MANIFEST
    with pytest.raises(InputError, match="version 2"):
        reread(tmp_path, {**raw, "version": 2})


@pytest.mark.parametrize(
    "name",
    ["../x.arrow", "/etc/passwd", "a/b", "..", ".", "", "a\\b", "s3://b", "x\0", "a\nb", "x" * 300, None, 3],
)
@pytest.mark.parametrize("place", ["shards", "index", "sources"])
def test_names_never_lead_out_of_the_folder(
    tmp_path: Path, raw: dict[str, Any], name: object, place: str
) -> None:
    """A data set is downloaded from anywhere; it must not choose which file is read or deleted."""
    if place == "shards":
        raw["shards"][1]["name"] = name
    elif place == "index":
        raw["index"]["name"] = name
    else:
        raw["sources"]["file"] = name
        if not name:
            assert reread(tmp_path, raw).sources.file == ""
            return
    with pytest.raises(InputError, match=r"dataset\.json is damaged: .*plain file name|no text"):
        reread(tmp_path, raw)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("format", "zip"),
        ("line_type", "words"),
        ("im_mode", "CMYK"),
        ("source_mode", None),
        ("height", -1),
        ("height", 10**6),
        ("height", 0),
        ("height", "120"),
        ("normalized", "yes"),
        ("lines", 6),
        ("lines", True),
        ("alphabet", {"a": "many"}),
        ("alphabet", ["a"]),
        ("splits", {"train": -1}),
        ("shards", []),
        ("shards", {}),
        ("shards", [3]),
        ("index", None),
        ("width_histogram", {"bin": 64, "counts": [-1]}),
        ("width_histogram", {"bin": 64, "counts": "x"}),
    ],
)
def test_bad_values_are_named(tmp_path: Path, raw: dict[str, Any], key: str, value: object) -> None:
    with pytest.raises(InputError, match=r"dataset\.json is damaged: .*; copy or compile"):
        reread(tmp_path, {**raw, key: value})


def test_shards_are_told_apart_and_have_checksums(tmp_path: Path, raw: dict[str, Any]) -> None:
    twice = {**raw, "shards": [raw["shards"][0], {**raw["shards"][0], "lines": 2}]}
    with pytest.raises(InputError, match="twice"):
        reread(tmp_path, twice)
    with pytest.raises(InputError, match="no checksum"):
        reread(tmp_path, {**raw, "index": {**raw["index"], "checksum": "md5:1"}})


@pytest.mark.parametrize("content", [b"", b"{", b"[" * 100_000, b"\xff\xfe", b"9" * 5000])
def test_no_json(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "dataset.json").write_bytes(content)
    with pytest.raises(InputError, match=r"not valid JSON|describes no data set"):
        read_manifest(tmp_path / "dataset.json")


@pytest.mark.parametrize("content", ["[]", "{}", '"x"', "3"])
def test_json_of_something_else(tmp_path: Path, content: str) -> None:
    (tmp_path / "experiment.json").write_text(content)
    with pytest.raises(InputError, match=r"experiment\.json describes no data set"):
        read_manifest(tmp_path / "experiment.json")


def test_missing_and_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        read_manifest(tmp_path / "dataset.json")
    with pytest.raises(InputError, match="cannot be read"):
        read_manifest(tmp_path)


def test_checksum(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"content")
    assert checksum_of(tmp_path / "x") == "blake2b:c681ff421fbd7af6dc373a7ced20fbeb"


def test_the_file_itself_is_readable_json_with_the_documented_keys(raw: dict[str, Any]) -> None:
    assert set(raw) == {field.name for field in dataclasses.fields(DatasetManifest)}
    assert raw["shards"][0] == {
        "name": "shard-000000.arrow",
        "lines": 3,
        "bytes": 1000,
        "checksum": CHECKSUM,
    }
    assert raw["width_histogram"] == {"bin": 64, "counts": [0, 3, 2]}
