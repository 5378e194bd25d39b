"""Lines cut out of a page: geometry that is right, and geometry that is refused with its reason."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from distrib.ground_truth import straighten as straightening
from distrib.ground_truth.extraction import ExtractionProblem, LineExtractor, crop_box
from distrib.ground_truth.records import Line, Point, SkipReason

BOX: tuple[Point, ...] = ((20, 20), (170, 20), (170, 60), (20, 60))
BASELINE: tuple[Point, ...] = ((20, 50), (170, 50))


def line(
    baseline: tuple[Point, ...] | None = BASELINE, boundary: tuple[Point, ...] | None = BOX, name: str = "l1"
) -> Line:
    return Line(id=name, text="x", baseline=baseline, boundary=boundary)


def page(mode: str = "RGB", size: tuple[int, int] = (200, 100)) -> Image.Image:
    """Coordinates as colours: red is x, green is y, blue is never black."""
    rows, columns = np.mgrid[0 : size[1], 0 : size[0]]
    pixels = np.stack([columns, rows, np.full_like(rows, 200)], axis=-1).astype(np.uint8)
    image = Image.fromarray(pixels)
    return image if mode == "RGB" else image.getchannel("B").convert(mode)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_horizontal_line_is_the_crop_of_its_polygon(legacy: bool) -> None:
    image = LineExtractor(page(), line_type="baselines", legacy=legacy)(line())
    assert np.array_equal(np.asarray(image), np.asarray(page())[20:61, 20:171])


def test_what_lies_outside_the_polygon_is_black() -> None:
    image = LineExtractor(page(), line_type="baselines")(line(boundary=((20, 20), (170, 20), (20, 60))))
    pixels = np.asarray(image)
    assert pixels[-1, 60:].max() == 0
    assert pixels[0, 60:].min(axis=0)[2] == 200


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    ("baseline", "first", "last"),
    [
        (((20, 50), (170, 50)), (20, 40), (169, 40)),
        (((170, 50), (20, 50)), (169, 40), (21, 40)),
        (((100, 10), (100, 90)), (90, 11), (90, 89)),
        (((100, 90), (100, 10)), (90, 89), (90, 11)),
    ],
    ids=["rightwards", "leftwards", "downwards", "upwards"],
)
def test_a_line_is_read_in_the_direction_of_its_baseline(
    baseline: tuple[Point, ...], first: tuple[int, int], last: tuple[int, int], legacy: bool
) -> None:
    """Reversed or vertical baselines would otherwise give mirrored or lying text."""
    margin = 15
    xs, ys = zip(*baseline, strict=True)
    left, right = min(xs) - margin * (xs[0] == xs[1]), max(xs) + margin * (xs[0] == xs[1])
    top, bottom = min(ys) - margin * (ys[0] == ys[1]), max(ys) + margin * (ys[0] == ys[1])
    boundary = ((left, top), (right, top), (right, bottom), (left, bottom))
    pixels = np.asarray(
        LineExtractor(page(), line_type="baselines", legacy=legacy)(line(baseline, boundary)), dtype=int
    )
    row = pixels[pixels.shape[0] // 2]
    axis = 0 if first[0] != last[0] else 1
    ink = row[row[:, 2] > 0][:, axis]
    assert abs(ink[0] - first[axis]) <= 2
    assert abs(ink[-1] - last[axis]) <= 2


def test_a_bent_baseline_becomes_horizontal_and_keeps_its_length() -> None:
    bent = ((20.0, 80.0), (120.0, 50.0), (220.0, 80.0), (320.0, 60.0))
    image = Image.new("L", (360, 140), 255)
    draw = ImageDraw.Draw(image)
    draw.line(bent, fill=1, width=3)
    boundary = (*((x, y - 30) for x, y in bent), *((x, y + 20) for x, y in reversed(bent)))
    straight = np.asarray(LineExtractor(image, line_type="baselines")(line(bent, boundary)))
    rows = np.arange(straight.shape[0])[:, None]
    dark = (straight > 0) & (straight < 128)
    dark[:6] = dark[-6:] = False
    middle = slice(30, straight.shape[1] - 30)
    heights = (rows * dark).sum(axis=0)[middle] / np.maximum(dark.sum(axis=0)[middle], 1)
    heights = heights[dark.sum(axis=0)[middle] > 0]
    assert heights.std() < 1.5, "the baseline is not horizontal"
    arc = sum(np.hypot(b[0] - a[0], b[1] - a[1]) for a, b in pairwise(bent))
    assert abs(straight.shape[1] - arc) < 20


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("mode", ["1", "L", "RGB"])
@pytest.mark.parametrize("baseline", [BASELINE, ((20, 50), (90, 45), (170, 50))], ids=["straight", "bent"])
def test_the_mode_of_the_page_is_kept(mode: str, legacy: bool, baseline: tuple[Point, ...]) -> None:
    image = LineExtractor(page(mode), line_type="baselines", legacy=legacy)(line(baseline))
    assert image.mode == mode
    assert image.getbbox() is not None


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (line(boundary=None), SkipReason.NO_POLYGON),
        (line(boundary=()), SkipReason.NO_POLYGON),
        (line(baseline=None), SkipReason.NO_BASELINE),
        (line(baseline=()), SkipReason.NO_BASELINE),
        (line(baseline=((20, 50),)), SkipReason.SHORT_BASELINE),
        (line(baseline=((20, 50), (20, 50))), SkipReason.SHORT_BASELINE),
        (line(baseline=((20, 50), (24, 50))), SkipReason.SHORT_BASELINE),
        (line(baseline=((20, 50), (200, 50))), SkipReason.OUTSIDE_IMAGE),
        (line(baseline=((-1, 50), (100, 50))), SkipReason.OUTSIDE_IMAGE),
        (line(boundary=((20, 20), (170, 20), (170, 100))), SkipReason.OUTSIDE_IMAGE),
        (line(boundary=((20, 20), (float("nan"), 20), (170, 90))), SkipReason.OUTSIDE_IMAGE),
        (line(boundary=((20, 20), (170, 20))), SkipReason.DEGENERATE_POLYGON),
        (line(boundary=((20, 20), (80, 40), (140, 60))), SkipReason.DEGENERATE_POLYGON),
    ],
)
def test_impossible_geometry_is_refused_with_its_reason(bad: Line, reason: SkipReason) -> None:
    with pytest.raises(ExtractionProblem) as caught:
        LineExtractor(page(), line_type="baselines")(bad)
    assert caught.value.reason is reason
    assert "l1" in caught.value.detail


@pytest.mark.parametrize("legacy", [False, True])
def test_a_line_that_would_fill_the_memory_is_refused(monkeypatch: pytest.MonkeyPatch, legacy: bool) -> None:
    zigzag = tuple((20.0 + i % 2 * 150, 50.0 + i % 3) for i in range(40))
    monkeypatch.setattr(straightening, "MAX_LINE_PIXELS", 5000)
    with pytest.raises(ExtractionProblem) as caught:
        LineExtractor(page(), line_type="baselines", legacy=legacy)(line(zigzag))
    assert caught.value.reason is SkipReason.EXTRACTION_FAILED


def test_a_black_line_keeps_its_size() -> None:
    black = Image.new("L", (200, 100), 0)
    assert LineExtractor(black, line_type="baselines")(line()).size == (151, 41)


def test_a_box_is_cropped() -> None:
    image = LineExtractor(page(), line_type="bbox")(line(baseline=None))
    assert np.array_equal(np.asarray(image), np.asarray(page())[20:60, 20:170])


@pytest.mark.parametrize(
    ("boundary", "reason"),
    [
        (((0, 0), (201, 40)), SkipReason.OUTSIDE_IMAGE),
        (((-1, 0), (20, 40)), SkipReason.OUTSIDE_IMAGE),
        (((5, 5), (5, 40)), SkipReason.DEGENERATE_POLYGON),
    ],
)
def test_an_impossible_box_is_refused(boundary: tuple[Point, ...], reason: SkipReason) -> None:
    with pytest.raises(ExtractionProblem) as caught:
        crop_box(page(), boundary)
    assert caught.value.reason is reason


def test_simplifying_stays_within_its_tolerance() -> None:
    angles = np.linspace(0, 2 * np.pi, 200)
    circle = 100 + 80 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    few = straightening.simplify(circle, 2.0)
    assert 8 < len(few) < 40
    ring = few[:-1] + np.diff(few, axis=0) / 2
    assert np.hypot(*(ring - 100).T).min() > 80 - 2.0


coordinates = st.tuples(st.integers(0, 199), st.integers(0, 99))


@settings(max_examples=150, deadline=None)
@given(
    baseline=st.lists(coordinates, min_size=1, max_size=8),
    boundary=st.lists(coordinates, min_size=1, max_size=70),
    legacy=st.booleans(),
    mode=st.sampled_from(["1", "L", "RGB"]),
)
def test_any_line_on_the_page_gives_an_image_or_a_reason(
    baseline: list[tuple[int, int]], boundary: list[tuple[int, int]], legacy: bool, mode: str
) -> None:
    """One mad line must not end the compilation of a collection."""
    extract = LineExtractor(page(mode), line_type="baselines", legacy=legacy)
    try:
        image = extract(line(tuple(baseline), tuple(boundary)))
    except ExtractionProblem:
        return
    assert min(image.size) >= 1
    assert image.mode == mode
