"""The learning rate of a whole run before its first step: in a sentence, as points, as a picture (SVG)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from distrib.config.learning import Learning
from distrib.training.schedules import LearningRates, Place, WarmupUnit, validations_an_epoch

Points = Sequence[tuple[float, float]]
"""Positions in epochs, ascending, with the learning rate there."""

_MOST_POINTS = 2000
_WIDTH, _HEIGHT = 720, 360
_LEFT, _RIGHT, _TOP, _BOTTOM = 76, 20, 40, 48
_LOGARITHMIC_FROM = 100.0
_MOST_DECADES = 12


def rate_summary(options: Learning, *, base: float | None = None, warmup_unit: WarmupUnit = "steps") -> str:
    """What becomes of the learning rate, in one line. ``base``: what it starts from, by default --lrate."""
    rate = f"learning rate {options.lrate if base is None else base:.4g}"
    if base is not None and options.lrate_scaling != "none":
        rate += f" ({options.lrate:g} scaled, {options.lrate_scaling})"
    parts = [rate, _schedule_words(options)]
    if options.warmup:
        parts.append(f"warm-up {options.warmup} {warmup_unit}")
    if options.quit == "aneal":
        parts.append(
            f"cooled to {options.cos_min_lr:g} in {options.lag} validations once {options.lag} bring no "
            "improvement"
        )
    return ", ".join(parts)


def _schedule_words(options: Learning) -> str:
    lowest, size, gamma = f"{options.cos_min_lr:g}", options.step_size, f"{options.gamma:g}"
    match options.schedule:
        case "constant":
            return "constant"
        case "step":
            return f"times {gamma} after every {size} validations"
        case "exponential":
            return f"times {gamma} every {size} validations, smoothly"
        case "reduceonplateau":
            return f"times {gamma} after {options.rop_patience + 1} validations without improvement"
        case "cosine":
            return f"cosine to {lowest} at epoch {options.cos_t_max}"
        case "cosine_warm_restarts":
            return f"cosine to {lowest}, again every {options.cos_t_max} epochs"
        case "1cycle":
            return f"1cycle over {options.epochs} epochs"


def epochs_shown(options: Learning) -> int:
    """How many epochs a picture should show: those of the run, else enough to see what the schedule does."""
    if options.epochs > 0:
        return options.epochs
    match options.schedule:
        case "cosine":
            return math.ceil(1.2 * options.cos_t_max)
        case "cosine_warm_restarts":
            return 3 * options.cos_t_max
        case "step" | "exponential":
            validations = 4 * options.step_size
            each = options.freq if options.freq >= 1 else 1 / validations_an_epoch(options.freq)
            return math.ceil(validations * each)
        case _:
            return max(10, options.min_epochs)


def curve(
    options: Learning,
    *,
    steps: int,
    epochs: int,
    base: float | None = None,
    warmup_unit: WarmupUnit = "steps",
    lines: int = 0,
) -> Points:
    """The learning rates of ``epochs`` epochs of ``steps`` steps and ``lines`` lines, up to 2,000 of them.

    ``base`` is the rate that the schedule starts from, by default --lrate. Whatever depends on scores is
    drawn as if they always improved.
    """
    rates = LearningRates(options, base=options.lrate if base is None else base, warmup_unit=warmup_unit)
    total = steps * epochs
    numbers = {round(at * (total - 1) / (_MOST_POINTS - 1)) for at in range(_MOST_POINTS)}
    points = []
    for number in sorted(numbers):
        epoch, step = divmod(number, steps)
        samples = number * lines // steps
        place = Place(epoch=epoch, step=step, steps=steps, number=number, samples=samples)
        points.append((place.position, rates.rate(place)))
    return points


def curve_svg(points: Points, *, title: str) -> str:
    """A picture of ``points``: epochs to the right, learning rates upwards, their logarithms where they
    span more than a factor of 100."""
    positions, rates = [x for x, _ in points], [y for _, y in points]
    right, highest = math.ceil(positions[-1]) or 1, max(rates) or 1.0
    # A warm-up begins near 0 and says nothing of where the schedule goes.
    lowest = min((rate for rate in rates[rates.index(max(rates)) :] if rate > 0), default=highest)
    logarithmic = highest > _LOGARITHMIC_FROM * lowest
    bottom = max(lowest, highest * 10.0**-_MOST_DECADES) if logarithmic else 0.0
    ceiling = highest if logarithmic else highest * 1.05

    def across(position: float) -> float:
        return _LEFT + position / right * (_WIDTH - _LEFT - _RIGHT)

    def up(rate: float) -> float:
        if logarithmic:
            share = math.log(max(rate, bottom) / bottom) / math.log(ceiling / bottom)
        else:
            share = rate / ceiling
        return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)

    floor, end = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    parts = [_text(_WIDTH / 2, 22, title, weight="bold")]
    for tick in _round_numbers(right, 10):
        x = across(tick)
        parts += [_line(x, floor, x, floor + 5, "#333"), _text(x, floor + 19, f"{tick:g}")]
    ticks = _decades(bottom, ceiling) if logarithmic else _round_numbers(ceiling, 6)
    for tick in ticks:
        y = up(tick)
        parts += [
            _line(_LEFT, y, end, y, "#ddd"),
            _line(_LEFT - 5, y, _LEFT, y, "#333"),
            _text(_LEFT - 9, y + 4, f"{tick:g}", anchor="end"),
        ]
    parts += [
        _line(_LEFT, floor, end, floor, "#333"),
        _line(_LEFT, _TOP, _LEFT, floor, "#333"),
        _text((_LEFT + end) / 2, _HEIGHT - 10, "epochs"),
        f'<text transform="translate(16,{(_TOP + floor) / 2:.0f}) rotate(-90)" text-anchor="middle">'
        "learning rate</text>",
    ]
    line = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in points)
    parts.append(f'<polyline points="{line}" fill="none" stroke="#1a5fb4" stroke-width="2"/>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" '
        f'height="{_HEIGHT}" font-family="sans-serif" font-size="12">\n'
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _line(x: float, y: float, to_x: float, to_y: float, colour: str) -> str:
    return f'<line x1="{x:.1f}" y1="{y:.1f}" x2="{to_x:.1f}" y2="{to_y:.1f}" stroke="{colour}"/>'


def _text(x: float, y: float, words: str, *, anchor: str = "middle", weight: str = "normal") -> str:
    # Longer ones are drawn closer together, which viewers do by themselves when told the length.
    fit = f' textLength="{_WIDTH - 40}" lengthAdjust="spacingAndGlyphs"' if len(words) > 90 else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}"{fit}>'
        f"{escape(words)}</text>"
    )


def _round_numbers(highest: float, most: int) -> list[float]:
    """At most ``most`` multiples of 1, 2 or 5 times a power of ten, after 0 and up to ``highest``, and 0."""
    power = 10.0 ** math.floor(math.log10(highest / most))
    unit = next(power * factor for factor in (1, 2, 5, 10, 20) if highest / (power * factor) <= most)
    return [unit * number for number in range(int(highest / unit * (1 + 1e-9)) + 1)]


def _decades(lowest: float, highest: float) -> list[float]:
    """The powers of ten from ``lowest`` to ``highest``."""
    first, last = math.ceil(math.log10(lowest) - 1e-9), math.floor(math.log10(highest) + 1e-9)
    return [10.0**exponent for exponent in range(first, last + 1)]
