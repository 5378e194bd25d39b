"""What a local launch finds before and while it starts: programs, GPUs, threads, a folder full of traps."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from distrib.config.launching import LAUNCHES, Target
from distrib.errors import InputError, RunError
from distrib.runtime.directory.events import EVENTS, EventLog
from launchers.attempts import Attempt
from launchers.history import read_history
from launchers.local.environment import check_machine, gpus_here
from launchers.local.executor import submit
from launchers.places import agent_log
from launchers.plan import LaunchPlan, write_plan
from launchers.programs import module_words
from launchers.ray import executor as ray
from launchers.slurm.script import script

_AT_HAND = "import sys; sys.path.remove(''); from distrib.__main__ import main; main()"
"""Runs the command as its console script does: without the working folder on the path of modules."""


def _plan(folder: Path, target: Target = "local", **options: Any) -> LaunchPlan:
    python = options.pop("python", sys.executable)
    return LaunchPlan(
        target=target,
        name="test",
        run_dir=folder,
        command="train",
        folder=folder,
        python=python,
        options=LAUNCHES[target](**options),
    )


def test_an_interpreter_that_is_not_there_is_found_before_the_launch(tmp_path: Path) -> None:
    """Broken: it is tried four times, with a traceback each."""
    (tmp_path / "folder").mkdir()
    for python in (str(tmp_path / "none"), str(tmp_path / "folder"), "no-such-python"):
        with pytest.raises(InputError, match=f"--python {python}: is no program on this machine"):
            check_machine(_plan(tmp_path, python=python), os.environ)
    check_machine(_plan(tmp_path), os.environ)


@pytest.mark.parametrize("device", ["kfd", "dxg", "nvidiactl"])
def test_gpus_that_cannot_be_counted_are_not_refused(tmp_path: Path, device: str) -> None:
    """Broken: a launch on AMD's GPUs, or under WSL, is refused for want of any."""
    (tmp_path / "dev").mkdir()
    assert gpus_here({}, tmp_path) == 0
    (tmp_path / "dev" / device).touch()
    assert gpus_here({}, tmp_path) is None
    assert gpus_here({"CUDA_VISIBLE_DEVICES": "0,1"}, tmp_path) == 2
    (tmp_path / "proc/driver/nvidia/gpus/0000:01:00.0").mkdir(parents=True)
    assert gpus_here({}, tmp_path) == 1


def test_unknown_gpus_pass_the_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launchers.local.environment.gpus_here", lambda environ: None)
    check_machine(_plan(tmp_path, gpus_per_node=4), {})


@pytest.mark.parametrize(
    ("target", "options", "inherited", "threads"),
    [
        ("local", {}, None, None),
        ("local", {"procs_per_node": 2}, None, "1"),
        ("local", {"procs_per_node": 2}, "3", "3"),
        ("local", {"procs_per_node": 2, "cpus_per_proc": 4}, None, "4"),
        ("local", {"cpus_per_proc": 4}, "3", "4"),
        ("local", {"cpus_per_proc": 4, "env": ("OMP_NUM_THREADS=2",)}, "3", "2"),
        ("slurm", {"procs_per_node": 2, "cpus_per_proc": 4}, None, "4"),
        ("ray", {}, "3", "1"),
        ("ray", {"cpus_per_proc": 4}, "1", "4"),
    ],
)
def test_threads_are_the_cores_of_a_process(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    target: Target,
    options: dict[str, Any],
    inherited: str | None,
    threads: str | None,
) -> None:
    """Broken: --cpus-per-proc has no effect on what a process computes with, or differs by target."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if inherited is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", inherited)
    attempt = Attempt.of(_plan(tmp_path, target, **options), 1)
    assert attempt.environment.get("OMP_NUM_THREADS") == threads


@pytest.mark.parametrize("version", [(3, 10), (3, 11)])
def test_a_program_is_not_made_of_modules_of_the_working_folder(
    tmp_path: Path, version: tuple[int, ...]
) -> None:
    """Broken: a file of a user that is called as a module of Python is run in its stead."""
    for name in ("inspect", "json", "runpy"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('a trap')")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    if version >= (3, 11):
        environment |= Attempt.of(_plan(tmp_path), 1).environment
    words = [*module_words(sys.executable, "launchers.local", version=version), str(tmp_path / "none")]
    done = subprocess.run(
        words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    assert "nothing was launched there" in done.stderr, done.stderr


def test_agents_of_clusters_are_kept_from_the_working_folder(tmp_path: Path) -> None:
    """Broken: a file beside the data ends the agent in the job, where the local launch went well."""
    pytest.importorskip("submitit")
    assert "exec env PYTHONSAFEPATH=1 " in script(_plan(tmp_path, "slurm"))
    assert "exec env PYTHONSAFEPATH=1 " in ray.dry_run(_plan(tmp_path, "ray", wait=False))


def _launch(folder: Path, lines: Path, *options: object) -> subprocess.CompletedProcess[str]:
    images = sorted(lines.parent.rglob("lines/*.png"))[:2]
    work = ["compile", "-f", "path", "-o", folder / "out.arrow", *images]
    launch = ["launch", "local", "--run-dir", folder / "launch", *options, "--"]
    words = [sys.executable, "-c", _AT_HAND, "--workers", 0, *launch, *work]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    return subprocess.run(
        list(map(str, words)),
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.mark.slow
def test_a_launch_in_a_folder_with_such_modules(tmp_path: Path, launch_lines: Path) -> None:
    """Broken: any of the processes between the command and the ranks takes the user's file for Python's."""
    for name in ("inspect", "socket", "launchers", "torch"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('a trap')")
    done = _launch(tmp_path, launch_lines)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "out.arrow").exists()


@pytest.mark.slow
def test_a_detached_agent_has_its_own_interpreter(tmp_path: Path, launch_lines: Path) -> None:
    """--python may be a script that starts a container. Broken: the agent runs in there as well, where there
    may be no such machine to watch."""
    program = tmp_path / "python"
    program.write_text(f'#!/bin/sh\necho "$*" >> {tmp_path}/seen\nexec {sys.executable} "$@"\n')
    program.chmod(0o755)
    done = _launch(tmp_path, launch_lines, "--detach", "--python", program)
    assert done.returncode == 0, done.stderr
    words = [sys.executable, "-m", "distrib", "launch", "wait", str(tmp_path / "launch")]
    subprocess.run(words, check=True, capture_output=True, timeout=120)
    (seen,) = (tmp_path / "seen").read_text().splitlines()
    assert "launchers.local" not in seen


def test_an_agent_that_does_not_begin_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken: --detach waits for ever for a process that hangs."""
    plan = _plan(tmp_path)
    write_plan(plan)
    EventLog(tmp_path / EVENTS).append("launch", target="local")
    sleeper = tmp_path / "sleeper"
    sleeper.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\necho so slow\nexec sleep 600\n")
    sleeper.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(sleeper))
    with pytest.raises(RunError, match=r"has not begun within 1 s \(so slow\)"):
        submit(plan, begins_within=1.0)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
    assert "so slow" in agent_log(tmp_path).read_text()
    assert not read_history(tmp_path).attempts
