"""What training asks of every strategy, beside what Lightning asks."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

from torch import Tensor, nn

from distrib.runtime.checkpoints.contents import STATE_KEY
from distrib.runtime.checkpoints.reader import CheckpointReader, open_checkpoint
from distrib.runtime.checkpoints.store import CheckpointFacts, CheckpointStore
from distrib.runtime.state import LocalState, StateReader

if TYPE_CHECKING:
    from lightning.pytorch.core.optimizer import LightningOptimizer
    from lightning.pytorch.strategies import Strategy

    _Base = Strategy
else:
    _Base = object


class StateKeeping(_Base):
    """Stands before one of Lightning's strategies among the bases of each of ours.

    Lightning's checkpoints pass through here: what is plain goes to disk as Lightning gives it, the tensors
    as ``local_state`` names them, both through ``store``. A strategy trains ``trained``, the module's
    attribute of that name; keys name its parameters. What is called in it are its ``roots``.
    """

    sharded: ClassVar[bool] = False
    """Whether each process holds a part of the state, and each element is held by one alone. Its forward
    passes are collectives then, so that all processes make equally many."""

    store: CheckpointStore
    alone: bool = False
    """Set where the others may not answer: nothing waits for them, and the state is written at once."""

    _reader: CheckpointReader | None = None

    @property
    def trained(self) -> nn.Module:
        """What is trained."""
        assert self.lightning_module is not None
        return cast(nn.Module, self.lightning_module.trained)

    @property
    def scaled(self) -> bool:
        """Whether gradients are scaled (float16), and steps without finite ones are the scaler's business."""
        return getattr(self.precision_plugin, "scaler", None) is not None

    @abstractmethod
    def local_state(self) -> LocalState:
        """This process's part of weights and optimizer state. No collective, no copies."""

    @abstractmethod
    def load_state(self, reader: StateReader) -> None:
        """Take weights and optimizer state from a checkpoint of any strategy and number of processes."""

    def synchronized(self, last: bool) -> AbstractContextManager[Any]:
        """Around forward and backward of a micro-batch: gradients are exchanged with the last of a step."""
        return nullcontext()

    @abstractmethod
    def update(self, optimizer: LightningOptimizer, *, clip: float) -> bool:
        """Clip the gradient to the global norm ``clip`` (0: not at all) and take an optimizer step.

        False, with nothing changed at any process, where the gradient is not finite.
        """

    @abstractmethod
    def weights_of(self, group: int) -> list[Tensor]:
        """What torch's optimizer works on for a parameter group, here."""

    def forget(self, group: int, *kinds: str) -> None:
        """Drop what the optimizer keeps of the weights of a parameter group, or only these ``kinds``.

        Without any, the optimizer goes on with the group as it began.
        """
        state = self.optimizers[0].state
        for weights in self.weights_of(group):
            kept = state.pop(weights, {})
            if remaining := {kind: value for kind, value in kept.items() if kinds and kind not in kinds}:
                state[weights] = remaining

    def without_part(self, parameters: Iterable[nn.Parameter]) -> Tensor | float:
        """Zero, to be added to a loss in which these parameters take no part, so that nobody waits for their
        gradients."""
        return 0.0

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        """Weights are loaded when they are where they stay."""
        return True

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Lightning asks for the optimizer's state to be loaded."""
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Nothing: tensors go by ``local_state``."""
        return {}

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """Nothing: tensors go by ``local_state``."""
        return {}

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Hand a checkpoint to the store; it is on the disk a little later."""
        common = {
            key: value for key, value in checkpoint.items() if key not in ("state_dict", "optimizer_states")
        }
        facts = CheckpointFacts(**common[STATE_KEY]["facts"])
        save = self.store.save_alone if self.alone else self.store.save
        save(Path(filepath).name, common, self.local_state(), facts)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """The plain part of a checkpoint; its tensors are loaded with the optimizer's state."""
        self._reader = open_checkpoint(Path(checkpoint_path), verify=False)
        return {"state_dict": {}, "optimizer_states": [{}], **self._reader.common}

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Weights come with the optimizer's state."""

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Load all tensors of the checkpoint."""
        assert self._reader is not None
        self.load_state(self._reader)
        self._reader = None

    def barrier(self, name: str | None = None) -> None:
        """Wait for all processes, where they can be expected to come."""
        if not self.alone:
            super().barrier(name)  # type: ignore[safe-super]


def roots(trained: nn.Module) -> list[nn.Module]:
    """The modules of ``trained`` that are called by themselves: its children, of a dictionary its entries."""
    return [
        root
        for child in trained.children()
        for root in (child.values() if isinstance(child, nn.ModuleDict) else [child])
    ]
