"""When to stop: pure state, one call a validation."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(kw_only=True)
class EarlyStopping:
    """Stops after ``lag`` validations without an improvement of more than ``min_delta``, or at 100 %.

    Higher scores are better, and 1 is 100 %. ``min_epochs`` epochs are always completed first.
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


@dataclass(kw_only=True)
class Annealing(EarlyStopping):
    """Cools the learning rate down once when the score stalls, then stops: ``--quit aneal``.

    When ``lag`` validations have brought no improvement of more than ``min_delta``, and ``min_epochs``
    epochs are done, the cooling begins. It lasts for the next ``lag`` validations, whatever they say, and
    the training ends with it; at 100 % it ends at once.

    ``cooled`` are the validations since the cooling began (None: it has not), ``begun`` is where it began in
    epochs and ``rate`` the learning rate there. Who sets learning rates tells ``note`` of each validation
    before ``update`` judges it.
    """

    cooled: int | None = None
    begun: float | None = None
    rate: float | None = None

    def note(self, *, position: float, rate: float) -> None:
        """A validation after ``position`` epochs, from which training would go on at ``rate``."""
        if self.cooled is None:
            self.begun, self.rate = position, rate

    def update(self, score: float, *, epochs_done: int) -> bool:
        """Take a validation's score; True when training should stop."""
        if self.cooled is not None:
            self.cooled += 1
        super().update(score, epochs_done=epochs_done)
        if self.cooled is None and self.waited >= self.lag and epochs_done >= self.min_epochs:
            self.cooled = 0
        return self.finished(epochs_done=epochs_done)

    def finished(self, *, epochs_done: int) -> bool:
        """Whether what was seen so far ends the training."""
        cold = self.cooled is not None and self.cooled >= self.lag
        return epochs_done >= self.min_epochs and (self.perfect or cold)

    def cooling(self, *, position: float, interval: float) -> tuple[float, float] | None:
        """The learning rate that the cooling began at and the share of it done, 0..1; None before it.

        ``position`` is in epochs, as is the ``interval`` between validations.
        """
        if self.cooled is None:
            return None
        if self.begun is None or self.rate is None:
            raise RuntimeError("the score of a validation was judged before its place was noted")
        share = (position - self.begun) / (self.lag * interval)
        return self.rate, min(max(share, 0.0), 1.0)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from saved counters, those of early stopping also; the limits stay those given now."""
        super().load_state_dict(state)
        self.cooled, self.begun, self.rate = (state.get(name) for name in ("cooled", "begun", "rate"))
