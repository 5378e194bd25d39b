"""Line images become the numbers a network trained by kraken expects."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from distrib.ground_truth.network_input import NetworkInput


def grey(width: int, height: int, *, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8))


@pytest.mark.oracle
@pytest.mark.real
def test_scaled_lines_equal_those_recorded(oracle_dir: Path, real_data: Path) -> None:
    with np.load(oracle_dir / "transforms.npz") as recorded:
        for number, name in enumerate(recorded["files"]):
            image = Image.open(real_data / "arabic-lines" / str(name))
            expected = recorded[f"{number}_h120_scaled"].astype(int)
            transform = NetworkInput(height=120)
            actual = transform(image)
            assert actual.shape == expected.shape
            assert actual.shape[2] == transform.output_width(*image.size)
            difference = np.abs(actual - expected)
            assert difference.mean() <= 1
            assert difference.max() <= 8


@settings(max_examples=80, deadline=None)
@given(
    width=st.integers(1, 300),
    height=st.integers(1, 60),
    target=st.sampled_from([0, 1, 40, 48]),
    fixed_width=st.sampled_from([0, 0, 0, 90]),
    channels=st.sampled_from([1, 3]),
    pad=st.integers(0, 20),
    mode=st.sampled_from(["1", "L", "RGB"]),
)
def test_the_width_is_known_without_decoding(
    width: int, height: int, target: int, fixed_width: int, channels: int, pad: int, mode: str
) -> None:
    """Batches are planned from widths alone; a wrong one would break the batch."""
    transform = NetworkInput(height=target, width=fixed_width, channels=channels, pad=pad)
    out = transform(grey(width, height).convert(mode))
    assert out.dtype == np.uint8
    assert out.shape[0] == channels
    assert out.shape[2] == transform.output_width(width, height)
    if target:
        assert out.shape[1] == target


def test_padding_is_paper_and_ink_is_high() -> None:
    image = Image.new("L", (30, 20), 255)
    image.putpixel((10, 10), 0)
    out = NetworkInput(height=20, pad=5)(image)
    assert out.shape == (1, 20, 40)
    assert out[0, 10, 15] == 255
    assert out.sum() == 255


def test_without_padding_the_brightest_pixel_counts_as_paper() -> None:
    out = NetworkInput(height=20, pad=0)(Image.new("L", (30, 20), 100))
    assert out.max() == 0


def test_a_fixed_size_is_met_exactly() -> None:
    """Padding would make the input of a network of fixed width too wide for it."""
    assert NetworkInput(height=60, width=400)(grey(200, 30)).shape == (1, 60, 400)


def test_colour_channels_keep_their_order() -> None:
    out = NetworkInput(height=4, channels=3, pad=1)(Image.new("RGB", (4, 4), (255, 100, 0)))
    assert out[:, 2, 2].tolist() == [0, 155, 255]


@pytest.mark.parametrize("mode", ["1", "L", "RGB"])
def test_one_channel_from_any_mode(mode: str) -> None:
    out = NetworkInput(height=20, pad=2)(grey(30, 20).convert(mode))
    assert out.shape == (1, 20, 34)


def test_binarizing_separates_ink_from_paper() -> None:
    pixels = np.full((20, 60), 200, dtype=np.uint8)
    pixels[5:15, 10:20] = 90
    out = NetworkInput(height=20, one_channel_mode="1", pad=0)(Image.fromarray(pixels))
    assert np.array_equal(out[0] == 255, pixels == 90)
    assert set(np.unique(out)) == {0, 255}


@pytest.mark.parametrize("centerline", [False, True])
@pytest.mark.parametrize("value", [0, 128, 255])
@pytest.mark.parametrize("size", [(1, 1), (50, 1), (1, 50), (80, 30)])
def test_blank_and_tiny_lines_pass(size: tuple[int, int], value: int, centerline: bool) -> None:
    out = NetworkInput(height=48, centerline=centerline)(Image.new("L", size, value))
    assert out.shape[:2] == (1, 48)
    assert out.shape[2] > 32


@pytest.mark.parametrize("bad", [{"channels": 2}, {"height": -1}, {"pad": -1}])
def test_impossible_settings_are_refused(bad: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"line image|negative"):
        NetworkInput(**({"height": 48} | bad))
