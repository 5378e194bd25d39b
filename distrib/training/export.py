"""From a checkpoint to one weights file that is known to be right.

The file is written aside, tensor by tensor, and read back into a fresh model. Every tensor is compared with
the checkpoint's and, where the checkpoint has a proof, what the fresh model makes of its lines with what the
checkpoint's weights make of them and with what the live network made of them. Only then it takes its name.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distrib.errors import InputError, RunError
from distrib.model.weights import PlainTensors, RecognitionModel, WeightsFormat, load_weights, save_weights
from distrib.runtime.checkpoints.contents import STATE_KEY, model_from_checkpoint, network_keys
from distrib.runtime.checkpoints.names import is_checkpoint
from distrib.runtime.checkpoints.reader import CheckpointReader, open_checkpoint
from distrib.runtime.checkpoints.record import best
from distrib.training import provenance as entries
from distrib.training.proof import Proof, check_proof, largest_difference, line_scores, read_proof
from distrib.training.provenance import provenance

__all__ = ["Export", "export", "export_checkpoint", "export_weights", "provenance"]

_SAME = {"safetensors": 1e-5, "coreml": 1e-3}
"""How far log-probabilities of the same weights may differ; CoreML has one bias where torch adds two."""


@dataclass(frozen=True, kw_only=True)
class Export:
    """A weights file that has been verified.

    All ``tensors`` were compared, and outputs on ``lines`` lines. ``live`` says whether those of the network
    in training were known; ``difference`` is the largest difference of log-probabilities from them, else
    from what the checkpoint's weights give; None without lines.
    """

    path: Path
    source: Path
    tensors: int
    lines: int = 0
    live: bool = False
    difference: float | None = None

    def __str__(self) -> str:
        if self.difference is None:
            verified = f"all {self.tensors} tensors verified (no lines are kept to compare outputs)"
        else:
            lines = "1 line" if self.lines == 1 else f"{self.lines} lines"
            against = "" if self.live else " against the checkpoint's weights"
            largest = f"{self.difference:.0e}" if self.difference else "0"
            verified = f"verified on {lines}{against} (largest difference {largest})"
        return f"{self.path}: written from {self.source}, {verified}"


def export(
    source: Path,
    target: Path,
    *,
    weights_format: WeightsFormat = "safetensors",
    author: str | None = None,
    license: str | None = None,
) -> Export:
    """Write the weights file of a checkpoint, of the best checkpoint of a run directory, or of weights.

    ``author`` and ``license`` take the place of those in the source; None leaves these.

    Raises InputError for a source that is missing, damaged or none of these or that does not fit the
    format, RunError where the file cannot be written or does not come out right. Nothing is left then.
    """
    try:
        checkpoint = _checkpoint_of(source)
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"{source}: cannot be read ({reason}); check its name and permissions.") from None
    credits: dict[str, Any] = {"author": author, "license": license}
    if checkpoint is None:
        return export_weights(source, target, weights_format=weights_format, **credits)
    return export_checkpoint(checkpoint, target, weights_format=weights_format, **credits)


def export_checkpoint(
    source: Path,
    target: Path,
    *,
    weights_format: WeightsFormat = "safetensors",
    author: str | None = None,
    license: str | None = None,
) -> Export:
    """As ``export`` from a checkpoint, a file or a folder of whatever strategy.

    It takes memory of one and a half times the model's size, of more than four times for CoreML.
    """
    entries.check_credits(author=author, license=license)
    reader = open_checkpoint(source)
    with _named(source):
        model = model_from_checkpoint(reader)
        model.network.float()
        proof = read_proof(reader.common[STATE_KEY].get("proof"), model)
        entry = entries.of_checkpoint(reader.common, _scores(model, reader))
        entry = entries.credited(entry, author=author, license=license)
        model.file_metadata = {**model.file_metadata, entries.KEY: entries.as_text(entry)}
    tensors = PlainTensors(_CheckpointTensors(reader))
    verification = _Verification(model, tensors, target=target, source=source, weights_format=weights_format)
    if proof is not None:
        # Between validations the network has moved on from the one that gave the proof's scores.
        live = reader.facts is not None and reader.facts.kind == "validation"
        verification.expect_lines(proof, live=live)
    if weights_format == "coreml":
        save_weights(model, target, weights_format=weights_format, verify=verification)
    else:
        model.network.to("meta")  # leaves its memory to the fresh model
        save_weights(model, target, tensors=tensors, verify=verification)
    return verification.result


def export_weights(
    source: Path,
    target: Path,
    *,
    weights_format: WeightsFormat = "safetensors",
    author: str | None = None,
    license: str | None = None,
) -> Export:
    """As ``export`` from a weights file, whose provenance is kept."""
    entries.check_credits(author=author, license=license)
    model = load_weights(source)
    if author is not None or license is not None:
        with _named(source):
            entry = entries.of_weights(model.file_metadata.get(entries.KEY)) or {"format": entries.FORMAT}
        entry = entries.credited(entry, author=author, license=license)
        model.file_metadata = {**model.file_metadata, entries.KEY: entries.as_text(entry)}
    tensors = PlainTensors(model.network.state_dict())
    verification = _Verification(model, tensors, target=target, source=source, weights_format=weights_format)
    save_weights(model, target, weights_format=weights_format, verify=verification)
    return verification.result


class _Verification:
    """Compares a file that was written with what was to be written; ``result`` says what was found."""

    def __init__(
        self,
        model: RecognitionModel,
        tensors: Mapping[str, Tensor],
        *,
        target: Path,
        source: Path,
        weights_format: WeightsFormat,
    ) -> None:
        self.result = Export(path=target, source=source, tensors=len(tensors))
        self._model = model
        self._tensors = tensors
        self._coreml = weights_format == "coreml"
        self._proof: Proof | None = None
        self._known: Sequence[Tensor] = ()

    def expect_lines(self, proof: Proof, *, live: bool) -> None:
        """Compare outputs as well; with those of the live network where they are the same weights'."""
        self._known = line_scores(self._model, proof)
        self._proof = proof
        self.result = replace(self.result, lines=len(proof), live=live)

    def __call__(self, path: Path) -> None:
        """Raises RunError, naming the final file, where ``path`` is not what it should be."""
        try:
            fresh = load_weights(path)
            self._compare_tensors(fresh.network.state_dict())
            self._compare_metadata(fresh)
            if self._proof is not None:
                difference = self._compare_lines(fresh, self._proof)
                self.result = replace(self.result, difference=difference)
        except (InputError, RunError) as error:
            raise RunError(
                f"{self.result.path} was not written from {self.result.source}: {error}; convert another "
                "checkpoint, and report this."
            ) from error

    def _compare_tensors(self, found: Mapping[str, Tensor]) -> None:
        for name in self._tensors:
            if not self._is_same(name, found):
                raise RunError(f"{name} in it has other values than were written")

    def _is_same(self, name: str, found: Mapping[str, Tensor]) -> bool:
        known, value = self._tensors[name], found[name]
        if not self._coreml:
            return _same_bits(known, value)
        if (other := _other_bias(name)) in found:
            # CoreML has the sum of the two biases of an LSTM; torch adds them all the same.
            known, value = known + self._tensors[other], value + found[other]
        return torch.allclose(known, value, rtol=0, atol=0, equal_nan=True)

    def _compare_metadata(self, fresh: RecognitionModel) -> None:
        known, found = (_comparable(model) for model in (self._model, fresh))
        for name in known.keys() | found.keys():
            if known.get(name) != found.get(name):
                raise RunError(f"its {name} is another than was written")

    def _compare_lines(self, fresh: RecognitionModel, proof: Proof) -> float:
        found = line_scores(fresh, proof)
        difference = largest_difference(self._known, found)
        if not difference.value <= _SAME["coreml" if self._coreml else "safetensors"]:
            raise RunError(
                f"line {difference.line + 1} of the {len(proof)} kept to prove it comes out otherwise than "
                f"with the checkpoint's weights: log-probabilities differ by {difference.value:.2g}"
            )
        return check_proof(fresh, proof, found) if self.result.live else difference.value


class _CheckpointTensors(Mapping[str, Tensor]):
    """The network's tensors in a checkpoint by name, as they were validated, read when asked for."""

    def __init__(self, reader: CheckpointReader) -> None:
        self._reader = reader
        self._keys = network_keys(reader)

    def __getitem__(self, name: str) -> Tensor:
        return self._reader.tensor(self._keys[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)


def _checkpoint_of(source: Path) -> Path | None:
    """The checkpoint that a path means: itself, or a run directory's best; None for what may be weights."""
    if not source.exists():
        raise InputError(f"{source}: no such weights file or checkpoint; check its name.")
    if not source.is_dir() and not source.is_file():
        raise InputError(f"{source}: is no file; give a weights file or checkpoint.")
    if is_checkpoint(source):
        return source
    if not source.is_dir():
        return None
    saved = best(source)
    if not saved:
        raise InputError(
            f"{source}: neither a checkpoint nor the directory of a run with a validated one; name a "
            "checkpoint or a weights file."
        )
    return saved[0].path


def _scores(model: RecognitionModel, reader: CheckpointReader) -> dict[str, Any]:
    """What is known of how good a checkpoint's model is; between validations only how far it was trained."""
    facts = reader.facts
    if facts is None:
        return {}
    scores: dict[str, Any] = {"epoch": facts.epoch, "step": facts.step}
    if facts.kind == "validation" and model.metrics:
        scores |= dict(model.metrics[-1][1])
    return scores


def _comparable(model: RecognitionModel) -> dict[str, str]:
    """What a file says of a model, entry by entry, as text: as JSON, in which not-a-number equals itself."""
    # Names that begin like this are the format's own; CoreML has none.
    said = {name: value for name, value in model.metadata().items() if not name.startswith("_")}
    return {name: json.dumps(value, sort_keys=True) for name, value in said.items()} | model.file_metadata


def _other_bias(name: str) -> str:
    """The bias of an LSTM that belongs to another one by its name; empty for other parameters."""
    if ".bias_ih_l" in name:
        return name.replace(".bias_ih_l", ".bias_hh_l")
    return name.replace(".bias_hh_l", ".bias_ih_l") if ".bias_hh_l" in name else ""


def _same_bits(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one.view(torch.int32), other.view(torch.int32))


@contextmanager
def _named(source: Path) -> Iterator[None]:
    """Let errors name the source."""
    try:
        yield
    except InputError as error:
        if str(source) in str(error):
            raise
        raise InputError(f"{source}: {error}") from error
