"""Learning rates as functions of a run's global position, the same at any number of processes.

A schedule's value follows from the position in epochs alone, the steps of the epoch under way counted as
fractions of it. ``--warmup`` multiplies it, so that the two join without a jump. Only reduceonplateau and
the cooling of ``--quit aneal`` depend on scores too, through state that goes into checkpoints.

What ``--schedule`` names, with v the validations that ``--freq`` has brought by then:

==================== ================================================================================
constant             ``--lrate``
step                 times ``--gamma`` after every ``--step-size`` validations
exponential          times ``--gamma`` every ``--step-size`` validations, smoothly: gamma ** (v / step size)
reduceonplateau      times ``--gamma`` after more than ``--sched-patience`` validations without improvement
cosine               down to ``--cos-min-lr`` in ``--cos-max`` epochs, and there it stays
cosine_warm_restarts the same, from the top again every ``--cos-max`` epochs (Loshchilov and Hutter 2017)
1cycle               up from 1/25 of it and down to 1/250,000 over ``--epochs``, momentum in the opposite
                     direction (Smith and Topin 2018, as in torch)
==================== ================================================================================
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

from distrib.config.learning import Learning
from distrib.errors import InputError
from distrib.training.stopping import Annealing

WarmupUnit = Literal["steps", "samples"]

# What torch's OneCycleLR does where nothing is said.
_RISE = 0.3
_FIRST_DIVISOR, _LAST_DIVISOR = 25.0, 1e4
_LEAST_MOMENTUM, _MOST_MOMENTUM = 0.85, 0.95

# As are these of torch's ReduceLROnPlateau.
_THRESHOLD = 1e-4
_LEAST_REDUCTION = 1e-8


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a global step stands in the run, or what comes next.

    ``step`` counts from 0 in ``epoch``, which has ``steps``; ``number`` are the global steps and ``samples``
    the lines, over all processes, that the run has done before this step. An epoch has at least one step.
    """

    epoch: int
    step: int
    steps: int
    number: int
    samples: int

    @property
    def position(self) -> float:
        """In epochs."""
        return self.epoch + self.step / self.steps


def validations_an_epoch(freq: float) -> int:
    """How many validations ``--freq`` asks for in an epoch; 1 where it is a number of epochs."""
    return round(1 / freq) if freq < 1 else 1


def steps_between_validations(freq: float, steps: int) -> int:
    """The steps from one validation to the next where an epoch has ``steps``."""
    return max(1, steps * int(freq) if freq >= 1 else steps // validations_an_epoch(freq))


def check_rates(options: Learning) -> None:
    """Raise InputError for options from which no sensible learning rate follows."""
    schedule = options.schedule
    if schedule == "1cycle" and options.epochs < 1:
        raise InputError("--schedule 1cycle needs --epochs, the length of its cycle.")
    decays = ("step", "exponential", "reduceonplateau")
    if schedule in decays and options.gamma > 1:
        raise InputError(
            f"--gamma {options.gamma:g}: --schedule {schedule} would raise the learning rate with it; give "
            "at most 1."
        )
    falls = schedule in ("cosine", "cosine_warm_restarts") or options.quit == "aneal"
    if falls and options.cos_min_lr > options.lrate:
        raise InputError(
            f"--cos-min-lr {options.cos_min_lr:g} is above --lrate {options.lrate:g}, from which the "
            "learning rate is to fall to it; lower it or raise --lrate."
        )
    if options.lrate_scaling != "none" and not options.batch_size:
        raise InputError(
            f"--lrate-scaling {options.lrate_scaling} compares steps with --batch-size, which is 0; give the "
            "number of lines that --lrate is meant for, or leave the option out."
        )


def base_rate(options: Learning, *, global_lines: int) -> float:
    """``--lrate`` as ``--lrate-scaling`` has it for steps of ``global_lines`` lines over all processes.

    linear: times global lines / batch size (Goyal et al. 2017); sqrt: times the root of that, which suits
    Adam and its kin (Malladi et al. 2022). Raises InputError where steps have no fixed number of lines.
    """
    if options.lrate_scaling == "none":
        return options.lrate
    if options.batch_size < 1 or global_lines < 1:
        raise InputError(
            f"--lrate-scaling {options.lrate_scaling} needs steps of a fixed number of lines; give "
            "--batch-size, or leave it out."
        )
    factor = global_lines / options.batch_size
    return options.lrate * (factor if options.lrate_scaling == "linear" else math.sqrt(factor))


class LearningRates:
    """The learning rate of every step of a run.

    ``base`` is the rate that the schedule starts from, ``warmup_unit`` what ``--warmup`` counts.
    ``interval`` are the steps between validations inside an epoch, where they do not follow from the
    epoch's own length. ``annealing`` is there with ``--quit aneal`` and is to be asked when to stop; its
    state goes into checkpoints as early stopping's does, besides what ``state_dict`` gives.
    """

    def __init__(
        self, options: Learning, *, base: float, warmup_unit: WarmupUnit, interval: int | None = None
    ) -> None:
        self._options = options
        self._base = base
        self._warmup_unit = warmup_unit
        self._interval = interval
        self._plateau = _Plateau() if options.schedule == "reduceonplateau" else None
        self.annealing: Annealing | None = None
        if options.quit == "aneal":
            self.annealing = Annealing(
                lag=options.lag, min_delta=options.min_delta, min_epochs=options.min_epochs
            )

    def rate(self, place: Place) -> float:
        """The learning rate of the step at ``place``."""
        if self.annealing is not None:
            interval = self._between(place) / place.steps
            cooling = self.annealing.cooling(position=place.position, interval=interval)
            if cooling is not None:
                rate, share = cooling
                return _fall(rate, min(self._options.cos_min_lr, rate), share)
        return self._scheduled(place) * self._warmth(place)

    def momentum(self, place: Place) -> float:
        """The momentum of the step at ``place``, Adam's first beta: ``--momentum``, but for 1cycle."""
        if self._options.schedule != "1cycle":
            return self._options.momentum
        rising, share = _one_cycle(place, self._options.epochs)
        if rising:
            return _fall(_MOST_MOMENTUM, _LEAST_MOMENTUM, share)
        return _fall(_LEAST_MOMENTUM, _MOST_MOMENTUM, share)

    def validated(self, score: float, place: Place) -> None:
        """Take a validation's score, higher is better; ``place`` is the step that comes next.

        To be called before ``annealing`` judges the same score.
        """
        if self._plateau is not None:
            self._plateau.update(score, self._options, self._base)
        if self.annealing is not None:
            self.annealing.note(position=place.position, rate=self.rate(place))

    def state_dict(self) -> dict[str, Any]:
        """What does not follow from the position, in plain types."""
        plateau = None if self._plateau is None else asdict(self._plateau)
        return {"given": self._given, "base": self._base, "plateau": plateau}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what ``state_dict`` gave; a run that had another schedule has nothing to say.

        Options that are still the same mean the rate that they meant at first, whatever lines a process
        takes at once now.
        """
        if state["given"] == self._given:
            self._base = state["base"]
        if self._plateau is not None and state["plateau"]:
            self._plateau = _Plateau(**state["plateau"])

    @property
    def _given(self) -> list[Any]:
        return [self._options.lrate, self._options.lrate_scaling]

    def _scheduled(self, place: Place) -> float:
        options, base = self._options, self._base
        match options.schedule:
            case "constant":
                return base
            case "step":
                return base * _power(options.gamma, self._validations(place) // options.step_size)
            case "exponential":
                per_epoch = 1 / options.freq if options.freq >= 1 else validations_an_epoch(options.freq)
                return base * _power(options.gamma, place.position * per_epoch / options.step_size)
            case "reduceonplateau":
                assert self._plateau is not None
                return base * _power(options.gamma, self._plateau.reductions)
            case "cosine":
                return _fall(
                    base, min(options.cos_min_lr, base), min(place.position / options.cos_t_max, 1.0)
                )
            case "cosine_warm_restarts":
                # Whole epochs by themselves: a quotient might come out just below the restart.
                whole, step = divmod(place.step, place.steps)
                turn = (place.epoch + whole) % options.cos_t_max
                share = (turn + step / place.steps) / options.cos_t_max
                return _fall(base, min(options.cos_min_lr, base), share)
            case "1cycle":
                rising, share = _one_cycle(place, options.epochs)
                first = base / _FIRST_DIVISOR
                return _fall(first, base, share) if rising else _fall(base, first / _LAST_DIVISOR, share)

    def _warmth(self, place: Place) -> float:
        """The share of the schedule's rate that the warm-up lets through; never 0, and 1 in its last step."""
        if not self._options.warmup:
            return 1.0
        done = place.number if self._warmup_unit == "steps" else place.samples
        return min(1.0, (done + 1) / self._options.warmup)

    def _between(self, place: Place) -> int:
        """Steps between validations."""
        if self._interval is not None and self._options.freq < 1:
            return self._interval
        return steps_between_validations(self._options.freq, place.steps)

    def _validations(self, place: Place) -> int:
        """The validations before ``place``.

        Where an epoch's steps leave room for more than ``--freq`` asks for, those over are not counted:
        then what was counted of past epochs does not hang on how many steps the present one has.
        """
        freq = self._options.freq
        if freq >= 1:
            return (place.epoch + place.step // place.steps) // int(freq)
        times = validations_an_epoch(freq)
        return place.epoch * times + min(times, place.step // self._between(place))


@dataclass(kw_only=True)
class _Plateau:
    """The counters of torch's ReduceLROnPlateau for a score of which more is better."""

    best: float = float("-inf")
    waited: int = 0
    reductions: int = 0

    def update(self, score: float, options: Learning, base: float) -> None:
        # Of scores below 0 torch would take slightly worse ones for better.
        margin = _THRESHOLD * abs(self.best) if math.isfinite(self.best) else 0.0
        if score > self.best + margin:
            self.best, self.waited = score, 0
        else:
            self.waited += 1
        if self.waited > options.rop_patience:
            self.waited = 0
            rate = base * _power(options.gamma, self.reductions)
            if rate - rate * options.gamma > _LEAST_REDUCTION:
                self.reductions += 1


def _fall(top: float, bottom: float, share: float) -> float:
    """From ``top`` to ``bottom``, which may be higher, along half a cosine; ``share`` of the way, in 0..1."""
    return bottom + (top - bottom) * (1 + math.cos(math.pi * share)) / 2


def _power(factor: float, exponent: float) -> float:
    """``factor ** exponent``; 0 where that is too small for a float."""
    return float(factor**exponent)


def _one_cycle(place: Place, epochs: int) -> tuple[bool, float]:
    """Whether the cycle rises, and which share of the way up or down is done, in 0..1.

    Its last step has the lowest rate. A run that goes on for longer keeps that.
    """
    at, total = place.epoch * place.steps + place.step, epochs * place.steps
    top = _RISE * total - 1
    if at <= top:
        return True, at / top if top > 0 else 1.0
    return False, min(1.0, (at - top) / (total - 1 - top))
