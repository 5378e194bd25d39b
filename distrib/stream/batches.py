"""From line numbers to a padded batch: decode, normalise and pad images; normalise and encode texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from distrib.ground_truth.network_input import NetworkInput
from distrib.ground_truth.text import TextPipeline
from distrib.shards.png import UNREADABLE_IMAGE
from distrib.shards.storage import UnreadableLine
from distrib.stream.line_cache import LineCache
from distrib.stream.lines import LineCollection, Record

UNREADABLE = (UnreadableLine, *UNREADABLE_IMAGE)
"""What reading a damaged line raises: a shard that is missing, cut or changed, or Pillow's errors."""

Encode = Callable[[str], Sequence[int]]
"""Text to labels; characters without a label contribute none."""


class BadLine(NamedTuple):
    """A line that could not be read, and why."""

    line: int
    reason: str


class LineBatch(NamedTuple):
    """Lines of one micro-batch, padded on the right with zeros (no ink).

    ``images`` uint8 (N, C, H, W), network value = uint8 / 255; ``widths`` int64 (N,) in columns before
    padding; ``labels`` int64 (sum of label_lengths,); ``label_lengths`` and ``required_steps`` int64 (N,);
    ``lines`` int64 (N,) line numbers; ``texts`` as normalised; ``bad`` lines that are not in the batch.
    """

    images: torch.Tensor
    widths: torch.Tensor
    labels: torch.Tensor
    label_lengths: torch.Tensor
    required_steps: torch.Tensor
    lines: torch.Tensor
    texts: list[str]
    bad: list[BadLine]

    def select(self, keep: torch.Tensor) -> LineBatch:
        """The batch with only the lines where ``keep`` bool (N,) is true; padding stays as it is."""
        chosen = keep.nonzero().flatten()
        kept_labels = torch.repeat_interleave(keep, self.label_lengths).to(self.labels.device)
        return self._replace(
            images=self.images[chosen.to(self.images.device)],
            widths=self.widths[chosen],
            labels=self.labels[kept_labels],
            label_lengths=self.label_lengths[chosen],
            required_steps=self.required_steps[chosen],
            lines=self.lines[chosen],
            texts=[self.texts[position] for position in chosen.tolist()],
        )


class StepBatch(NamedTuple):
    """What one process has of a global step: micro-batches, some of them possibly without a line.

    ``step`` counts in its epoch, of ``steps``, and ``number`` over the whole run.
    """

    micro_batches: list[LineBatch]
    epoch: int
    step: int
    steps: int
    number: int

    @property
    def last(self) -> bool:
        """Whether it is its epoch's last step."""
        return self.step + 1 == self.steps


@dataclass(frozen=True, kw_only=True)
class BatchReader:
    """Reads batches of a collection; cheap to send to worker processes.

    ``cache`` keeps the network input of raw lines, so that no line is straightened and scaled twice.
    """

    collection: LineCollection
    network_input: NetworkInput
    text_pipeline: TextPipeline
    encode: Encode
    steps_needed: Callable[[Sequence[int]], int]
    cache: LineCache | None = None

    def __call__(self, lines: npt.NDArray[np.int64]) -> LineBatch:
        """The batch of the given line numbers; a line that cannot be decoded is left out and named."""
        images, texts, kept, bad = [], [], [], []
        for line in lines:
            try:
                record = self.collection.record(int(line))
                images.append(self._image(record))
            except UNREADABLE as error:
                bad.append(BadLine(int(line), f"unreadable: {error}"))
                continue
            texts.append(self.text_pipeline(record.text, record.base_dir))
            kept.append(int(line))
        encoded = [list(self.encode(text)) for text in texts]
        return LineBatch(
            images=_pad(images),
            widths=torch.tensor([image.shape[2] for image in images], dtype=torch.int64),
            labels=torch.tensor([label for labels in encoded for label in labels], dtype=torch.int64),
            label_lengths=torch.tensor([len(labels) for labels in encoded], dtype=torch.int64),
            required_steps=torch.tensor([self.steps_needed(labels) for labels in encoded], dtype=torch.int64),
            lines=torch.tensor(kept, dtype=torch.int64),
            texts=texts,
            bad=bad,
        )

    def _image(self, record: Record) -> npt.NDArray[np.uint8]:
        """The network input (C, H, W) of a line."""
        if record.normalized_height or self.cache is None:
            return self.network_input(
                record.image(),
                normalized_height=record.normalized_height,
                bitonal_source=record.bitonal_source,
            )
        cached = self.cache.get(record.fingerprint)
        if cached is None:
            cached = self.network_input(record.image())
            self.cache.put(record.fingerprint, cached)
        return cached


def _pad(images: Sequence[npt.NDArray[np.uint8]]) -> torch.Tensor:
    """Images (C, H, W) of differing size in one tensor (N, C, max H, max W)."""
    if not images:
        return torch.zeros((0, 1, 0, 0), dtype=torch.uint8)
    height = max(image.shape[1] for image in images)
    width = max(image.shape[2] for image in images)
    batch = np.zeros((len(images), images[0].shape[0], height, width), dtype=np.uint8)
    for slot, image in zip(batch, images, strict=True):
        slot[:, : image.shape[1], : image.shape[2]] = image
    return torch.from_numpy(batch)
