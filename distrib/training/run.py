"""The fit of a prepared run, and its best model exported."""

from __future__ import annotations

import logging
import os
import re
import signal
import sys
import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from distrib.config.experiment import dump_experiment, stored_options
from distrib.config.learning import Learning, Pretrain, Train
from distrib.errors import InputError, KetosError, OutOfMemory, PeerLost, Preempted, RunError, Unexpected
from distrib.runtime.checkpoints.reader import open_checkpoint
from distrib.runtime.checkpoints.record import best, newest_first
from distrib.runtime.checkpoints.store import CheckpointStore
from distrib.runtime.cluster_environment import PlacedEnvironment
from distrib.runtime.devices import lightning_device
from distrib.runtime.directory.run_directory import RunDirectory
from distrib.runtime.processes import peer_gone
from distrib.runtime.strategies.choose import is_sharded, make_strategy
from distrib.stream.loader import reader_deaths
from distrib.training.bad_lines import BadLinesReport
from distrib.training.callbacks import Bookkeeping
from distrib.training.export import export_checkpoint
from distrib.training.interruption import (
    ReadersLetGo,
    StopRequest,
    StopRequested,
    StopWhenTakenOver,
    leave_signals_alone,
    signals_noted,
)
from distrib.training.learner import Learner
from distrib.training.ledger_keeping import LedgerKeeping
from distrib.training.loop_state import steps_done
from distrib.training.memory import memory_exhausted, memory_sentence
from distrib.training.progress import TrainingProgress
from distrib.training.provenance import provenance
from distrib.training.recognition import RecognitionModule
from distrib.training.run_events import OnEvent, RunEvents
from distrib.training.run_log import run_log
from distrib.training.saving import Saving
from distrib.training.schedules import steps_between_validations, validations_an_epoch
from distrib.training.setup import PreparedRun
from distrib.training.step_log import StepLog
from distrib.training.stopping import Annealing, EarlyStopping
from distrib.training.unusable_lines import BadLines
from distrib.training.watching import Watching

_EXTENSIONS = {"safetensors": "safetensors", "coreml": "mlmodel"}
_EXPORT = re.compile(r"best_-?\d+\.\d+\.(safetensors|mlmodel)")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a run ended: the exported file, its validation score (at most 1) as words name it, lines that could
    not be used."""

    weights: Path
    score: str
    bad_lines: BadLines


def fit(run: PreparedRun, *, claimed: RunDirectory | None, on_event: OnEvent) -> Outcome:
    """Train, validate, keep the best, export it.

    ``claimed`` is the run directory as rank zero holds it, None elsewhere; ``on_event`` gets what happens, by
    kind, with facts in plain types.

    Raises:
        Preempted: a signal asked for the end, and what was done is saved; PeerError at all but rank zero.
        OutOfMemory, PeerLost, Unexpected, RunError: it cannot go on; the sentence says how to.
    """
    options, directory, processes = run.options, run.options.checkpoint_path, run.processes
    topology = processes.topology
    _quiet_lightning(verbose=run.globals_.verbose > 0)
    store = CheckpointStore(
        directory,
        processes=processes,
        keep_best=options.keep_best,
        keep_last=options.keep_last,
        sharded=is_sharded(options.strategy),
        strategy=options.strategy,
        command=options.command,
        guard=_nothing if claimed is None else claimed.check,
        on_event=on_event,
    )
    strategy = make_strategy(
        options.strategy,
        topology=topology,
        device=run.globals_.device,
        offload=options.offload,
        clip=options.gradient_clip_val,
    )
    strategy.store = store
    # An epoch's length may differ from the first one's; the interval must not after a resume.
    interval = validation_interval(options.freq, run.training.plan(0).steps)
    module = _learner(run, interval.get("val_check_interval"))
    trainer = pl.Trainer(
        **lightning_device(run.globals_.device, topology),
        strategy=strategy,
        precision=run.globals_.precision,
        deterministic=run.globals_.deterministic,
        max_epochs=_last_epoch(options) or -1,
        callbacks=_callbacks(run, module, store, claimed, on_event),
        # The processes that are there, whatever the variables of a scheduler around them say.
        plugins=[PlacedEnvironment(topology, device=run.globals_.device)],
        logger=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        reload_dataloaders_every_n_epochs=int(run.training.varies),
        **interval,
    )
    leave_signals_alone(trainer)
    with signals_noted(module.interruption):
        _train(run, module, trainer, store, claimed, on_event)

    def export() -> Outcome:
        if claimed is not None:
            claimed.check()
        return export_best(module, on_event)

    processes.phases.enter("exporting")
    return processes.on_first(export)


def _learner(run: PreparedRun, interval: int | None) -> Learner:
    """What is learned, by the command."""
    options = run.options
    given: dict[str, Any] = {"processes": run.processes, "seed": run.seed, "interval": interval}
    if isinstance(options, Pretrain):
        from distrib.training.pretraining.module import PretrainingModule

        return PretrainingModule(run.model, options, **given)
    assert isinstance(options, Train)
    return RecognitionModule(run.model, options, **given)


def _train(
    run: PreparedRun,
    module: Learner,
    trainer: pl.Trainer,
    store: CheckpointStore,
    claimed: RunDirectory | None,
    on_event: OnEvent,
) -> None:
    """Train until all is done and on the disk. Raises as ``fit`` does, and asks nobody after an error."""
    try:
        with warnings.catch_warnings(), reader_deaths():
            if not run.globals_.verbose:
                warnings.simplefilter("ignore")
            checkpoint = None if run.resume_from is None else str(run.resume_from)
            trainer.fit(module, run.training, run.validation, ckpt_path=checkpoint, weights_only=True)
        store.finish()
    except StopRequested as stop:
        _leave(stop.request, steps_done(trainer), run, store, claimed, on_event)
    except SystemExit:  # how Lightning ends on Ctrl-C
        raise Preempted(_way_on(run.options, "Interrupted"), signal.SIGINT) from None
    except (KetosError, OSError):
        raise
    except Exception as error:  # whatever it is, its user is told what was saved
        raise _explained(error, run, module) from error
    finally:
        store.close()


def _leave(
    request: StopRequest,
    step: int,
    run: PreparedRun,
    store: CheckpointStore,
    claimed: RunDirectory | None,
    on_event: OnEvent,
) -> NoReturn:
    """End all processes, which agree on the request, when ``step`` is on the disk."""
    if request.signal is None:
        store.finish()
        run.processes.agree(_nothing if claimed is None else claimed.check)
        run.processes.stop(RunError(f"{run.options.checkpoint_path} was taken over by another run."))
    facts: dict[str, Any] = {"signal": request.signal.name, "step": step}
    try:
        store.finish()
        facts["seconds"] = round(request.seconds, 3)
    finally:
        on_event("preempt", facts)
    what = _way_on(run.options, f"Interrupted by {request.signal.name}")
    run.processes.stop(Preempted(what, request.signal))


def _explained(error: Exception, run: PreparedRun, module: Learner) -> RunError:
    """What ended the run, and how it goes on."""
    directory = run.options.checkpoint_path
    if memory_exhausted(error):
        saved = newest_first(directory)
        return OutOfMemory(
            memory_sentence(
                error,
                run.options,
                device=str(module.device),
                micro_batch=module.computing,
                saved=saved[0].path if saved else None,
            )
        )
    if run.processes.several and isinstance(error, RuntimeError) and peer_gone(error):
        what = "Another process of this job has ended or does not answer, as it or its launcher says"
        return PeerLost(_way_on(run.options, what))
    what = f"Unexpected {type(error).__name__}: {error} (ketos -vv shows where)"
    return Unexpected(_way_on(run.options, what))


def _nothing() -> None:
    """What others than rank zero do before a checkpoint takes its name."""


def _callbacks(
    run: PreparedRun,
    module: Learner,
    store: CheckpointStore,
    claimed: RunDirectory | None,
    on_event: OnEvent,
) -> list[Callback]:
    """What happens besides learning, in the order in which it must."""
    options, directory, processes = run.options, run.options.checkpoint_path, run.processes
    stopping: EarlyStopping | Annealing | None = module.rates.annealing
    if options.quit == "early":
        stopping = EarlyStopping(lag=options.lag, min_delta=options.min_delta, min_epochs=options.min_epochs)
    bookkeeping = Bookkeeping(directory, stopping=stopping, stream=run.training)
    ledger = LedgerKeeping(
        directory,
        processes=processes,
        stream=run.training,
        lines=run.lines,
        total=len(run.sets.training),
        resumed_from=run.resume_from,
    )
    saving = Saving(
        store,
        processes=processes,
        stream=run.training,
        bookkeeping=bookkeeping,
        steps=options.save_steps,
        minutes=options.save_minutes,
        experiment=dump_experiment(run.globals_, options.command, stored_options(options)),
        provenance=provenance(run),
    )
    callbacks: list[Callback] = [
        ReadersLetGo(),
        StopWhenTakenOver(claimed, module.interruption),
        ledger,
        bookkeeping,
    ]
    if processes.topology.first:
        callbacks += [
            StepLog(directory),
            BadLinesReport(directory, run.sets, resumed=run.resume_from is not None),
            TrainingProgress(total_epochs=_last_epoch(options)),
            RunEvents(on_event),
        ]
    callbacks += run_log(run, environ=os.environ, on_failure=partial(_log_failed, on_event))
    # What the others record of a step must stand there before a checkpoint says that it was done.
    return [*callbacks, saving, Watching(processes.phases, stream=run.training)]


def _log_failed(on_event: OnEvent, sentence: str) -> None:
    on_event("log_failed", {"reason": sentence})
    print(sentence, file=sys.stderr, flush=True)


def _last_epoch(options: Learning) -> int | None:
    return options.epochs if options.epochs > 0 else None


def export_best(module: Learner, on_event: OnEvent) -> Outcome:
    """Write the best checkpoint's weights as ``best_<score>.<format>`` and remove older exports.

    Where the best has been damaged since it was written, the next best is taken, and events say so.
    """
    options, directory = module.options, module.options.checkpoint_path
    found = next((each for each in best(directory) if _is_whole(each.path, on_event)), None)
    if found is None:
        raise RunError(f"{directory} holds no whole checkpoint of a validation; there is no model to export.")
    target = directory / f"best_{found.score:.4f}.{_EXTENSIONS[options.weights_format]}"
    exported = export_checkpoint(
        found.path,
        target,
        weights_format=options.weights_format,
        author=options.author,
        license=options.license,
    )
    for older in directory.iterdir():
        if _EXPORT.fullmatch(older.name) and older != target:
            older.unlink()
    facts = {"name": target.name, "checkpoint": found.path.name, "lines_compared": exported.lines}
    on_event("export", {**facts, "largest_difference": exported.difference})
    score = module.describe_score(found.score)
    return Outcome(weights=target, score=score, bad_lines=module.unusable.known)


def _is_whole(path: Path, on_event: OnEvent) -> bool:
    try:
        open_checkpoint(path)
    except InputError as error:
        on_event("damaged", {"name": path.name, "reason": str(error)})
        return False
    return True


def validation_interval(freq: float, steps: int) -> dict[str, Any]:
    """When Lightning validates: every ``freq`` epochs, or 1/``freq`` times an epoch of ``steps`` steps."""
    if validations_an_epoch(freq) == 1:
        return {"check_val_every_n_epoch": max(1, int(freq))}
    return {"val_check_interval": steps_between_validations(freq, steps)}


def _way_on(options: Learning, what: str) -> str:
    saved = newest_first(options.checkpoint_path)
    if saved:
        return f"{what}; {options.way_on(options.checkpoint_path, saved=saved[0].path)}."
    return f"{what}. Nothing had been saved yet: start again."


def _quiet_lightning(*, verbose: bool) -> None:
    # Lightning's notices speak to programmers; everything a user needs is said by us.
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING if verbose else logging.ERROR)
