"""The real ground truth that accuracies are measured on, always divided in the same way."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from common import one_core


@dataclass(frozen=True, kw_only=True)
class RealSet:
    """Files of a folder by pattern, in the format of ``-f``; every ``nth`` of them is validated on."""

    folder: str
    pattern: str
    format: str
    nth: int

    def files(self, data: Path) -> tuple[list[Path], list[Path]]:
        """Those to train and those to validate on."""
        found = sorted((data / self.folder).glob(self.pattern))
        held = found[self.nth - 1 :: self.nth]
        return [each for each in found if each not in held], held


SETS = {
    "fraktur-lines": RealSet(folder="fraktur-lines", pattern="*.png", format="path", nth=5),
    "print16-alto": RealSet(folder="print16-alto", pattern="**/*.xml", format="xml", nth=5),
    "hand-fr-page-alto": RealSet(folder="hand-fr-page-alto", pattern="*.page.xml", format="xml", nth=4),
}


def at_hand(names: Iterable[str], data: Path) -> list[str]:
    """Those of the sets that are there; of the others it is said."""
    found = []
    for name in names:
        if SETS[name].files(data)[1]:
            found.append(name)
        else:
            print(f"{name}: not in {data}")
    return found


def compiled(name: str, data: Path, folder: Path, *, program: Sequence[str]) -> tuple[Path, Path]:
    """Manifests of a compiled training and validation set, made once in ``folder`` by a ketos ``program``."""
    training, validation = SETS[name].files(data)
    return (
        _compile(f"{name}-training", SETS[name].format, training, folder, program),
        _compile(f"{name}-validation", SETS[name].format, validation, folder, program),
    )


def tenth(name: str, data: Path, folder: Path, *, program: Sequence[str]) -> Path:
    """The manifest of a set of about a tenth of the training lines, of whole pages where there are pages."""
    training, _ = SETS[name].files(data)
    return _compile(
        f"{name}-tenth", SETS[name].format, training[: max(1, len(training) // 10)], folder, program
    )


def _compile(
    name: str, format_type: str, paths: Sequence[Path], folder: Path, program: Sequence[str]
) -> Path:
    dataset, manifest = folder / f"{name}.arrow", folder / f"{name}.lst"
    if not manifest.is_file():
        words = ["compile", "-f", format_type, "-o", str(dataset), *map(str, paths)]
        subprocess.run([*program, *words], check=True, capture_output=True, env=one_core())
        manifest.write_text(f"{dataset}\n", encoding="utf-8")
    return manifest
