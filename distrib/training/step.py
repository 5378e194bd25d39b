"""A global step in numbers, and what of it a process computes at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from distrib.model.vgsl import VGSLNetwork
from distrib.stream.batches import LineBatch


@dataclass(frozen=True, kw_only=True)
class StepFacts:
    """A global step over all processes: lines trained on, unusable ones, columns with and without padding.

    ``loss`` is the mean over its units, on the device; ``lrate`` the learning rate of the step; ``used`` and
    ``unused`` are this process's lines. ``skipped`` is True where the gradient was not finite, so that
    nothing was learned.
    """

    lines: int
    bad: int
    columns: int
    padded_columns: int
    loss: torch.Tensor
    lrate: float
    used: list[int]
    unused: list[int]
    skipped: bool


def on_device(batch: LineBatch, device: torch.device) -> LineBatch:
    """The batch with images and labels on a device; widths stay, packed sequences want them on the CPU."""
    return batch._replace(
        images=batch.images.to(device, non_blocking=True), labels=batch.labels.to(device, non_blocking=True)
    )


def size_of(batch: LineBatch) -> tuple[int, int]:
    """Lines, and columns with padding."""
    return len(batch.lines), int(batch.images.shape[3])


def columns_of(micro_batches: Sequence[LineBatch]) -> tuple[int, int]:
    """Columns of the lines, and of the batches they are padded to."""
    real = sum(int(each.widths.sum()) for each in micro_batches)
    return real, sum(len(each.lines) * each.images.shape[3] for each in micro_batches)


def blank_line(network: VGSLNetwork, *, width: int, device: torch.device) -> LineBatch:
    """An empty line without a text, ``width`` columns wide."""
    _, channels, height, _ = network.input_shape
    images = torch.zeros((1, channels, height or 8, width), dtype=torch.uint8)
    none = torch.zeros(0, dtype=torch.int64)
    zero = torch.zeros(1, dtype=torch.int64)
    return LineBatch(
        images=images.to(device),
        widths=torch.tensor([images.shape[3]]),
        labels=none.to(device),
        label_lengths=zero,
        required_steps=zero,
        lines=zero,
        texts=[""],
        bad=[],
    )
