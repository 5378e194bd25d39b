"""Recognising a data set's lines with a finished model and counting the errors, by any number of processes.

What comes out does not depend on how many there are: batches are cut before they are dealt out, and every
figure is a sum of integers or has an order of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from itertools import islice

import numpy as np
import numpy.typing as npt
import torch

from distrib.config.sections import Globals, Test
from distrib.errors import InputError
from distrib.ground_truth.text import TextPipeline
from distrib.model.ctc import required_steps
from distrib.model.weights import RecognitionModel
from distrib.runtime.devices import (
    autocast_of,
    check_precision,
    full_precision_dtype,
    process_device,
    use_device,
)
from distrib.runtime.processes import Processes
from distrib.runtime.topology import Topology
from distrib.stream.batches import BatchReader, LineBatch
from distrib.stream.lines import LineCollection
from distrib.stream.loader import EvaluationLoader, Share, reader_deaths
from distrib.stream.widths import input_widths
from distrib.training.breakdown import FileErrors, LineErrors, UnreadLines, WorstLines
from distrib.training.decoding import recognize
from distrib.training.metrics import ErrorCounts
from distrib.training.models import network_input_of
from distrib.training.reading import reading_of
from distrib.training.survey import survey

_SECONDS_APART = 1.0
"""How long each process works between two looks at the others: so late one learns that another has ended."""

_ENTRIES = 1000
"""Entries of each kind in a piece of results: all processes' pieces of one kind are in memory at once."""


@dataclass(kw_only=True)
class Evaluation:
    """The errors over all lines, of each file, the worst lines, and lines that could not be read at all."""

    worst: WorstLines
    counts: ErrorCounts = field(default_factory=ErrorCounts.detailed)
    files: FileErrors = field(default_factory=FileErrors)
    unread: UnreadLines = field(default_factory=UnreadLines)

    def add(self, truth: str, prediction: str, *, line: int, source: str, line_id: str) -> None:
        """Count line number ``line``; one whose data set names no source counts for no file."""
        errors = self.counts.add(truth, prediction, line=line)
        if source:
            self.files.add(source, truth, prediction)
        self.worst.add(
            LineErrors(source=source, line_id=line_id, truth=truth, prediction=prediction, errors=errors)
        )

    def merge(self, part: Part) -> None:
        """Add one of the parts of an evaluation of other lines."""
        if isinstance(part, ErrorCounts):
            self.counts.merge(part)
        elif isinstance(part, FileErrors):
            self.files.merge(part)
        elif isinstance(part, WorstLines):
            self.worst.merge(part)
        else:
            self.unread.merge(part)

    def parts(self, most: int = _ENTRIES) -> Iterator[Part]:
        """Parts of at most ``most`` entries each, which merged are this evaluation."""
        yield from self.counts.pieces(most)
        yield from self.files.pieces(most)
        yield from self.worst.pieces(most)
        yield from self.unread.pieces(most)


Part = ErrorCounts | FileErrors | WorstLines | UnreadLines


def evaluate(
    model: RecognitionModel,
    collection: LineCollection,
    options: Test,
    globals_: Globals,
    *,
    processes: Processes,
    keep_worst: int,
    on_batches: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Recognise all lines of the collection that have a text, each in one of the processes, and count errors.

    Every process calls it with the same data and gets the errors of all. ``keep_worst`` lines with the most
    errors are kept; ``on_batches`` gets (lines done, lines in all) over all processes about once a second.

    Raises InputError where processes have other data or another model than rank zero, and where no line
    has a text or none could be read.
    """
    processes.agree(lambda: check_precision(globals_.precision, globals_.device))
    processes.agree(lambda: use_device(globals_.device, processes.topology))
    _refuse_unlike(model, collection, processes)
    torch.set_num_threads(globals_.num_threads)
    recognition = processes.agree(
        lambda: _Recognition(model, collection, options, globals_, processes.topology, keep_worst=keep_worst)
    )
    with reader_deaths():
        _recognize_all(recognition, processes, on_batches)
    evaluation = _merged(recognition.evaluation, Evaluation(worst=WorstLines(keep=keep_worst)), processes)
    if not evaluation.counts.lines:
        reason = evaluation.unread.in_order()[0].reason
        processes.stop(
            InputError(
                f"None of the test lines could be read (such as: {reason}); give others, or compile "
                "them again."
            )
        )
    return evaluation


class _Recognition:
    """One process's part of the lines, and the errors found in it so far. Raises InputError where no line
    has a text or the model's input is none for lines."""

    def __init__(
        self,
        model: RecognitionModel,
        collection: LineCollection,
        options: Test,
        globals_: Globals,
        topology: Topology,
        *,
        keep_worst: int,
    ) -> None:
        self.evaluation = Evaluation(worst=WorstLines(keep=keep_worst))
        self._model, self._collection, self._precision = model, collection, globals_.precision
        self._device = process_device(globals_.device, topology)
        model.network.to(self._device, full_precision_dtype(globals_.precision)).eval()
        reading = reading_of(options, model)
        network_input = network_input_of(model, padding=reading.padding)
        lines = _lines_with_text(collection, reading.pipeline)
        self.total = lines.size
        self.loader = EvaluationLoader(
            BatchReader(
                collection=collection,
                network_input=network_input,
                text_pipeline=reading.pipeline,
                encode=model.codec.encode,
                steps_needed=required_steps,
            ),
            lines=lines,
            widths=input_widths(collection, network_input).columns[lines],
            share=Share(
                rank=topology.rank,
                world_size=topology.world_size,
                lines=options.batch_size,
                pixels=options.batch_pixels,
            ),
            height=network_input.height or 1,
            workers=globals_.num_workers,
            pin_memory=self._device.startswith("cuda"),
        )

    def take(self, batches: Iterator[LineBatch]) -> int:
        """Recognise the lines of some batches; how many lines they had, unreadable ones included."""
        done = 0
        with reader_deaths(), torch.inference_mode(), autocast_of(self._precision, self._device):
            for batch in batches:
                self.evaluation.unread.add(*batch.bad)
                self._count(batch)
                done += len(batch.lines) + len(batch.bad)
        return done

    def _count(self, batch: LineBatch) -> None:
        if not len(batch.lines):
            return
        images = batch.images.to(self._device, non_blocking=True)
        predictions = recognize(self._model, batch._replace(images=images))
        for line, truth, prediction in zip(batch.lines.tolist(), batch.texts, predictions, strict=True):
            source, line_id = self._collection.place(line)
            self.evaluation.add(truth, prediction, line=line, source=source, line_id=line_id)


def _lines_with_text(collection: LineCollection, pipeline: TextPipeline) -> npt.NDArray[np.int64]:
    """The numbers of lines whose text is not empty. Raises InputError where there is none.

    The others are left out before batches are cut, as in validation: so both cut the same ones.
    """
    lines = np.arange(len(collection), dtype=np.int64)
    lines = np.setdiff1d(lines, survey(collection, lines, pipeline).empty, assume_unique=True)
    if not lines.size:
        raise InputError("The test lines hold no text at all; give others.")
    return lines


def _recognize_all(
    recognition: _Recognition, processes: Processes, on_batches: Callable[[int, int], None] | None
) -> None:
    """Go through all batches, of which every process has equally many, looking at the others now and then."""
    batches, left = iter(recognition.loader), len(recognition.loader)
    done, together = 0, 1
    while left:
        began = time.monotonic()
        mine = islice(batches, min(left, together))
        lines = processes.agree(partial(recognition.take, mine))
        reports = processes.gather((lines, time.monotonic() - began))
        left -= together
        done += sum(lines for lines, _ in reports)
        if on_batches is not None:
            on_batches(done, recognition.total)
        # By rank zero's clock alone: all must come to the same number.
        together = min(left, max(1, int(together * _SECONDS_APART / max(reports[0][1], 1e-3))))


def _merged(mine: Evaluation, whole: Evaluation, processes: Processes) -> Evaluation:
    """``whole`` with the evaluations of all processes added, without all of them in memory at once."""
    parts = mine.parts()
    while found := [part for part in processes.gather(next(parts, None)) if part is not None]:
        for part in found:
            whole.merge(part)
    return whole


def _refuse_unlike(model: RecognitionModel, collection: LineCollection, processes: Processes) -> None:
    """Raise InputError, at every process, where one has other data or another model than rank zero."""
    if not processes.several:
        return
    everyones = processes.gather({"data": collection.fingerprint, "weights": _digest(model)})
    for rank, seen in enumerate(everyones):
        for what, digest in seen.items():
            if digest != everyones[0][what]:
                processes.stop(
                    InputError(
                        f"Process {rank} reads other {what} than process 0; see that the paths lead to the "
                        "same files on every node."
                    )
                )


def _digest(model: RecognitionModel) -> str:
    """Equal for models that read equal lines equally."""
    digest = blake2b(repr((model.network.spec, model.codec.c2l)).encode(), digest_size=16)
    for tensor in model.network.state_dict().values():
        digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
