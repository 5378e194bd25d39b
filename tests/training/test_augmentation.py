"""Augmentation: what it does to a line, that it does it to that line alone, and what it must not do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from distrib.ground_truth.network_input import NetworkInput
from distrib.training import augmentation
from distrib.training.augmentation import Augmentation, _Lines
from distrib.training.distortion.curves import smooth_curves
from distrib.training.distortion.draws import Draws
from distrib.training.distortion.geometry import CUT, Geometry, _places, draw_geometry, warp
from distrib.training.distortion.photometry import (
    Tone,
    add_noise,
    blur,
    change_strokes,
    change_tone,
    draw_spots,
    draw_tone,
    erase,
)

Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def drawn_lines(count: int = 12, height: int = 48, channels: int = 1, extra: int = 0, seed: int = 0) -> Batch:
    """Strokes on grey paper as a padded batch: images, widths, line numbers."""
    rng = np.random.default_rng(seed)
    widths = rng.integers(60, 260, count)
    images = np.zeros((count, channels, height, int(widths.max()) + extra), dtype=np.float32)
    for image, width in zip(images, widths, strict=True):
        image[:, :, :width] = 0.1
        for left in range(8, int(width) - 10, 9):
            top = int(rng.integers(2, height // 2))
            image[:, top : height - 6, left : left + 4] = rng.uniform(0.7, 1.0)
    return torch.from_numpy(images), torch.from_numpy(widths), torch.arange(count) * 7 + 3


def one_line(height: int = 60, width: int = 400) -> tuple[torch.Tensor, np.ndarray]:
    """A line with a horizontal and a vertical stroke in the middle."""
    image = torch.zeros((1, 1, height, width))
    image[:, :, height // 2 - 2 : height // 2 + 3] = 1
    image[:, :, 5 : height - 5, width // 2 - 2 : width // 2 + 3] = 1
    return image, np.array([width])


def unbent(count: int = 1) -> dict[str, np.ndarray]:
    """The fields of a geometry that changes nothing."""
    zeros = np.zeros(count)
    names = ("shift_x", "shift_y", "slope", "shear", "perspective")
    still = dict.fromkeys(names, zeros) | dict.fromkeys(("zoom_x", "zoom_y", "spacing"), zeros + 1)
    return still | {"bends": np.zeros((count, 2, 3, 405))}


def warped(image: torch.Tensor, widths: np.ndarray, **changes: object) -> torch.Tensor:
    values = {name: np.asarray(value, dtype=np.float64) for name, value in (unbent() | changes).items()}
    return warp(image, widths, Geometry(**values))


def centre(image: torch.Tensor, column: int) -> float:
    """The row of a column's centre of ink."""
    ink = image[0, 0, :, column]
    return float((ink * torch.arange(len(ink))).sum() / ink.sum())


@contextmanager
def deterministic() -> Iterator[None]:
    torch.set_deterministic_debug_mode("error")
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode("default")


# The whole


def test_strength_zero_changes_no_bit() -> None:
    images, widths, lines = drawn_lines()
    assert torch.equal(Augmentation(0.0)(images, widths, lines, seed=1, epoch=2), images)


def test_a_small_strength_changes_little() -> None:
    """Strength scales every amplitude: nothing jumps as soon as it is not zero."""
    images, widths, lines = drawn_lines(count=64)
    change = {
        strength: float(
            (Augmentation(strength)(images, widths, lines, seed=1, epoch=2) - images).abs().mean()
        )
        for strength in (0.02, 0.2, 1.0)
    }
    assert 0 < change[0.02] < 0.1 * change[1.0]
    assert change[0.02] < change[0.2] < change[1.0]


@pytest.mark.parametrize("strength", [-0.1, float("nan"), float("inf")])
def test_a_strength_that_is_no_amount_is_refused(strength: float) -> None:
    with pytest.raises(ValueError, match="strength"):
        Augmentation(strength)


def test_images_of_integers_are_refused() -> None:
    """Values of 0..255 would silently be taken for ink far beyond black."""
    with pytest.raises(ValueError, match="floats"):
        Augmentation()(torch.zeros((1, 1, 8, 8), dtype=torch.uint8), *drawn_lines(1)[1:], seed=0, epoch=0)


@pytest.mark.parametrize("strength", [1.0, 3.0])
@pytest.mark.parametrize("height", [32, 61, 120])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_line_does_not_depend_on_its_batch(strength: float, height: int, channels: int) -> None:
    """Order, company, padding and the cut into micro-batches must not change a bit, or a run would depend
    on how many processes it has."""
    images, widths, lines = drawn_lines(count=24, height=height, channels=channels)
    augment = Augmentation(strength)
    whole = augment(images, widths, lines, seed=5, epoch=1)
    order = torch.randperm(len(lines), generator=torch.Generator().manual_seed(0))
    shuffled = augment(images[order], widths[order], lines[order], seed=5, epoch=1)
    assert torch.equal(shuffled, whole[order])
    wider = torch.nn.functional.pad(images, (0, 333))
    wider_result = augment(wider, widths, lines, seed=5, epoch=1)
    assert torch.equal(wider_result[..., : images.shape[3]], whole)
    for number in range(0, len(lines), 3):
        own = slice(number, number + 1)
        width = int(widths[number])
        alone = augment(images[own, :, :, :width], widths[own], lines[own], seed=5, epoch=1)
        assert torch.equal(alone, whole[own, :, :, :width])


def test_seed_epoch_and_line_each_make_a_difference() -> None:
    images, widths, lines = drawn_lines(count=1)
    images, widths = images.expand(40, -1, -1, -1), widths.expand(40)
    lines = torch.arange(40)
    augment = Augmentation()
    first = augment(images, widths, lines, seed=0, epoch=0)
    assert torch.equal(augment(images, widths, lines, seed=0, epoch=0), first), "the same again"
    assert len({image.numpy().tobytes() for image in first}) > 20, "lines differ"
    for other in (
        augment(images, widths, lines, seed=1, epoch=0),
        augment(images, widths, lines, seed=0, epoch=1),
    ):
        differing = (other != first).flatten(1).any(1).float().mean()
        assert differing > 0.8


def test_about_a_quarter_of_lines_stay_clean() -> None:
    images, widths, _ = drawn_lines(count=1, height=16)
    count = 600
    images, widths = images[..., :60].expand(count, -1, -1, -1), torch.full((count,), 60)
    result = Augmentation()(images, widths, torch.arange(count), seed=0, epoch=0)
    clean = (result == images).flatten(1).all(1).float().mean()
    assert 0.2 < clean < 0.32


def test_every_kind_of_distortion_is_applied(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each to its share of lines, that of the three quarters that are not left alone."""
    touched: dict[str, float] = {}

    def watch(name: str) -> None:
        original = getattr(augmentation, name)

        def watched(first: object, *rest: object) -> object:
            if name == "erase":
                touched[name] = len({spot.image for spot in rest[0]}) / 400  # type: ignore[attr-defined]
            else:
                touched[name] = len(first) / 400  # type: ignore[arg-type]
            return original(first, *rest)

        monkeypatch.setattr(augmentation, name, watched)

    shares = {"warp": 0.7, "change_strokes": 0.22, "blur": 0.22, "erase": 0.19, "change_tone": 0.37}
    shares["add_noise"] = 0.22
    for name in shares:
        watch(name)
    images = torch.full((400, 1, 32, 100), 0.5)
    Augmentation()(images, torch.full((400,), 100), torch.arange(400), seed=0, epoch=0)
    assert touched == pytest.approx(shares, abs=0.06)


@pytest.mark.parametrize("strength", [0.3, 1.0, 3.0])
def test_values_and_padding_stay_what_they_are(strength: float) -> None:
    """Ink in 0..1, nothing to the right of a line, no NaN, and the images given are left alone."""
    images, widths, lines = drawn_lines(count=40, extra=20)
    before = images.clone()
    result = Augmentation(strength)(images, widths, lines, seed=3, epoch=9)
    assert torch.equal(images, before)
    assert result.shape == images.shape
    assert float(result.min()) >= 0
    assert float(result.max()) <= 1
    assert (result * 255).round().to(torch.uint8).float().sub(result * 255).abs().max() <= 0.5
    outside = torch.arange(images.shape[3]) >= widths[:, None]
    assert not result.permute(0, 3, 1, 2)[outside].any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types_get_the_same_distortion(dtype: torch.dtype) -> None:
    """Half precision must not displace the pixels of a long line."""
    images, widths, lines = drawn_lines(count=16)
    images = images.to(dtype)
    result = Augmentation()(images, widths, lines, seed=3, epoch=9)
    expected = Augmentation()(images.float(), widths, lines, seed=3, epoch=9)
    assert result.dtype == dtype
    # A place that lies between two roundings may move by the part of a pixel that places are rounded to.
    assert (result.float() - expected).abs().mean() < 1e-3
    assert (result.float() - expected).abs().max() < 0.05


def test_autocast_and_gradients_do_not_reach_it() -> None:
    images, widths, lines = drawn_lines(count=16)
    expected = Augmentation()(images, widths, lines, seed=3, epoch=9)
    with torch.autocast("cpu", torch.bfloat16):
        result = Augmentation()(images.requires_grad_(), widths, lines, seed=3, epoch=9)
    assert torch.equal(result, expected)
    assert not result.requires_grad


def test_deterministic_algorithms_change_nothing() -> None:
    images, widths, lines = drawn_lines(count=16)
    expected = Augmentation()(images, widths, lines, seed=3, epoch=9)
    with deterministic():
        assert torch.equal(Augmentation()(images, widths, lines, seed=3, epoch=9), expected)


@pytest.mark.parametrize("shape", [(0, 1, 16, 0), (3, 1, 1, 1), (2, 1, 5, 3), (2, 3, 200, 1)])
def test_tiny_and_empty_batches(shape: tuple[int, int, int, int]) -> None:
    images = torch.full(shape, 0.5)
    widths, lines = torch.full(shape[:1], shape[3]), torch.arange(shape[0])
    for epoch in range(12):
        result = Augmentation(3.0)(images, widths, lines, seed=0, epoch=epoch)
        assert result.shape == images.shape
        assert bool(torch.isfinite(result).all())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_distorts_as_the_cpu_does() -> None:
    images, widths, lines = drawn_lines(count=32, height=120)
    expected = Augmentation()(images, widths, lines, seed=3, epoch=9)
    result = Augmentation()(images.cuda(), widths, lines, seed=3, epoch=9)
    wider = Augmentation()(torch.nn.functional.pad(images, (0, 999)).cuda(), widths, lines, seed=3, epoch=9)
    assert torch.equal(wider[..., : images.shape[3]], result)
    assert (result.cpu() - expected).abs().mean() < 1e-4


@pytest.mark.real
def test_real_lines_stay_legible(real_data: Path) -> None:
    """What is dark stays distinguishable from what is light, and hardly any ink is lost."""
    paths = sorted((real_data / "fraktur-lines").glob("*.png"))[:16]
    lines = [torch.from_numpy(NetworkInput(height=48)(Image.open(path))) for path in paths]
    widths = torch.tensor([line.shape[2] for line in lines])
    images = torch.zeros((len(lines), 1, 48, int(widths.max())))
    for slot, line in zip(images, lines, strict=True):
        slot[..., : line.shape[2]] = line / 255
    for epoch in range(3):
        result = Augmentation()(images, widths, torch.arange(len(lines)), seed=0, epoch=epoch)
        for before, after, width in zip(images, result, widths.tolist(), strict=True):
            levels = torch.quantile(after[..., :width].flatten(), torch.tensor([0.2, 0.95]))
            assert levels[1] - levels[0] > 0.2
            columns = (before[..., :width].amax((0, 1)) > 0.5).float().mean()
            kept = (after[..., :width].amax((0, 1)) > float(levels.mean())).float().mean()
            assert kept > 0.7 * columns


# Where the ink goes


def test_the_identity_moves_nothing() -> None:
    image, widths = one_line()
    assert torch.equal(warped(image, widths), image)


def test_rotation_lifts_one_end_and_lowers_the_other() -> None:
    image, widths = one_line()
    result = warped(image, widths, slope=[0.05])
    assert centre(result, 100) - centre(image, 100) == pytest.approx(0.05 * 99.5, abs=0.3)
    assert centre(result, 300) - centre(image, 300) == pytest.approx(-0.05 * 100.5, abs=0.3)


def test_shear_slants_upright_strokes_and_leaves_the_baseline() -> None:
    image, widths = one_line()
    result = warped(image, widths, shear=[0.3])
    strokes = [
        float((result[0, 0, row] * torch.arange(400)).sum() / result[0, 0, row].sum()) for row in (10, 50)
    ]
    assert strokes[1] - strokes[0] == pytest.approx(-0.3 * 40, abs=0.3)
    assert centre(result, 50) == pytest.approx(centre(image, 50), abs=0.05)


def test_translation_and_scale() -> None:
    image, widths = one_line()
    lower = warped(image, widths, shift_y=[-0.1])
    assert centre(lower, 50) - centre(image, 50) == pytest.approx(6, abs=0.05)
    smaller = warped(image, widths, zoom_y=[1.5])
    height = float(image[0, 0, :, 50].sum())
    assert float(smaller[0, 0, :, 50].sum()) == pytest.approx(height / 1.5, abs=0.2)
    narrower = warped(image, widths, zoom_x=[1.25], shift_x=[-0.5])
    assert int(narrower[0, 0, 15].argmax()) == pytest.approx(199.5 + 0.5 * 60 / 1.25, abs=3)


def test_perspective_makes_one_end_smaller() -> None:
    image, widths = one_line()
    result = warped(image, widths, perspective=[0.2])
    left, right = float(result[0, 0, :, 10].sum()), float(result[0, 0, :, 390].sum())
    assert left / right == pytest.approx(1.2 / 0.8, rel=0.08)


def test_elastic_bending_moves_each_place_by_its_own_curve() -> None:
    """Displacements at the control values come out where they belong, at top, middle and bottom."""
    image, widths = one_line()
    bends = np.zeros((1, 2, 3, 12))
    bends[:, 1, :, 4:7] = 0.1
    result = warped(image, widths, spacing=[1.0], bends=bends)
    assert centre(result, 60 * 4) - centre(image, 60 * 4) == pytest.approx(-6, abs=0.3)
    assert centre(result, 30) == pytest.approx(centre(image, 30), abs=0.05)


def test_curves_are_smooth_and_keep_to_their_range() -> None:
    controls = torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, (3, 2, 30))).float()
    spacing = torch.tensor([4.0, 7.5, 11.25])
    curves = smooth_curves(controls, spacing, 100)
    assert curves.abs().max() <= 1
    assert (curves.diff(dim=2).abs().amax((1, 2)) <= 2 / spacing).all()
    # At a knot a cubic B-spline is the mean of three values with weights 1, 4 and 1.
    at = (controls[0, :, 4] + 4 * controls[0, :, 5] + controls[0, :, 6]) / 6
    assert torch.allclose(curves[0, :, 16], at, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(
    strength=st.floats(0.05, 3),
    height=st.sampled_from([24, 48, 120, 200]),
    length=st.floats(0.3, 30),
    seed=st.integers(0, 2**63),
)
def test_no_edge_loses_more_than_a_sliver(strength: float, height: int, length: float, seed: int) -> None:
    """Ascenders, descenders and the ends of a line stay in the image, however long the line is."""
    widths = np.full(8, max(int(length * height), 1))
    geometry, _ = draw_geometry(Draws(seed, 0, np.arange(8)), widths, height, strength)
    width = int(widths[0])
    places = _places(torch.zeros((8, 1, height, width)), widths, geometry) / 64
    slack = CUT * height + 1
    assert float(places[:, 0, :, 1].max()) <= slack
    assert float(places[:, -1, :, 1].min()) >= height - 1 - slack
    assert float(places[:, :, 0, 0].max()) <= slack
    assert float(places[:, :, -1, 0].min()) >= width - 1 - slack
    # Text keeps its order: no place of a row is shown twice.
    assert width == 1 or float(places[..., 0].diff(dim=2).min()) > 0.2


def test_every_kind_of_bending_happens_within_its_bounds() -> None:
    widths = np.random.default_rng(0).integers(100, 3000, 2000)
    geometry, bent = draw_geometry(Draws(0, 0, np.arange(2000)), widths, 120, 1.0)
    upright = np.abs(geometry.slope) * widths / 2
    assert 0.07 * 120 < upright.max() <= 0.08 * 120
    assert np.abs(geometry.shear - geometry.slope).max() <= 0.2 + 0.035
    for values, low, high in (
        (geometry.shift_x, -0.15, 0.15),
        (geometry.shift_y, -0.03, 0.03),
        (geometry.perspective, -0.08, 0.08),
        (geometry.bends, -0.045, 0.045),
        (geometry.zoom_x, 0.99, 1.16),
        (geometry.zoom_y, 0.94, 1.55),
    ):
        assert low <= values.min() < values.max() <= high
        assert values.max() > 0.5 * high
    for happening in (
        geometry.slope,
        geometry.shear - geometry.slope,
        geometry.shift_x,
        geometry.bends[:, 0, 0, 0],
    ):
        assert 0.3 < (happening != 0).mean() < 0.8
    assert 0.9 < bent.mean() <= 1


# What the ink looks like


@pytest.mark.parametrize("others", [0, 2])
@pytest.mark.parametrize("kind", ["strokes", "blur", "tone", "noise", "warp"])
def test_ink_at_the_end_of_a_line_does_not_run_into_the_padding(kind: str, others: int) -> None:
    """A later distortion would else carry it back into the line, in wide batches only."""
    widths = np.array([100])
    image = torch.ones((1, 1, 40, 130))
    image[..., 100:] = 0
    tone = Tone(np.zeros(1), np.full((1, 90), 0.2), np.full((1, 90), 0.9), np.array([40.0]))
    change = {
        "strokes": lambda part, _: change_strokes(part, np.array([0.8])),
        "blur": lambda part, _: blur(part, np.array([[1.5, 1.5]])),
        "tone": lambda part, _: change_tone(part, tone),
        "noise": lambda part, _: add_noise(part, Draws(0, 0, widths), np.array([0.1])),
        "warp": lambda part, _: warped(part, widths, shift_x=[-0.3]),
    }[kind]
    image = image.expand(others + 1, -1, -1, -1).clone()
    lines = _Lines(image, widths.repeat(others + 1))
    lines.change(np.arange(others + 1) == others, change)
    assert not image[..., 100:].any()
    assert image[-1, ..., 99].any()
    assert bool((image[:-1, ..., :100] == 1).all()), "the others stay"


def test_blur_lowers_the_energy_of_edges_and_keeps_the_ink() -> None:
    image, _ = one_line()
    result = blur(image, np.array([[1.5, 0.8]]))
    assert result.diff(dim=3).square().sum() < 0.6 * image.diff(dim=3).square().sum()
    assert result.diff(dim=2).square().sum() < 0.8 * image.diff(dim=2).square().sum()
    assert float(result[..., 50:350].sum()) == pytest.approx(float(image[..., 50:350].sum()), rel=1e-3)
    assert float(result.max()) <= 1 + 1e-6


def test_blur_is_that_of_its_sigma() -> None:
    """A point becomes a bell whose second moment is sigma squared."""
    image = torch.zeros((1, 1, 41, 41))
    image[..., 20, 20] = 1
    result = blur(image, np.array([[2.0, 1.0]]))[0, 0]
    distance = (torch.arange(41) - 20.0).square()
    assert float((result.sum(0) * distance).sum()) == pytest.approx(4.0, rel=0.05)
    assert float((result.sum(1) * distance).sum()) == pytest.approx(1.0, rel=0.05)


def test_strokes_become_thicker_and_thinner() -> None:
    image, _ = one_line()
    for amount, thickness in ((1.0, 7.0), (0.5, 6.0), (-1.0, 3.0), (-0.5, 4.0), (0.0, 5.0)):
        result = change_strokes(image, np.array([amount]))
        assert float(result[0, 0, :, 50].sum()) == pytest.approx(thickness)
        assert float(result[0, 0, 12].sum()) == pytest.approx(thickness)


def test_erasing_covers_rectangles_and_nothing_else() -> None:
    draws, widths = Draws(0, 0, np.arange(50)), np.linspace(100, 2000, 50).astype(np.int64)
    spots = draw_spots(draws, widths, 100, 0.3)
    assert {spot.image for spot in spots} == set(range(50)), "a spot or more for every line"
    assert len(spots) > 60
    images = torch.full((50, 3, 100, 2000), 0.9)
    erase(images, spots)
    changed = torch.zeros(images.shape, dtype=torch.bool)
    for spot in spots:
        assert 0 <= spot.left < spot.right <= widths[spot.image]
        assert 0 <= spot.top < spot.bottom <= 100
        assert spot.right - spot.left <= 30
        assert spot.bottom - spot.top <= 45
        changed[spot.image, :, spot.top : spot.bottom, spot.left : spot.right] = True
    assert torch.equal(images != 0.9, changed)
    assert 0.4 < np.mean([spot.ink == 0 for spot in spots]) < 0.8
    assert max(spot.ink for spot in spots) <= 0.8


def test_tone_maps_paper_and_ink_to_their_shades() -> None:
    image, _ = one_line()
    image = (image * 0.5).round(decimals=1) + torch.where(torch.arange(400) < 200, 0.0, 0.5)
    tone = Tone(np.array([0.5]), np.full((1, 30), 0.1), np.full((1, 30), 0.7), np.array([40.0]))
    result = change_tone(image, tone)
    for before, after in ((0.0, 0.1), (1.0, 0.7), (0.5, 0.1 + 0.6 * 0.625)):
        values = result[image == before]
        assert len(values)
        assert torch.allclose(values, torch.tensor(after))


def test_tones_leave_contrast_and_differ_along_the_line() -> None:
    for strength in (1.0, 3.0):
        tone = draw_tone(Draws(0, 0, np.arange(500)), np.full(500, 2000), 120, strength)
        assert (tone.ink.min(1) - tone.paper.max(1)).min() >= 0.3 - 1e-9
        assert tone.paper.min() >= 0
        assert tone.ink.max() <= 1
        assert np.abs(tone.curve).max() < 1
        assert np.ptp(tone.paper, axis=1).mean() > 0.01


def test_noise_is_noise_of_the_given_strength() -> None:
    """Without a pattern: neighbours, rows and columns are not correlated."""
    images = torch.full((2, 1, 120, 1500), 0.5)
    result = add_noise(images, Draws(0, 0, np.arange(2)), np.array([0.05, 0.02]))
    noise = (result - images)[0, 0]
    assert float(noise.mean()) == pytest.approx(0, abs=1e-3)
    assert float(noise.std()) == pytest.approx(0.05, rel=0.02)
    assert float((result - images)[1, 0, :, :700].std()) == pytest.approx(0.02, rel=0.02)
    normalised = (noise / noise.std()).double()
    # In a rank-one pattern the sums over rows and columns would stand out.
    for shifted in (
        (normalised[1:] * normalised[:-1]),
        (normalised[:, 1:] * normalised[:, :-1]),
        (normalised[1:, 1:] * normalised[:-1, :-1] * normalised[1:, :-1] * normalised[:-1, 1:]),
    ):
        assert abs(float(shifted.mean())) < 5 / shifted.numel() ** 0.5
    assert float(normalised.mean(0).std()) == pytest.approx(120**-0.5, rel=0.1)
    assert float(normalised.mean(1).std()) == pytest.approx(1500**-0.5, rel=0.25)


def test_draws_are_even_and_independent_of_their_number() -> None:
    draws = Draws(2**64 - 1, 3, np.arange(4000))
    numbers = draws.uniforms("anything", 5)
    assert np.array_equal(numbers[:, :2], draws.uniforms("anything", 2))
    assert np.array_equal(draws.select(np.array([7])).uniforms("anything", 5), numbers[7:8])
    assert np.histogram(numbers, 20, (0, 1))[0].std() < 3 * (20000 / 20) ** 0.5
    assert np.abs(np.corrcoef(np.c_[numbers, draws.uniforms("other", 5)].T) - np.eye(10)).max() < 0.08
    assert abs(np.corrcoef(numbers[1:, 0], numbers[:-1, 0])[0, 1]) < 0.08
