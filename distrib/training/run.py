"""The fit of a prepared run, and its best model exported."""

from __future__ import annotations

import logging
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DDPStrategy

from distrib.config.sections import Train, WeightsFormat
from distrib.errors import RunError
from distrib.model.weights import save_weights
from distrib.runtime.checkpoint_io import AtomicCheckpointIO
from distrib.runtime.checkpoints import LAST, best_checkpoint, load_checkpoint, model_from_checkpoint
from distrib.runtime.cluster_environment import PlacedEnvironment
from distrib.runtime.devices import lightning_device
from distrib.runtime.processes import peer_gone
from distrib.runtime.topology import Topology
from distrib.stream.loader import reader_deaths
from distrib.training.bad_lines import BadLinesReport
from distrib.training.callbacks import Bookkeeping
from distrib.training.interruption import StopOnSignal
from distrib.training.ledger_keeping import LedgerKeeping
from distrib.training.progress import TrainingProgress
from distrib.training.recognition import BadLines, RecognitionModule, StopRequested
from distrib.training.setup import PreparedRun
from distrib.training.step_log import StepLog
from distrib.training.stopping import EarlyStopping

_EXTENSIONS = {"safetensors": "safetensors", "coreml": "mlmodel"}
_EXPORT = re.compile(r"best_-?\d+\.\d+\.(safetensors|mlmodel)")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a run ended: the exported file, its validation score (at most 1), lines that could not be used."""

    weights: Path
    score: float
    bad_lines: BadLines


def fit(run: PreparedRun) -> Outcome:
    """Train, validate, keep the best, export it. Raises RunError with a sentence where it cannot go on."""
    options, directory, processes = run.options, run.options.checkpoint_path, run.processes
    topology = processes.topology
    _quiet_lightning(verbose=run.globals_.verbose > 0)
    stopping = None
    if options.quit == "early":
        stopping = EarlyStopping(lag=options.lag, min_delta=options.min_delta, min_epochs=options.min_epochs)
    module = RecognitionModule(run.model, options, processes=processes, seed=run.seed)
    total = options.epochs if options.epochs > 0 else None
    bookkeeping = Bookkeeping(directory, stopping=stopping, stream=run.training)
    ledger = LedgerKeeping(
        directory,
        processes=processes,
        stream=run.training,
        lines=run.lines,
        total=len(run.sets.training),
        resumed_from=run.resume_from,
    )
    callbacks: list[Callback] = [StopOnSignal(), ledger, bookkeeping]
    if topology.first:
        callbacks += [
            StepLog(directory),
            BadLinesReport(directory, run.sets, resumed=run.resume_from is not None),
            TrainingProgress(total_epochs=total),
        ]
    trainer = pl.Trainer(
        **lightning_device(run.globals_.device, topology),
        strategy=_strategy(topology),
        precision=run.globals_.precision,
        deterministic=run.globals_.deterministic,
        max_epochs=total or -1,
        callbacks=callbacks,
        # The processes that are there, whatever the variables of a scheduler around them say.
        plugins=[AtomicCheckpointIO(), PlacedEnvironment(topology)],
        logger=_logger(options) if topology.first else False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        reload_dataloaders_every_n_epochs=int(run.training.varies),
        # An epoch's length may differ from the first one's; the interval must not after a resume.
        **validation_interval(options.freq, run.training.plan(0).steps),
    )
    try:
        with warnings.catch_warnings(), reader_deaths():
            if not run.globals_.verbose:
                warnings.simplefilter("ignore")
            checkpoint = None if run.resume_from is None else str(run.resume_from)
            trainer.fit(module, run.training, run.validation, ckpt_path=checkpoint, weights_only=True)
    except StopRequested:
        processes.stop(_ended(directory, "Interrupted"))
    except SystemExit:  # how Lightning ends on Ctrl-C
        raise _ended(directory, "Interrupted") from None
    except RuntimeError as error:
        if not (processes.several and peer_gone(error)):
            raise
        what = "Another process of this job has ended or does not answer, as it or its launcher says"
        raise _ended(directory, what) from error
    return processes.on_first(lambda: export_best(directory, options.weights_format, module.bad_lines))


def export_best(directory: Path, weights_format: WeightsFormat, bad_lines: BadLines) -> Outcome:
    """Write the best checkpoint's weights as ``best_<score>.<format>`` and remove older exports."""
    found = best_checkpoint(directory)
    if found is None:
        raise RunError("Training ended before its first validation; there is no model to export.")
    path, score = found
    target = directory / f"best_{score:.4f}.{_EXTENSIONS[weights_format]}"
    save_weights(model_from_checkpoint(load_checkpoint(path)), target, weights_format=weights_format)
    for older in directory.iterdir():
        if _EXPORT.fullmatch(older.name) and older != target:
            older.unlink()
    return Outcome(weights=target, score=score, bad_lines=bad_lines)


def validation_interval(freq: float, steps: int) -> dict[str, Any]:
    """When Lightning validates: every ``freq`` epochs, or 1/``freq`` times an epoch of ``steps`` steps."""
    times = round(1 / freq) if freq < 1 else 1
    if times == 1:
        return {"check_val_every_n_epoch": max(1, int(freq))}
    return {"val_check_interval": max(1, steps // times)}


def _strategy(topology: Topology) -> Any:
    if topology.world_size == 1:
        return "auto"
    # The processes have met already, and every parameter has a gradient in every step.
    return DDPStrategy(gradient_as_bucket_view=True)


def _ended(directory: Path, what: str) -> RunError:
    if (directory / LAST).exists():
        return RunError(f"{what}; go on from the last validation with `ketos train --resume {directory}`.")
    return RunError(f"{what} before the first validation; there is no checkpoint to go on from.")


def _quiet_lightning(*, verbose: bool) -> None:
    # Lightning's notices speak to programmers; everything a user needs is said by us.
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING if verbose else logging.ERROR)


def _logger(options: Train) -> Any:
    if options.pl_logger is None:
        return False
    from lightning.pytorch.loggers import TensorBoardLogger

    return TensorBoardLogger(save_dir=options.log_dir or options.checkpoint_path / "tensorboard", name=None)
