"""What test_deepspeed.py looks at: jobs of one to three processes, forked from one that has imported all.

``python zero_job.py FOLDER`` leaves there ``<run>.<rank>.pt`` of each run's processes and ``<run>.plain.pt``
of the same training in one process without any strategy.
"""

from __future__ import annotations

import logging
import multiprocessing
import sys
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

from distrib.model.vgsl import VGSLNetwork
from distrib.runtime.cluster_environment import PlacedEnvironment
from distrib.runtime.strategies import deepspeed as zero
from distrib.runtime.strategies.plain import load_whole_state, whole_state
from distrib.runtime.topology import Topology
from distrib.training.trained import Trained

# Parameters whose sizes no number of processes divides, and one smaller than three processes.
SPEC = "[1,16,0,1 Cr3,3,9 Gn3 Mp2,2 S1(1x0)1,3 Lbx13 O1c7]"
LABELS = 4


@dataclass(frozen=True, kw_only=True)
class Run:
    """A training from ``first`` to ``last`` step; in ``bad`` ones the last process has no finite loss."""

    name: str
    stage: int
    optimizer: str = "AdamW"
    clip: float = 1.0
    offload: str = "none"
    precision: str = "32-true"
    kept_whole: int = 0
    first: int = 0
    last: int = 10
    bad: tuple[int, ...] = ()
    frozen: bool = False
    """Whether the first layer is not trained."""
    start: str | None = None
    """The run whose state this one continues."""


@dataclass(kw_only=True)
class Outcome:
    """What one process has to tell of a run."""

    pieces: dict[str, tuple[tuple[int, ...], int, Tensor]]
    groups: list[dict[str, Any]]
    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    applied: list[bool] = field(default_factory=list)
    counted: int = 0
    """Steps that Lightning counts."""
    kinds_before: list[str] = field(default_factory=list)
    """What it holds of a parameter before its first step."""
    loaded: dict[str, Tensor] = field(default_factory=dict)
    """The weights it computes with, right after they were loaded."""
    live: int = 0
    """Elements of whole parameters that it keeps between steps."""


class Merged:
    """A StateReader of the pieces that the processes of a run left behind."""

    def __init__(self, folder: Path, name: str) -> None:
        outcomes = [torch.load(path, weights_only=True) for path in sorted(folder.glob(f"{name}.*.pt"))]
        self.outcomes = [Outcome(**each) for each in outcomes]
        self.groups = self.outcomes[0].groups
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.holders: dict[str, Tensor] = {}
        self._values: dict[str, Tensor] = {}
        for outcome in self.outcomes:
            for key, (shape, start, values) in outcome.pieces.items():
                self.shapes[key] = shape
                size = torch.Size(shape).numel()
                full = self._values.setdefault(key, torch.full((size,), float("nan"), dtype=values.dtype))
                full[start : start + len(values)] = values
                held = self.holders.setdefault(key, torch.zeros(size, dtype=torch.int64))
                held[start : start + len(values)] += 1

    def read(self, key: str, start: int = 0, stop: int | None = None) -> Tensor:
        return self._values[key][start:stop]


def network(run: Run) -> VGSLNetwork:
    torch.manual_seed(7)
    made = VGSLNetwork(SPEC)
    made.init_weights()
    next(made.nn.children()).requires_grad_(not run.frozen)
    return made


def make_optimizer(run: Run, network: nn.Module) -> torch.optim.Optimizer:
    parameters = [each for each in network.parameters() if each.requires_grad]
    if run.optimizer == "AdamW":
        return torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.01)
    if run.optimizer == "RMSprop":
        return torch.optim.RMSprop(parameters, lr=0.0001, momentum=0.5)
    return torch.optim.SGD(parameters, lr=0.02, momentum=0.9)


def lines_of(step: int) -> list[tuple[Tensor, Tensor]]:
    """The lines of a global step, 5 to 9 of them: some processes have a micro-batch without any."""
    random = torch.Generator().manual_seed(step)
    return [
        (torch.rand(1, 16, 40, generator=random), torch.randint(1, 7, (LABELS,), generator=random))
        for _ in range(5 + 2 * (step % 3))
    ]


def loss_of(network: nn.Module, lines: list[tuple[Tensor, Tensor]]) -> Tensor:
    """The sum of the lines' CTC losses."""
    images, labels = torch.stack([image for image, _ in lines]), torch.stack([label for _, label in lines])
    scores, steps = network(images, torch.full((len(lines),), images.shape[-1]))
    likelihoods = scores.squeeze(2).float().log_softmax(1).permute(2, 0, 1)
    lengths = torch.full((len(lines),), LABELS)
    return functional.ctc_loss(likelihoods, labels, steps, lengths, reduction="sum")


class Module(pl.LightningModule):
    """Manual optimisation, one global step a training step, one to three micro-batches a step."""

    def __init__(self, run: Run, reader: Merged | None) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.network = network(run)
        self.trained = Trained(self.network, {})
        self.run = run
        self.reader = reader
        self.outcome = Outcome(pieces={}, groups=[])

    @property
    def strategy(self) -> Any:
        return self.trainer.strategy

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return make_optimizer(self.run, self.network)

    def on_train_start(self) -> None:
        self.outcome.kinds_before = sorted(
            {key.partition("/")[0] for key in self.strategy.local_state().pieces}
        )
        if self.reader is not None:
            self.strategy.load_state(self.reader)
            self.outcome.loaded = live_weights(self.network)

    def training_step(self, step: int, batch_index: int) -> None:
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        lines = lines_of(step)
        rank, world_size = self.global_rank, self.trainer.world_size
        count, total = 1 + step % 3, torch.zeros(())
        for number in range(count):
            with self.strategy.synchronized(number == count - 1):
                mine = lines[rank::world_size][number::count]
                loss = loss_of(self.network, mine) if mine else loss_of(self.network, lines[:1]) * 0.0
                if step in self.run.bad and rank == world_size - 1 and number == 0:
                    loss = loss * float("nan")
                self.manual_backward(loss * world_size / len(lines))
                total += loss.detach()
        dist.all_reduce(total)
        self.outcome.losses.append(float(total) / len(lines))
        self.outcome.applied.append(self.strategy.update(optimizer, clip=self.run.clip))
        self.outcome.norms.append(float(optimizer.optimizer._global_grad_norm))

    def validation_step(self, step: int, batch_index: int) -> None:
        loss_of(self.network, lines_of(step))

    def on_train_end(self) -> None:
        state = self.strategy.local_state()
        self.outcome.pieces = {
            key: (each.shape, each.start, each.values.clone()) for key, each in state.pieces.items()
        }
        self.outcome.groups = state.groups
        self.outcome.counted = self.trainer.global_step
        self.outcome.live = sum(each.numel() for each in self.network.parameters())


def live_weights(network: nn.Module) -> dict[str, Tensor]:
    """What the network computes with, put together where it is divided."""
    import deepspeed

    parameters = list(network.parameters())
    divided = hasattr(parameters[0], "ds_id")
    with deepspeed.zero.GatheredParameters(parameters) if divided else nullcontext():
        return {name: each.detach().clone() for name, each in network.named_parameters()}


def train(run: Run, folder: Path, topology: Topology) -> None:
    """One process's part of a run."""
    zero._KEPT_WHOLE = run.kept_whole
    strategy = zero.make_zero(run.stage, offload=run.offload, clip=run.clip, device="cpu")
    module = Module(run, None if run.start is None else Merged(folder, run.start))
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=topology.world_size,
        strategy=strategy,
        precision=run.precision,
        plugins=[PlacedEnvironment(topology)],
        max_epochs=1,
        val_check_interval=3,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    trainer.fit(module, range(run.first, run.last), range(2))
    torch.save(vars(module.outcome), folder / f"{run.name}.{topology.rank}.pt")
    dist.barrier()  # the next run may begin with what all have written


def train_plainly(run: Run, folder: Path) -> None:
    """The same training by one process that holds all, as DDP does it."""
    own = network(run)
    optimizer = make_optimizer(run, own)
    if run.start is not None:
        load_whole_state(own, optimizer, Merged(folder, run.start))
    outcome = Outcome(pieces={}, groups=[])
    for step in range(run.first, run.last):
        optimizer.zero_grad()
        lines = lines_of(step)
        with torch.autocast("cpu", torch.bfloat16, enabled=run.precision != "32-true"):
            loss = loss_of(own, lines) / len(lines)
        loss.backward()
        outcome.losses.append(float(loss.detach()))
        norm = nn.utils.clip_grad_norm_(own.parameters(), run.clip or float("inf"))
        outcome.norms.append(float(norm))
        if step not in run.bad:
            optimizer.step()
    state = whole_state(own, optimizer)
    outcome.pieces = {key: (each.shape, each.start, each.values) for key, each in state.pieces.items()}
    outcome.groups = state.groups
    torch.save(vars(outcome), folder / f"{run.name}.plain.pt")


def in_processes(world_size: int, folder: Path, work: Callable[[Topology], object]) -> None:
    """Do ``work`` in forked processes that can talk to each other; raise where one failed."""
    meeting = folder / "meeting"
    meeting.unlink(missing_ok=True)

    def one(rank: int) -> None:
        dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world_size)
        work(Topology(rank=rank, world_size=world_size, local_rank=rank, local_world_size=world_size))
        dist.barrier()

    processes = [
        multiprocessing.get_context("fork").Process(target=one, args=(rank,)) for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert all(process.exitcode == 0 for process in processes)


FROM_THE_START = [
    *(Run(name=f"adamw_{stage}", stage=stage, last=20, bad=(5, 6)) for stage in (1, 2, 3)),
    *(Run(name=f"sgd_{stage}", stage=stage, optimizer="SGD", last=12) for stage in (1, 2, 3)),
    *(Run(name=f"optimizer_{stage}", stage=stage, offload="optimizer", bad=(3,)) for stage in (1, 2, 3)),
    Run(name="all_3", stage=3, offload="all", bad=(3,)),
    Run(name="whole_3", stage=3, kept_whole=10**6, optimizer="RMSprop", clip=0.0, bad=(3,)),
    *(Run(name=f"bf16_{stage}", stage=stage, precision="bf16-mixed", last=4) for stage in (1, 3)),
    *(Run(name=f"begun_{stage}", stage=stage, last=4) for stage in (1, 2, 3)),
    *(Run(name=f"frozen_{stage}", stage=stage, frozen=True, last=4) for stage in (2, 3)),
    *(
        Run(name=f"froze_{stage}", stage=stage, frozen=True, start=f"frozen_{5 - stage}", first=4, last=7)
        for stage in (2, 3)
    ),
]
"""By two processes."""

PLAIN = [
    Run(name="adamw", stage=0, last=20, bad=(5, 6)),
    Run(name="sgd", stage=0, optimizer="SGD", last=12),
    Run(name="short", stage=0, bad=(3,)),
    Run(name="rmsprop", stage=0, optimizer="RMSprop", clip=0.0, bad=(3,)),
    Run(name="bf16", stage=0, precision="bf16-mixed", last=4),
    Run(name="begun", stage=0, last=4),
    Run(name="ended", stage=0, last=13),
    Run(name="frozen", stage=0, frozen=True, last=7),
    Run(name="went_on", stage=0, start="begun_2", first=4, last=13),
]
"""By one process that holds everything."""

RESUMED = {
    1: [("one_1", "begun_3"), ("one_2", "begun_1"), ("one_3", "begun")],
    3: [("three_1", "one_2"), ("three_2", "one_3"), ("three_3", "one_1")],
    2: [("two_1", "three_3"), ("two_2", "three_1"), ("two_3", "three_2")],
}
"""By so many processes, each three steps further under another stage than before."""


def resumed(world_size: int) -> list[Run]:
    first = 4 + 3 * list(RESUMED).index(world_size)
    return [
        Run(name=name, stage=int(name[-1]), start=start, first=first, last=first + 3)
        for name, start in RESUMED[world_size]
    ]


def main(folder: Path) -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    # Once for all the processes to be forked.
    zero.import_deepspeed(cpu=True)
    in_processes(2, folder, lambda topology: [train(run, folder, topology) for run in FROM_THE_START])
    in_processes(1, folder, lambda _: [train_plainly(run, folder) for run in PLAIN])
    for world_size in RESUMED:
        in_processes(
            world_size,
            folder,
            lambda topology: [train(run, folder, topology) for run in resumed(topology.world_size)],
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
