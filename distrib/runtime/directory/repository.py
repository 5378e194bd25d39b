"""The git commit that data lie at, asked of repositories that nobody has vouched for."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

_TIMEOUT: Final = 2.0
"""Seconds that git may take for an answer: a run does not wait for the status of a million files."""
_MOST_REPOSITORIES: Final = 10
_MOST_PATHS: Final = 100
"""Paths to which the question for changes is limited; of more, the whole repository is asked."""
_MOST_FOLDERS: Final = 1000
_COMMIT: Final = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
# A repository names programs in its configuration: none is run, nothing is fetched, nothing is written.
_HARMLESS: Final = ("-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null", "--no-pager")
_ENVIRONMENT: Final = {
    "GIT_OPTIONAL_LOCKS": "0",
    "GIT_NO_LAZY_FETCH": "1",
    "GIT_ALLOW_PROTOCOL": "none",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_LITERAL_PATHSPECS": "1",
    "LC_ALL": "C",
}
_PASSED_ON: Final = ("PATH", "HOME", "XDG_CONFIG_HOME")


def repositories_of(paths: Iterable[Path], *, environ: Mapping[str, str]) -> list[dict[str, Any]]:
    """Of each git repository that a path lies in: ``path``, ``commit``, and ``dirty``.

    ``commit`` is None before the first one, ``dirty`` where git gives no answer in time, else whether files
    under the paths are changed or not in git. What is no repository, or belongs to another user and is
    refused by git therefore, is left out, as is everything where git is not installed.
    """
    program = shutil.which("git", path=environ.get("PATH", os.defpath))
    if program is None:
        return []
    git = _Git(
        program=program,
        environment={**_ENVIRONMENT, **{name: environ[name] for name in _PASSED_ON if name in environ}},
    )
    inside: dict[Path, list[str]] = {}
    tops: dict[Path, Path | None] = {}
    for path in _few(paths):
        # As the file system resolves it: git refuses paths outside, such as by way of a link.
        path = path.resolve()
        top = _top(path if path.is_dir() else path.parent, tops)
        if top is not None:
            inside.setdefault(top, []).append(str(path))
    asked = sorted(inside.items())[:_MOST_REPOSITORIES]
    return [found for top, names in asked if (found := git.describe(top, names)) is not None]


def _few(paths: Iterable[Path]) -> list[Path]:
    """The paths, or of very many the folders that they are in: each is asked of a file server."""
    distinct = list(dict.fromkeys(paths))
    if len(distinct) > _MOST_PATHS:
        distinct = list(dict.fromkeys(path.parent for path in distinct))
    return distinct[:_MOST_FOLDERS]


def _top(folder: Path, known: dict[Path, Path | None]) -> Path | None:
    """The folder with ``.git`` in it that ``folder`` lies in."""
    if folder not in known:
        with suppress(OSError):
            if (folder / ".git").exists():
                known[folder] = folder
                return folder
        known[folder] = None if folder == folder.parent else _top(folder.parent, known)
    return known[folder]


@dataclass(frozen=True, kw_only=True)
class _Git:
    program: str
    environment: Mapping[str, str]

    def describe(self, top: Path, names: Sequence[str]) -> dict[str, Any] | None:
        if self._ask(top, "rev-parse", "--git-dir") is None:
            return None
        commit = (self._ask(top, "rev-parse", "--verify", "--quiet", "HEAD") or "").strip()
        limit = names if len(names) <= _MOST_PATHS else ()
        return {
            "path": str(top),
            "commit": commit if _COMMIT.fullmatch(commit) else None,
            "dirty": self._is_dirty(top, limit),
        }

    def _is_dirty(self, top: Path, names: Sequence[str]) -> bool | None:
        """Whether git finds changes; a file in git LFS may count as changed when only its time is."""
        options = self._without_filters(top)
        if options is None:
            return None
        command = ("status", "--porcelain", "--ignore-submodules=all", "--no-renames", "--", *names)
        status = self._ask(top, *command, options=options)
        return None if status is None else bool(status)

    def _without_filters(self, top: Path) -> list[str] | None:
        """Options that take away the programs by which a repository wants its files changed when compared.

        None where there are some that cannot be taken away.
        """
        listed = self._ask(top, "config", "--null", "--name-only", "--list")
        if listed is None:
            return None
        options = []
        for name in sorted(set(listed.split("\0"))):
            if name.startswith("filter.") and name.endswith((".clean", ".smudge", ".process", ".required")):
                if "=" in name:
                    return None
                options += ["-c", f"{name}={'false' if name.endswith('.required') else ''}"]
        return options

    def _ask(self, top: Path, *arguments: str, options: Sequence[str] = ()) -> str | None:
        """What git prints; None where it fails, is refused, or takes too long."""
        command = [self.program, *_HARMLESS, *options, "-C", str(top), *arguments]
        try:
            process = subprocess.Popen(  # noqa: S603
                command,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        except (OSError, ValueError):
            return None
        try:
            printed, _ = process.communicate(timeout=_TIMEOUT)
        except subprocess.TimeoutExpired:
            _end(process)
            return None
        return printed.decode("utf-8", "replace") if process.returncode == 0 else None


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill git with what it has started, and wait no longer than for one that hangs in a dead file server."""
    with suppress(OSError):
        os.killpg(process.pid, signal.SIGKILL)
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=1.0)
    if process.stdout is not None:
        process.stdout.close()
