"""Opening checkpoints: any slice of any world size, and nothing taken on trust."""

from __future__ import annotations

import json
import os
import pickle
import resource
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distrib.errors import InputError
from distrib.runtime.checkpoints.commit import CheckpointKeeper, Order, write_part
from distrib.runtime.checkpoints.contents import checkpoint_to_resume
from distrib.runtime.checkpoints.names import is_checkpoint
from distrib.runtime.checkpoints.reader import CheckpointReader, open_checkpoint, part_name
from distrib.runtime.checkpoints.record import newest_valid
from distrib.runtime.state import Piece

from .checkpoint_states import facts, saved, store_of, tensors


def folder_of(directory: Path, parts: list[dict[str, Piece]], name: str = "step_00000001.ckpt") -> Path:
    """A folder checkpoint of these parts."""
    keeper = CheckpointKeeper(
        directory, keep_best=9, keep_last=9, strategy="", world_size=len(parts), guard=lambda: None
    )
    content: dict[str, Any] = {"common": {}, "groups": [], "facts": {}}
    aside = directory / f".{name}.00.part"
    for rank, pieces in enumerate(parts):
        values = {key: piece.values for key, piece in pieces.items()}
        write_part(aside, content, values, pieces, rank, len(parts))
    keeper.commit_folder(Order(name=name, aside=aside, facts=facts(1), began=0.0, stall=0.0))
    return directory / name


@pytest.fixture(params=[False, True], ids=["file", "folder"])
def checkpoint(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A checkpoint of either kind, on record in its directory."""
    return saved(store_of(tmp_path, sharded=request.param), 1)


def test_what_was_saved_is_what_is_read(checkpoint: Path) -> None:
    """Else a resumed run would go on from another state."""
    reader = open_checkpoint(checkpoint)
    assert reader.common == {"step": 1}
    assert reader.groups == [{"lr": 0.1, "betas": (0.9, 0.999)}]
    assert reader.facts == facts(1)
    for key, tensor in tensors(1).items():
        assert reader.shapes[key] == tuple(tensor.shape)
        assert torch.equal(reader.tensor(key), tensor)
    assert is_checkpoint(checkpoint)


def test_torch_reads_the_files(checkpoint: Path) -> None:
    """Else nobody could look into a checkpoint without this program."""
    if checkpoint.is_dir():
        part = torch.load(checkpoint / part_name(0, 1), weights_only=True)
        assert part["pieces"]["weights/layer.weight"] == [[5, 7, 40], 0]
        assert torch.load(checkpoint / "common.ckpt", weights_only=True)["common"] == {"step": 1}
    else:
        content = torch.load(checkpoint, weights_only=True)
        assert torch.equal(content["tensors"]["weights/layer.weight"], tensors(1)["weights/layer.weight"])


def test_what_is_read_is_the_readers_own(checkpoint: Path) -> None:
    """Else training on what was read would change with the file, or die when it is removed."""
    reader = open_checkpoint(checkpoint)
    first = reader.read("weights/layer.bias")
    first.zero_()
    assert torch.equal(reader.read("weights/layer.bias"), tensors(1)["weights/layer.bias"])


@st.composite
def cut_tensors(draw: st.DrawFn) -> tuple[torch.Tensor, list[dict[str, Piece]]]:
    """A tensor, and pieces of it that cover it, of several processes; they may overlap."""
    shape = tuple(draw(st.lists(st.integers(1, 6), max_size=3)))
    tensor = torch.randn(shape)
    size = tensor.numel()
    world_size = draw(st.integers(1, 4))
    cuts = sorted(draw(st.lists(st.integers(0, size), min_size=world_size - 1, max_size=world_size - 1)))
    parts = []
    for start, stop in zip([0, *cuts], [*cuts, size], strict=True):
        start = draw(st.integers(max(0, start - 2), start))
        stop = draw(st.integers(stop, min(size, stop + 2)))
        values = tensor.reshape(-1)[start:stop].clone()
        parts.append({"weights/w": Piece(shape=shape, start=start, values=values)})
    return tensor, draw(st.permutations(parts))


@given(cut_tensors(), st.data())
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_slice_of_a_folder_is_the_slice_of_the_tensor(
    tmp_path: Path, cut: tuple[torch.Tensor, list[dict[str, Piece]]], data: st.DataObject
) -> None:
    """Else resuming at another world size would mix up the state."""
    tensor, parts = cut
    shutil.rmtree(tmp_path / "folder", ignore_errors=True)
    (tmp_path / "folder").mkdir()
    reader = open_checkpoint(folder_of(tmp_path / "folder", parts))
    start = data.draw(st.integers(0, tensor.numel()))
    stop = data.draw(st.one_of(st.none(), st.integers(start, tensor.numel())))
    assert torch.equal(reader.read("weights/w", start, stop), tensor.reshape(-1)[start:stop])
    assert torch.equal(reader.tensor("weights/w"), tensor)
    assert reader.world_size == len(parts)


def test_slices_out_of_bounds_and_unknown_tensors_are_refused(checkpoint: Path) -> None:
    """Else a strategy that miscounts would train on rubbish."""
    reader = open_checkpoint(checkpoint)
    for start, stop in [(-1, 2), (3, 2), (0, 10)]:
        with pytest.raises(ValueError, match="elements"):
            reader.read("weights/layer.bias", start, stop)
    with pytest.raises(InputError, match="holds no weights/other"):
        reader.read("weights/other")


def test_gaps_between_parts_are_refused(tmp_path: Path) -> None:
    """Else a tensor would be partly whatever memory held."""
    values = torch.ones(4)
    for missing, starts in [(0, (1, 5)), (4, (0, 6)), (8, (0, 4))]:
        parts = [{"w": Piece(shape=(10,), start=start, values=values)} for start in starts]
        with pytest.raises(InputError, match=f"of w those from {missing} on"):
            open_checkpoint(folder_of(tmp_path, parts, f"{missing}.ckpt"))


@pytest.mark.parametrize(
    "piece",
    [
        Piece(shape=(3,), start=0, values=torch.ones(4)),
        Piece(shape=(4,), start=1, values=torch.ones(4)),
        Piece(shape=(4,), start=-1, values=torch.ones(4)),
        Piece(shape=(-2, -2), start=0, values=torch.ones(4)),
        Piece(shape=("4",), start=0, values=torch.ones(4)),  # type: ignore[arg-type]
        Piece(shape=(1,) * 100, start=0, values=torch.ones(1)),
        Piece(shape=(2, 2), start=0, values=torch.ones(2, 2)),
    ],
)
def test_pieces_that_cannot_be_are_refused(tmp_path: Path, piece: Piece) -> None:
    """Else what a damaged or forged part says would be believed."""
    with pytest.raises(InputError, match="says of w what cannot be"):
        open_checkpoint(folder_of(tmp_path, [{"w": piece}]))


def test_parts_that_disagree_are_refused(tmp_path: Path) -> None:
    """Else parts of two networks would be mixed."""
    for other in (
        Piece(shape=(2, 4), start=4, values=torch.ones(4)),
        Piece(shape=(8,), start=4, values=torch.ones(4, dtype=torch.float64)),
    ):
        parts = [{"w": Piece(shape=(8,), start=0, values=torch.ones(4))}, {"w": other}]
        with pytest.raises(InputError, match="disagree about w"):
            open_checkpoint(folder_of(tmp_path, parts, f"{other.values.dtype}.ckpt"))


def files_of(checkpoint: Path) -> list[Path]:
    return sorted(checkpoint.iterdir()) if checkpoint.is_dir() else [checkpoint]


def test_any_flipped_byte_is_noticed(checkpoint: Path) -> None:
    """Else a run would go on from a state that a disk has changed."""
    for file in files_of(checkpoint):
        whole = file.read_bytes()
        for place in range(0, len(whole), 29):
            file.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
            with pytest.raises(InputError, match=rf"{checkpoint.name}.*(damaged|give another)"):
                open_checkpoint(checkpoint)
        file.write_bytes(whole)
    open_checkpoint(checkpoint)


def test_flipped_bytes_are_noticed_without_a_record(checkpoint: Path) -> None:
    """Else a checkpoint copied elsewhere could be damaged unnoticed. What counts are the tensors."""
    (checkpoint.parent / "checkpoints.jsonl").unlink()
    for file in files_of(checkpoint):
        whole = file.read_bytes()
        for place in range(0, len(whole), 31):
            file.write_bytes(whole[:place] + bytes([whole[place] ^ 16]) + whole[place + 1 :])
            try:
                reader = open_checkpoint(checkpoint)
            except InputError:
                continue
            for key, tensor in tensors(1).items():
                assert torch.equal(reader.tensor(key), tensor)
        file.write_bytes(whole)


def test_a_cut_file_is_noticed(checkpoint: Path) -> None:
    """Else a file that was not copied to its end would crash the program, or be believed."""
    for recorded in (True, False):
        if not recorded:
            (checkpoint.parent / "checkpoints.jsonl").unlink()
        for file in files_of(checkpoint):
            whole = file.read_bytes()
            for length in [*range(0, len(whole), 97), len(whole) - 1]:
                file.write_bytes(whole[:length])
                for verify in (True, False):
                    with pytest.raises(InputError, match=checkpoint.name):
                        open_checkpoint(checkpoint, verify=verify)
            file.write_bytes(whole)


def test_missing_foreign_and_irregular_files_are_refused(tmp_path: Path) -> None:
    """Else a slip in a path would end in a traceback, or in waiting for a pipe."""
    (tmp_path / "text.ckpt").write_text("hello")
    (tmp_path / "empty.ckpt").touch()
    os.mkfifo(tmp_path / "pipe.ckpt")
    (tmp_path / "folder.ckpt").mkdir()
    torch.save({"state_dict": {"a": torch.ones(2)}}, tmp_path / "other.ckpt")
    torch.save([1, 2], tmp_path / "list.ckpt")
    torch.save({"a": torch.ones(2)}, tmp_path / "old.ckpt", _use_new_zipfile_serialization=False)
    with zipfile.ZipFile(tmp_path / "zip.ckpt", "w") as container:
        container.writestr("a/b", "c")
    for name in ("text", "empty", "pipe", "folder", "other", "list", "old", "zip", "missing"):
        with pytest.raises(InputError, match=f"{name}.ckpt"):
            open_checkpoint(tmp_path / f"{name}.ckpt")


def test_a_newer_format_is_named(tmp_path: Path) -> None:
    """Else a user of an old version would look for damage."""
    torch.save({"format": 99}, tmp_path / "new.ckpt")
    with pytest.raises(InputError, match="update the program"):
        open_checkpoint(tmp_path / "new.ckpt")


class Malicious:
    """Pickled, it is a call of a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._call = (function, arguments)

    def __reduce__(self) -> Any:
        return self._call


def test_code_is_refused_and_not_executed(checkpoint: Path) -> None:
    """Else opening a checkpoint from the net would hand over the account."""
    (checkpoint.parent / "checkpoints.jsonl").unlink()
    trace = checkpoint.parent / "trace"
    target = checkpoint / "common.ckpt" if checkpoint.is_dir() else checkpoint
    for function, arguments in [(os.mkdir, (str(trace),)), (eval, (f"open({str(trace)!r}, 'w')",))]:
        content = torch.load(target, weights_only=True)
        content["common"] = {"x": Malicious(function, *arguments)}
        torch.save(content, target)
        if checkpoint.is_dir():
            redigest(checkpoint)
        with pytest.raises(InputError, match="refers to code"):
            open_checkpoint(checkpoint)
        assert not trace.exists()
        torch.save({**content, "common": {}}, target)


def redigest(folder: Path) -> None:
    """Make checkpoint.json agree with the files, as a forger would."""
    from distrib.runtime.checkpoints.digest import file_digest

    contents = json.loads((folder / "checkpoint.json").read_text())
    for name in contents["files"]:
        file = folder / name
        contents["files"][name] = {"bytes": file.stat().st_size, "digest": file_digest(file)}
    (folder / "checkpoint.json").write_text(json.dumps(contents))


def edited(source: Path, target: Path, edit: Callable[[bytes], bytes], **options: Any) -> Path:
    """A container whose pickled part has been edited."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", **options) as new:
        for member in old.infolist():
            data = old.read(member)
            new.writestr(member.filename, edit(data) if member.filename.endswith("data.pkl") else data)
    return target


def test_claims_of_giant_tensors_are_refused_before_memory_is_taken(tmp_path: Path) -> None:
    """Else a small file could bring a node down."""
    source = tmp_path / "source.ckpt"
    content = {"format": 1, "common": {}, "groups": [], "facts": {}}
    torch.save({**content, "tensors": {"w": torch.ones(70000)}}, source)
    length = b"J" + struct.pack("<i", 70000)
    giant = b"\x8a\x06" + (1 << 40).to_bytes(6, "little")

    def last_only(data: bytes) -> bytes:
        place = data.rindex(length)
        return data[:place] + giant + data[place + len(length) :]

    made = [
        edited(source, tmp_path / "both.ckpt", lambda data: data.replace(length, giant)),
        edited(source, tmp_path / "size.ckpt", last_only),
        edited(source, tmp_path / "bytes.ckpt", lambda data: b"\x80\x04\x8e" + b"\xff" * 7 + b"\x00"),
        edited(source, tmp_path / "call.ckpt", lambda data: pickle.dumps(Malicious(bytearray, 1 << 40), 2)),
        edited(source, tmp_path / "packed.ckpt", lambda data: data, compression=zipfile.ZIP_DEFLATED),
        tmp_path / "expanded.ckpt",
    ]
    torch.save({**content, "tensors": {"w": torch.zeros(1).expand(1 << 40)}}, made[-1])
    before = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (32 << 30, before[1]))
    try:
        for path in made:
            with pytest.raises(InputError, match=path.name):
                open_checkpoint(path, verify=False)
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def test_folders_that_lead_elsewhere_are_refused(tmp_path: Path) -> None:
    """Else a forged folder would have any file of the machine opened."""
    folder = saved(store_of(tmp_path, sharded=True), 1)
    (tmp_path / "checkpoints.jsonl").unlink()
    contents = folder / "checkpoint.json"
    whole = json.loads(contents.read_text())
    part = part_name(0, 1)
    for name in ("../x", "/etc/passwd", "part_1_of_1.ckpt", "part_0_of_2.ckpt", "common.ckpt/x"):
        files = {**whole["files"], name: whole["files"][part]}
        for each in (files, {key: value for key, value in files.items() if key != part}):
            contents.write_text(json.dumps({**whole, "files": each}))
            with pytest.raises(InputError, match="does not name the parts"):
                open_checkpoint(folder)
    for text in ("", "[]", "{}", '{"format": 1}', '{"format": 1, "files": {"a": 1}}', "[" * 9999):
        contents.write_text(text)
        with pytest.raises(InputError, match=r"checkpoint\.json"):
            open_checkpoint(folder)
    contents.write_text(json.dumps(whole))
    (folder / part).rename(tmp_path / "part")
    with pytest.raises(InputError, match=part):
        open_checkpoint(folder)
    (folder / part).symlink_to(tmp_path / "part")
    with pytest.raises(InputError, match="is a link"):
        open_checkpoint(folder)


def test_only_what_is_read_takes_memory(tmp_path: Path) -> None:
    """Else a process of a sharded run would need room for the whole state."""
    pieces = {
        f"w{number}": Piece(shape=(4 << 20,), start=0, values=torch.ones(4 << 20)) for number in range(8)
    }
    folder = folder_of(tmp_path, [pieces])

    def private_bytes() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

    before = private_bytes()
    reader: CheckpointReader = open_checkpoint(folder)
    for key in reader.shapes:
        assert reader.read(key, 1 << 20, 2 << 20).sum() == 1 << 20
    assert private_bytes() - before < 32 << 20  # of 128 MiB


def test_a_broken_newest_is_reported_and_the_next_older_taken(tmp_path: Path) -> None:
    """Else one bad sector would end a run for good, or be hidden."""
    store = store_of(tmp_path, keep_last=3)
    older, middle, newest = saved(store, 1), saved(store, 2), saved(store, 3)
    newest.write_bytes(newest.read_bytes()[:-5])
    middle.write_bytes(b"")
    said: list[str] = []
    assert newest_valid(tmp_path, report=said.append) == older
    assert [newest.name in said[0], middle.name in said[1], len(said)] == [True, True, 2]
    assert checkpoint_to_resume(tmp_path) == older
    older.unlink()
    with pytest.raises(InputError, match="no whole checkpoint"):
        checkpoint_to_resume(tmp_path)


def test_what_is_resumed_is_the_path_given_or_the_newest(checkpoint: Path) -> None:
    """Else --resume would not take a file, a folder checkpoint, or a run directory."""
    directory = checkpoint.parent
    assert checkpoint_to_resume(checkpoint) == checkpoint
    assert checkpoint_to_resume(directory) == checkpoint
    assert checkpoint_to_resume(directory / "last.ckpt") == directory / "last.ckpt"
    assert open_checkpoint(directory / "last.ckpt").facts == facts(1)
    with pytest.raises(InputError, match="no such checkpoint"):
        checkpoint_to_resume(directory / "missing.ckpt")
