"""The node's copies of remote shards: whole or absent, downloaded once, bounded, never a reason to stop."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import multiprocessing
import os
import pickle
import random
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest
from fsspec.registry import _registry

from distrib.shards import cache as cache_module
from distrib.shards import cache_folder, remote
from distrib.shards.cache import ShardCache
from distrib.shards.storage import ShardStorage

FORK = multiprocessing.get_context("fork")


class FolderFileSystem(fsspec.AbstractFileSystem):
    """A local folder as if it were remote: ``folder:///path``. Each read adds a line to its file ``reads``.

    While it holds a file ``gate``, reads wait for that to go; ``infos`` counts questions for sizes.
    """

    protocol = "folder"
    cachable = False

    @classmethod
    def _strip_protocol(cls, path):
        return path.removeprefix("folder://")

    def info(self, path, **kwargs):
        self._count(path, "infos")
        status = Path(path).stat()
        return {"name": path, "size": status.st_size, "type": "file", "mtime": status.st_mtime_ns}

    def cat_file(self, path, start=None, end=None, **kwargs):
        self._count(path, "reads")
        while Path(path).with_name("gate").exists():
            time.sleep(0.005)
        return Path(path).read_bytes()[start:end]

    def _count(self, path, name):
        with Path(path).with_name(name).open("a") as file:
            file.write(f"{os.getpid()} {Path(path).name}\n")


class Remote:
    """Shards ``a``, ``b``, … behind the network, each of ``size`` bytes unless told otherwise."""

    def __init__(self, folder: Path, size: int = 1000) -> None:
        self.folder = folder
        self.size = size
        folder.mkdir()

    def put(self, name: str, size: int | None = None, seed: int = 0) -> str:
        data = random.Random(f"{name}{seed}").randbytes(self.size if size is None else size)
        (self.folder / name).write_bytes(data)
        return f"folder://{self.folder / name}"

    def data(self, address: str) -> bytes:
        return Path(address.removeprefix("folder://")).read_bytes()

    def lines(self, name: str) -> list[str]:
        path = self.folder / name
        return path.read_text().splitlines() if path.exists() else []

    @property
    def reads(self) -> list[str]:
        return [line.split()[1] for line in self.lines("reads")]

    @contextlib.contextmanager
    def gate(self) -> Iterator[None]:
        (self.folder / "gate").touch()
        yield
        (self.folder / "gate").unlink(missing_ok=True)


@pytest.fixture
def far(tmp_path, monkeypatch) -> Iterator[Remote]:
    fsspec.register_implementation("folder", FolderFileSystem, clobber=True)
    monkeypatch.setattr(remote.remote_call, "__kwdefaults__", {"delays": ()})
    yield Remote(tmp_path / "far")
    _registry.pop("folder", None)


@pytest.fixture
def near(tmp_path) -> Path:
    return tmp_path / "near"


def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


def start(function, *arguments) -> multiprocessing.Process:
    child = FORK.Process(target=function, args=arguments)
    child.start()
    return child


def join(*children: multiprocessing.Process) -> None:
    for child in children:
        child.join(30)
        assert child.exitcode == 0


def copies(near: Path) -> list[str]:
    """Names of the shards that have whole copies."""
    names = [path.name for path in (near / "shards").iterdir()]
    return sorted(name.split(".")[0] for name in names if ".cached" in name and not name.startswith("."))


def leftovers(near: Path) -> list[str]:
    return [p.name for p in (near / "shards").iterdir() if p.name.startswith(".") and p.name != ".lock"]


def held(near: Path) -> int:
    total = 0
    for path in (near / "shards").iterdir():
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


def test_a_copy_has_the_bytes_and_the_suffix_of_its_shard_and_is_downloaded_once(far, near):
    address = far.put("a.arrow")
    path = ShardCache(near, 5000).fetch(address)
    assert path.read_bytes() == far.data(address)
    assert path.name.startswith("a.")
    assert path.suffix == ".arrow"
    assert ShardCache(near, 5000).fetch(address) == path
    assert pickle.loads(pickle.dumps(ShardCache(near, 5000))).fetch(address) == path
    assert far.reads == ["a.arrow"]
    assert leftovers(near) == []


def test_large_shards_come_in_pieces(far, near, monkeypatch):
    monkeypatch.setattr(cache_module, "PIECE", 300)
    address = far.put("a.tar")
    assert ShardCache(near, 5000).fetch(address).read_bytes() == far.data(address)
    assert len(far.reads) == 4
    empty = far.put("b.tar", size=0)
    assert ShardCache(near, 5000).fetch(empty).read_bytes() == b""


def test_addresses_of_the_local_disk_are_not_copied(near, tmp_path):
    cache = ShardCache(near, 5000)
    assert cache.fetch(f"file://{tmp_path}/x.tar") == tmp_path / "x.tar"
    assert cache.fetch(f"{tmp_path}/x.tar") == tmp_path / "x.tar"
    assert not near.exists()


@pytest.mark.parametrize("name", ["../../etc/x.tar", "...", "a b\n.tar", "x" * 300, "ä.tar", "tar.gz.b"])
def test_no_address_names_a_file_outside_or_escapes_the_count(near, name):
    copy = cache_folder.name_copy(f"s3://b/{name}", shown_name=name, size=1, version="")
    assert "/" not in copy.name
    assert len(copy.name) < 200
    assert cache_folder._COPY.fullmatch(copy.name)["address"] == cache_folder.address_digest(f"s3://b/{name}")


def test_a_replaced_shard_is_not_served_from_its_old_copy(far, near):
    # Same size, other bytes: another run must see the new ones.
    address = far.put("a.tar")
    old = ShardCache(near, 5000).fetch(address)
    far.put("a.tar", seed=1)
    os.utime(far.folder / "a.tar", ns=(1, 1))
    new = ShardCache(near, 5000).fetch(address)
    assert new != old
    assert new.read_bytes() == far.data(address)


def test_a_shard_replaced_during_its_download_is_not_kept(far, near):
    address = far.put("a.tar")
    with far.gate():
        child = start(lambda: os._exit(ShardCache(near, 5000).fetch(address) is not None))
        until(lambda: bool(far.reads))
        os.utime(far.folder / "a.tar", ns=(1, 1))
    join(child)
    assert copies(near) == []
    assert leftovers(near) == []


def test_a_copy_of_a_wrong_size_is_made_anew(far, near):
    address = far.put("a.tar")
    path = ShardCache(near, 5000).fetch(address)
    os.truncate(path, 500)
    assert ShardCache(near, 5000).fetch(address).read_bytes() == far.data(address)


def test_processes_that_want_one_shard_at_once_download_it_once(far, near):
    address = far.put("a.tar")

    def fetch():
        assert ShardCache(near, 5000).fetch(address).read_bytes() == far.data(address)

    with far.gate():
        children = [start(fetch) for _ in range(2)]
        until(lambda: len(far.lines("infos")) == 2 and bool(far.reads))
        assert copies(near) == [], "a copy is seen before it is whole"
    join(*children)
    assert far.reads == ["a.tar"]
    assert leftovers(near) == []


def test_threads_that_want_one_shard_at_once_download_it_once(far, near):
    address, cache, found = far.put("a.tar"), ShardCache(near, 5000), []
    threads = [threading.Thread(target=lambda: found.append(cache.fetch(address))) for _ in range(4)]
    with far.gate():
        for thread in threads:
            thread.start()
        until(lambda: bool(far.reads))
    for thread in threads:
        thread.join()
    assert far.reads == ["a.tar"]
    assert len(found) == 4
    assert len(set(found)) == 1


def test_a_download_that_was_killed_is_made_again_and_leaves_nothing(far, near):
    address, other = far.put("a.tar"), far.put("b.tar")
    with far.gate():
        children = [start(ShardCache(near, 2500).fetch, each) for each in (address, other)]
        until(lambda: sorted(far.reads) == ["a.tar", "b.tar"])
        assert len(leftovers(near)) == 4
        for child in children:
            os.kill(child.pid, signal.SIGKILL)
            child.join()
        assert copies(near) == []
    assert ShardCache(near, 2500).fetch(address).read_bytes() == far.data(address)
    assert leftovers(near) == [], "what the killed left counts against the bound for ever"
    assert copies(near) == ["a"]


def test_one_waiting_for_a_downloader_that_is_killed_takes_over(far, near):
    address = far.put("a.tar")
    with far.gate():
        first = start(ShardCache(near, 5000).fetch, address)
        until(lambda: far.reads == ["a.tar"])
        second = start(lambda: os._exit(ShardCache(near, 5000).fetch(address) is None))
        until(lambda: len(far.lines("infos")) == 2)
        os.kill(first.pid, signal.SIGKILL)
        first.join()
        until(lambda: far.reads == ["a.tar", "a.tar"])
    join(second)
    assert copies(near) == ["a"]


def test_one_that_hangs_is_not_waited_for_for_ever(far, near, monkeypatch):
    address, cache = far.put("a.tar"), ShardCache(near, 5000)
    with far.gate():
        child = start(ShardCache(near, 5000).fetch, address)
        until(lambda: far.reads == ["a.tar"])
        os.kill(child.pid, signal.SIGSTOP)
        monkeypatch.setattr(cache_folder, "STALLED_SECONDS", 0.05)
        assert cache.fetch(address) is None
        os.kill(child.pid, signal.SIGCONT)
    join(child)
    assert cache.fetch(address) is not None


def test_the_copy_used_longest_ago_makes_room(far, near):
    cache = ShardCache(near, 3000)
    addresses = {name: far.put(f"{name}.tar") for name in "abcde"}
    for age, name in enumerate("cba"):
        path = cache.fetch(addresses[name])
        os.utime(path, (1000 - age, 1000 - age))
    cache.fetch(addresses["a"])
    assert cache.fetch(addresses["d"]) is not None
    assert copies(near) == ["a", "c", "d"]
    assert cache.fetch(addresses["e"]) is not None
    assert copies(near) == ["a", "d", "e"]
    big = far.put("f.tar", size=2500)
    assert cache.fetch(big) is not None
    assert copies(near) == ["f"]


def test_a_copy_outlives_its_deletion_where_it_is_open(far, near):
    cache, address, other = ShardCache(near, 1500), far.put("a.tar"), far.put("b.tar")
    reader = ShardStorage(cache)
    assert reader.read(address, 0, 10) == far.data(address)[:10]
    cache.fetch(other)
    assert copies(near) == ["b"]
    assert reader.read(address, 500, 10) == far.data(address)[500:510]
    assert far.reads == ["a.tar", "b.tar"]


def test_a_shard_that_had_to_go_is_read_by_range_for_a_while(far, near, caplog):
    # Two shards in turn through a cache for one would be downloaded whole for every line.
    reader = ShardStorage(ShardCache(near, 1500))
    cache = ShardCache(near, 1500)
    addresses = [far.put("a.tar"), far.put("b.tar")]
    for _ in range(5):
        for address in addresses:
            cache.fetch(address)
    assert far.reads == ["a.tar", "b.tar"]
    assert len(caplog.records) == 1
    assert "too small for the shards that are read together" in caplog.text
    assert reader.read(addresses[0], 5, 5) == far.data(addresses[0])[5:10]
    at_once = ShardCache(near, 1500, again_after=0.0)
    for address in [*addresses, *addresses]:
        assert at_once.fetch(address).read_bytes() == far.data(address)


def test_a_shard_larger_than_the_cache_is_read_by_range_after_one_warning(far, near, caplog):
    address, other = far.put("a.tar"), far.put("b.tar")
    reader = ShardStorage(ShardCache(near, 999))
    for offset in range(3):
        assert reader.read(address, offset, 1) == far.data(address)[offset : offset + 1]
        assert reader.read(other, offset, 1) == far.data(other)[offset : offset + 1]
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "larger than the cache (999 bytes)" in caplog.text
    assert ShardCache(near, 0).fetch(address) is None


def test_a_full_disk_turns_the_cache_off_after_one_warning(far, near):
    address, other, small = far.put("a.tar"), far.put("b.tar"), far.put("c.tar", size=100)

    def run():
        # Files larger than 500 bytes fail to be written, as they do on a disk that is full.
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        messages = []
        handler = logging.Handler()
        handler.emit = lambda record: messages.append(record.getMessage())
        logging.getLogger("distrib").addHandler(handler)
        cache = ShardCache(near, 5000)
        assert cache.fetch(small) is not None
        expected = far.data(address)
        resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))
        reader = ShardStorage(cache)
        for offset in range(3):
            assert reader.read(address, offset, 10) == expected[offset : offset + 10]
            assert reader.read(other, offset, 10)
        assert len(messages) == 1
        assert "free some of it" in messages[0]

    join(start(run))
    assert leftovers(near) == []


def test_on_a_disk_that_others_filled_older_copies_make_room(far, near, monkeypatch):
    # Else the first shards would stay for ever, and nothing would be cached any more.
    cache, addresses = ShardCache(near, 5000), [far.put(f"{name}.tar") for name in "abc"]
    real = os.posix_fallocate

    def on_full_disk(descriptor, offset, size):
        if len(copies(near)) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor, offset, size)

    monkeypatch.setattr(os, "posix_fallocate", on_full_disk)
    for address in addresses:
        assert cache.fetch(address).read_bytes() == far.data(address)
    assert copies(near) == ["b", "c"]


def test_a_folder_that_cannot_be_written_to_turns_the_cache_off_after_one_warning(far, tmp_path, caplog):
    (tmp_path / "file").touch()
    reader, address, other = ShardStorage(ShardCache(tmp_path / "file", 5000)), far.put("a"), far.put("b")
    for each in (address, other, address):
        assert reader.read(each, 3, 10) == far.data(each)[3:13]
    assert len(caplog.records) == 1
    assert "give a folder that can be written to" in caplog.text


def test_a_shard_that_cannot_be_downloaded_is_left_to_the_reader(far, near, caplog):
    cache, address = ShardCache(near, 5000), f"folder://{far.folder}/none.tar"
    assert cache.fetch(address) is None
    assert cache.fetch(address) is None
    assert len(far.lines("infos")) == 1, "it is asked for again at every line"
    assert not caplog.records


def test_files_of_others_are_neither_counted_nor_deleted(far, near):
    folder = near / "shards"
    folder.mkdir(parents=True)
    others = [folder / "data.tar", folder / ".x.part", folder / "a.cached.tar", near / "y"]
    for path in others:
        path.write_bytes(bytes(4000))
        os.utime(path, (1, 1))
    cache = ShardCache(near, 1500)
    for name in "abc":
        assert cache.fetch(far.put(f"{name}.tar")) is not None
    assert copies(near) == ["a", "c"]
    assert all(path.stat().st_size == 4000 for path in others)


def test_processes_share_a_cache_smaller_than_their_shards(far, near):
    addresses = [far.put(f"{i}.tar", size=300 + 50 * i) for i in range(10)]

    def work(seed):
        order = random.Random(seed)
        reader = ShardStorage(ShardCache(near, 2000, again_after=0.0))
        for _ in range(60):
            address = order.choice(addresses)
            offset = order.randrange(250)
            assert reader.read(address, offset, 50) == far.data(address)[offset : offset + 50]
            if order.random() < 0.3:
                reader.close()

    children = [start(work, seed) for seed in range(3)]
    worst = 0
    while any(child.is_alive() for child in children):
        if (near / "shards").exists():
            worst = max(worst, held(near))
    join(*children)
    # Looked at while files are renamed, one may be seen under both of its names.
    assert 0 < worst <= 2000 + 750
    assert held(near) <= 2000
    assert leftovers(near) == []


def test_a_process_forked_during_a_download_neither_hangs_nor_keeps_its_lock(far, near):
    cache, address = ShardCache(near, 5000), far.put("a.tar")
    with far.gate():
        cache.prefetch([address])
        until(lambda: far.reads == ["a.tar"])
        # The child lives on with the parent's descriptors, and uses the same cache object.
        child = start(lambda: os._exit(cache.fetch(address) is None))
        until(lambda: len(far.lines("infos")) == 2)
    join(child)
    assert far.reads == ["a.tar"]
    cache.close()


def test_prefetching_fills_the_cache_in_the_background(far, near):
    addresses = [far.put(f"{name}.tar") for name in "abc"]
    cache = ShardCache(near, 5000)
    cache.prefetch([addresses[0], f"folder://{far.folder}/none", "/local.tar", *addresses])
    until(lambda: copies(near) == ["a", "b", "c"] if (near / "shards").exists() else False)
    reads = list(far.reads)
    assert cache.fetch(addresses[1]).read_bytes() == far.data(addresses[1])
    assert far.reads == reads
    assert len(pickle.dumps(cache)) < 500
    cache.close()


def test_the_newest_call_replaces_what_was_to_be_prefetched(far, near):
    addresses = [far.put(f"{name}.tar") for name in "abcd"]
    cache = ShardCache(near, 5000)
    with far.gate():
        cache.prefetch(addresses[:3])
        until(lambda: far.reads == ["a.tar"])
        cache.prefetch(addresses[3:])
    until(lambda: copies(near) == ["a", "d"])
    assert far.reads == ["a.tar", "d.tar"]
    cache.close()


def test_prefetching_never_takes_the_room_of_shards_it_was_asked_for(far, near, monkeypatch):
    # It would delete what is read now, or what it has just downloaded and nobody has read yet.
    monkeypatch.setattr(cache_module, "ROOM_SECONDS", 0.01)
    old, *wanted = [far.put(f"{name}.tar") for name in "abcd"]
    cache = ShardCache(near, 2500)
    cache.fetch(old)
    infos = len(far.lines("infos"))
    cache.prefetch(wanted)
    until(lambda: copies(near) == ["b", "c"])
    # d has been asked for and waits for room until other shards are wanted.
    until(lambda: len(far.lines("infos")) > infos + 4)
    cache.prefetch(wanted[1:])
    until(lambda: copies(near) == ["c", "d"])
    cache.close()


def test_prefetching_processes_share_the_work(far, near):
    addresses = [far.put(f"{name}.tar") for name in "ab"]
    with far.gate():
        first = start(lambda: _prefetch_all(near, addresses))
        until(lambda: far.reads == ["a.tar"])
        second = start(lambda: _prefetch_all(near, addresses))
        until(lambda: far.reads == ["a.tar", "b.tar"])
    join(first, second)
    assert far.reads == ["a.tar", "b.tar"]


def _prefetch_all(near: Path, addresses: list[str]) -> None:
    cache = ShardCache(near, 5000)
    cache.prefetch(addresses)
    until(lambda: copies(near) == ["a", "b"] if (near / "shards").exists() else False)


def test_prefetching_is_ended_by_closing(far, near):
    cache = ShardCache(near, 5000)
    cache.prefetch([far.put("a.tar")])
    until(lambda: (near / "shards").exists() and copies(near) == ["a"])
    thread = cache._process.thread
    cache.close()
    thread.join(10)
    assert not thread.is_alive()


def test_a_lock_whose_file_was_removed_is_taken_anew(near):
    # Two holders of one name would download at once: the file locked first and its successor.
    near.mkdir()
    path, order = near / ".x.lock", []

    def second():
        with cache_folder.Lock(path, wait=True, remove=True):
            order.append(path.exists())

    with cache_folder.Lock(path, wait=True, remove=True) as lock:
        thread = threading.Thread(target=second)
        thread.start()
        until(lambda: len(_descriptors(path)) == 2)
        lock.beat()
    thread.join()
    assert order == [True]
    assert not path.exists()
    with path.open("w") as held_elsewhere:
        fcntl.flock(held_elsewhere, fcntl.LOCK_EX)
        with pytest.raises(cache_folder.Busy), cache_folder.Lock(path, wait=False, remove=True):
            pass


def _descriptors(path: Path) -> list[str]:
    found = []
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found.append(str(link.readlink()))
    return [name for name in found if name == str(path)]
