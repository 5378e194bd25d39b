"""Running a plan on a Ray cluster: in this process, as a job of the cluster, or only described."""

from __future__ import annotations

import json
import os
import secrets
import shlex
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from distrib.config.launching import ElasticLaunch, RayLaunch
from distrib.errors import InputError, RunError
from launchers.agent import run_attempts
from launchers.attempts import Attempt
from launchers.plan import LaunchPlan
from launchers.programs import SAFE_PATH, module_words
from launchers.ray.environment import machine_needs, rank_variables, shown_needs
from launchers.ray.job import CONNECT_SECONDS, JobRecord, RayJob, client_of, first_line, write_record
from launchers.ray.keeper import GRACE_SECONDS

STOP_WAIT_SECONDS = int(GRACE_SECONDS) + 15
"""What `ray job stop` should give a driver for its processes to save."""


def dry_run(plan: LaunchPlan) -> str:
    """Where and how the processes would run, with what tells them apart."""
    attempt = Attempt.of(plan, 1, *plan.first)
    nodes, each = plan.options.nodes, plan.processes_per_node
    minimum = _minimum(plan)
    lines = [
        f"Ray cluster: {_address(plan) or 'the one that this machine is in, or RAY_ADDRESS'}",
        f"Ray Train: {nodes} worker(s), STRICT_SPREAD: one a machine with {shown_needs(machine_needs(plan))}",
    ]
    if minimum is not None and minimum < nodes:
        lines.append(f"  {minimum} to {nodes} machines, as many as there are at each attempt")
    lines.append(f"{plan.processes} process(es) in {plan.folder}:")
    lines += [f"  {name}={value}" for name, value in attempt.environment.items()]
    lines += ["  MASTER_ADDR=<first machine>", "  MASTER_PORT=<a free port there>"]
    lines.append(f"  {shlex.join(attempt.words)}")
    for number in range(nodes):
        for local_rank in range(each):
            place = rank_variables(plan, machines=nodes, number=number, local_rank=local_rank)
            lines.append("  " + " ".join(f"{name}={value}" for name, value in place.items()))
    if plan.options.wait is False:
        lines.append(f"as a Ray job: {_entrypoint(plan)}")
    return "\n".join(lines) + "\n"


def check(plan: LaunchPlan) -> None:
    """Refuse what cannot be, as far as the cluster can be asked.

    Raises InputError where there is no Ray, no cluster at the address, or one that is too small.
    """
    _import_ray()
    if _is_dashboard(_address(plan)) and plan.options.wait is False:
        client_of(str(_address(plan)))
        return
    with _connected(plan, os.environ):
        from launchers.ray.watcher import check_capacity, living_nodes

        if _minimum(plan) is None:
            check_capacity(living_nodes(), machine_needs(plan), plan.options.nodes)


def run_here(plan: LaunchPlan, *, echo: Callable[[str], None] = print, followed: bool = False) -> int:
    """Run a plan with this process as its driver and agent, until its end; the exit code.

    ``followed`` says that what rank zero prints is shown anyway.

    Raises InputError where there is no cluster.
    """
    with _connected(plan, os.environ) as (dashboard, address):
        # Ray must be told before the first of its modules for training is imported.
        from launchers.ray.driver import RAY_TRAIN_SETTINGS, Driver

        os.environ.update(
            {name: value for name, value in RAY_TRAIN_SETTINGS.items() if name not in os.environ}
        )
        job = submission_id(os.environ)
        write_record(plan, JobRecord(job=job, dashboard=dashboard, address=address))
        return run_attempts(plan, Driver(plan, echo=echo).start, job=job, echo=echo, followed=followed)


def submit(plan: LaunchPlan) -> RayJob:
    """Run a plan as a job of the cluster, which stays when this process ends.

    Raises InputError where there is no cluster, or none that takes jobs.
    """
    given = _address(plan)
    if _is_dashboard(given):
        dashboard, address = given, None
    else:
        with _connected(plan, os.environ) as (dashboard, address):
            pass
    if not dashboard:
        raise InputError("This Ray cluster has no dashboard to submit jobs to; launch without --detach.")
    client = client_of(dashboard)
    record = JobRecord(job=f"{plan.name}-{secrets.token_hex(4)}", dashboard=dashboard, address=address)
    # On record before it runs, so that what the job itself writes comes later.
    write_record(plan, record)
    try:
        client.submit_job(
            entrypoint=_entrypoint(plan),
            submission_id=record.job,
            runtime_env={"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_SECONDS)}},
            metadata={"run_dir": str(plan.run_dir)},
        )
    except RuntimeError as error:
        raise RunError(
            f"{dashboard} takes no job now ({first_line(error).rstrip('.')}); try again."
        ) from None
    return RayJob(plan, record)


def submission_id(environ: Mapping[str, str]) -> str | None:
    """The id of the Ray job that this process is the driver of, None for one that was started by hand."""
    try:
        return str(json.loads(environ["RAY_JOB_CONFIG_JSON_ENV_VAR"])["metadata"]["job_submission_id"])
    except (KeyError, ValueError, TypeError):
        return None


def _entrypoint(plan: LaunchPlan) -> str:
    variables = [f"{name}={value}" for name, value in SAFE_PATH.items()]
    words = ["env", *variables, *module_words(plan.python, "launchers.ray"), str(plan.run_dir)]
    return f"cd {shlex.quote(str(plan.folder))} && exec {shlex.join(words)}"


def _address(plan: LaunchPlan) -> str | None:
    return plan.options.address if isinstance(plan.options, RayLaunch) else None


def _minimum(plan: LaunchPlan) -> int | None:
    return plan.options.min_nodes if isinstance(plan.options, ElasticLaunch) else None


def _is_dashboard(address: str | None) -> bool:
    return address is not None and address.startswith(("http://", "https://"))


def _import_ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise InputError(
            f"Ray is not installed here ({error}); install it with: pip install 'ketos-distrib[ray]'."
        ) from None
    return ray


@contextmanager
def _connected(plan: LaunchPlan, environ: Mapping[str, str]) -> Iterator[tuple[str | None, str]]:
    """Be a driver of the cluster during the block; gives the address of its dashboard, if any, and its own.

    Raises InputError where there is none.
    """
    ray = _import_ray()
    address = _address(plan) or "auto"
    if address.startswith(("http://", "https://", "ray://")):
        if "RAY_ADDRESS" not in environ:
            raise InputError(
                f"--address {address}: a run is driven from a machine of the cluster, by host:port; from "
                "elsewhere use `ray job submit --address … -- ketos launch ray …`, or --detach with http://…."
            )
        address = "auto"
    if address != "auto":
        _refuse_silent(address)
    try:
        context = ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, RuntimeError, ValueError) as error:
        where = "here" if address == "auto" else f"at {address}"
        raise InputError(
            f"No Ray cluster can be reached {where} ({first_line(error).rstrip('.')}); start one with "
            "`ray start --head`, or give its --address."
        ) from None
    try:
        yield _url(context.dashboard_url), str(context.address_info["address"])
    finally:
        ray.shutdown()


def _url(dashboard: str | None) -> str | None:
    if not dashboard:
        return None
    return dashboard if "://" in dashboard else f"http://{dashboard}"


def _refuse_silent(address: str) -> None:
    """Ray itself tries for a minute where nobody answers."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise InputError(f"--address {address}: must be host:port, as `ray start --head` prints it.")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        raise InputError(
            f"--address {address}: no Ray cluster answers there ({error.strerror or error}); see that its "
            "head runs, or give another address."
        ) from None
