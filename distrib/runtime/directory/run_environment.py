"""In what surroundings a run was started: versions, machine, GPUs, launcher, commit of the data."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import torch

from distrib.files import written_whole
from distrib.runtime.directory.machine import user_name
from distrib.runtime.directory.repository import repositories_of
from distrib.runtime.topology import Topology

ENVIRONMENT: Final = "environment.json"
_PACKAGES: Final = ("ketos-distrib", "torch", "lightning", "deepspeed", "numpy", "pyarrow", "safetensors")
# The launchers' own names, one by one: a whole environment holds passwords.
_LAUNCHERS: Final = {
    "slurm": (
        "SLURM_JOB_ID",
        "SLURM_JOB_NAME",
        "SLURM_JOB_PARTITION",
        "SLURM_JOB_NODELIST",
        "SLURM_ARRAY_JOB_ID",
        "SLURM_ARRAY_TASK_ID",
        "SLURM_STEP_ID",
        "SLURM_RESTART_COUNT",
    ),
    "torchrun": ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "TORCHELASTIC_MAX_RESTARTS"),
    "ray": ("RAY_JOB_ID", "RAY_SUBMISSION_ID"),
}
_DRIVER: Final = re.compile(r"\b\d{3}\.\d+(?:\.\d+)?\b")
_USER_INFO: Final = re.compile(r"(?<=://)[^/\s]*@")
_QUERY: Final = re.compile(r"(://[^\s?#]*)[?#]\S*")
_MOST_STARTS: Final = 50
_MOST_BYTES: Final = 4 << 20


def describe_environment(
    topology: Topology, *, data: Iterable[Path | str], environ: Mapping[str, str], command: Sequence[str]
) -> dict[str, Any]:
    """What is to be known later of where a process ran, in plain types for JSON.

    ``data`` are paths whose git commits count; addresses (``s3://…``) have none. ``environ`` says what the
    launcher is, ``command`` is the command line; passwords and signatures in its addresses are left out.
    What cannot be found out is None or missing, never an error. Takes up to a few seconds.
    """
    paths = (Path(each) for each in data if "://" not in str(each))
    return {
        "host": platform.node(),
        "user": user_name(),
        "folder": _working_folder(),
        "command": [without_secrets(argument) for argument in command],
        "launcher": _launcher(environ),
        "rank": topology.rank,
        "world_size": topology.world_size,
        "local_world_size": topology.local_world_size,
        "nodes": topology.nodes,
        "platform": platform.platform(),
        "cpus": _cpus(),
        "memory_bytes": _memory(),
        "python": platform.python_version(),
        "packages": {name: version for name in _PACKAGES if (version := _version(name)) is not None},
        "gpu": _gpu(environ),
        "repositories": repositories_of(paths, environ=environ),
    }


def write_environment(directory: Path, environments: Sequence[Mapping[str, Any]]) -> None:
    """Add a start of the run, with the environments of its nodes, to ``environment.json``, written whole.

    The file is a list of ``{"started": ISO 8601 with zone, "environments": […]}``, the newest last, of the
    last 50 starts or 4 MiB. One that cannot be read is begun anew. Raises OSError.
    """
    path = directory / ENVIRONMENT
    started = datetime.now().astimezone().isoformat(timespec="seconds")
    starts = [*_starts(path), {"started": started, "environments": list(environments)}][-_MOST_STARTS:]
    texts = [json.dumps(start, indent=1, ensure_ascii=True) for start in starts]
    while len(texts) > 1 and sum(map(len, texts)) > _MOST_BYTES:
        del texts[0]
    with written_whole(path) as file:
        file.write(f"[{','.join(texts)}]\n".encode("ascii"))


def without_secrets(text: str) -> str:
    """``text`` without the user, password and query of addresses in it: queries hold signatures."""
    return _QUERY.sub(r"\1?…", _USER_INFO.sub("…@", text))


def _starts(path: Path) -> list[Any]:
    try:
        starts = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return []
    return starts if isinstance(starts, list) else []


def _launcher(environ: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """What each launcher says of the job; a job of torchrun inside one of SLURM has two."""
    found = {
        launcher: {name.lower(): environ[name] for name in names if name in environ}
        for launcher, names in _LAUNCHERS.items()
    }
    return {launcher: facts for launcher, facts in found.items() if facts}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _gpu(environ: Mapping[str, str]) -> dict[str, Any] | None:
    """The GPUs that this process sees; None without any. Initialises CUDA where there are some."""
    if not torch.cuda.is_available():
        return None
    devices = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    nccl = None
    with suppress(AttributeError, RuntimeError):
        nccl = ".".join(map(str, torch.cuda.nccl.version()))  # type: ignore[no-untyped-call]
    return {
        "devices": [{"name": each.name, "memory_bytes": each.total_memory} for each in devices],
        "driver": _driver(environ),
        "cuda": torch.version.cuda,
        "rocm": torch.version.hip,
        "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
        "nccl": nccl,
    }


def _driver(environ: Mapping[str, str]) -> str | None:
    """The version of NVIDIA's driver, as its module says, or its program where /proc is hidden."""
    with suppress(OSError):
        text = Path("/proc/driver/nvidia/version").read_text(errors="replace")
        if found := _DRIVER.search(text):
            return found[0]
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(  # noqa: S603
            command, env=dict(environ), capture_output=True, text=True, timeout=5.0, check=False
        )
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return None
    found = _DRIVER.search(done.stdout)
    return None if found is None else found[0]


def _cpus() -> int | None:
    """CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def _memory() -> int | None:
    """Bytes of main memory of the machine."""
    with suppress(OSError, ValueError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return None


def _working_folder() -> str | None:
    with suppress(OSError):
        return str(Path.cwd())
    return None
