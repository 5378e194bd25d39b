"""Exported weights are proven to be the network that was trained, or are not written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from distrib.config.learning import Train
from distrib.config.sections import Globals
from distrib.errors import InputError, RunError
from distrib.model import weights as weights_module
from distrib.model.codec import Codec
from distrib.model.safetensors_file import write_entries
from distrib.model.vgsl import VGSLNetwork
from distrib.model.weights import RecognitionModel, load_weights, save_weights
from distrib.runtime.checkpoints.commit import CheckpointKeeper, Order, write_file, write_part
from distrib.runtime.checkpoints.contents import STATE_KEY, model_state
from distrib.runtime.checkpoints.rows import CheckpointFacts, Kind
from distrib.runtime.processes import Processes
from distrib.runtime.state import Piece, state_key
from distrib.runtime.topology import Topology
from distrib.stream.batches import LineBatch
from distrib.stream.lines import open_collection
from distrib.training import proof as proofs
from distrib.training.decoding import network_scores, recognize, texts_of
from distrib.training.export import export, provenance
from distrib.training.setup import PreparedRun, prepare

from .conftest import TINY_SPEC

SPEC = "[1,24,0,1 Cr3,3,4 Mp2,2 S1(1x0)1,3 Lbx8 O1c4]"
ENTRY = {"format": 1, "data": {"training": {"lines": 7}}, "author": "A. Clerk", "license": "CC0-1.0"}


def trained_model(spec: str = SPEC, seed: int = 3) -> RecognitionModel:
    torch.manual_seed(seed)
    network = VGSLNetwork(spec)
    network.init_weights()
    with torch.no_grad():
        network.nn.get_submodule("O_4.lin").weight.mul_(4)  # as sure of itself as a trained one
    metrics = [[0, {"val_accuracy": 0.5, "val_word_accuracy": 0.25}]]
    return RecognitionModel(network=network.eval(), codec=Codec.from_alphabet("abc"), metrics=metrics)


def batch_of(*widths: int, height: int = 24, padding: int = 0) -> LineBatch:
    images = torch.zeros((len(widths), 1, height, max(widths) + padding), dtype=torch.uint8)
    generator = torch.Generator().manual_seed(5)
    for image, width in zip(images, widths, strict=True):
        image[..., :width] = torch.randint(0, 256, (1, height, width), generator=generator).byte()
    nothing = torch.zeros(len(widths), dtype=torch.int64)
    return LineBatch(
        images=images,
        widths=torch.tensor(widths),
        labels=torch.zeros(0, dtype=torch.int64),
        label_lengths=nothing,
        required_steps=nothing,
        lines=torch.arange(len(widths)),
        texts=[""] * len(widths),
        bad=[],
    )


def proof_of(model: RecognitionModel, *widths: int, precision: str = "32-true") -> dict[str, Any]:
    batch = batch_of(*(widths or (40, 31, 57)))
    with torch.inference_mode():
        scores, steps = network_scores(model, batch)
    proof = proofs.take_proof(model, batch, scores=scores, widths=steps, precision=precision)
    assert proof is not None
    return proof


def saved(
    directory: Path,
    model: RecognitionModel,
    proof: dict[str, Any] | None,
    *,
    kind: Kind = "validation",
    processes: int = 0,
    entry: Any = None,
) -> Path:
    """A checkpoint: a file, or a folder of some processes, none of which holds a whole tensor."""
    directory.mkdir(exist_ok=True)
    facts = CheckpointFacts(kind=kind, step=12, epoch=0, score=0.5 if kind == "validation" else None)
    state = {"model": model_state(model), "proof": proof, "provenance": ENTRY if entry is None else entry}
    content = {
        "common": {STATE_KEY: state},
        "groups": [],
        "facts": {"kind": facts.kind, "step": facts.step, "epoch": facts.epoch, "score": facts.score},
    }
    keeper = CheckpointKeeper(
        directory, keep_best=9, keep_last=9, strategy="", world_size=max(1, processes), guard=lambda: None
    )
    keeper.begin()
    name = "checkpoint_00-0.5000.ckpt" if kind == "validation" else "step_00000012.ckpt"
    order = Order(name=name, aside=directory / f".{name}.part", facts=facts, began=0.0, stall=None)
    tensors = {state_key("weights", name): value for name, value in model.network.state_dict().items()}
    tensors |= {state_key("exp_avg", name): value for name, value in model.network.state_dict().items()}
    if not processes:
        pieces = {key: Piece(shape=tuple(each.shape), start=0, values=each) for key, each in tensors.items()}
        keeper.commit(order, write_file(order.aside, content, tensors, pieces))
    for rank in range(processes):
        pieces = {key: _piece(value, rank, processes) for key, value in tensors.items()}
        values = {key: piece.values for key, piece in pieces.items()}
        write_part(order.aside, content, values, pieces, rank, processes)
    if processes:
        keeper.commit_folder(order)
    return directory / name


def _piece(value: Tensor, rank: int, processes: int) -> Piece:
    start, stop = (value.numel() * number // processes for number in (rank, rank + 1))
    return Piece(shape=tuple(value.shape), start=start, values=value.flatten()[start:stop].clone())


def provenance_in(path: Path) -> dict[str, Any]:
    entry: dict[str, Any] = json.loads(load_weights(path).file_metadata["provenance"])
    return entry


@pytest.mark.parametrize("processes", [0, 1, 3])
def test_every_kind_of_checkpoint_gives_the_same_proven_file(tmp_path: Path, processes: int) -> None:
    """The file would depend on how the work was divided, or would not be what was trained."""
    model = trained_model()
    checkpoint = saved(tmp_path / "run", model, proof_of(model), processes=processes)
    target = tmp_path / "model.safetensors"
    written = export(checkpoint, target)
    assert str(written).startswith(f"{target}: written from {checkpoint}, verified on 3 lines (largest diff")
    assert written.live
    assert written.difference is not None
    assert written.difference < 1e-5
    read = load_weights(target)
    for name, value in model.network.state_dict().items():
        assert torch.equal(read.network.state_dict()[name], value)
    assert (read.codec, read.metrics) == (model.codec, model.metrics)
    save_weights(
        RecognitionModel(**{**vars(model), "file_metadata": read.file_metadata}), tmp_path / "expected"
    )
    assert target.read_bytes() == (tmp_path / "expected").read_bytes()


def test_the_best_checkpoint_of_a_run_directory_is_meant(tmp_path: Path) -> None:
    """A user would get the weights of a run's end instead of its best."""
    model = trained_model()
    checkpoint = saved(tmp_path / "run", model, None)
    saved(tmp_path / "run", trained_model(seed=4), None, kind="interval")
    assert export(tmp_path / "run", tmp_path / "m").source == checkpoint


@pytest.mark.parametrize("weights_format", ["safetensors", "coreml"])
def test_weights_of_another_moment_are_not_written(tmp_path: Path, weights_format: Any) -> None:
    """One optimizer step between what was measured and what was saved would go unnoticed."""
    if weights_format == "coreml":
        pytest.importorskip("coremltools")
    model = trained_model()
    proof = proof_of(model)
    with torch.no_grad():
        for parameter in model.network.parameters():
            parameter += 1e-3 * torch.sign(parameter)
    checkpoint = saved(tmp_path / "run", model, proof)
    target = tmp_path / "model"
    target.write_bytes(b"older")
    with pytest.raises(
        RunError, match=r"line \d of the 3 kept to prove it comes out otherwise than in training"
    ):
        export(checkpoint, target, weights_format=weights_format)
    assert target.read_bytes() == b"older"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "run"]


def test_another_codec_than_that_of_training_is_noticed(tmp_path: Path) -> None:
    """Every letter of the model's output could be another one, with all numbers right."""
    model = trained_model()
    proof = proof_of(model)
    assert any(proof["texts"])
    model.codec = Codec.from_mapping({"b": [1], "c": [2], "a": [3]})
    with pytest.raises(RunError, match="was read as"):
        export(saved(tmp_path / "run", model, proof), tmp_path / "m")
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("part", ["tensor", "metadata"])
def test_a_file_that_was_written_wrongly_never_takes_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    """A fault of the writer or of the disk would be published as a model."""

    def wrong(entries: Any, file: BinaryIO, *, file_metadata: Mapping[str, str]) -> None:
        if part == "metadata":
            file_metadata = {**file_metadata, "provenance": "{}"}
        write_entries(entries, file, file_metadata=file_metadata)
        if part == "tensor":
            file.seek(-4, 2)
            file.write(b"\0\0\0\x80")  # minus zero

    monkeypatch.setattr(weights_module, "write_entries", wrong)
    model = trained_model()
    with torch.no_grad():
        model.network.get_parameter("nn.O_4.lin.weight")[-1, -1] = 0.0
    words = "other values than were written" if part == "tensor" else "its provenance is another"
    for source in (saved(tmp_path / "run", model, None), weights_of(tmp_path, model, monkeypatch)):
        with pytest.raises(RunError, match=words):
            export(source, tmp_path / "m")
        assert not list(tmp_path.glob("*m*"))


def weights_of(folder: Path, model: RecognitionModel, monkeypatch: pytest.MonkeyPatch) -> Path:
    model.file_metadata = {"provenance": json.dumps(ENTRY)}
    with monkeypatch.context() as context:
        context.setattr(weights_module, "write_entries", write_entries)
        save_weights(model, folder / "source")
    return folder / "source"


def test_between_validations_outputs_are_compared_with_the_checkpoints_own(tmp_path: Path) -> None:
    """A checkpoint between validations could not be converted: its lines were read by an earlier network."""
    checkpoint = saved(tmp_path, trained_model(seed=4), proof_of(trained_model()), kind="interval")
    written = export(checkpoint, tmp_path / "m")
    assert "verified on 3 lines against the checkpoint's weights (largest difference 0)" in str(written)
    assert provenance_in(tmp_path / "m")["scores"] == {"epoch": 0, "step": 12}


def test_without_lines_tensors_are_compared(tmp_path: Path) -> None:
    """A run whose validation lines are all too narrow could not be exported, or the user not know."""
    written = export(saved(tmp_path, trained_model(), None), tmp_path / "m")
    assert "all 12 tensors verified (no lines are kept to compare outputs)" in str(written)


@pytest.mark.parametrize(
    "change",
    [
        {"images": torch.zeros((3, 1, 25, 57), dtype=torch.uint8)},
        {"images": torch.zeros((3, 1, 24, 57))},
        {"widths": torch.tensor([40, 31, 58])},
        {"widths": torch.tensor([40, 31, 1])},
        {"widths": torch.tensor([40, 31])},
        {"scores": []},
        {"scores": [torch.zeros(4, 20)] * 3},
        {"scores": None},
        {"texts": ["a"]},
        {"precision": 32},
        {"images": None},
    ],
    ids=lambda change: "".join(change),
)
def test_a_proof_that_cannot_be_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    """A checkpoint from elsewhere would end in a traceback."""
    model = trained_model()
    checkpoint = saved(tmp_path, model, {**proof_of(model), **change})
    with pytest.raises(InputError, match="proof is damaged") as caught:
        export(checkpoint, tmp_path / "m")
    assert str(checkpoint) in str(caught.value)


def test_not_a_number_is_no_proof(tmp_path: Path) -> None:
    """Weights that give no numbers compare equal to nothing, and must not pass for it."""
    model = trained_model()
    with torch.no_grad():
        model.network.get_parameter("nn.O_4.lin.bias")[0] = float("nan")
    with pytest.raises(RunError, match="differ by inf"):
        export(saved(tmp_path, model, proof_of(model)), tmp_path / "m")


def test_lower_precision_is_allowed_its_rounding_and_no_more(tmp_path: Path) -> None:
    """Every run with bf16 would end without weights; or with any."""
    model = trained_model()
    batch = batch_of(40, 31, 57)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        scores, steps = network_scores(model, batch)
    proof = proofs.take_proof(model, batch, scores=scores, widths=steps, precision="bf16-mixed")
    written = export(saved(tmp_path / "a", model, proof), tmp_path / "m")
    assert written.difference is not None
    assert 1e-4 < written.difference < 0.1
    with pytest.raises(RunError, match="at bf16-mixed rounding explains up to"):
        export(saved(tmp_path / "b", trained_model(seed=4), proof), tmp_path / "n")


@settings(deadline=None, max_examples=60)
@given(
    widths=st.lists(st.integers(1, 90), min_size=1, max_size=9),
    pixels=st.integers(1, 6000),
    scores=st.integers(1, 900),
)
def test_a_proof_is_small_and_says_what_the_network_says(widths: list[int], pixels: int, scores: int) -> None:
    """Checkpoints would grow with the batch, or the lines of a proof not be those of its scores."""
    model, batch = trained_model(), batch_of(*widths, padding=3)
    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        patch.setattr(proofs, "MOST_PIXELS", pixels)
        patch.setattr(proofs, "MOST_SCORES", scores)
        values, steps = network_scores(model, batch)
        stored = proofs.take_proof(model, batch, scores=values, widths=steps, precision="32-true")
    readable = [width for width in widths if width >= 2]
    if not readable:
        assert stored is None
        return
    proof = proofs.read_proof(stored, model)
    assert proof is not None
    assert 1 <= len(proof) <= proofs.MOST_LINES
    assert sorted(readable)[: len(proof)] == proof.widths.tolist()
    if len(proof) > 1:
        assert proof.images.numel() <= pixels
        assert len(proof) * proof.scores[-1].numel() <= scores
    assert proofs.check_proof(model, proof, proofs.line_scores(model, proof)) < 1e-5


def test_narrow_lines_are_read_as_nothing_among_others() -> None:
    """A line too narrow for the network would end a validation, or shift the texts of those after it."""
    model, batch = trained_model(), batch_of(40, 1, 31, padding=5)
    with torch.inference_mode():
        texts = recognize(model, batch)
        alone = [recognize(model, batch_of(40))[0]]
        scores, steps = network_scores(model, batch_of(1, 1))
        assert texts_of(model, scores, steps) == ["", ""]
    assert texts[0] == alone[0] != ""
    assert texts[1] == ""
    assert texts[2]


def test_provenance_is_kept_with_scores_and_new_credits(tmp_path: Path) -> None:
    """Whoever gets the file would not know what it was made of, or would read a wrong author."""
    pytest.importorskip("coremltools")
    model = trained_model()
    checkpoint = saved(tmp_path / "run", model, proof_of(model))
    export(checkpoint, tmp_path / "a")
    scores = {"epoch": 0, "step": 12, "val_accuracy": 0.5, "val_word_accuracy": 0.25}
    assert provenance_in(tmp_path / "a") == {**ENTRY, "scores": scores}
    export(checkpoint, tmp_path / "b", author=" J. Schmidt-Łoś ", license="", weights_format="coreml")
    credited = {**ENTRY, "scores": scores, "author": "J. Schmidt-Łoś"}
    del credited["license"]
    assert provenance_in(tmp_path / "b") == credited
    export(tmp_path / "b", tmp_path / "c")
    assert provenance_in(tmp_path / "c") == credited
    export(checkpoint, tmp_path / "e", author="A. Clerk", license="CC0-1.0")
    assert (tmp_path / "e").read_bytes() == (tmp_path / "a").read_bytes()
    export(tmp_path / "c", tmp_path / "d", author="", weights_format="coreml")
    del credited["author"]
    assert provenance_in(tmp_path / "d") == credited


def test_converting_foreign_weights_invents_no_provenance(tmp_path: Path) -> None:
    """A file would claim to come from training that never was."""
    model = trained_model()
    save_weights(model, tmp_path / "w")
    export(tmp_path / "w", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "w").read_bytes()
    export(tmp_path / "w", tmp_path / "b", license="MIT")
    assert provenance_in(tmp_path / "b") == {"format": 1, "license": "MIT"}
    model.file_metadata = {"provenance": "by hand"}
    save_weights(model, tmp_path / "w")
    export(tmp_path / "w", tmp_path / "c")
    assert load_weights(tmp_path / "c").file_metadata == model.file_metadata
    with pytest.raises(InputError, match="not ours to change"):
        export(tmp_path / "w", tmp_path / "d", author="me")


def test_a_damaged_provenance_is_refused(tmp_path: Path) -> None:
    """A tensor where text should be would end in a traceback."""
    checkpoint = saved(tmp_path, trained_model(), None, entry={"format": torch.zeros(2)})
    with pytest.raises(InputError, match="provenance is damaged"):
        export(checkpoint, tmp_path / "m")


@pytest.fixture(scope="module")
def run(lines_arrow: Path, tmp_path_factory: pytest.TempPathFactory) -> PreparedRun:
    options = Train(
        ground_truth=(f"/home/someone/{'x' * 9}?key=secret", *map(str, range(40))),
        training_data=(Path("/secret/train.lst"),),
        spec=TINY_SPEC,
        batch_size=4,
        checkpoint_path=tmp_path_factory.mktemp("secret"),
        author="A. Clerk",
        strategy="fsdp",
    )
    collection = open_collection([lines_arrow])
    processes = Processes(Topology())
    return prepare(options, Globals(), collection, None, processes=processes, resume_from=None)


def test_provenance_names_data_settings_and_programs_but_no_places(
    run: PreparedRun, lines_arrow: Path
) -> None:
    """A published file would lack what its result rests on, or tell of the machine it was made on."""
    entry = provenance(run)
    text = json.dumps(entry)
    assert not any(word in text for word in ("secret", "/home", "/tmp", "fsdp", str(lines_arrow.parent)))
    (data,) = entry["data"]["training"]["sets"]
    assert data["name"] == "lines.arrow"
    assert data["fingerprint"] == run.sets.training.datasets[0].fingerprint
    assert entry["data"]["training"]["lines"] + entry["data"]["validation"]["lines"] == data["lines"]
    assert entry["data"]["training"]["digest"] == run.training.facts["data"]
    configuration = entry["configuration"]
    assert (configuration["batch_size"], configuration["spec"], configuration["seed"]) == (4, TINY_SPEC, 42)
    assert configuration["training_data"] == ["train.lst"]
    assert configuration["ground_truth"][0] == "x" * 9
    assert configuration["ground_truth"][-1] == "and 21 more"
    assert entry["author"] == "A. Clerk"
    assert "license" not in entry
    assert entry["software"]["torch"] == torch.__version__


def test_a_resumed_run_still_knows_what_it_was_started_from(run: PreparedRun, tmp_path: Path) -> None:
    """The base of a fine-tuned model would be forgotten with the first interruption."""
    started = {"format": 1, "configuration": {"load": "base.safetensors", "lrate": 9}}
    checkpoint = saved(tmp_path, trained_model(), None, entry=started)
    configuration = provenance(replace(run, resume_from=checkpoint))["configuration"]
    assert (configuration["load"], configuration["lrate"]) == ("base.safetensors", run.options.lrate)
