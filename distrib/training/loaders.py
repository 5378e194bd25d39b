"""The loaders of a run: readers of its lines, the settings of its plan, each process's share."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from distrib.config.learning import Learning, Train
from distrib.config.sections import Globals
from distrib.config.sizes import parse_size
from distrib.ground_truth.network_input import NetworkInput
from distrib.ground_truth.text import TextPipeline
from distrib.model.ctc import required_steps
from distrib.model.weights import RecognitionModel
from distrib.runtime.devices import torch_device
from distrib.runtime.processes import Processes
from distrib.stream.batches import BatchReader
from distrib.stream.line_cache import LineCache
from distrib.stream.lines import LineCollection
from distrib.stream.loader import EvaluationLoader, Share, TrainingLoader
from distrib.stream.micro_batches import split_step
from distrib.stream.plan import PlanSettings, plan_facts
from distrib.training.preparation import text_pipeline

_SAMPLED_STEPS = 50
"""Steps of an epoch from which the share of padding is estimated."""

Lines = npt.NDArray[np.int64]
Columns = npt.NDArray[np.int32]


@dataclass(frozen=True, kw_only=True)
class Loaders:
    """Makes the loaders of one process of a run."""

    options: Learning
    globals_: Globals
    processes: Processes
    model: RecognitionModel
    network_input: NetworkInput
    _caches: dict[int, LineCache] = field(default_factory=dict, init=False, repr=False)

    def training(
        self, collection: LineCollection, lines: Lines, columns: Columns, settings: PlanSettings, seed: int
    ) -> TrainingLoader:
        """The steps of the given lines (N,), which are ``columns`` (N,) wide."""
        facts = plan_facts(
            lines=lines.size,
            data=lines_digest(collection.index().keys[lines], columns),
            settings=settings,
            seed=seed,
        )
        cache = collection.storage.cache

        def announce(shards: Sequence[int]) -> None:
            if cache is not None:
                cache.prefetch([collection.shards[shard].address for shard in shards])

        return TrainingLoader(
            self._reader(collection),
            lines=lines,
            widths=columns,
            shard_sizes=np.diff(np.searchsorted(lines, collection.shard_starts)),
            settings=settings,
            seed=seed,
            share=self.share,
            workers=self.globals_.num_workers,
            facts=facts,
            pin_memory=self._on_gpu,
            on_shards=announce,
        )

    def evaluation(self, collection: LineCollection, lines: Lines, columns: Columns) -> EvaluationLoader:
        """The given lines once over all processes."""
        return EvaluationLoader(
            self._reader(collection),
            lines=lines,
            widths=columns,
            share=self.share,
            workers=self.globals_.num_workers,
            height=self.network_input.height or 1,
            pin_memory=self._on_gpu,
        )

    @property
    def share(self) -> Share:
        """This process's part of a step."""
        topology = self.processes.topology
        return Share(
            rank=topology.rank,
            world_size=topology.world_size,
            lines=self.options.batch_size,
            pixels=self.options.batch_pixels,
        )

    @property
    def _on_gpu(self) -> bool:
        return torch_device(self.globals_.device).startswith("cuda")

    def _reader(self, collection: LineCollection) -> BatchReader:
        options = self.options
        return BatchReader(
            collection=collection,
            network_input=self.network_input,
            text_pipeline=text_pipeline(options) if isinstance(options, Train) else TextPipeline(),
            encode=self.model.codec.encode if isinstance(options, Train) else _no_labels,
            steps_needed=required_steps,
            cache=self._line_cache(collection),
        )

    def _line_cache(self, collection: LineCollection) -> LineCache | None:
        raw = any(dataset.normalized_height == 0 for dataset in collection.datasets)
        if self.options.cache_dir is None or not raw:
            return None
        size = parse_size(self.options.cache_size, option="--cache-size")
        if collection.remote:
            size //= 2  # the other half is for shards
        digest = hashlib.blake2b(repr(self.network_input).encode(), digest_size=8).hexdigest()
        # One for training and validation: its warnings come once.
        return self._caches.setdefault(size, LineCache(self.options.cache_dir, digest, size))


def _no_labels(_: str) -> Sequence[int]:
    """Pretraining is not interested in texts."""
    return ()


def plan_settings(
    options: Learning, network_input: NetworkInput, processes: Processes, saved: Mapping[str, Any] | None
) -> PlanSettings:
    """How steps are cut: as ``saved`` by the run that goes on, or for as many processes as there are now."""
    facts = {} if saved is None else saved["facts"]
    parts = options.accumulate_grad_batches * processes.topology.world_size
    lines = options.global_batch_size or facts.get("global_lines", options.batch_size * parts)
    return PlanSettings(
        global_lines=lines,
        global_pixels=0 if lines else facts.get("global_pixels") or options.batch_pixels * parts,
        window=options.shuffle_window,
        height=network_input.height or 1,
    )


def fill(loader: TrainingLoader, columns: Columns, share: Share, settings: PlanSettings) -> float:
    """Real over padded columns, in 0..1, of the first steps of an epoch over all processes."""
    real = padded = 0
    for batch in islice(loader.plan(0).batches(), _SAMPLED_STEPS):
        parts = split_step(
            columns[batch],
            world_size=share.world_size,
            max_lines=share.lines,
            max_pixels=share.pixels,
            height=settings.height,
        )
        for positions in (positions for part in parts for positions in part if positions.size):
            real += int(columns[batch[positions]].sum())
            padded += int(columns[batch[positions]].max()) * positions.size
    return real / max(padded, 1)


def lines_digest(keys: npt.NDArray[np.uint64], columns: Columns) -> str:
    """A digest of lines by their keys and columns (N,), in order."""
    digest = hashlib.blake2b(keys.tobytes(), digest_size=8)
    digest.update(columns.tobytes())
    return digest.hexdigest()
