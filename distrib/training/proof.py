"""The proof that exported weights are the network that was trained: what it made of a few held lines.

A validation takes it from the live network, under whatever strategy and precision it is trained. The export
gives the same lines to the network of the file, in float32 on the CPU, and compares.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from distrib.errors import InputError, RunError
from distrib.model.weights import RecognitionModel
from distrib.stream.batches import LineBatch
from distrib.training.decoding import network_values, texts_of

MOST_LINES = 4
MOST_PIXELS = 1_000_000
MOST_SCORES = 1_000_000
"""Pixels and scores of all lines together, padding included; a single line may have more."""

_MOST_PIXELS_READ = 1 << 28
_FULL_PRECISIONS = ("32-true", "64-true")

_ROUNDING = {"full": 1e-3, "tf32": 5e-2, "half": 1.0}
"""How far log-probabilities may differ where a network's scores span up to ten: three times what was seen."""


@dataclass(frozen=True, kw_only=True)
class Proof:
    """N lines: ``images`` uint8 (N, C, H, W) with ``widths`` int64 (N,) in columns; of each line the raw
    ``scores`` float32 (L, W') that the live network gave it, and the text read from them.

    ``precision`` is Lightning's name for the run's; ``tf32`` whether convolutions and LSTMs ran in the
    TensorFloat-32 of GPUs, which keeps 10 bits of a number.
    """

    images: Tensor
    widths: Tensor
    scores: Sequence[Tensor]
    texts: Sequence[str]
    precision: str
    tf32: bool

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def tolerance(self) -> float:
        """The largest difference of log-probabilities that rounding explains.

        Measured for the default network at a height of 32, from its first step to scores that span 37: up
        to 1e-5 between float32, float64 and other batches, 1e-2 with convolutions and LSTMs rounded as by
        TensorFloat-32, 0.11 in bfloat16. Other weights differ by several units; those of a single step
        earlier (AdamW, 1e-3) by 0.1 to 0.8, which full precision always shows and bfloat16 may not.
        """
        kind = "half" if self.precision not in _FULL_PRECISIONS else "tf32" if self.tf32 else "full"
        # Numbers are rounded to a share of their size, so that larger scores differ by more.
        span = max(float(each.max() - each.min()) for each in self.scores)
        return _ROUNDING[kind] * max(1.0, span / 10)


def take_proof(
    model: RecognitionModel, batch: LineBatch, *, scores: Tensor, widths: Tensor, precision: str
) -> dict[str, Any] | None:
    """A few lines of a batch and what the live network makes of them, for a checkpoint; None without a line.

    ``scores`` (N, L, 1, W) and ``widths`` (N,) are what ``decoding.network_scores`` gave for the batch. The
    result holds plain types and tensors on the CPU.
    """
    lines = _chosen(batch, widths, labels=scores.shape[1])
    if not lines:
        return None
    columns = batch.widths[lines]
    steps = widths[lines].tolist()
    # The text is read from the copy: where scores are equal, another device may prefer another label.
    kept = [
        scores[line, :, 0, :count].detach().to("cpu", torch.float32, copy=True).contiguous()
        for line, count in zip(lines, steps, strict=True)
    ]
    return {
        "images": batch.images[lines, :, :, : int(columns.max())].to("cpu", copy=True).contiguous(),
        "widths": columns.clone(),
        "scores": kept,
        "texts": _texts(model, kept),
        "precision": precision,
        "tf32": scores.is_cuda and scores.dtype == torch.float32 and torch.backends.cudnn.allow_tf32,
    }


def read_proof(stored: object, model: RecognitionModel) -> Proof | None:
    """The proof that a checkpoint of ``model`` holds; None where it holds none.

    Raises InputError where it is damaged.
    """
    if stored is None:
        return None
    try:
        proof = Proof(**{name: stored[name] for name in Proof.__dataclass_fields__})  # type: ignore[index]
        sound = _is_sound(proof, model)
    except (KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"its proof is damaged ({type(error).__name__}); give another checkpoint."
        ) from error
    if not sound:
        raise InputError("its proof is damaged; give another checkpoint.")
    return proof


@torch.inference_mode()
def line_scores(model: RecognitionModel, proof: Proof) -> list[Tensor]:
    """The raw scores float32 (L, W') that a model on the CPU gives each line of a proof."""
    network = model.network.eval()
    # Together, because large LSTMs wait for memory: four lines take as long as one.
    scores, steps = network(network_values(proof.images, torch.float32), proof.widths)
    return [each[:, 0, :count].clone() for each, count in zip(scores, steps.tolist(), strict=True)]


def check_proof(model: RecognitionModel, proof: Proof, scores: Sequence[Tensor]) -> float:
    """Compare ``scores`` that ``line_scores`` found for a model with those of the live network.

    Returns the largest difference of log-probabilities. Raises RunError where a line differs by more than
    rounding explains, or its text is another; up to that difference the best labels may change places.
    """
    worst = largest_difference(proof.scores, scores)
    if not worst.value <= proof.tolerance:
        raise RunError(
            f"line {worst.line + 1} of the {len(proof)} kept to prove it comes out otherwise than in "
            f"training: log-probabilities differ by {worst.value:.2g}, and at {proof.precision} rounding "
            f"explains up to {proof.tolerance:.2g}"
        )
    for line, (text, kept) in enumerate(zip(_texts(model, proof.scores), proof.texts, strict=True), start=1):
        if text != kept:
            raise RunError(
                f"line {line} of the {len(proof)} kept to prove it was read as {kept!r} in training and is "
                f"{text!r} by its codec"
            )
    return worst.value


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The largest difference of log-probabilities, and the line (from 0) that has it."""

    line: int
    value: float


def largest_difference(known: Sequence[Tensor], found: Sequence[Tensor]) -> Difference:
    """Compare raw scores (L, W') of the same lines; where shapes or numbers are not sound, it is infinite."""
    differences = [_difference(*pair) for pair in zip(known, found, strict=True)]
    worst = max(range(len(differences)), key=differences.__getitem__)
    return Difference(line=worst, value=differences[worst])


def _difference(known: Tensor, found: Tensor) -> float:
    if known.shape != found.shape:
        return float("inf")
    value = float((known.log_softmax(0) - found.log_softmax(0)).abs().max())
    return value if value == value else float("inf")


def _texts(model: RecognitionModel, scores: Sequence[Tensor]) -> list[str]:
    return [
        text
        for each in scores
        for text in texts_of(model, each[None, :, None], torch.tensor([each.shape[1]]))
    ]


def _chosen(batch: LineBatch, widths: Tensor, *, labels: int) -> list[int]:
    """The narrowest lines that the network can read, as many as the limits allow, at least one of them."""
    _, channels, height, _ = batch.images.shape
    chosen: list[int] = []
    for line in torch.argsort(batch.widths, stable=True).tolist():
        steps, columns, count = int(widths[line]), int(batch.widths[line]), len(chosen) + 1
        if steps < 1:
            continue
        pixels, scores = channels * height * columns * count, labels * steps * count
        if chosen and (count > MOST_LINES or pixels > MOST_PIXELS or scores > MOST_SCORES):
            break
        chosen.append(line)
    return chosen


def _is_sound(proof: Proof, model: RecognitionModel) -> bool:
    images, widths = proof.images, proof.widths
    count, channels, height, width = images.shape
    steps = model.network.output_width(widths)
    _, wanted_channels, wanted_height, _ = model.network.input_shape
    return (
        0 < count <= MOST_LINES
        and (channels, height or 1) == (wanted_channels, wanted_height or height)
        and images.numel() <= _MOST_PIXELS_READ
        and (images.dtype, widths.dtype) == (torch.uint8, torch.int64)
        and bool((widths <= width).all() and (steps >= 1).all())
        and [tuple(each.shape) for each in proof.scores]
        == [(model.network.num_classes, each) for each in steps.tolist()]
        and all(each.dtype == torch.float32 for each in proof.scores)
        and len(proof.texts) == count
        and isinstance(proof.precision, str)
    )
