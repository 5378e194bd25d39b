"""ZeRO (Rajbhandari et al. 2020): DeepSpeed divides the state of training among the processes.

Stage 1 divides the optimizer's state and the float32 weights it works on, stage 2 the gradients too, stage 3
also the weights that are computed with, which come together layer by layer. DeepSpeed's engine holds the
network alone, on GPUs and CPUs: it exchanges and clips gradients and takes the steps. Its mixed precisions
and its checkpoints are not used.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor

from distrib.errors import InputError
from distrib.runtime.state import LocalState, StateReader
from distrib.runtime.strategies import zero_state
from distrib.runtime.strategies.base import StateKeeping, roots

if TYPE_CHECKING:
    import lightning.pytorch as pl
    from lightning.pytorch.core.optimizer import LightningOptimizer

Offload = Literal["none", "optimizer", "all"]

_BUCKET = 50_000_000
"""Most elements that are exchanged at once, unless one parameter has more; buffers have this size."""

_KEPT_WHOLE = 10_000
"""Parameters of fewer elements are not worth dividing: stage 3 keeps them whole, beside their parts."""

_BY_ELEMENT = ("Adam", "AdamW", "SGD", "RMSprop")
"""Optimizers that treat each element by itself, so that any part of a parameter will do."""


def check_deepspeed(strategy: str, *, offload: str, optimizer: str) -> None:
    """Raise InputError where DeepSpeed is missing or ``strategy`` cannot be with the other options."""
    if importlib.util.find_spec("deepspeed") is None:
        raise InputError(
            f"--strategy {strategy} needs the package deepspeed: pip install 'ketos-distrib[deepspeed]'."
        )
    if offload == "all" and not strategy.endswith("3"):
        raise InputError(
            "--offload all moves parameters too, which only --strategy deepspeed_stage_3 divides; use that "
            f"strategy, or --offload optimizer with {strategy}."
        )
    if optimizer not in _BY_ELEMENT:
        raise InputError(
            f"--optimizer {optimizer} looks at whole parameters, which {strategy} divides; use one of "
            f"{', '.join(_BY_ELEMENT)}, or --strategy ddp."
        )


def make_zero(stage: int, *, offload: str, clip: float, device: str) -> ZeRO:
    """The strategy of stage 1, 2 or 3 on ``device``. Raises InputError where DeepSpeed is missing."""
    check_deepspeed(f"deepspeed_stage_{stage}", offload=offload, optimizer="AdamW")
    return ZeRO(stage, offload=offload, clip=clip, device=device)


class ZeRO(StateKeeping, DDPStrategy):
    """Lightning's DDP strategy with DeepSpeed's engine in the place of DDP's wrapper.

    Lightning's own strategy for DeepSpeed knows GPUs only, and one backward pass a step.
    """

    sharded: ClassVar[bool] = True

    def __init__(self, stage: int, *, offload: Offload | str, clip: float, device: str) -> None:
        super().__init__()
        self.stage = stage
        self._offload = offload
        self._clip = clip
        self._cpu = torch.device(device).type == "cpu"
        self._engine: Any = None

    @property
    def _zero(self) -> Any:
        """DeepSpeed's optimizer, around torch's."""
        return self._engine.optimizer

    def configure_ddp(self) -> None:
        """Nothing: the engine takes the network once there is an optimizer."""

    def setup_optimizers(self, trainer: pl.Trainer) -> None:
        """Make optimizer and schedules, and hand the optimizer and the network to DeepSpeed."""
        super().setup_optimizers(trainer)
        deepspeed = import_deepspeed(cpu=self._cpu)
        deepspeed.init_distributed(dist_backend="gloo" if self._cpu else "nccl", auto_mpi_discovery=False)
        (optimizer,) = self.optimizers
        number = self.local_rank if self.root_device.index is None else self.root_device.index
        # It looks nowhere else for the number of its GPU, and to the end.
        os.environ["LOCAL_RANK"] = str(number)
        self._engine, zero, *_ = deepspeed.initialize(
            args=argparse.Namespace(device_rank=number),
            model=self.trained,
            optimizer=optimizer,
            config=self._config(),
            dist_init_required=False,
        )
        if self.stage == 2:
            _reduce_in_one_order(zero)
        if self.stage == 3:
            # It expects a pass to begin with the whole of what it trains, which nobody calls.
            start = zero.parameter_offload.get_param_coordinator().reset_step
            roots(self.trained)[0].register_forward_pre_hook(lambda *_: start())
        else:
            # Views for its users of what torch's optimizer keeps would hold on to what is forgotten.
            zero._hp_optimizer_states_linked = True
        self.optimizers = [zero]

    def _config(self) -> dict[str, Any]:
        sizes = [each.numel() for each in self.trained.parameters() if each.requires_grad]
        bucket = max(min(sum(sizes), _BUCKET), *sizes)
        # Its own limits are for networks a hundred times as large: under them all would be whole at once.
        whole = max(sum(sizes) // 4, *sizes)
        offload = {"device": "cpu", "pin_memory": not self._cpu}
        zero = {
            "stage": self.stage,
            "reduce_bucket_size": bucket,
            "allgather_bucket_size": bucket + bucket % 2,
            "stage3_param_persistence_threshold": _KEPT_WHOLE,
            "stage3_prefetch_bucket_size": whole,
            "stage3_max_live_parameters": whole,
            "stage3_max_reuse_distance": whole,
            "offload_optimizer": None if self._offload == "none" else offload,
            "offload_param": offload if self._offload == "all" else None,
        }
        return {
            # Micro-batches are counted here: DeepSpeed is told which one is a step's last.
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            "gradient_clipping": self._clip,
            "zero_optimization": {key: value for key, value in zero.items() if value is not None},
            "zero_allow_untested_optimizer": True,
            # Torch's optimizer does it where the state lies; DeepSpeed's own would be compiled first.
            "zero_force_ds_cpu_optimizer": False,
            # It would wait for the GPU at each forward pass.
            "timers": {"throughput": {"enabled": False}},
        }

    @contextmanager
    def synchronized(self, last: bool) -> Iterator[None]:
        """Around forward and backward of a micro-batch. Stages 2 and 3 keep no more of a gradient than the
        process's part, so they exchange it with each."""
        self._engine.set_gradient_accumulation_boundary(last)
        # What the engine's own forward does first; the network is called by itself.
        self._zero.clear_backward_seen_flag()
        yield

    def backward(self, closure_loss: Tensor, optimizer: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Backpropagate a loss whose gradient is to be averaged over the processes.

        One that is not finite makes the gradient so, and with it the step is left out.
        """
        assert self.lightning_module is not None
        loss: Tensor = self.precision_plugin.pre_backward(closure_loss, self.lightning_module)
        loss = loss * torch.where(torch.isfinite(loss.detach()), 1.0, float("nan"))
        self._engine._backward_prologue()
        self._engine.backward(loss)
        return self.precision_plugin.post_backward(closure_loss, self.lightning_module)

    def update(self, optimizer: LightningOptimizer, *, clip: float) -> bool:
        self._zero.clip_grad = clip
        self._engine.step()
        applied: bool = self._engine.was_step_applied()
        if applied:
            optimizer.step()
        return applied

    def weights_of(self, group: int) -> list[Tensor]:
        return zero_state.weights_of(self._zero, group)

    def optimizer_step(self, optimizer: Any, closure: Any, model: Any = None, **kwargs: Any) -> Any:
        """Nothing but that Lightning counts the step: ``update`` has taken it."""
        return closure()

    def local_state(self) -> LocalState:
        return zero_state.local_state(self._zero, self.trained)

    def load_state(self, reader: StateReader) -> None:
        zero_state.load_state(self._zero, self.trained, reader)

    def teardown(self) -> None:
        """Let go of the network."""
        if self._engine is not None:
            self._engine.destroy()
            self._engine = None
            # Groups of processes that another run in this process may not meet again.
            importlib.import_module("deepspeed.utils.groups")._release_process_group_references()
        super().teardown()


def _reduce_in_one_order(zero: Any) -> None:
    """Let stage 2 exchange gradients in the order of the parameters, when a backward pass has ended.

    It does so as they come, which is another order where one process's lines are padded and another's are
    not: they go through other functions, and gradients of different parameters would be averaged.
    """
    reduce, epilogue = (
        zero.reduce_ready_partitions_and_remove_grads,
        zero.independent_gradient_partition_epilogue,
    )
    waiting: list[tuple[Any, int]] = []

    def ordered_epilogue() -> None:
        for parameter, group in sorted(waiting, key=lambda each: zero.get_param_id(each[0])):
            reduce(parameter, group)
        waiting.clear()
        epilogue()

    zero.reduce_ready_partitions_and_remove_grads = lambda parameter, group: waiting.append(
        (parameter, group)
    )
    zero.independent_gradient_partition_epilogue = ordered_epilogue


def import_deepspeed(*, cpu: bool) -> Any:
    """The package, made quiet and kept from compiling anything. Importing it takes a second or more."""
    if cpu:
        # By itself it takes a GPU where there is one.
        os.environ["DS_ACCELERATOR"] = "cpu"
    deepspeed = importlib.import_module("deepspeed")
    # As talkative as Lightning: much of what it says is meant for its developers.
    level = logging.getLogger("lightning.pytorch").getEffectiveLevel()
    importlib.import_module("deepspeed.utils").logger.setLevel(level)
    # Would be compiled for minutes, for collectives that gloo has as well.
    importlib.import_module("deepspeed.ops").__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed
