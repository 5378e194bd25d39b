"""What the preflight makes of what it finds, without other processes."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distrib.errors import InputError
from distrib.runtime.preflight import limits
from distrib.runtime.preflight.all_reduce import (
    Bandwidth,
    _contribution,
    _expected,
    exchanged,
    exchanged_a_step,
)
from distrib.runtime.preflight.gpus import Device, refuse_devices, this_device
from distrib.runtime.preflight.limits import (
    HandedOver,
    OpenFiles,
    open_files_warning,
    raise_open_files,
    shared_memory_free,
    shared_memory_problem,
)
from distrib.runtime.preflight.machines import Machine, compare, skew_warnings, this_machine
from distrib.runtime.preflight.room import Room, check_room, checkpoint_bytes, room_in
from distrib.runtime.preflight.shared_directory import PATIENCE, _Answer, _unseen
from distrib.runtime.preflight.stages import Needs, Preflight
from distrib.runtime.preflight.wording import holders, listing
from distrib.runtime.processes import Processes
from distrib.runtime.topology import Topology
from distrib.wording import size

MB, GB = 10**6, 10**9


def machine(host: str = "node1", folder: str = "/env/distrib", **versions: str) -> Machine:
    named = {name.replace("_", "-"): version for name, version in versions.items()}
    usual = {"python": "3.11.7", "ketos-distrib": "0.1.0", "torch": "2.5.1+cu124", "numpy": "2.0.0"}
    return Machine(host=host, folder=folder, versions={**usual, **named})


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        ({"torch": "2.4.0+cu124"}, "torch: 2.5.1+cu124 on node1, 2.4.0+cu124 on node2; install"),
        ({"python": "3.10.2"}, "python: 3.11.7 on node1, 3.10.2 on node2; install"),
        ({"ketos_distrib": "0.2.0"}, "ketos-distrib: 0.1.0 on node1, 0.2.0 on node2; install"),
        (
            {"ketos_distrib": "0.2.0", "folder": "/home/u/distrib"},
            "0.2.0 on node2 (imported from /env/distrib on node1, /home/u/distrib on node2); install",
        ),
        ({"deepspeed": "0.19.8"}, "deepspeed: none on node1, 0.19.8 on node2"),
    ],
)
def test_versions_that_cannot_train_together_are_refused(other: dict[str, str], expected: str) -> None:
    with pytest.raises(InputError) as refused:
        compare([machine(), machine("node2", **other)])
    assert expected in str(refused.value)


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        ({}, []),
        ({"numpy": "2.1.0"}, ["numpy is 2.0.0 on node1, 2.1.0 on node2"]),
        ({"python": "3.11.9"}, ["python is 3.11.7 on node1, 3.11.9 on node2"]),
        ({"torch": "2.5.1+cpu"}, ["torch is 2.5.1+cu124 on node1, 2.5.1+cpu on node2"]),
        ({"folder": "/home/u/distrib"}, ["imported from /env/distrib on node1, /home/u/distrib on node2"]),
    ],
)
def test_differences_that_may_do_no_harm_are_warned_of(other: dict[str, str], expected: list[str]) -> None:
    warnings = compare([machine(), machine("node2", **other)])
    assert len(warnings) == len(expected)
    assert all(part in warning for part, warning in zip(expected, warnings, strict=True))


def test_the_versions_of_this_process_are_those_it_runs() -> None:
    found = this_machine(deepspeed=False)
    assert found.versions["torch"] == torch.__version__
    assert "none" not in found.versions.values()
    assert (Path(found.folder) / "errors.py").is_file()
    assert compare([found, found]) == []


def test_who_has_what_is_said_by_host_and_by_rank_where_a_host_has_both() -> None:
    assert holders(["a", "a", "b", "b"], ["n1", "n1", "n2", "n2"]) == "a on n1, b on n2"
    assert holders(["a", "b", "b"], ["n1", "n1", "n2"]) == "a on process 0 on n1, b on process 1 on n1 and n2"
    assert listing(["n1", "n2", "n3", "n4", "n5"]) == "n1, n2, n3 and 2 more"


def test_only_clocks_that_are_far_off_are_warned_of_once_a_host() -> None:
    warnings = skew_warnings([0, 4.9, -61.2, -61.3, 7], ["n1", "n1", "n2", "n2", "n3"])
    assert len(warnings) == 2
    assert "the clock of n2 is 61 s behind that of process 0 on n1" in warnings[0]
    assert "the clock of n3 is 7 s ahead of" in warnings[1]


@pytest.mark.parametrize(
    ("devices", "hosts", "expected"),
    [
        (["a", "b"], ["n1", "n1"], None),
        (["a", "a"], ["n1", "n2"], None),  # what two hosts call their own
        (["", ""], ["n1", "n1"], None),  # a torch that does not say
        (["a", "b", "a"], ["n1", "n1", "n1"], "Process 0 and process 2 on n1 use the same GPU (a)"),
    ],
)
def test_two_processes_on_one_gpu_are_refused(
    devices: list[str], hosts: list[str], expected: str | None
) -> None:
    found = [Device(kind="cuda", uuid=uuid) for uuid in devices]
    if expected is None:
        refuse_devices(found, hosts)
        return
    with pytest.raises(InputError) as refused:
        refuse_devices(found, hosts)
    assert expected in str(refused.value)


def test_a_node_without_its_gpu_is_named() -> None:
    with pytest.raises(InputError, match="cuda on n1, cpu on n2; see with nvidia-smi"):
        refuse_devices([Device(kind="cuda", uuid="a"), Device(kind="cpu")], ["n1", "n2"])


def test_too_few_gpus_are_said_with_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    topology = Topology(rank=3, world_size=8, local_rank=3, local_world_size=8)
    with pytest.raises(InputError, match=r"^node7: 8 processes on a machine with 4 GPU"):
        this_device("cuda", topology, "node7")
    assert this_device("cpu", topology, "node7") == Device(kind="cpu")


@pytest.fixture
def file_limits() -> Iterator[Callable[[int, int], None]]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    fake = {"limits": before}

    def get(_: int) -> tuple[int, int]:
        return fake["limits"]

    def put(_: int, new: tuple[int, int]) -> None:
        fake["limits"] = new

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits.resource, "getrlimit", get)
        patch.setattr(limits.resource, "setrlimit", put)
        yield lambda soft, hard: fake.update(limits=(soft, hard))


@pytest.mark.parametrize(
    ("soft", "hard", "limit", "raised", "warned"),
    [
        (1024, 4096, 1024, False, False),
        (256, 4096, 1024, True, False),
        (256, 512, 512, True, True),
        (256, resource.RLIM_INFINITY, 1024, True, False),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, None, False, False),
    ],
)
def test_the_limit_of_open_files_is_raised_as_far_as_it_may(
    file_limits: Callable[[int, int], None],
    soft: int,
    hard: int,
    limit: int | None,
    raised: bool,
    warned: bool,
) -> None:
    file_limits(soft, hard)
    found = raise_open_files(workers=1, world_size=2)
    assert (found.limit, found.raised) == (limit, raised)
    assert limits.resource.getrlimit(resource.RLIMIT_NOFILE) == (soft if limit is None else limit, hard)
    assert bool(open_files_warning(found, "node1")) == warned


def test_a_limit_that_cannot_be_raised_is_said() -> None:
    sentence = open_files_warning(OpenFiles(limit=512, wanted=2000, raised=False), "node2")
    assert sentence is not None
    assert "node2 lets a process open 512 files, and 2000 may be needed" in sentence


@pytest.mark.parametrize(
    ("free", "expected", "fatal"),
    [
        (None, "", False),
        (400 * MB, "", False),
        (399 * MB, "Warning: node1 has 399.0 MB of shared memory free (/dev/shm), and 4 reader", False),
        (
            64 * MB,
            "node1 has 64.0 MB of shared memory free (/dev/shm), and 4 reader processes hand over 80",
            True,
        ),
    ],
)
def test_shared_memory_that_readers_would_fill(free: int | None, expected: str, fatal: bool) -> None:
    needs = HandedOver(workers=2, least=40 * MB, most=200 * MB)
    sentence, refused = shared_memory_problem(free, needs, 2, "node1")
    assert refused == fatal
    assert sentence.startswith(expected)
    assert bool(sentence) == bool(expected)
    assert not sentence or ("--shm-size" in sentence and "--workers" in sentence)


def test_without_readers_no_shared_memory_is_needed() -> None:
    assert shared_memory_problem(0, HandedOver(workers=0, least=5, most=9), 2, "n") == ("", False)
    assert shared_memory_free(Path("/no/such/folder")) is None


def stat_of(*, free: int, blocks: int = 1, names: int = 10**6) -> Callable[[Path], os.statvfs_result]:
    found = SimpleNamespace(f_bavail=free, f_frsize=1, f_blocks=blocks, f_favail=names, f_files=names)
    return lambda _: found  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("free", "taken", "outcome"),
    [
        (14, 0, ""),
        (13, 0, "will take 14.0 GB"),
        (2, 0, "will take 14.0 GB"),
        (1.9, 0, "refused"),
        (0.9, 5, "refused"),  # the next is whole before an old one goes
        (1, 1, "will take"),
        (4, 10, ""),  # a run that goes on has most of them already
    ],
)
def test_room_for_checkpoints(free: float, taken: float, outcome: str) -> None:
    room = Room(free=int(free * GB), names=None, taken=int(taken * GB))
    if outcome == "refused":
        with pytest.raises(InputError, match=r"/run: .* free, and a checkpoint takes about 1.0 GB"):
            check_room(room, Path("/run"), checkpoint=GB, kept=12)
        return
    warnings = check_room(room, Path("/run"), checkpoint=GB, kept=12)
    assert len(warnings) == bool(outcome)
    assert all(outcome in warning and "--keep-best" in warning for warning in warnings)


def test_room_that_the_file_system_does_not_tell_of_is_unknown(tmp_path: Path) -> None:
    room = room_in(tmp_path, statvfs=stat_of(free=0, blocks=0, names=0))
    assert (room.free, room.names) == (None, None)
    assert check_room(room, tmp_path, checkpoint=GB, kept=3) == []
    few = room_in(tmp_path, statvfs=stat_of(free=100 * GB, names=20))
    assert "20 more files (inodes)" in check_room(few, tmp_path, checkpoint=GB, kept=3)[0]


def test_checkpoints_that_are_there_count_once(tmp_path: Path) -> None:
    """A link to the newest takes nothing, a folder takes what is in it."""
    (tmp_path / "checkpoint_00-0.5000.ckpt").write_bytes(bytes(1000))
    os.link(tmp_path / "checkpoint_00-0.5000.ckpt", tmp_path / "last.ckpt")
    folder = tmp_path / "step_00000010.ckpt"
    folder.mkdir()
    (folder / "part").write_bytes(bytes(500))
    (tmp_path / "other").write_bytes(bytes(7))
    assert room_in(tmp_path).taken == 1500


def test_a_full_disk_is_refused_for_real(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", disk], capture_output=True
    ).returncode:
        pytest.skip("this user may not mount a disk")
    try:
        preflight = Preflight(Processes(Topology()), warn=lambda _: None)
        preflight.machines(workers=0)
        network = torch.nn.Linear(100, 100)
        needs = Needs(strategy="auto", optimizer_values=2, kept=3, handed_over=None)
        with pytest.raises(InputError, match=r"a checkpoint takes about 121\.2 KB, of which two must fit"):
            preflight.step(network, disk, needs, device="cpu")
    finally:
        subprocess.run(["umount", disk], check=True)


def test_the_size_of_a_checkpoint_is_that_of_weights_and_what_the_optimizer_keeps() -> None:
    network = torch.nn.Sequential(torch.nn.Linear(10, 10), torch.nn.BatchNorm1d(10))
    network[0].weight.requires_grad_(False)
    assert checkpoint_bytes(network, optimizer_values=2) == 4 * (110 + 20 + 21 + 2 * 30)


@given(world_size=st.integers(1, 40))
def test_the_known_sum_is_that_of_the_contributions(world_size: int) -> None:
    total = sum(_contribution(rank, world_size) for rank in range(world_size))
    assert torch.equal(torch.as_tensor(total), _expected(world_size))


def test_bandwidth_is_that_of_the_bus() -> None:
    assert Bandwidth(bytes=100, seconds=2.0, world_size=4).bus == 75.0
    assert exchanged(100, 2) == 100
    assert exchanged_a_step(1000, 2, "ddp") == exchanged_a_step(1000, 2, "deepspeed_stage_2") == 4000
    assert exchanged_a_step(1000, 2, "fsdp") == exchanged_a_step(1000, 2, "deepspeed_stage_3") == 6000
    assert size(16_000_000) == "16.0 MB"


def test_an_answer_that_rank_zero_does_not_see_is_its_writers(tmp_path: Path) -> None:
    """A node whose writes stay on it, as in an overlay over the shared disk."""
    answers = [_Answer(seen=True), _Answer(seen=True, wrote=True), _Answer(seen=True, wrote=True)]
    (tmp_path / "n-1").write_text("n-1")
    assert _unseen(answers, tmp_path, "n", 0.0) == [2]


def test_a_file_is_seen_that_only_an_opened_folder_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An NFS client goes by what it knows of a folder, and of where that is, until it is opened."""
    directory = tmp_path / "run"
    directory.mkdir()
    (directory / "n-1").write_text("n-1")
    opened: list[Path] = []
    read, open_ = Path.read_text, os.open

    def noted(path: Path, flags: int) -> int:
        opened.append(path)
        return open_(path, flags)

    def remembered(path: Path, **given: str) -> str:
        if opened[-2:] != [tmp_path, directory]:
            raise FileNotFoundError(2, "No such file or directory")
        return read(path, **given)

    monkeypatch.setattr("distrib.runtime.preflight.shared_directory.os.open", noted)
    monkeypatch.setattr(Path, "read_text", remembered)
    assert _unseen([_Answer(seen=True), _Answer(seen=True, wrote=True)], directory, "n", 0.0) == []
    assert len(opened) == 2


def test_other_nodes_have_the_minute_that_nfs_may_take() -> None:
    assert PATIENCE > 30.0


def test_one_process_is_done_at_once(tmp_path: Path) -> None:
    """What a run of one process pays: nothing that it would feel, and no exchange with anybody."""
    said: list[str] = []
    preflight = Preflight(Processes(Topology()), warn=said.append)
    preflight.machines(workers=1)
    preflight.devices("cpu")
    preflight.run_directory(tmp_path)
    handed_over = HandedOver(workers=1, least=1, most=2)
    needs = Needs(strategy="auto", optimizer_values=2, kept=3, handed_over=handed_over)
    preflight.step(torch.nn.Linear(2, 2), tmp_path, needs, device="cpu")
    facts = preflight.facts
    assert facts["processes"] == 1
    assert facts["checkpoint_bytes"] == 72
    assert facts["warnings"] == said
    assert "all_reduce" not in facts
    assert facts["seconds"] < 0.5
    assert preflight.summary.startswith("run directory: ")
    assert not list(tmp_path.iterdir())
