"""Attempts on a Ray cluster: Ray Train places one worker a machine, and the driver watches what they tell.

Restarts are decided by the agent alone, so Ray Train tries once (``max_failures=0``) and keeps no checkpoint.
Its workers hold the resources of a machine and carry messages; the processes of the run belong to keepers,
which outlive a worker for as long as saving takes.
"""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Final

from distrib.config.launching import ElasticLaunch
from distrib.files import write_error
from launchers.attempts import Attempt, Outcome
from launchers.places import launch_folder
from launchers.plan import LaunchPlan
from launchers.programs import SAFE_PATH, module_words
from launchers.ray import worker
from launchers.ray.course import Course
from launchers.ray.environment import machine_needs, start_order
from launchers.ray.keeper import GRACE_SECONDS, HURRY, NONCE
from launchers.ray.watcher import living_nodes, node_names, nodes_to_use
from launchers.stop import StopRequest
from launchers.time_limit import TIME_IS_OVER, seconds_left, time_over

RAY_TRAIN_SETTINGS: Final[Mapping[str, str]] = {
    "RAY_TRAIN_V2_ENABLED": "1",
    # How soon a worker that has died is noticed.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    # Notices of preemption are answered here, so that the run saves and ends before Ray takes it apart.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
}
_LOOK = 0.2
_LOOK_AT_CLUSTER = 1.0
_MEET_SECONDS = 300.0
"""How long the machines have to say what they have once Ray has been asked for them."""
_ALONE_SECONDS = 30.0
"""How long processes have to notice by themselves that another has failed."""
_SHORT_GRACE = 15.0
_MARGIN = 3.0
"""Seconds to be done before a machine is taken away."""
_ROOM_SECONDS = 5.0
"""How long there must have been room for more machines before a run is interrupted to use them."""


class Driver:
    """Makes attempts of a plan on the cluster that this process is connected to."""

    def __init__(self, plan: LaunchPlan, *, echo: Callable[[str], None]) -> None:
        import ray

        self._plan, self._echo = plan, echo
        self._needs = machine_needs(plan)
        ray.cloudpickle.register_pickle_by_value(worker)

    def start(self, attempt: Attempt, stop: StopRequest) -> Outcome:
        """All processes of an attempt, until the last has ended."""
        options = self._plan.options
        minimum = options.min_nodes if isinstance(options, ElasticLaunch) else None
        size = nodes_to_use(
            self._needs,
            minimum=min(minimum or options.nodes, options.nodes),
            wanted=options.nodes,
            stop=stop,
            echo=self._echo,
        )
        if size == 0:
            return Outcome(code=143, cause="preempted", sentence="It was told to end while it waited.")
        if size < options.nodes:
            self._echo(f"attempt {attempt.number} runs on {size} of {options.nodes} machines.")
        nonce = secrets.token_hex(16)
        try:
            (attempt.folder / NONCE).write_text(nonce, encoding="utf-8")
        except OSError as error:
            raise write_error(attempt.folder / NONCE, error) from error
        course = Course(plan=self._plan, folder=attempt.folder, nonce=nonce, size=size)
        return _Watch(self._plan, attempt, course, self._needs, self._echo).run(stop)


class _Watch:
    """One attempt under way."""

    def __init__(
        self,
        plan: LaunchPlan,
        attempt: Attempt,
        course: Course,
        needs: Mapping[str, float],
        echo: Callable[[str], None],
    ) -> None:
        self._plan, self._attempt, self._course, self._needs = plan, attempt, course, needs
        self._echo = echo
        self._board = _board()
        self._began = time.monotonic()
        self._heard = 0
        self._next_look = 0.0
        self._room_since: float | None = None
        self._bad_since: float | None = None
        self._ordered_end: float | None = None
        self._limit = seconds_left(plan)

    def run(self, stop: StopRequest) -> Outcome:
        """Start Ray Train, and return when no process of the attempt is left anywhere."""
        from ray.exceptions import RayError

        fit = _Fit(self._plan, self._attempt, self._course.size, self._needs, self._board)
        try:
            while fit.running:
                self._listen()
                self._decide(stop)
                fit.wait(_LOOK)
            self._listen()
        except RayError as error:
            # The board has gone, by which the machines know that they are to end.
            fit.wait(GRACE_SECONDS + _SHORT_GRACE)
            fit.trouble = fit.trouble or _first_line(error)
        self._wait_for_keepers()
        living = {node.id for node in living_nodes()}
        names = node_names()
        lost = [
            names.get(place["node_id"], self._course.host(number))
            for number, place in sorted(self._course.places.items())
            if place["node_id"] not in living and not self._course.left_well(number)
        ]
        return self._course.outcome(lost=lost, trouble=fit.trouble)

    def _listen(self) -> None:
        import ray

        messages = ray.get(self._board.told.remote(self._heard))
        self._heard += len(messages)
        for number, message in messages:
            self._course.take(number, message)

    def _decide(self, stop: StopRequest) -> None:
        """Give the orders that what is known asks for."""
        course, now = self._course, time.monotonic()
        if course.complete and not course.started and self._ordered_end is None:
            course.check()
            if course.cause is None:
                self._order_start()
        if not course.complete and now - self._began > _MEET_SECONDS:
            silent = ", ".join(course.host(n) for n in range(course.size) if n not in course.facts)
            course.refuse(
                f"{silent} did not answer within {_MEET_SECONDS:.0f} s; look at its load and disks."
            )
        if stop.reason is not None:
            self._order_end(GRACE_SECONDS)
        if self._limit is not None and now - self._began > self._limit and self._ordered_end is None:
            course.interrupt(TIME_IS_OVER, time_over(self._plan))
            self._order_end(GRACE_SECONDS)
        if course.cause == "input":
            self._order_end(_SHORT_GRACE)
        if now >= self._next_look:
            self._next_look = now + _LOOK_AT_CLUSTER
            self._look_at_cluster(now)
        self._end_stragglers(now)

    def _look_at_cluster(self, now: float) -> None:
        """End the attempt where a machine is to be taken away, or where there are more to be had."""
        course = self._course
        used = {place["node_id"] for place in course.places.values()}
        nodes = living_nodes()
        for node in nodes:
            if node.id in used and node.drained_by is not None and self._ordered_end is None:
                left = node.drained_by - time.time() - _MARGIN if node.drained_by else GRACE_SECONDS
                self._make_way(f"Ray takes {node.name} away.", min(max(left, 1.0), GRACE_SECONDS))
        if course.size >= self._plan.options.nodes or not course.started:
            return
        room = sum(node.gives(self._needs, now=True) for node in nodes if node.id not in used)
        if not room:
            self._room_since = None
            return
        self._room_since = self._room_since or now
        if now - self._room_since >= _ROOM_SECONDS and self._ordered_end is None:
            more = min(course.size + room, self._plan.options.nodes)
            self._make_way(f"There are {more} machines now instead of {course.size}.", GRACE_SECONDS)

    def _make_way(self, sentence: str, grace: float) -> None:
        """End an attempt that is well, for one on other machines."""
        self._echo(f"attempt {self._attempt.number}: {sentence} All processes save and end.")
        self._course.interrupt("preempted", sentence)
        self._order_end(grace)

    def _end_stragglers(self, now: float) -> None:
        """One that has failed leaves others that may wait for it in a collective."""
        if self._course.failed:
            self._bad_since = self._bad_since or now
            if now - self._bad_since > _ALONE_SECONDS:
                self._order_end(_SHORT_GRACE)

    def _order_start(self) -> None:
        self._course.started = True
        machines = self._course.machines()
        self._order(
            {
                number: {"start": start_order(self._attempt, self._plan, machines, number)}
                for number in range(len(machines))
            }
        )

    def _order_end(self, grace: float) -> None:
        """Ask all processes to end; again only where they are to have less time for it."""
        until = time.monotonic() + grace
        if self._ordered_end is None or until < self._ordered_end - 1.0:
            self._ordered_end = until
            self._course.asked_to_end = True
            self._order({number: {"stop": grace} for number in range(self._course.size)})

    def _order(self, orders: Mapping[int, Mapping[str, Any]]) -> None:
        import ray

        ray.get(self._board.order.remote(orders))

    def _wait_for_keepers(self) -> None:
        """Keepers without a worker end their processes themselves, which the next attempt must not meet."""
        course, hurried = self._course, False
        deadline = time.monotonic() + GRACE_SECONDS + _SHORT_GRACE
        while course.started and time.monotonic() < deadline:
            os.listdir(course.folder)  # noqa: PTH208 - NFS shows new names when the folder is opened anew.
            course.read_records()
            living = {node.id for node in living_nodes()}
            waiting = [
                number
                for number, place in course.places.items()
                if place["node_id"] in living and number not in course.silent and not course.ended(number)
            ]
            if not waiting:
                return
            if not hurried and any(place["node_id"] not in living for place in course.places.values()):
                # They may wait for a lost machine in a collective, and cannot save together without it.
                with suppress(OSError):
                    (course.folder / HURRY).write_text(str(_SHORT_GRACE), encoding="utf-8")
                hurried = True
            time.sleep(_LOOK)


def _board() -> Any:
    """A board on the driver's own machine: one elsewhere would go with that one."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0, scheduling_strategy=here)(worker.Board).remote()


class _Fit:
    """Ray Train's ``fit`` in a thread, so that signals and the clock are heeded meanwhile."""

    def __init__(
        self, plan: LaunchPlan, attempt: Attempt, size: int, needs: Mapping[str, float], board: Any
    ) -> None:
        self.trouble: str | None = None
        trainer = _trainer(plan, attempt, size, needs, board)
        self._thread = threading.Thread(target=self._run, args=(trainer,), daemon=True)
        self._thread.start()

    @property
    def running(self) -> bool:
        """Whether a worker may still be there."""
        return self._thread.is_alive()

    def wait(self, seconds: float) -> None:
        """Return when it is done, or then."""
        self._thread.join(seconds)

    def _run(self, trainer: Any) -> None:
        try:
            trainer.fit()
        # The boundary to Ray, whose errors are of many kinds: the agent decides what follows.
        except Exception as error:
            self.trouble = _first_line(error)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"Ray Train: {lines[0] if lines else type(error).__name__}"


def _trainer(plan: LaunchPlan, attempt: Attempt, size: int, needs: Mapping[str, float], board: Any) -> Any:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    return DataParallelTrainer(
        worker.keep_machine,
        train_loop_config={
            "board": board,
            "folder": str(attempt.folder),
            "keeper": list(module_words(plan.python, "launchers.ray.keeper")),
            "environment": dict(SAFE_PATH),
            "cwd": str(plan.folder),
        },
        scaling_config=ScalingConfig(
            # One worker a machine, however many processes it keeps: all GPUs of the machine are visible to
            # all its processes, and their ranks are consecutive.
            num_workers=size,
            use_gpu="GPU" in needs,
            resources_per_worker=dict(needs),
            placement_strategy="STRICT_SPREAD",
        ),
        run_config=RunConfig(
            name="ray",
            storage_path=str(launch_folder(plan.run_dir)),
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=0),
        ),
    )
