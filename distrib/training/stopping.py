"""When to stop: pure state, one call a validation."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(kw_only=True)
class EarlyStopping:
    """Stops after ``lag`` validations without an improvement of more than ``min_delta``, or at 100 %.

    Scores are in 0..1, higher is better. ``min_epochs`` epochs are always completed first.
    """

    lag: int
    min_delta: float
    min_epochs: int
    best: float = float("-inf")
    waited: int = 0
    perfect: bool = False

    def update(self, score: float, *, epochs_done: int) -> bool:
        """Take a validation's score; True when training should stop."""
        if score > self.best + self.min_delta:
            self.best, self.waited = score, 0
        else:
            self.waited += 1
        self.perfect = score >= 1.0
        return self.finished(epochs_done=epochs_done)

    def finished(self, *, epochs_done: int) -> bool:
        """Whether what was seen so far ends the training."""
        return epochs_done >= self.min_epochs and (self.perfect or self.waited >= self.lag)

    def state_dict(self) -> dict[str, Any]:
        """The counters, for a checkpoint."""
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from saved counters; the limits stay those given now."""
        self.best, self.waited = float(state["best"]), int(state["waited"])
        self.perfect = bool(state["perfect"])
