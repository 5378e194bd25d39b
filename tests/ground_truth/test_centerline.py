"""Centre-line normalisation: what OCRopus published, fast enough for a training loop."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from distrib.ground_truth import centerline
from distrib.ground_truth.network_input import NetworkInput


@pytest.mark.oracle
@pytest.mark.real
@pytest.mark.parametrize("height", [48, 120])
def test_normalised_lines_agree_with_those_recorded(oracle_dir: Path, real_data: Path, height: int) -> None:
    with np.load(oracle_dir / "transforms.npz") as recorded:
        for number, name in enumerate(recorded["files"]):
            image = Image.open(real_data / "arabic-lines" / str(name))
            expected = recorded[f"{number}_h{height}_centerline"].astype(int)
            transform = NetworkInput(height=height, centerline=True)
            actual = transform(image)
            assert actual.shape == expected.shape
            assert np.abs(actual - expected).mean() < 0.25
            assert abs(transform.output_width(*image.size) / actual.shape[2] - 1) < 0.05


def wave(width: int = 1600, height: int = 60, rise: float = 12.0) -> Image.Image:
    """A dark band that goes up and down."""
    columns = np.arange(width)
    center = height / 2 + rise * np.sin(columns / width * 2 * np.pi)
    ink = np.abs(np.arange(height)[:, None] - center[None]) < 5
    return Image.fromarray(np.where(ink, 0, 255).astype(np.uint8))


def test_a_wavy_line_becomes_straight() -> None:
    def spread(pixels: np.ndarray) -> float:
        ink = 255.0 - pixels
        rows = np.arange(len(ink))[:, None]
        return float(((rows * ink).sum(0) / ink.sum(0)).std() / len(ink))

    before = np.asarray(wave())
    after = np.asarray(centerline.normalize_centerline(wave(), 48))
    inner = after[:, 40:-40]
    assert after.shape[0] == 48
    assert spread(inner) < spread(before) / 2


@settings(max_examples=40, deadline=None)
@given(height=st.integers(1, 40), width=st.integers(1, 150), seed=st.integers(0, 1000))
def test_the_fast_smoothing_equals_the_plain_one(height: int, width: int, seed: int) -> None:
    """Moments and their Fourier transform stand in for filters of the size of the line."""
    line = np.random.default_rng(seed).random((height, width))
    factors = centerline._gaussian_factors(height)
    fast = factors @ centerline._smooth_rows(factors.T @ line, height * 1.0)
    plain = scipy.ndimage.gaussian_filter(line, (height * 0.5, height * 1.0), mode="constant")
    assert np.abs(fast - plain).max() < 1e-13
    length = max(int(height * 0.5), 1)
    boxes = centerline._mean_columns(centerline._mean_rows(line), length)
    plain = scipy.ndimage.uniform_filter(line, (length, width), mode="constant")
    assert np.abs(boxes - plain).max() < 1e-12


def test_a_column_of_an_image_as_high_as_a_book_is_no_square_matrix() -> None:
    """An image turned by mistake is as high as a line is long; a kernel of its height squared is huge."""
    tracemalloc.start()
    try:
        centerline.normalize_centerline(wave(width=4, height=20_000), 48)
        assert tracemalloc.get_traced_memory()[1] < 200e6
    finally:
        tracemalloc.stop()
