"""A small training under a strategy, as one of several processes: what test_fully_sharded.py starts.

Run as a script with rank, world size and a folder, it does the jobs that the folder's ``jobs.json`` lists,
one after the other, and writes what came of each to ``<job>-<rank>.pt``.
"""

from __future__ import annotations

import gc
import json
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from torch import Tensor, nn

from distrib.model.vgsl import VGSLNetwork
from distrib.training.trained import Trained

SPEC = "[1,16,0,1 Cr3,3,7 Gn7 Mp2,2 Do0.0 S1(1x0)1,3 (Lbx5 Lfx3) Lby3 O1c5]"
LARGE_SPEC = "[1,16,0,1 Cr3,3,16 Mp2,2 S1(1x0)1,3 Lbx64 Lbx64 O1c50]"
LINES = 6


def make_network(spec: str = SPEC, seed: int = 0) -> VGSLNetwork:
    """The network that is trained, the same for a seed."""
    torch.manual_seed(seed)
    network = VGSLNetwork(spec)
    network.init_weights()
    return network


def lines_of(step: int) -> tuple[Tensor, Tensor]:
    """The images (6, 1, 16, W) of a global step and their widths (6,)."""
    draw = torch.Generator().manual_seed(1000 + step)
    widths = torch.randint(12, 40, (LINES,), generator=draw)
    if step % 2:
        # Some processes have no padding then, and go other ways through the layers than those that have.
        widths[: LINES // 2] = widths[0]
    images = torch.randn(LINES, 1, 16, int(widths.max()), generator=draw)
    return images, widths


def loss_of(network: nn.Module, images: Tensor, widths: Tensor) -> Tensor:
    """The sum over the lines of something that depends on all of the network."""
    scores, steps = network(images, widths)
    inside = torch.arange(scores.shape[-1]) < steps[:, None, None, None]
    wanted = torch.linspace(-1, 1, scores.shape[1])[:, None, None]
    return ((scores - wanted).square() * inside).mean(dim=1).sum()


def make_optimizer(name: str, parameters: Any) -> torch.optim.Optimizer:
    """An optimizer as the options of training make it."""
    more = {"momentum": 0.9} if name in ("SGD", "RMSprop") else {}
    rate = {"SGD": 0.05, "RMSprop": 0.001}.get(name, 0.005)
    optimizer: torch.optim.Optimizer = getattr(torch.optim, name)(
        parameters, lr=rate, weight_decay=0.01, **more
    )
    return optimizer


def micro_batches(step: int) -> int:
    """Micro-batches of a process in a step."""
    return 1 + step % 3


class Training(pl.LightningModule):
    """Trains the network for the steps of a job, all processes on their shares of the same lines."""

    def __init__(self, job: dict[str, Any], rank: int, world_size: int) -> None:
        super().__init__()
        self.automatic_optimization = False
        # Other first weights at each process: those of rank zero count.
        self.network = make_network(job.get("spec", SPEC), seed=rank).train()
        self.trained = Trained(self.network, {})
        self.job = job
        self.rank, self.world_size = rank, world_size
        self.losses: list[float] = []
        self.validated: list[float] = []
        self.updated: list[bool] = []
        self.before: dict[str, Tensor] = {}

    def on_fit_start(self) -> None:
        # On a GPU it would move the collected parameters; a forward pass that calls it fails here.
        self.flattening = patch.object(nn.LSTM, "flatten_parameters", side_effect=AssertionError("flattened"))
        self.flattening.start()
        if self.job.get("load"):
            strategy: Any = self.trainer.strategy
            strategy.load_state(Merged.of_files([Path(path) for path in self.job["load"]]))

    def on_fit_end(self) -> None:
        self.flattening.stop()

    def training_step(self, step: int, batch_idx: int) -> None:
        images, widths = lines_of(step)
        strategy: Any = self.trainer.strategy
        optimizer: Any = self.optimizers()
        if self.job.get("save") == step:
            torch.save(saved(strategy), Path(self.job["folder"]) / f"{self.job['name']}-half-{self.rank}.pt")
        optimizer.param_groups[0]["lr"] *= 0.98
        optimizer.zero_grad()
        mine = torch.arange(LINES).tensor_split(self.world_size)[self.rank]
        total = 0.0
        count = micro_batches(step)
        for number, part in enumerate(mine.tensor_split(count), start=1):
            with strategy.synchronized(number == count):
                # One without lines takes part with weight zero.
                taken = part if len(part) else mine[:1]
                loss = loss_of(self.network, images[taken], widths[taken])
                loss = loss if len(part) else loss * 0.0
                self.manual_backward(loss * self.world_size / LINES)
            total += float(loss)
        if self.job.get("poison") == [step, self.rank]:
            gradient: Any = next(
                p.grad for p in reversed(list(self.network.parameters())) if len(p.grad.to_local())
            )
            gradient.to_local().view(-1)[0] = float(self.job["value"])
            self.before = {key: piece.values.clone() for key, piece in strategy.local_state().pieces.items()}
        self.losses.append(total)
        self.updated.append(strategy.update(optimizer, clip=self.job.get("clip", 0.0)))
        if self.job.get("poison", [None])[0] == step:
            after = strategy.local_state().pieces
            assert all(torch.equal(after[key].values, value) for key, value in self.before.items())

    def validation_step(self, step: int, batch_idx: int) -> None:
        images, widths = lines_of(step)
        self.validated.append(float(loss_of(self.network, images, widths)))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return make_optimizer(self.job["optimizer"], self.network.parameters())

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        return batch


class Merged:
    """A ``StateReader`` of tensors; where they come from pieces, every element must be in exactly one."""

    def __init__(self, tensors: dict[str, Tensor], groups: list[dict[str, Any]]) -> None:
        self.tensors = tensors
        self.groups = groups
        self.shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}

    @classmethod
    def of_files(cls, files: list[Path]) -> Merged:
        parts = [torch.load(file, weights_only=True) for file in files]
        tensors: dict[str, Tensor] = {}
        for part in parts:
            for key, (shape, start, values) in part["pieces"].items():
                flat = tensors.setdefault(key, torch.full(shape, float("nan"))).view(-1)
                place = flat[start : start + len(values)]
                assert place.isnan().all(), f"{key} is held twice"
                place.copy_(values)
        assert not any(tensor.isnan().any() for tensor in tensors.values()), "a row is held by nobody"
        return cls(tensors, parts[0]["groups"])

    def read(self, key: str, start: int = 0, stop: int | None = None) -> Tensor:
        return self.tensors[key].reshape(-1)[start:stop].clone()


def train(job: dict[str, Any], rank: int, world_size: int) -> dict[str, Any]:
    """Do a job; losses, what validation gave, the pieces of the state afterwards, bytes of live tensors."""
    from distrib.runtime.cluster_environment import PlacedEnvironment
    from distrib.runtime.strategies.fully_sharded import FullySharded
    from distrib.runtime.topology import Topology

    topology = Topology(rank=rank, world_size=world_size, local_rank=rank, local_world_size=world_size)
    module, strategy = Training(job, rank, world_size), FullySharded()
    steps = list(range(job.get("start", 0), job["stop"]))
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=world_size,
        strategy=strategy,
        precision=job.get("precision", "32-true"),
        plugins=[PlacedEnvironment(topology)],
        max_epochs=1,
        val_check_interval=5 if len(steps) >= 5 else None,
        num_sanity_val_steps=1,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, steps, [7])
    return {
        "bytes": sum(_storages()),
        "losses": module.losses,
        "validated": module.validated,
        "updated": module.updated,
        "steps": trainer.global_step,
        **saved(strategy),
    }


def saved(strategy: Any) -> dict[str, Any]:
    """A copy of the state that this process holds."""
    state = strategy.local_state()
    pieces = {key: (piece.shape, piece.start, piece.values.clone()) for key, piece in state.pieces.items()}
    return {"pieces": pieces, "groups": state.groups}


def _storages() -> Iterator[int]:
    """Bytes of the memory of all live tensors."""
    gc.collect()
    seen = set()
    for each in gc.get_objects():
        if isinstance(each, Tensor):
            storage = getattr(each, "_local_tensor", each).untyped_storage()
            if storage.data_ptr() not in seen:
                seen.add(storage.data_ptr())
                yield storage.nbytes()


def main(rank: int, world_size: int, folder: Path) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    store = dist.FileStore(str(folder / "store"), world_size)
    # Named so that Lightning does not notice gloo, and uses inference mode as it would with NCCL.
    dist.init_process_group("cpu:gloo", rank=rank, world_size=world_size, store=store)
    for job in json.loads((folder / "jobs.json").read_text()):
        torch.save(
            train({**job, "folder": str(folder)}, rank, world_size), folder / f"{job['name']}-{rank}.pt"
        )
        dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
