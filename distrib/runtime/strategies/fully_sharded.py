"""FSDP: every process keeps its rows of each parameter, of its gradient and of the optimizer's state.

That is fully sharded data parallelism (Zhao et al. 2023) as torch has it per parameter (FSDP2). A parameter
of n rows is cut into chunks of ceil(n / world size) rows, so that the last processes may hold fewer or none.
Before a layer computes it collects its parameters, afterwards it lets them go.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, cast

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.optim import Optimizer

from distrib.errors import InputError
from distrib.model.layers import Layer
from distrib.runtime.devices import torch_device
from distrib.runtime.state import WEIGHTS, LocalState, Piece, StateReader, kinds_by_parameter, state_key
from distrib.runtime.strategies.base import StateKeeping, roots
from distrib.runtime.strategies.plain import group_settings, restore_groups

try:
    from torch.distributed.fsdp import fully_shard
except ImportError:  # torch before 2.6
    from torch.distributed._composable.fsdp import fully_shard  # type: ignore[attr-defined]

if TYPE_CHECKING:
    from lightning.pytorch.core.optimizer import LightningOptimizer


@dataclass(frozen=True, kw_only=True)
class _Shard:
    """A parameter and the part of it that is this process's.

    ``sharded`` is what the network has between passes: a DTensor that knows of all rows. ``rows`` are this
    process's in the same memory, for the optimizer: over plain tensors its step costs a third and can be
    fused, and its state is plain, too. They begin at element ``start`` of the flattened parameter.
    """

    sharded: nn.Parameter
    rows: nn.Parameter
    start: int

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the whole parameter."""
        return tuple(self.sharded.shape)

    def piece(self, values: Tensor) -> Piece:
        """``values`` of these rows, as they are named to others."""
        return Piece(shape=self.shape, start=self.start, values=values.detach().view(-1))

    def read(self, reader: StateReader, key: str) -> Tensor:
        """These rows of a tensor of the parameter's shape."""
        values = reader.read(key, self.start, self.start + self.rows.numel())
        return values.view(self.rows.shape)


def check_fully_sharded(device: str) -> None:
    """Raise InputError where the torch that is installed cannot divide a network on ``device``."""
    major, minor = map(int, torch.__version__.split(".")[:2])
    if torch_device(device) == "cpu" and (major, minor) < (2, 7):
        raise InputError(
            f"--strategy fsdp works on CPUs with torch 2.7 and newer, not with {torch.__version__}; install "
            "a newer one, or use --strategy ddp."
        )


class FullySharded(StateKeeping, ModelParallelStrategy):
    """FSDP over all processes, which have joined already; on CPUs with gloo, on GPUs with NCCL.

    Gradients are exchanged with every micro-batch: held back to the last one, they would take the memory of
    the whole network at each process. The module needs no ``configure_model``.
    """

    sharded: ClassVar[bool] = True

    def __init__(self) -> None:
        super().__init__()
        self._shards: dict[str, _Shard] = {}
        self._buffers: list[str] = []
        self._processes_summed = 1

    def setup_environment(self) -> None:
        """Take the processes as they are; no group of them is made."""
        # Not Lightning's own, which makes a mesh of two dimensions with groups for each.
        super(ModelParallelStrategy, self).setup_environment()
        self.set_world_ranks()
        assert dist.group.WORLD is not None
        self._device_mesh = DeviceMesh.from_group(dist.group.WORLD, self.root_device.type)

    def setup(self, trainer: pl.Trainer) -> None:
        """Divide the network among the processes, then make the optimizer."""
        assert self.accelerator is not None
        assert self.model is not None
        self.accelerator.setup(trainer)
        if not self._shards:
            self.model = self.precision_plugin.convert_module(self.model)
            self.model_to_device()
            self._shard_network()
        if trainer.state.fn == TrainerFn.FITTING:
            self.setup_optimizers(trainer)
            # What is allocated in inference mode, as room for parameters might be, is useless to autograd.
            trainer.fit_loop.epoch_loop.val_loop.inference_mode = False
        self.setup_precision_plugin()

    def setup_optimizers(self, trainer: pl.Trainer) -> None:
        """Make the optimizer of the module, and let it work on this process's rows."""
        super().setup_optimizers(trainer)
        rows = {shard.sharded: shard.rows for shard in self._shards.values()}
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["params"] = [rows[parameter] for parameter in group["params"]]

    def local_state(self) -> LocalState:
        """This process's rows; rank zero adds what is not divided."""
        optimizer = self.optimizers[0]
        pieces = {}
        for name, shard in self._held().items():
            if shard.rows.numel():
                pieces[state_key(WEIGHTS, name)] = shard.piece(shard.rows)
            for kind, value in optimizer.state.get(shard.rows, {}).items():
                if isinstance(value, Tensor) and value.shape == shard.rows.shape:
                    if value.numel():
                        pieces[state_key(kind, name)] = shard.piece(value)
                elif value is not None and self.global_rank == 0:
                    pieces[state_key(kind, name)] = _whole(torch.as_tensor(value))
        if self.global_rank == 0:
            for name in self._buffers:
                pieces[state_key(WEIGHTS, name)] = _whole(self.trained.get_buffer(name))
        return LocalState(pieces=pieces, groups=group_settings(optimizer))

    @torch.no_grad()
    def load_state(self, reader: StateReader) -> None:
        """Read this process's rows. Raises InputError where the checkpoint is of another network."""
        for name, shard in self._held().items():
            key = state_key(WEIGHTS, name)
            if reader.shapes.get(key) != shard.shape:
                raise InputError(
                    f"the checkpoint is of another network: {name} is {list(shard.shape)} here and "
                    f"{reader.shapes.get(key, 'missing')} there; start from its weights with --load."
                )
            shard.rows.copy_(shard.read(reader, key))
        for name in self._buffers:
            buffer = self.trained.get_buffer(name)
            buffer.copy_(reader.read(state_key(WEIGHTS, name)).view(buffer.shape))
        self._load_optimizer(self.optimizers[0], reader)

    def weights_of(self, group: int) -> list[Tensor]:
        return list(self.optimizers[0].param_groups[group]["params"])

    def update(self, optimizer: LightningOptimizer, *, clip: float) -> bool:
        """Take the step where the gradient of all processes is finite."""
        gradients = self._take_gradients()
        norm = self._norm(gradients)
        finite = math.isfinite(norm)
        if finite:
            if clip and gradients:
                torch._foreach_mul_(gradients, min(1.0, clip / (norm + 1e-6)))
            optimizer.step()
        # Their memory is wanted for the next ones.
        optimizer.zero_grad()
        return finite

    def _shard_network(self) -> None:
        """Layer by layer, so that one layer's parameters are whole at a time; the rest with the root."""
        trained = self.trained
        self._processes_summed = self._summed()
        # Each process is about to keep its rows of its own copy: all copies must be the same.
        for tensor in trained.state_dict().values():
            dist.broadcast(tensor, src=0)
        parameters = {name for name, _ in trained.named_parameters()}
        self._buffers = [name for name in trained.state_dict() if name not in parameters]
        for module in [*_units(trained), *roots(trained)]:
            # Also after a root's forward pass: between passes the network has its shards, and only them.
            fully_shard(module, mesh=self.device_mesh, reshard_after_forward=True)
        for module in trained.modules():
            if isinstance(module, nn.RNNBase):
                # Called by forward passes on GPUs, it would give the collected parameters other memory
                # than that into which they are collected, and the weights would never change again.
                module.flatten_parameters = _nothing  # type: ignore[method-assign]
        self._shards = {name: self._shard(parameter) for name, parameter in trained.named_parameters()}

    def _shard(self, parameter: nn.Parameter) -> _Shard:
        rows = nn.Parameter(_local(parameter), requires_grad=parameter.requires_grad)
        total, size = len(parameter), self.world_size
        first = min(math.ceil(total / size) * self.global_rank, total)
        return _Shard(sharded=parameter, rows=rows, start=first * math.prod(parameter.shape[1:]))

    def _held(self) -> dict[str, _Shard]:
        """The shards by parameter, their rows where they are now: some versions of torch move those that
        they pad when the first forward pass begins."""
        for shard in self._shards.values():
            now = _local(shard.sharded)
            if now.data_ptr() != shard.rows.data_ptr():
                shard.rows.data = now
        return self._shards

    def _take_gradients(self) -> list[Tensor]:
        """Hand the gradients over to the optimizer's parameters."""
        gradients = []
        for shard in self._held().values():
            if shard.sharded.grad is not None:
                gradient = _local(shard.sharded.grad)
                shard.sharded.grad = None
                shard.rows.grad = gradient
                gradients.append(gradient)
        if gradients and self._processes_summed > 1:
            torch._foreach_div_(gradients, self._processes_summed)
        return gradients

    def _summed(self) -> int:
        """How many processes' gradients come as a sum where their mean is asked for: gloo has not always
        known of means, and did not say so."""
        # Made without values, since drawing them would change what is drawn later.
        probe = nn.Linear(1, self.world_size, bias=False, device="meta").to_empty(device=self.root_device)
        fully_shard(probe, mesh=self.device_mesh)
        probe(torch.ones(1, 1, device=self.root_device)).sum().backward()
        gradient = probe.weight.grad
        assert gradient is not None
        return round(float(_local(gradient).sum()))

    def _norm(self, gradients: list[Tensor]) -> float:
        """The norm of the whole gradient, from this process's part; the same number at all processes."""
        squares = torch.zeros((), dtype=torch.float64, device=self.root_device)
        if gradients:
            squares += torch.stack(torch._foreach_norm(gradients)).double().square().sum()
        dist.all_reduce(squares)
        return float(squares.sqrt())

    def _load_optimizer(self, optimizer: Optimizer, reader: StateReader) -> None:
        restore_groups(optimizer.param_groups, reader)
        names = {shard.rows: name for name, shard in self._shards.items()}
        kinds = kinds_by_parameter(reader)
        optimizer.state.clear()
        for group in optimizer.param_groups:
            # Numbers such as Adam's step stay on the CPU, except where they are wanted beside the rows.
            beside = group.get("fused") or group.get("capturable")
            for rows in group["params"]:
                name = names[rows]
                shard = self._shards[name]
                for kind in kinds.get(name, []):
                    key = state_key(kind, name)
                    if reader.shapes[key] == shard.shape:
                        value = shard.read(reader, key).to(rows.device)
                    else:
                        value = reader.read(key).view(reader.shapes[key])
                        value = value.to(rows.device) if beside else value
                    optimizer.state[rows][kind] = value


def _units(trained: nn.Module) -> list[nn.Module]:
    """The layers whose parameters are collected together: those of a network's series that have any.

    A layer that shares a parameter with another module is left to the root.
    """
    uses = Counter(
        parameter for module in trained.modules() for parameter in module.parameters(recurse=False)
    )
    units: list[nn.Module] = []
    for module in trained.modules():
        own = list(module.parameters()) if isinstance(module, Layer) else []
        if own and all(uses[parameter] == 1 for parameter in own):
            units.append(module)
    return units


def _local(tensor: Tensor) -> Tensor:
    """This process's rows of a DTensor, in its memory."""
    local: Tensor = cast(Any, tensor.detach()).to_local()
    return local.detach()


def _whole(tensor: Tensor) -> Piece:
    return Piece(shape=tuple(tensor.shape), start=0, values=tensor.detach().reshape(-1))


def _nothing() -> None:
    pass
