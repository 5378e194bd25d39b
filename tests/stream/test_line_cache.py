"""Lines kept on the node's disk: what is got is what was put, whoever is killed, and no run stops for it."""

from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import random
import resource
import signal
import sqlite3
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from distrib.stream import line_cache
from distrib.stream.line_cache import LineCache

FORK = multiprocessing.get_context("fork")
ROOM = 1 << 28


def noise(seed: int, height: int = 120, width: int = 480) -> np.ndarray:
    """A line that does not compress, so that its bytes are known."""
    return np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8)


def key(number: int) -> bytes:
    return number.to_bytes(16, "little")


def start(function, *arguments) -> multiprocessing.Process:
    child = FORK.Process(target=function, args=arguments)
    child.start()
    return child


def join(*children: multiprocessing.Process) -> None:
    for child in children:
        child.join(30)
        assert child.exitcode == 0


def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


@given(array=arrays.arrays(np.uint8, arrays.array_shapes(max_dims=4, min_side=0, max_side=9)))
def test_packing_keeps_pixels_and_shape(array):
    unpacked = line_cache._unpack(line_cache._pack(array))
    assert unpacked.shape == array.shape
    assert (unpacked == array).all()


@example(junk=b"\x03" + b"\1\0\0\0" * 2 + b"\0\0\0\xff", cut=0, place=0, flip=1)
@given(
    junk=st.binary(max_size=60), cut=st.integers(0, 40), place=st.integers(0, 40), flip=st.integers(1, 255)
)
def test_a_damaged_value_is_no_line_and_takes_no_memory(junk, cut, place, flip):
    line_cache._unpack(junk)
    packed = line_cache._pack(np.arange(40, dtype=np.uint8).reshape(4, 10))
    assert line_cache._unpack(packed[: min(cut, len(packed) - 1)]) is None
    damaged = bytearray(packed)
    damaged[min(place, len(packed) - 1)] ^= flip
    array = line_cache._unpack(bytes(damaged))
    assert array is None or (array.ravel() == np.arange(40)).all()
    bomb = line_cache._pack(np.zeros((1, 5_000_000), dtype=np.uint8))
    assert line_cache._unpack(packed[:9] + bomb[9:]) is None


def test_a_line_that_was_put_is_got_and_others_are_not(tmp_path):
    cache = LineCache(tmp_path, "d", ROOM)
    assert cache.get(key(1)) is None
    line = noise(1)[:, ::2]
    cache.put(key(1), line)
    cache.put(key(1), noise(2))
    assert (cache.get(key(1)) == line).all()
    assert cache.get(key(2)) is None
    cache.close()
    assert (LineCache(tmp_path, "d", ROOM).get(key(1)) == line).all()
    # Another height or version of the straightening is another digest.
    assert LineCache(tmp_path, "e", ROOM).get(key(1)) is None
    assert cache.path == tmp_path / "lines" / "d.sqlite"


@pytest.mark.parametrize("digest", ["", "../x", "a/b", "a.b", "a\n"])
def test_a_digest_is_a_plain_name(tmp_path, digest):
    with pytest.raises(ValueError, match="name of a line cache"):
        LineCache(tmp_path, digest, 1)


def test_only_bytes_are_kept(tmp_path):
    with pytest.raises(ValueError, match="uint8"):
        LineCache(tmp_path, "d", ROOM).put(key(1), np.zeros((2, 2), dtype=np.float32))


def test_pickles_small_and_serves_a_forked_process_and_its_parent(tmp_path):
    cache = LineCache(tmp_path, "d", ROOM)
    cache.put(key(1), noise(1))
    assert len(pickle.dumps(cache)) < 500
    assert (pickle.loads(pickle.dumps(cache)).get(key(1)) == noise(1)).all()

    def child():
        assert (cache.get(key(1)) == noise(1)).all()
        cache.put(key(2), noise(2))

    with cache._process.lock:
        join(start(child))
    assert (cache.get(key(2)) == noise(2)).all()


def test_processes_write_at_once_and_no_line_is_lost(tmp_path):
    def work(part):
        cache = LineCache(tmp_path, "d", ROOM)
        for number in range(part, 240, 2):
            cache.put(key(number), noise(number, 10, 300))
            # Lines that another process puts, too.
            cache.put(key(1000 + number // 2), noise(number // 2, 10, 300))

    join(*[start(work, part) for part in range(2)])
    cache = LineCache(tmp_path, "d", ROOM)
    for number in range(240):
        assert (cache.get(key(number)) == noise(number, 10, 300)).all()
    for number in range(120):
        assert (cache.get(key(1000 + number)) == noise(number, 10, 300)).all()


def test_threads_share_one_cache(tmp_path):
    cache, wrong = LineCache(tmp_path, "d", ROOM), []

    def work(seed):
        for number in range(60):
            cache.put(key(number), noise(number, 10, 100))
            found = cache.get(key(number))
            if found is None or (found != noise(number, 10, 100)).any():
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_killed_writers_damage_nothing(tmp_path, caplog):
    order = random.Random(1)
    reader = LineCache(tmp_path, "d", ROOM)

    def write(first):
        cache = LineCache(tmp_path, "d", ROOM)
        for number in range(first, first + 10_000):
            cache.put(key(number), noise(number, 20, 700))

    last = 0
    for _ in range(5):
        child = start(write, last)
        wanted = last + order.randrange(3, 25)
        until(lambda wanted=wanted: reader.get(key(wanted)) is not None)
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        for cache in (reader, LineCache(tmp_path, "d", ROOM)):
            for number in range(wanted + 1):
                assert (cache.get(key(number)) == noise(number, 20, 700)).all()
        last = wanted + 1
    reader.close()
    check = sqlite3.connect(reader.path).execute("PRAGMA integrity_check").fetchone()
    assert check == ("ok",)
    assert not caplog.records


def test_a_file_that_is_no_database_begins_anew_after_one_warning(tmp_path, caplog):
    cache = LineCache(tmp_path, "d", ROOM)
    cache.path.parent.mkdir()
    cache.path.write_bytes(b"no database at all" * 1000)
    cache.put(key(1), noise(1))
    assert (cache.get(key(1)) == noise(1)).all()
    assert len(caplog.records) == 1
    assert "was damaged" in caplog.text


def test_a_database_damaged_in_use_begins_anew_for_all_processes(tmp_path, caplog):
    cache, other = LineCache(tmp_path, "d", ROOM), LineCache(tmp_path, "d", ROOM)
    for number in range(60):
        cache.put(key(number), noise(number))
    cache.close()
    assert other.get(key(0)) is not None
    with cache.path.open("r+b") as file:
        file.seek(line_cache.PAGE_BYTES)
        file.write(b"\xff" * (cache.path.stat().st_size - line_cache.PAGE_BYTES))
    for each in (cache, other, cache, other):
        for number in range(60):
            each.get(key(number))
    for number in range(60):
        cache.put(key(number), noise(number))
        assert (other.get(key(number)) == noise(number)).all()
    assert {record.levelno for record in caplog.records} == {logging.WARNING}
    assert len(caplog.records) == 1, "whoever finds the new database must not take it for the damaged one"


def test_a_value_that_is_damaged_is_put_anew(tmp_path):
    cache = LineCache(tmp_path, "d", ROOM)
    cache.put(key(1), noise(1))
    cache.close()
    with sqlite3.connect(cache.path) as connection:
        connection.execute("UPDATE lines SET value = substr(value, 1, 500)")
    connection.close()
    assert cache.get(key(1)) is None
    cache.put(key(1), noise(1))
    assert (cache.get(key(1)) == noise(1)).all()


def test_nothing_is_put_beyond_the_bound(tmp_path, caplog):
    cache = LineCache(tmp_path, "d", 2_000_000)
    for number in range(100):
        cache.put(key(number), noise(number))
    kept = sum(cache.get(key(number)) is not None for number in range(100))
    assert 28 <= kept <= 34
    cache.close()
    assert cache.path.stat().st_size <= 2_000_000
    assert not caplog.records
    nothing = LineCache(tmp_path / "none", "d", 0)
    nothing.put(key(1), noise(1))
    assert nothing.get(key(1)) is None
    assert not (tmp_path / "none").exists()


def test_databases_that_nobody_uses_make_room_the_oldest_first(tmp_path):
    used = LineCache(tmp_path, "used", ROOM)
    for age, digest in enumerate(["used", "old", "new", "newer"]):
        cache = used if digest == "used" else LineCache(tmp_path, digest, ROOM)
        for number in range(16):
            cache.put(key(number), noise(number))
        if cache is not used:
            cache.close()
        os.utime(cache.path.with_suffix(".lock"), (age, age))
    # Each takes 1 MB, twice that while its log is there, too.
    cache = LineCache(tmp_path, "last", 4_500_000)
    counts = []
    for number in range(100):
        cache.put(key(number), noise(number))
        counts.append({path.stem for path in (tmp_path / "lines").glob("*.sqlite")})
    assert {"used", "new", "newer", "last"} in counts
    assert counts[-1] == {"used", "last"}
    assert (used.get(key(3)) == noise(3)).all()
    kept = sum(cache.get(key(number)) is not None for number in range(100))
    assert 35 < kept < 70


def test_trouble_turns_the_cache_off_after_one_warning(tmp_path, caplog):
    (tmp_path / "file").touch()
    cache = LineCache(tmp_path / "file", "d", ROOM)
    for number in range(5):
        cache.put(key(number), noise(number))
        assert cache.get(key(number)) is None
    assert len(caplog.records) == 1
    assert "cannot be used" in caplog.text


def test_a_database_of_another_layout_turns_the_cache_off(tmp_path, caplog):
    cache = LineCache(tmp_path, "d", ROOM)
    cache.path.parent.mkdir()
    connection = sqlite3.connect(cache.path)
    connection.execute("CREATE TABLE lines (other TEXT)")
    connection.close()
    cache.put(key(1), noise(1))
    assert cache.get(key(1)) is None
    assert len(caplog.records) == 1


def test_on_a_full_disk_what_is_there_is_still_got(tmp_path):
    def run():
        # Files beyond 1 MB fail to be written, as they do on a disk that is full.
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        messages = []
        handler = logging.Handler()
        handler.emit = lambda record: messages.append(record.getMessage())
        logging.getLogger("distrib").addHandler(handler)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
        cache = LineCache(tmp_path, "d", ROOM)
        for number in range(60):
            cache.put(key(number), noise(number))
        assert len(messages) == 1, messages
        assert (cache.get(key(3)) == noise(3)).all()

    join(start(run))
    assert (LineCache(tmp_path, "d", ROOM).get(key(3)) == noise(3)).all()


def test_a_database_locked_by_others_costs_a_line_but_no_warning(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(line_cache, "BUSY_MILLISECONDS", 10)
    cache = LineCache(tmp_path, "d", ROOM)
    cache.put(key(1), noise(1))
    other = sqlite3.connect(cache.path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    cache.put(key(2), noise(2))
    assert (cache.get(key(1)) == noise(1)).all()
    other.execute("ROLLBACK")
    assert cache.get(key(2)) is None
    cache.put(key(2), noise(2))
    assert cache.get(key(2)) is not None
    assert not caplog.records
    other.close()
