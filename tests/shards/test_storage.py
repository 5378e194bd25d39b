"""Reading shards by byte range: a failure is one sentence, descriptors are few and outlive their files."""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import pickle
import random
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import _registry

from distrib.errors import InputError
from distrib.shards import remote, storage
from distrib.shards.cache import ShardCache
from distrib.shards.storage import ShardStorage, UnreadableLine

FORK = multiprocessing.get_context("fork")


class FlakyFileSystem(MemoryFileSystem):
    """Memory files whose first reads fail; ``failures`` says with what, ``calls`` counts them."""

    protocol = "flaky"
    store: ClassVar[dict] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    failures: ClassVar[list[Exception]] = []
    calls = 0

    @classmethod
    def _strip_protocol(cls, path):
        return "/" + path.removeprefix("flaky://").strip("/")

    def cat_file(self, path, start=None, end=None, **kwargs):
        cls = type(self)
        cls.calls += 1
        if cls.failures:
            raise cls.failures.pop(0)
        data = self.store[self._strip_protocol(path)].getvalue()
        return data if path.endswith("whole") else data[start:end]


@pytest.fixture(autouse=True)
def _quick_retries(monkeypatch):
    monkeypatch.setattr(remote.remote_call, "__kwdefaults__", {"delays": (0.0, 0.0, 0.0)})


@pytest.fixture
def memory() -> Iterator[MemoryFileSystem]:
    filesystem = fsspec.filesystem("memory")
    filesystem.store.clear()
    yield filesystem
    filesystem.store.clear()


@pytest.fixture
def flaky() -> Iterator[type[FlakyFileSystem]]:
    fsspec.register_implementation("flaky", FlakyFileSystem, clobber=True)
    FlakyFileSystem.store.clear()
    FlakyFileSystem.failures, FlakyFileSystem.calls = [], 0
    FlakyFileSystem(skip_instance_cache=True).pipe("/shard.tar", bytes(range(100)))
    yield FlakyFileSystem
    _registry.pop("flaky", None)


@pytest.fixture
def shard(tmp_path) -> Path:
    path = tmp_path / "a.arrow"
    path.write_bytes(random.Random(1).randbytes(300_000))
    return path


def open_below(folder: Path) -> int:
    """Descriptors of this process on files below ``folder``, deleted ones included."""
    count = 0
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            count += str(link.readlink()).startswith(str(folder))
    return count


def in_child(function) -> int:
    """The exit code of a forked process that runs ``function``; 1 where it raises."""
    child = FORK.Process(target=function)
    child.start()
    child.join(30)
    assert child.exitcode is not None
    return child.exitcode


@pytest.mark.parametrize("prefix", ["", "file://"])
def test_local_ranges_are_the_bytes_of_the_file(shard, prefix):
    data, reader = shard.read_bytes(), ShardStorage()
    address = f"{prefix}{shard}"
    for offset, size in [(0, 0), (0, 1), (5, 57_000), (299_999, 1), (0, 300_000), (300_000, 0)]:
        assert reader.read(address, offset, size) == data[offset : offset + size]
    assert reader.size(address) == 300_000
    assert reader.exists(address)
    assert not reader.exists(f"{prefix}{shard}x")
    assert reader.local_path(address) == shard
    with reader.open_binary(address) as file:
        assert file.read() == data


@pytest.mark.parametrize(("offset", "size"), [(299_999, 2), (300_000, 1), (10**12, 5), (0, 2**31 - 1)])
def test_a_shard_that_ends_too_early_says_so_before_taking_memory(shard, offset, size):
    with pytest.raises(UnreadableLine, match=r"the shard .*a\.arrow is cut short") as caught:
        ShardStorage().read(str(shard), offset, size)
    assert pickle.loads(pickle.dumps(caught.value)).reason == caught.value.reason


def test_what_is_no_readable_file_is_the_lines_fault_and_never_hangs(tmp_path):
    reader = ShardStorage()
    os.mkfifo(tmp_path / "pipe")
    for name, words in [
        ("none", "does not exist"),
        ("pipe", "no file"),
        (".", "no file"),
        ("x/y", "not exist"),
    ]:
        with pytest.raises(UnreadableLine, match=words):
            reader.read(str(tmp_path / name), 0, 1)
    with pytest.raises(UnreadableLine, match="could not be read"):
        reader.read(__file__, -1, 1)
    for call in (reader.size, reader.local_path, reader.open_binary):
        with pytest.raises(InputError, match=r"the shard .*none does not exist"):
            call(str(tmp_path / "none"))
    assert open_below(tmp_path) == 0


def test_a_file_one_may_not_read_is_named():
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    (folder / "s.tar").write_bytes(b"x")
    (folder / "s.tar").chmod(0)

    def read():
        if os.geteuid() == 0:
            os.setuid(65534)
        with pytest.raises(UnreadableLine, match=r"s\.tar may not be read"):
            ShardStorage().read(str(folder / "s.tar"), 0, 1)

    try:
        assert in_child(read) == 0
    finally:
        shutil.rmtree(folder)


def test_no_more_than_64_descriptors_stay_open(tmp_path):
    paths = [tmp_path / str(i) for i in range(100)]
    for path in paths:
        path.write_bytes(path.name.encode())
    reader = ShardStorage()
    for path in [*paths, *paths]:
        assert reader.read(str(path), 0, len(path.name)) == path.name.encode()
    assert open_below(tmp_path) == 64
    reader.close()
    assert open_below(tmp_path) == 0


def test_the_shard_read_longest_ago_is_closed(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "OPEN_FILES", 2)
    for name in "abc":
        (tmp_path / name).write_bytes(name.encode())
    reader = ShardStorage()
    for name in "abac":
        reader.read(str(tmp_path / name), 0, 1)
        (tmp_path / name).unlink(missing_ok=True)
    assert reader.read(str(tmp_path / "a"), 0, 1) == b"a"
    with pytest.raises(UnreadableLine):
        reader.read(str(tmp_path / "b"), 0, 1)


def test_an_open_shard_outlives_its_deletion(shard):
    reader, data = ShardStorage(), shard.read_bytes()
    reader.read(str(shard), 0, 1)
    shard.unlink()
    assert reader.read(str(shard), 100, 50) == data[100:150]


def test_a_shard_that_shrinks_under_its_descriptor_is_cut_short(shard):
    reader = ShardStorage()
    reader.read(str(shard), 0, 1)
    os.truncate(shard, 1000)
    with pytest.raises(UnreadableLine, match="cut short: it ends at byte 1000"):
        reader.read(str(shard), 900, 200)


def test_closing_under_concurrent_reads_is_safe(tmp_path, monkeypatch):
    # A number closed by one thread and taken by another's file would give bytes of the wrong shard.
    monkeypatch.setattr(storage, "OPEN_FILES", 3)
    for name in range(20):
        (tmp_path / str(name)).write_bytes(bytes([name]) * 4000)
    reader, wrong = ShardStorage(), []

    def work(seed):
        order = random.Random(seed)
        try:
            for _ in range(1500):
                name = order.randrange(20)
                if reader.read(str(tmp_path / str(name)), 0, 4000) != bytes([name]) * 4000:
                    wrong.append(name)
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_pickles_without_descriptors_and_reads_in_a_forked_process(shard, tmp_path):
    reader, data = ShardStorage(ShardCache(tmp_path / "cache", 10**6)), shard.read_bytes()
    reader.read(str(shard), 0, 1)
    assert len(pickle.dumps(reader)) < 1000
    assert pickle.loads(pickle.dumps(reader)).read(str(shard), 7, 7) == data[7:14]
    # The fork may happen while a thread holds the lock; the child has no such thread to wait for.
    with reader._process._lock:

        def read():
            assert reader.read(str(shard), 7, 7) == data[7:14]

        assert in_child(read) == 0
    assert reader.read(str(shard), 7, 7) == data[7:14]


def test_remote_shards_without_a_cache_are_read_by_range(memory):
    memory.pipe("/set/a.tar", bytes(range(200)))
    reader, address = ShardStorage(), "memory://set/a.tar"
    assert reader.read(address, 10, 20) == bytes(range(10, 30))
    assert reader.size(address) == 200
    assert reader.exists(address)
    assert reader.exists("memory://set")
    assert not reader.exists("memory://set/b.tar")
    with reader.open_binary(address) as file:
        assert file.read() == bytes(range(200))
    with pytest.raises(UnreadableLine, match=r"memory://set/a\.tar is cut short: it ends at byte 200"):
        reader.read(address, 190, 11)
    with pytest.raises(UnreadableLine, match=r"memory://set/b\.tar does not exist"):
        reader.read("memory://set/b.tar", 0, 1)
    with pytest.raises(InputError, match=r"memory://set/b\.tar does not exist"):
        reader.size("memory://set/b.tar")


def test_a_download_is_made_once_and_goes_with_the_process_that_made_it(memory):
    memory.pipe("/a.tar", b"abc")
    reader = ShardStorage()
    path = reader.local_path("memory://a.tar")
    assert path.read_bytes() == b"abc"
    assert path.suffix == ".tar"
    assert reader.local_path("memory://a.tar") == path
    # A worker process that ends must not take its parent's files along.
    assert in_child(lambda: reader.exists("memory://a.tar")) == 0
    assert in_child(reader.close) == 0
    assert path.exists()
    reader.close()
    assert not path.parent.exists()
    with pytest.raises(InputError, match="memory://none does not exist"):
        reader.local_path("memory://none")


def test_errors_that_pass_are_tried_again(flaky):
    flaky.failures = [ConnectionResetError("reset"), TimeoutError(), RuntimeError("503 slow down")]
    assert ShardStorage().read("flaky://shard.tar", 5, 3) == b"\5\6\7"
    assert flaky.calls == 4


def test_errors_that_stay_are_told_in_a_sentence_without_credentials(flaky):
    flaky.failures = [RuntimeError("no route to flaky://me:pass@shard.tar?sig=1\n at all")] * 4
    with pytest.raises(UnreadableLine) as caught:
        ShardStorage().read("flaky://me:pass@shard.tar?sig=1", 0, 1)
    assert caught.value.reason == (
        "flaky://shard.tar could not be read (no route to flaky://shard.tar at all); "
        "check the network and the address."
    )
    assert flaky.calls == 4


@pytest.mark.parametrize("error", [FileNotFoundError("x"), PermissionError("x"), ImportError("x")])
def test_errors_that_cannot_pass_are_not_tried_again(flaky, error):
    flaky.failures = [error]
    with pytest.raises(UnreadableLine, match=r"flaky://shard\.tar"):
        ShardStorage().read("flaky://shard.tar", 0, 1)
    assert flaky.calls == 1


def test_a_server_without_ranges_is_not_taken_for_the_line(flaky):
    flaky(skip_instance_cache=True).pipe("/whole", b"0123456789")
    with pytest.raises(UnreadableLine, match="sends no parts of files; give --cache-dir"):
        ShardStorage().read("flaky://whole", 2, 2)


def test_a_missing_package_is_named_with_its_remedy(monkeypatch):
    real = importlib.import_module

    def without_s3fs(name, *arguments):
        if name.startswith("s3fs"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *arguments)

    monkeypatch.setattr(importlib, "import_module", without_s3fs)
    monkeypatch.delitem(_registry, "s3", raising=False)
    reader = ShardStorage()
    for call in (reader.size, reader.exists, reader.open_binary, reader.local_path):
        with pytest.raises(InputError, match=r"needs the package s3fs: pip install s3fs$"):
            call("s3://bucket/a.tar")
    with pytest.raises(UnreadableLine, match="pip install s3fs"):
        reader.read("s3://bucket/a.tar", 0, 1)
    with pytest.raises(InputError, match="no file system of that name"):
        reader.size("nonsense://a")


def test_a_cached_shard_is_downloaded_once_and_read_from_its_copy(flaky, tmp_path):
    reader = ShardStorage(ShardCache(tmp_path, 10**6))
    for offset in range(90):
        assert reader.read("flaky://shard.tar", offset, 10) == bytes(range(offset, offset + 10))
    assert flaky.calls == 1
    assert reader.local_path("flaky://shard.tar").parent == tmp_path / "shards"


def test_a_copy_that_breaks_is_passed_over(flaky, tmp_path):
    reader = ShardStorage(ShardCache(tmp_path, 10**6))
    reader.read("flaky://shard.tar", 0, 10)
    os.truncate(reader.local_path("flaky://shard.tar"), 5)
    assert reader.read("flaky://shard.tar", 40, 10) == bytes(range(40, 50))
    assert flaky.calls == 2


def test_without_room_in_the_cache_shards_are_read_by_range(flaky, tmp_path):
    reader = ShardStorage(ShardCache(tmp_path, 99))
    assert reader.read("flaky://shard.tar", 40, 10) == bytes(range(40, 50))
    assert reader.read("flaky://shard.tar", 50, 10) == bytes(range(50, 60))


def test_a_deleted_copy_is_let_go_of_when_it_is_not_read_any_more(flaky, tmp_path, monkeypatch):
    # Its bytes stay on the disk until then, beyond the bound of the cache.
    flaky(skip_instance_cache=True).pipe("/other.tar", bytes(100))
    reader = ShardStorage(ShardCache(tmp_path, 100))
    reader.read("flaky://shard.tar", 0, 1)
    reader.read("flaky://other.tar", 0, 1)
    assert reader.read("flaky://shard.tar", 3, 1) == b"\3"
    assert flaky.calls == 2
    assert open_below(tmp_path) == 2
    monkeypatch.setattr(storage, "REST_SECONDS", 0.0)
    for _ in range(3):
        reader.read("flaky://other.tar", 0, 1)
    assert open_below(tmp_path) == 1
