"""Small runs, and whether one that was broken off and gone on with is the one that was left alone."""

from __future__ import annotations

from pathlib import Path

from distrib.stream.ledger_report import verify_ledger

from .conftest import TINY_SPEC
from .forked import Harm
from .launching import rows, unlike

LOSS = "distrib.training.recognition:ctc_losses"
"""Called once a step by each process, where a step is one micro-batch of each."""

DECODING = "distrib.training.recognition:texts_of"
"""Called once a batch of a validation."""

LINES_A_STEP = 4
STEPS_AN_EPOCH = 10
"""Unless steps are cut otherwise. Validations then have three batches of each process."""


def training(lines: Path, run: Path, *more: object, processes: int = 1, epochs: int = 2) -> list[object]:
    """The words of a run of a tiny network, each of whose steps is a micro-batch of each process."""
    batches = ["-B", LINES_A_STEP // processes, "--global-batch-size", LINES_A_STEP]
    if "-B" in more:
        batches = []
    words = ["-f", "binary", *batches, "-q", "fixed", "-N", epochs, "-p", 0.75, "-s", TINY_SPEC, "-o", run]
    return ["--workers", 0, "--seed", 5, "train", *words, *more, lines]


def at(call: int, do: str, *, place: str = LOSS, rank: int = 0, after: bool = False) -> list[Harm]:
    """What befalls one process at one call."""
    return [Harm(place=place, calls=(call,), do=do, rank=rank, after=after)]  # type: ignore[arg-type]


def checkpoints(run: Path) -> list[str]:
    """The names of a run's checkpoints."""
    return sorted(path.name for path in run.glob("*.ckpt"))


def kinds(run: Path, *wanted: str) -> list[str]:
    """The events of these kinds, in order."""
    return [str(row["event"]) for row in rows(run / "events.jsonl") if row["event"] in wanted]


def differences(whole: Path, broken: Path) -> list[str]:
    """What differs between the ends of two runs, and what the ledger of the second finds wrong."""
    found = unlike(whole / "last.ckpt", broken / "last.ckpt")
    report = verify_ledger(broken / "ledger")
    if not report.exact or [epoch.epoch for epoch in report.epochs] != _epochs(whole):
        found.append(f"ledger: {report}")
    if _losses(whole) != _losses(broken):
        found.append("losses")
    if _scores(whole) != _scores(broken):
        found.append(f"scores: {_scores(whole)} {_scores(broken)}")
    exports = [[path.name for path in run.glob("best_*")] for run in (whole, broken)]
    return found + (["export"] if exports[0] != exports[1] else [])


def _epochs(run: Path) -> list[int]:
    return sorted({int(row["epoch"]) for row in rows(run / "steps.jsonl")})


def _losses(run: Path) -> dict[int, tuple[float, ...]]:
    """Epoch, loss and lines of each step; of one that was done again, those of the last time."""
    return {int(row["step"]): (row["epoch"], row["loss"], row["lines"]) for row in rows(run / "steps.jsonl")}


def _scores(run: Path) -> dict[tuple[float, float], tuple[float, float]]:
    """Accuracy and loss of each validation, by epoch and step."""
    found = rows(run / "metrics.jsonl")
    return {(row["epoch"], row["step"]): (row["val_accuracy"], row["train_loss"]) for row in found}
