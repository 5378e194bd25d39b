"""Line images become the numbers a network trained by kraken expects."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from distrib.ground_truth.network_input import NetworkInput, normalized_line
from distrib.ground_truth.reader import read_line_images
from distrib.ground_truth.records import LineImage


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


@settings(max_examples=80, deadline=None)
@given(
    width=st.integers(1, 200),
    height=st.integers(1, 60),
    target=st.sampled_from([1, 40, 48]),
    centerline=st.booleans(),
    pad=st.sampled_from([0, 16]),
    mode=st.sampled_from(["1", "L", "RGB"]),
    one_channel_mode=st.sampled_from([None, "L", "1"]),
    ink=st.integers(0, 3),
)
def test_a_normalised_line_makes_the_same_input_as_its_image(
    width: int,
    height: int,
    target: int,
    centerline: bool,
    pad: int,
    mode: str,
    one_channel_mode: Literal["1", "L"] | None,
    ink: int,
) -> None:
    """Else a model trained on normalised data would read other lines than the one trained on raw data."""
    pixels = np.asarray(grey(width, height, seed=ink))
    image = Image.fromarray(np.where(pixels < 60 * ink, pixels, 255).astype(np.uint8)).convert(mode)
    # Where grey lines are cut into black and white it happens before scaling, which is not to be had back.
    if one_channel_mode == "1" and mode != "1":
        one_channel_mode = "L"
    transform = NetworkInput(height=target, pad=pad, centerline=centerline, one_channel_mode=one_channel_mode)
    line = normalized_line(image, height=target, centerline=centerline)
    assert line.mode == "L"
    assert line.height == target
    out = transform(line, normalized_height=target, bitonal_source=mode == "1")
    assert np.array_equal(out, transform(image))
    assert out.shape[2] == transform.output_width(*line.size, normalized=True)


@pytest.mark.real
@pytest.mark.parametrize("height", [48, 120])
@pytest.mark.parametrize("data", ["fraktur-lines/*1.png", "arabic-lines/*1.png", "print16-alto/*/*.xml"])
def test_normalised_real_lines_make_the_same_input(real_data: Path, data: str, height: int) -> None:
    sources = sorted(real_data.glob(data))[:12]
    bbox = not data.endswith("xml")
    items = [
        item
        for source in (sources if bbox else sources[:1])
        for item in read_line_images(
            source, format_type="path" if bbox else "xml", linetype=None, legacy_polygons=False
        )
    ]
    images = [item.image for item in items if isinstance(item, LineImage)][:12]
    assert images
    transform = NetworkInput(height=height, centerline=bbox)
    for image in images:
        line = normalized_line(image, height=height, centerline=bbox)
        assert np.array_equal(transform(line, normalized_height=height), transform(image))


def test_a_normalised_line_of_another_height_is_only_scaled() -> None:
    """It has no more of its image than its own pixels: straightening it again would cut it a second time."""
    line = normalized_line(grey(300, 50), height=120, centerline=True)
    out = NetworkInput(height=48, centerline=True)(line, normalized_height=120)
    scaled = line.resize((int(line.width * 48 / 120), 48), Image.Resampling.LANCZOS)
    assert np.array_equal(out[0, :, 16:-16], 255 - np.asarray(scaled))


def test_a_colour_network_sees_a_normalised_line_in_three_equal_channels() -> None:
    line = normalized_line(grey(90, 40).convert("RGB"), height=40, centerline=False)
    out = NetworkInput(height=40, channels=3)(line, normalized_height=40)
    assert out.shape == (3, 40, 122)
    assert np.array_equal(out[0], out[1])
    assert np.array_equal(out[0], out[2])


def test_greys_of_scaling_stay_only_where_the_source_was_bitonal() -> None:
    """A network of black and white lines sees greys at their edges when it scales; grey lines it cuts."""
    source = grey(200, 100).convert("1")
    line = normalized_line(source, height=40, centerline=False)
    transform = NetworkInput(height=40, one_channel_mode="1")
    assert len(np.unique(transform(line, normalized_height=40, bitonal_source=True))) > 2
    assert set(np.unique(transform(line, normalized_height=40))) == {0, 255}


def test_lines_are_not_normalised_to_no_height() -> None:
    with pytest.raises(ValueError, match="1 pixel or more"):
        normalized_line(grey(10, 10), height=0, centerline=False)


@settings(max_examples=80, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 70_000), st.integers(1, 5_000)), max_size=30),
    target=st.sampled_from([0, 1, 48, 120, 4096]),
    fixed_width=st.sampled_from([0, 0, 90]),
    centerline=st.booleans(),
    normalized=st.booleans(),
)
def test_widths_of_many_equal_those_of_one(
    sizes: list[tuple[int, int]], target: int, fixed_width: int, centerline: bool, normalized: bool
) -> None:
    """The plan is made of the many, the batch of the ones."""
    transform = NetworkInput(height=target, width=fixed_width, centerline=centerline)
    widths, heights = np.array(sizes, dtype=np.int32).reshape(-1, 2).T
    expected = [transform.output_width(*size, normalized=normalized) for size in sizes]
    found = transform.output_widths(widths, heights, normalized=normalized)
    assert found.dtype == np.int32
    assert found.tolist() == expected
    mask = np.full(len(sizes), normalized)
    assert transform.output_widths(widths, heights, normalized=mask).tolist() == expected


def test_widths_of_images_without_pixels_are_zero_and_huge_ones_do_not_wrap() -> None:
    sizes = np.array([0, 0, 2**31 - 1], dtype=np.int32), np.array([0, 5, 1], dtype=np.int32)
    assert NetworkInput(height=120).output_widths(*sizes).tolist() == [0, 0, 2**31 - 1]
