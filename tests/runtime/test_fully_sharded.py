"""FSDP trains as one process does, keeps a part of the state at each process, and loads any other's state."""

from __future__ import annotations

import json
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from distrib.errors import InputError
from distrib.runtime.strategies import fully_sharded
from distrib.runtime.strategies.plain import whole_state

from ..training import forked
from . import sharded_training as training

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("fully sharded")]

WAIT_SECONDS = 300.0
OPTIMIZERS = ("AdamW", "Adam", "SGD", "RMSprop")
PORTED = ("AdamW", "SGD")
STEPS, HALF, FEW = 20, 10, 6
CLIP = 6.0
POISONED = 3


class Plain:
    """The same training in this process, without any strategy."""

    def __init__(self, optimizer: str, *, spec: str = training.SPEC) -> None:
        self.network = training.make_network(spec).train()
        self.optimizer = training.make_optimizer(optimizer, self.network.parameters())
        self.losses: list[float] = []
        self.validated = [self._validate()]
        self.norms: list[float] = []

    def run(self, steps: range, *, precision: str = "32-true", skip: int | None = None) -> Plain:
        """Take steps; the weights of one of them are left as they are."""
        for number, step in enumerate(steps, start=1):
            self._step(step, precision, skip=step == skip)
            if number % 5 == 0:
                self.validated.append(self._validate())
        return self

    def _step(self, step: int, precision: str, *, skip: bool) -> None:
        self.optimizer.param_groups[0]["lr"] *= 0.98
        self.optimizer.zero_grad()
        mixed = torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False)
        with mixed if precision == "bf16-mixed" else nullcontext():
            loss = training.loss_of(self.network, *training.lines_of(step)) / training.LINES
        loss.backward()  # type: ignore[no-untyped-call]
        self.norms.append(float(torch.nn.utils.clip_grad_norm_(self.network.parameters(), CLIP)))
        if not skip:
            self.optimizer.step()
        self.losses.append(float(loss.detach()))

    @torch.no_grad()
    def _validate(self) -> float:
        self.network.eval()
        loss = training.loss_of(self.network, *training.lines_of(7))
        self.network.train()
        return float(loss)


class Jobs:
    """What the processes of a job left in a folder."""

    def __init__(self, folder: Path, world_size: int) -> None:
        self.folder, self.world_size = folder, world_size

    def files(self, name: str) -> list[Path]:
        return [self.folder / f"{name}-{rank}.pt" for rank in range(self.world_size)]

    def results(self, name: str) -> list[dict[str, Any]]:
        return [torch.load(file, weights_only=True) for file in self.files(name)]

    def losses(self, name: str) -> list[float]:
        """The mean loss of each step over all lines."""
        parts = [result["losses"] for result in self.results(name)]
        return [sum(each) / training.LINES for each in zip(*parts, strict=True)]

    def state(self, name: str) -> dict[str, torch.Tensor]:
        """All tensors, put together; each element must be held by one process."""
        return training.Merged.of_files(self.files(name)).tensors


def run(folder: Path, world_size: int, jobs: list[dict[str, Any]]) -> Jobs:
    """Start the processes, which do all the jobs."""
    folder.mkdir()
    (folder / "jobs.json").write_text(json.dumps(jobs))
    script = Path(training.__file__)
    processes = [
        forked.shared().start(rank, world_size, folder, script=script, printed=folder / f"printed-{rank}")
        for rank in range(world_size)
    ]
    try:
        deadline = time.monotonic() + WAIT_SECONDS
        # One that failed leaves the others waiting.
        while None in (codes := [code for each in processes for code in each.codes()]) and not any(codes):
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        for process in processes:
            process.kill()
    for process, code in zip(processes, codes, strict=True):
        assert code in (0, None), process.output
    assert codes == [0] * world_size
    return Jobs(folder, world_size)


def _job(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "optimizer": "AdamW", "stop": STEPS, "clip": CLIP, **more}


def _second_half(optimizer: str, source: Jobs) -> dict[str, Any]:
    """Going on from what the processes of ``source`` held after the first half."""
    halves = [str(file) for file in source.files(f"{optimizer}-half")]
    return _job(f"{optimizer}-resumed", optimizer=optimizer, start=HALF, load=halves)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fully-sharded")


@pytest.fixture(scope="module")
def plain() -> dict[str, Plain]:
    """For each optimizer the training that was never interrupted."""
    return {name: Plain(name).run(range(STEPS)) for name in OPTIMIZERS}


@pytest.fixture(scope="module")
def whole_file(folder: Path) -> Path:
    """The state after the first half as one process has it, and as DDP saves it."""
    first = Plain("AdamW").run(range(HALF))
    state = whole_state(first.network, first.optimizer)
    pieces = {key: (piece.shape, piece.start, piece.values) for key, piece in state.pieces.items()}
    torch.save({"pieces": pieces, "groups": state.groups}, folder / "whole.pt")
    return folder / "whole.pt"


@pytest.fixture(scope="module")
def two(folder: Path, whole_file: Path) -> Jobs:
    """All jobs of two processes."""
    itself = Jobs(folder / "two", 2)
    jobs = [_job(each, optimizer=each, save=HALF) for each in OPTIMIZERS]
    jobs += [_second_half(each, itself) for each in OPTIMIZERS]
    jobs += [
        _job("from-whole", start=HALF, load=[str(whole_file)]),
        _job("mixed", stop=FEW, precision="bf16-mixed"),
        _job("infinite", stop=FEW, poison=[POISONED, 1], value="inf"),
        _job("not-a-number", stop=FEW, poison=[POISONED, 0], value="nan"),
        _job("large", spec=training.LARGE_SPEC, stop=2),
    ]
    return run(folder / "two", 2, jobs)


@pytest.fixture(scope="module", params=[1, 3])
def others(folder: Path, two: Jobs, request: pytest.FixtureRequest) -> Jobs:
    """The second half by other numbers of processes."""
    size = request.param
    return run(folder / f"by-{size}", size, [_job("AdamW"), *(_second_half(each, two) for each in PORTED)])


def _agree(state: dict[str, torch.Tensor], plain: Plain) -> None:
    """Weights to 1e-5, and all else that is kept with them is there."""
    expected = whole_state(plain.network, plain.optimizer)
    assert state.keys() == expected.pieces.keys()
    for key, piece in expected.pieces.items():
        assert tuple(state[key].shape) == piece.shape
        difference = (state[key].view(-1) - piece.values).abs().max()
        assert difference < (1e-5 if key.startswith("weights/") else 1e-3), key


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_two_processes_train_as_one_does(two: Jobs, plain: dict[str, Plain], optimizer: str) -> None:
    """Sums for means, wrong norms, lost micro-batches or stale weights: any of them would show here."""
    assert min(plain[optimizer].norms) < CLIP < max(plain[optimizer].norms)
    assert two.losses(optimizer) == pytest.approx(plain[optimizer].losses, rel=1e-4)
    _agree(two.state(optimizer), plain[optimizer])
    for result in two.results(optimizer):
        assert result["validated"] == pytest.approx(plain[optimizer].validated, rel=1e-4)
        assert result["updated"] == [True] * STEPS
        assert result["steps"] == STEPS


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_going_on_with_the_same_processes_changes_no_bit(two: Jobs, optimizer: str) -> None:
    """A state or a setting of the optimizer that is not restored would show here."""
    assert two.losses(f"{optimizer}-resumed") == two.losses(optimizer)[HALF:]
    state, resumed = two.state(optimizer), two.state(f"{optimizer}-resumed")
    assert state.keys() == resumed.keys()
    assert all(torch.equal(state[key], resumed[key]) for key in state)
    assert two.results(optimizer)[0]["groups"] == two.results(f"{optimizer}-resumed")[0]["groups"]


@pytest.mark.parametrize("optimizer", PORTED)
def test_going_on_with_other_numbers_of_processes(
    others: Jobs, plain: dict[str, Plain], optimizer: str
) -> None:
    """Rows that fall to other processes than those that saved them would be mixed up here."""
    assert others.losses(f"{optimizer}-resumed") == pytest.approx(plain[optimizer].losses[HALF:], rel=1e-4)
    _agree(others.state(f"{optimizer}-resumed"), plain[optimizer])


def test_other_numbers_of_processes_train_as_one_does(others: Jobs, plain: dict[str, Plain]) -> None:
    """One process is a group of one; of three, some hold no row of a small parameter, and some no line."""
    assert others.losses("AdamW") == pytest.approx(plain["AdamW"].losses, rel=1e-4)
    _agree(others.state("AdamW"), plain["AdamW"])


def test_going_on_from_the_state_of_ddp(two: Jobs, plain: dict[str, Plain]) -> None:
    """A run that changes its strategy must not start its optimizer anew."""
    assert two.losses("from-whole") == pytest.approx(plain["AdamW"].losses[HALF:], rel=1e-4)
    _agree(two.state("from-whole"), plain["AdamW"])


@pytest.mark.parametrize("job", ["infinite", "not-a-number"])
def test_a_gradient_that_is_not_finite_at_one_process_changes_nothing_at_any(two: Jobs, job: str) -> None:
    """A process that steps alone has rows of another training; the processes compare their state, too."""
    expected = Plain("AdamW").run(range(FEW), skip=POISONED)
    for result in two.results(job):
        assert result["updated"] == [step != POISONED for step in range(FEW)]
        assert result["steps"] == FEW - 1
    assert two.losses(job) == pytest.approx(expected.losses, rel=1e-4)
    _agree(two.state(job), expected)


def test_mixed_precision_is_autocast_over_float32(two: Jobs, plain: dict[str, Plain]) -> None:
    """The same precision under every strategy: bfloat16 in the layers, float32 in what is kept."""
    mixed = Plain("AdamW").run(range(FEW), precision="bf16-mixed")
    assert mixed.losses != pytest.approx(plain["AdamW"].losses[:FEW], rel=1e-4)
    assert two.losses("mixed") == pytest.approx(mixed.losses, rel=2e-2)
    assert two.losses("mixed")[0] == pytest.approx(mixed.losses[0], rel=1e-4)
    for result in two.results("mixed"):
        assert {values.dtype for _, _, values in result["pieces"].values()} == {torch.float32}


def test_each_of_two_processes_keeps_half_of_the_state(two: Jobs) -> None:
    """Parameters that stay collected after a pass, or a gradient kept whole, would show here."""
    weights = sum(each.numel() for each in training.make_network(training.LARGE_SPEC).parameters())
    whole = 3 * weights * torch.float32.itemsize  # Adam keeps two numbers of each weight.
    for result in two.results("large"):
        assert whole * 0.49 < result["bytes"] < whole * 0.55


def test_a_torch_that_cannot_divide_on_cpus_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the sentence there is an AttributeError of torch's."""
    fully_sharded.check_fully_sharded("cpu")
    monkeypatch.setattr(torch, "__version__", type(torch.__version__)("2.6.0"))
    with pytest.raises(InputError, match=r"torch 2\.7"):
        fully_sharded.check_fully_sharded("cpu")
