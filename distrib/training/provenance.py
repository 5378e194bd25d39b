"""The provenance entry of a weights file: from which data, with which settings and programs, by whom.

It is JSON under the key ``provenance``, beside kraken's own entry, and follows from the run alone: no times,
no paths, no machines, and nothing of how the work was divided among processes. So the same state gives the
same file, and a file can be given away.
"""

from __future__ import annotations

import dataclasses
import json
import platform
import unicodedata
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distrib import __version__
from distrib.errors import InputError
from distrib.runtime.checkpoints.contents import STATE_KEY
from distrib.runtime.checkpoints.reader import open_checkpoint

if TYPE_CHECKING:
    from distrib.stream.lines import LineCollection
    from distrib.training.setup import PreparedRun

KEY = "provenance"
FORMAT = 1
MOST_CHARACTERS = 1000
"""Of an author or a licence."""

_MOST_NAMES = 20
_SOFTWARE = ("torch", "lightning", "numpy", "pillow")
# Where files lie, what is kept of them and how processes share the work: the model is the same for all.
_PLACES = ("checkpoint_path", "pl_logger", "log_dir", "cache_dir", "cache_size")
_KEEPING = ("save_steps", "save_minutes", "keep_best", "keep_last", "resume", "resume_anyway", "steal_lease")
_SHARING = ("strategy", "offload")
_ITS_OWN = ("weights_format", "author", "license")
_LEFT_OUT = frozenset((*_PLACES, *_KEEPING, *_SHARING, *_ITS_OWN))
_STARTED_FROM = ("load", "codec")
"""Options that a resumed run no longer has."""


def provenance(run: PreparedRun) -> dict[str, Any]:
    """What is known of a run's model before it is trained, in plain types; goes into every checkpoint."""
    options, sets = run.options, run.sets
    configuration = {
        field.name: _published(getattr(options, field.name))
        for field in dataclasses.fields(options)
        if field.name not in _LEFT_OUT
    }
    configuration |= {"precision": run.globals_.precision, "seed": run.seed}
    if run.resume_from is not None:
        configuration |= _as_started(run.resume_from)
    entry: dict[str, Any] = {
        "format": FORMAT,
        "program": {"name": "ketos-distrib", "version": __version__},
        "software": {"python": platform.python_version()} | _installed(),
        "data": {
            "training": {
                "lines": run.overview.training_lines,
                "digest": run.training.facts["data"],
                "sets": _data_sets(sets.training),
            },
            "validation": {
                "lines": run.overview.validation_lines,
                "digest": run.validation_digest,
                "sets": _data_sets(sets.validation),
            },
        },
        "configuration": configuration,
    }
    return credited(entry, author=options.author, license=options.license)


def check_credits(*, author: str | None, license: str | None) -> None:
    """Raise InputError for an author or a licence that does not belong into a weights file."""
    for option, text in (("--author", author), ("--license", license)):
        if text is None:
            continue
        if len(text) > MOST_CHARACTERS:
            raise InputError(f"{option}: {len(text):,} characters, at most {MOST_CHARACTERS:,}; shorten it.")
        if any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in text):
            raise InputError(
                f"{option}: holds control characters or bytes that are no text; give one line of text."
            )


def credited(entry: Mapping[str, Any], *, author: str | None, license: str | None) -> dict[str, Any]:
    """The entry with another author or licence; None leaves what is there, empty text takes it away."""
    result = dict(entry)
    for name, text in (("author", author), ("license", license)):
        if text is None:
            continue
        result.pop(name, None)
        if text.strip():
            result[name] = text.strip()
    return result


def of_checkpoint(common: Mapping[str, Any], scores: Mapping[str, Any]) -> dict[str, Any]:
    """The entry for a checkpoint's model: what the run put there, and how it scored."""
    stored = common[STATE_KEY].get(KEY)
    entry = dict(stored) if isinstance(stored, Mapping) else {"format": FORMAT}
    return {**entry, "scores": dict(scores)}


def file_metadata(common: Mapping[str, Any]) -> dict[str, str]:
    """What a checkpoint's run put there, as it would stand in a weights file beside the model."""
    stored = common[STATE_KEY].get(KEY)
    return {KEY: as_text(stored)} if isinstance(stored, Mapping) else {}


def configuration(metadata: Mapping[str, str]) -> Mapping[str, Any]:
    """The options of the run that made a weights file, by its metadata; empty where it does not say."""
    try:
        entry = of_weights(metadata.get(KEY))
    except InputError:
        return {}  # another program's
    found = None if entry is None else entry.get("configuration")
    return found if isinstance(found, Mapping) else {}


def of_weights(text: str | None) -> dict[str, Any] | None:
    """The entry of a weights file; None where it has none. Raises InputError for one of another kind."""
    if text is None:
        return None
    try:
        entry = json.loads(text)
    except (ValueError, RecursionError):
        entry = None
    if not isinstance(entry, dict) or "format" not in entry:
        raise InputError("its provenance is not ours to change; convert it without --author and --license.")
    return entry


def as_text(entry: Mapping[str, Any]) -> str:
    """The entry as it stands in a file. Raises InputError where it holds other than plain values."""
    try:
        return json.dumps(entry, sort_keys=True)  # however it came about
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"its provenance is damaged ({error}); give another checkpoint.") from None


def _published(value: Any) -> Any:
    """An option's value as others may read it: files by their names alone."""
    if isinstance(value, Path):
        return _name(str(value))
    if isinstance(value, tuple):
        names = [_name(str(item)) for item in value[:_MOST_NAMES]]
        return names if len(value) <= _MOST_NAMES else [*names, f"and {len(value) - _MOST_NAMES} more"]
    # A codec given as it is stands in the file already.
    return "given" if isinstance(value, Mapping) else value


def _name(address: str) -> str:
    """The last part of a path or URL, without what may be a key to it."""
    parts = [part for part in address.partition("?")[0].split("/") if part]
    if parts and parts[-1] == "dataset.json":
        parts.pop()
    name = parts[-1] if parts else ""
    return name.encode("utf-8", "backslashreplace").decode()


def _data_sets(collection: LineCollection) -> list[dict[str, Any]]:
    return [
        {"name": _name(dataset.name), "lines": len(dataset), "fingerprint": dataset.fingerprint}
        for dataset in collection.datasets
    ]


def _installed() -> dict[str, str]:
    versions = {}
    for package in _SOFTWARE:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def _as_started(checkpoint: Path) -> dict[str, Any]:
    """What the run was started from, by the provenance in the checkpoint that it goes on from."""
    stored = open_checkpoint(checkpoint, verify=False).common[STATE_KEY].get(KEY)
    known = stored.get("configuration") if isinstance(stored, Mapping) else None
    return (
        {name: known[name] for name in _STARTED_FROM if name in known} if isinstance(known, Mapping) else {}
    )
