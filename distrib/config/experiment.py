"""Experiment files: YAML with the globals at the top and a section for each command, as kraken 7 reads them.

precision: bf16-mixed
num_workers: 4
train:
  training_data: [train.lst]
  format_type: xml
  lrate: 1e-3
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distrib.config.fields import info_of, types_of
from distrib.config.sections import KRAKEN_SECTIONS, SECTIONS, Globals
from distrib.config.values import make_section, nearest
from distrib.errors import InputError

STORED_NAME = "experiment.yml"
"""The resolved experiment that every run keeps in its directory."""


@dataclass(frozen=True, kw_only=True)
class ExperimentFile:
    """The raw values of an experiment file, checked: globals, and each section's own."""

    globals: Mapping[str, Any] = field(default_factory=dict)
    sections: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def read_experiment(path: Path) -> ExperimentFile:
    """Read and check an experiment file. Raises InputError naming the file and the key that is wrong."""
    return _checked(_document(lambda: path.read_text(encoding="utf-8"), path), path)


def _checked(document: Mapping[Any, Any], path: Path) -> ExperimentFile:
    global_names = types_of(Globals)
    top: dict[str, Any] = {}
    sections: dict[str, Mapping[str, Any]] = {}
    for key, value in document.items():
        if key in SECTIONS:
            if value is not None and not isinstance(value, Mapping):
                raise InputError(
                    f"{path}: section `{key}` must hold options as `name: value`, not {value!r}."
                )
            sections[key] = value or {}
        elif key in global_names:
            top[key] = value
        elif key not in KRAKEN_SECTIONS:
            meant = nearest(str(key), [*global_names, *SECTIONS])
            raise InputError(
                f"{path}: `{key}` is neither a global option nor a section{meant}; correct or remove it."
            )
    try:
        make_section(Globals, "", top)
        for name, values in sections.items():
            make_section(SECTIONS[name], name, values)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return ExperimentFile(globals=top, sections=sections)


def stored_experiment(resume: Path) -> ExperimentFile:
    """The experiment that a run directory, or that of a checkpoint, was started with; empty without one.

    Its run directory replaces the stored one: a run may have been moved since.
    """
    directory = run_directory_of(resume)
    file = directory / STORED_NAME
    return resumed_experiment(read_experiment(file), directory) if file.is_file() else ExperimentFile()


def parse_experiment(text: str, place: Path) -> ExperimentFile:
    """Check an experiment that stands in another file. Raises InputError naming that ``place``."""
    return _checked(_document(lambda: text, place), place)


def resumed_experiment(stored: ExperimentFile, directory: Path) -> ExperimentFile:
    """An experiment as a run goes on with it in its directory."""
    sections = {
        # The checkpoint holds the model with its codec; what it was made from does not come into it again.
        name: {key: value for key, value in values.items() if key not in ("load", "codec")}
        | {"checkpoint_path": str(directory)}
        for name, values in stored.sections.items()
    }
    return ExperimentFile(globals=stored.globals, sections=sections)


def refuse_other_command(stored: ExperimentFile, command: str, place: Path) -> None:
    """Raise InputError where the stored experiment of a run, kept at ``place``, is another command's."""
    if command not in stored.sections:
        other = next(iter(stored.sections), "other")
        raise InputError(
            f"{place}: a run of `ketos {other}`, which `ketos {command}` cannot go on with; start from its "
            "weights with --load."
        )


def run_directory_of(resume: Path) -> Path:
    """The run directory that a path to resume means: itself, or where the checkpoint lies."""
    return resume if resume.is_dir() and resume.suffix != ".ckpt" else resume.parent


def run_to_resume(directory: Path) -> Path | None:
    """The directory, if a run in it has left a checkpoint to go on from."""
    found = (directory / STORED_NAME).is_file() and any(directory.glob("*.ckpt"))
    return directory if found else None


def stored_options(options: Any) -> Any:
    """A run's options as it keeps them: what concerns one start left out, paths absolute."""
    return dataclasses.replace(
        options,
        resume=None,
        resume_anyway=False,
        steal_lease=False,
        training_data=_absolute(options.training_data),
        evaluation_data=_absolute(options.evaluation_data),
        ground_truth=tuple(map(str, _absolute(options.ground_truth))),
        log_dir=None if options.log_dir is None else options.log_dir.absolute(),
    )


def with_absolute_paths(options: Any) -> Any:
    """A command's options with every path in them absolute, for processes that start in other folders.

    Addresses (``s3://…``) stay, and so do the words that options take in place of a path: ``-`` and ``auto``.
    """
    changed: dict[str, Any] = {}
    for item in dataclasses.fields(options):
        value = getattr(options, item.name)
        if isinstance(value, Path):
            changed[item.name] = value if str(value) in _WORDS else _absolute([value])[0]
        elif info_of(item).positional:
            changed[item.name] = tuple(map(str, _absolute(value)))
        elif isinstance(value, tuple) and all(isinstance(each, Path) for each in value):
            changed[item.name] = _absolute(value)
    return dataclasses.replace(options, **changed)


_WORDS = ("-", "auto")


def _absolute(paths: Iterable[str | Path]) -> tuple[Any, ...]:
    return tuple(path if "://" in str(path) else Path(path).absolute() for path in paths)


def dump_experiment(globals_: Globals, section_name: str, section: Any) -> str:
    """The resolved experiment as YAML that :func:`read_experiment` takes back to equal values."""
    import yaml

    document = _plain(globals_) | {section_name: _plain(section)}
    text: str = yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=100)
    return text


def _document(read: Callable[[], str], path: Path) -> Mapping[Any, Any]:
    import yaml

    try:
        text = read()
        document = yaml.safe_load(text)
        repeated = _repeated_key(yaml.compose(text, yaml.SafeLoader))
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}); check its name and permissions."
        ) from None
    except RecursionError:
        raise InputError(f"{path}: not an experiment file; it is nested too deeply.") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: not UTF-8, or a date or number out of range
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark is not None else ""
        undecodable = isinstance(error, UnicodeDecodeError | yaml.reader.ReaderError)
        problem = "not text in UTF-8" if undecodable else getattr(error, "problem", None) or error
        raise InputError(f"{path}{line}: not a YAML experiment file ({problem}); correct it.") from None
    if repeated is not None:
        line = f"line {repeated.start_mark.line + 1}"
        raise InputError(f"{path}, {line}: `{repeated.value}` is given a second time; keep one of them.")
    if document is None:
        return {}
    if not isinstance(document, Mapping):
        raise InputError(f"{path}: not an experiment file; it must hold options as `name: value`.")
    return document


def _repeated_key(document: Any) -> Any:
    """The node of the first name that the document, or a section of it, gives twice; None without one.

    Of names given twice YAML takes the last without a word.
    """
    import yaml

    sections = [value for _, value in document.value] if isinstance(document, yaml.MappingNode) else []
    for node in [document, *sections]:
        seen: set[str] = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else []:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                return key
            seen.add(str(key.value))
    return None


def _plain(section: Any) -> dict[str, Any]:
    return {item.name: _plain_value(getattr(section, item.name)) for item in dataclasses.fields(section)}


def _plain_value(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple):
        return [_plain_value(item) for item in value]
    return value
