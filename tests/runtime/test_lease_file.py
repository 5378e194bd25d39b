"""The steps by which a lease changes hands, in every order in which several processes may do them."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distrib.runtime.directory import lease_file
from distrib.runtime.directory.lease_file import LEASE, Holder, LeaseFile, lease_in_force


class Crash(BaseException):
    """A process ends between two steps."""


class Play:
    """Actors in threads, of which one moves at a time, by one step on the file system."""

    def __init__(self) -> None:
        self.alive: set[str] = set()
        self.holding: list[str] = []
        self.baton = threading.Condition()
        self.turn: int | None = None
        self.waiting: set[int] = set()
        self.crashed: set[int] = set()
        self.here = threading.local()

    def step(self) -> None:
        """Called by an actor before each of its steps: waits for its turn."""
        if not hasattr(self.here, "number"):
            return
        with self.baton:
            self.waiting.add(self.here.number)
            self.baton.notify_all()
            self.baton.wait_for(lambda: self.turn == self.here.number)
            self.turn = None
            if self.here.number in self.crashed:
                raise Crash

    def run(self, actors: list[Callable[[], None]], order: list[tuple[int, bool]]) -> None:
        """Move the actors as ``order`` says (number, whether it crashes instead), then each to its end."""
        running = set(range(len(actors)))

        def act(number: int) -> None:
            self.here.number = number
            try:
                self.step()
                actors[number]()
            except Crash:
                pass
            finally:
                with self.baton:
                    running.discard(number)
                    self.waiting.discard(number)
                    self.baton.notify_all()

        threads = [threading.Thread(target=act, args=[number]) for number in running]
        for thread in threads:
            thread.start()
        while running:
            with self.baton:
                self.baton.wait_for(lambda: self.waiting >= running)
                if not running:
                    break
                number, crashes = order.pop() if order else (0, False)
                chosen = sorted(running)[number % len(running)]
                if crashes:
                    self.crashed.add(chosen)
                self.waiting.discard(chosen)
                self.turn = chosen
                self.baton.notify_all()
        for thread in threads:
            thread.join()


def a_run(play: Play, directory: Path, *, ends: bool) -> Callable[[], None]:
    """Take the lease as ``Lease.acquire`` does, where the other's process can be asked; give it back."""

    def act() -> None:
        file = LeaseFile(directory, Holder.here({}, interval=5.0))
        token = file.holder.token
        play.alive.add(token)
        try:
            for attempt in range(100):
                assert attempt < 99
                found = lease_in_force(directory)
                if found is not None and found.key in play.alive:
                    break
                if file.claim(found):
                    play.holding.append(token)
                    assert [each for each in play.holding if each in play.alive] == [token]
                    play.step()
                    if ends:
                        play.holding.remove(token)
                        file.close()
                    break
        except Crash:
            play.alive.discard(token)
            raise

    return act


@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
@settings(max_examples=150, deadline=None)
@given(
    ends=st.lists(st.booleans(), min_size=2, max_size=4),
    order=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 19).map(lambda n: n == 0)), max_size=60),
    dead=st.integers(0, 2),
)
def test_never_two_hold_it_and_it_can_always_be_had(
    links: bool, ends: list[bool], order: list[tuple[int, bool]], dead: int
) -> None:
    """Whatever the order of steps, and wherever one of them is killed, after any number of dead leases."""
    play = Play()
    errors: list[BaseException] = []

    def noting(act: Callable[[], None]) -> Callable[[], None]:
        def noted() -> None:
            try:
                act()
            except (AssertionError, OSError) as error:
                errors.append(error)

        return noted

    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        directory = Path(name)
        leave_chain(directory, dead)
        patch_steps(patch, play, links=links)
        play.run([noting(a_run(play, directory, ends=each)) for each in ends], order)
        assert not errors, errors
        holders = [token for token in play.holding if token in play.alive]
        found = lease_in_force(directory)
        assert holders == ([found.key] if found is not None and found.key in play.alive else [])
        if not holders:
            last = LeaseFile(directory, Holder.here({}, interval=5.0))
            assert last.claim(found)
            assert last.in_force()
            assert not list(directory.glob("*.next"))


def leave_chain(directory: Path, length: int) -> None:
    """Leases of which each was killed just after it had taken over the one before."""
    name = LEASE
    for _ in range(length):
        holder = Holder.here({}, interval=5.0)
        (directory / name).write_bytes(holder.encoded(1))
        found = lease_in_force(directory)
        assert found is not None
        name = found.successor


def patch_steps(patch: pytest.MonkeyPatch, play: Play, *, links: bool) -> None:
    """Each call that another process could come before is a step."""

    def stepping(function: Callable[..., Any]) -> Callable[..., Any]:
        def stepped(*arguments: Any, **options: Any) -> Any:
            play.step()
            return function(*arguments, **options)

        return stepped

    def no_link(*_: Any) -> None:
        raise OSError(95, "Operation not supported")

    patch.setattr(lease_file.os, "link", stepping(lease_file.os.link if links else no_link))
    patch.setattr(lease_file.os, "fsync", lambda _: None)
    patch.setattr(lease_file, "_read", stepping(lease_file._read_once))
    patch.setattr(lease_file.Path, "unlink", stepping(Path.unlink))
    patch.setattr(lease_file.Path, "replace", stepping(Path.replace))


def test_a_lease_fits_beside_any_number_of_beats() -> None:
    holder = Holder.here({"SLURM_JOB_ID": "j" * 1000}, interval=5.0)
    assert len(holder.encoded(1)) == len(holder.encoded(10**18))
