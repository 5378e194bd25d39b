"""Recognising the lines of a data set with a finished model and counting the errors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch

from distrib.config.sections import Globals, Test
from distrib.model.ctc import required_steps
from distrib.model.weights import RecognitionModel
from distrib.runtime.devices import autocast_of, check_precision, full_precision_dtype, torch_device
from distrib.stream.batches import BadLine, BatchReader, LineBatch
from distrib.stream.lines import LineCollection
from distrib.stream.loader import EvaluationLoader, Share, reader_deaths
from distrib.stream.widths import input_widths
from distrib.training.breakdown import FileErrors, LineErrors, WorstLines
from distrib.training.decoding import recognize
from distrib.training.metrics import ErrorCounts
from distrib.training.models import network_input_of
from distrib.training.preparation import text_pipeline


@dataclass(kw_only=True)
class Evaluation:
    """The errors over all lines, of each file, the worst lines, and lines that could not be read at all."""

    worst: WorstLines
    counts: ErrorCounts = field(default_factory=ErrorCounts.detailed)
    files: FileErrors = field(default_factory=FileErrors)
    bad_lines: list[BadLine] = field(default_factory=list)

    def add(self, truth: str, prediction: str, *, source: str, line_id: str) -> None:
        """Count one line; a line whose data set names no source counts for no file."""
        errors = self.counts.add(truth, prediction)
        if source:
            self.files.add(source, truth, prediction)
        self.worst.add(
            LineErrors(source=source, line_id=line_id, truth=truth, prediction=prediction, errors=errors)
        )


def evaluate(
    model: RecognitionModel,
    collection: LineCollection,
    options: Test,
    globals_: Globals,
    *,
    keep_worst: int,
    on_batch: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Recognise all lines of the collection and count the errors.

    ``keep_worst`` lines with the most errors are kept; ``on_batch`` gets (lines done, lines in all).
    """
    check_precision(globals_.precision, globals_.device)
    torch.set_num_threads(globals_.num_threads)
    device = torch_device(globals_.device)
    model.network.to(device, full_precision_dtype(globals_.precision)).eval()
    network_input = network_input_of(model, padding=options.padding)
    lines = np.arange(len(collection), dtype=np.int64)
    loader = EvaluationLoader(
        BatchReader(
            collection=collection,
            network_input=network_input,
            text_pipeline=text_pipeline(options),
            encode=model.codec.encode,
            steps_needed=required_steps,
        ),
        lines=lines,
        widths=input_widths(collection, network_input).columns,
        share=Share(lines=options.batch_size),
        workers=globals_.num_workers,
        pin_memory=device.startswith("cuda"),
    )
    evaluation, done = Evaluation(worst=WorstLines(keep=keep_worst)), 0
    with reader_deaths(), torch.inference_mode(), autocast_of(globals_.precision, device):
        for batch in loader:
            evaluation.bad_lines += batch.bad
            _add(evaluation, model, batch, collection, device)
            done += len(batch.lines) + len(batch.bad)
            if on_batch is not None:
                on_batch(done, lines.size)
    return evaluation


def _add(
    evaluation: Evaluation, model: RecognitionModel, batch: LineBatch, collection: LineCollection, device: str
) -> None:
    if not len(batch.lines):
        return
    predictions = recognize(model, batch._replace(images=batch.images.to(device, non_blocking=True)))
    for line, truth, prediction in zip(batch.lines.tolist(), batch.texts, predictions, strict=True):
        if not truth:
            continue  # validation leaves them out as well
        source, line_id = collection.place(line)
        evaluation.add(truth, prediction, source=source, line_id=line_id)
