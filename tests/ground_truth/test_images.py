"""Images from outside: modes, orientation, limits, damage."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from distrib.ground_truth.images import ImageProblem, decode_image, open_image, read_image_header
from distrib.ground_truth.records import SkipReason

GRAY = np.arange(40 * 60, dtype=np.uint32).reshape(40, 60) % 256
COLOUR = np.stack([GRAY, GRAY[::-1], 255 - GRAY], axis=-1).astype(np.uint8)


def png_header(width: int, height: int) -> bytes:
    """A PNG of a huge claimed size and almost no data."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    data = zlib.compress(b"\0" * 100)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def saved(image: Image.Image, path: Path, **options: object) -> Path:
    image.save(path, **options)  # type: ignore[arg-type]
    return path


@pytest.mark.parametrize(("mode", "expected"), [("1", "1"), ("L", "L"), ("RGB", "RGB")])
def test_plain_modes_are_left_alone(tmp_path: Path, mode: str, expected: str) -> None:
    """Pixels would change on the way into a data set."""
    image = Image.fromarray(COLOUR).convert(mode)
    read = open_image(saved(image, tmp_path / "a.png"))
    assert read.mode == expected
    assert np.array_equal(np.asarray(read), np.asarray(image))


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "LAB"])
def test_other_colour_spaces_become_rgb(tmp_path: Path, mode: str) -> None:
    """CMYK and its like would stop a compilation, as no data set can hold them."""
    assert open_image(saved(Image.fromarray(COLOUR).convert(mode), tmp_path / "a.tif")).mode == "RGB"


@pytest.mark.parametrize(("mode", "expected"), [("L", "L"), ("RGB", "RGB")])
def test_transparent_is_white_paper(tmp_path: Path, mode: str, expected: str) -> None:
    """What lies under transparent pixels, often black, would be taken for ink."""
    image = Image.new(mode, (10, 4), "black")
    alpha = Image.new("L", (10, 4), 0)
    alpha.paste(255, (0, 0, 5, 4))
    image.putalpha(alpha)
    read = open_image(saved(image, tmp_path / "a.png"))
    assert read.mode == expected
    assert set(np.asarray(read)[:, :5].ravel()) == {0}
    assert set(np.asarray(read)[:, 5:].ravel()) == {255}


def test_opaque_alpha_changes_no_pixel(tmp_path: Path) -> None:
    """An alpha channel that hides nothing would alter the image."""
    image = Image.fromarray(COLOUR)
    image.putalpha(255)
    assert np.array_equal(np.asarray(open_image(saved(image, tmp_path / "a.png"))), COLOUR)


def test_palettes_become_gray_or_colour(tmp_path: Path) -> None:
    """Palette indices would be taken for brightness."""
    gray = Image.fromarray(GRAY.astype(np.uint8)).quantize(8)
    colour = Image.fromarray(COLOUR).quantize(8)
    read = open_image(saved(gray, tmp_path / "g.png"))
    assert read.mode == "L"
    assert np.array_equal(np.asarray(read), np.asarray(gray.convert("L")))
    assert open_image(saved(colour, tmp_path / "c.png")).mode == "RGB"


def test_a_transparent_palette_entry_is_paper(tmp_path: Path) -> None:
    """The background of a palette image would keep the colour it hides."""
    image = Image.new("P", (4, 4), 0)
    image.putpalette([0, 0, 0, 10, 10, 10])
    image.putpixel((0, 0), 1)
    read = open_image(saved(image, tmp_path / "a.png", transparency=0))
    assert read.getpixel((0, 0)) == 10
    assert read.getpixel((3, 3)) == 255


def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path) -> None:
    """A 16-bit scan would come out all white."""
    samples = (GRAY * 257).astype(np.uint16)
    for name in ("a.png", "a.tif"):
        read = open_image(saved(Image.fromarray(samples), tmp_path / name))
        assert read.mode == "L"
        assert np.array_equal(np.asarray(read), GRAY.astype(np.uint8))


@pytest.mark.parametrize("samples", [GRAY.astype(np.int32), GRAY.astype(np.int32) * 257])
def test_wide_integers_are_reduced(tmp_path: Path, samples: np.ndarray) -> None:
    """32-bit TIFF would be refused or saturate."""
    read = open_image(saved(Image.fromarray(samples), tmp_path / "a.tif"))
    assert np.array_equal(np.asarray(read), GRAY.astype(np.uint8))


def test_floats_up_to_one_are_fractions_of_white(tmp_path: Path) -> None:
    """Float TIFF would come out black; not-a-number must not spread."""
    samples = (GRAY / 255).astype(np.float32)
    samples[0, 0] = np.nan
    read = np.asarray(open_image(saved(Image.fromarray(samples), tmp_path / "a.tif")))
    assert np.abs(read[1:].astype(int) - GRAY[1:].astype(int)).max() <= 1


def test_exif_orientation_turns_the_page(tmp_path: Path) -> None:
    """Coordinates, which are of the upright page, would cut elsewhere."""
    exif = Image.Exif()
    exif[0x0112] = 6
    path = saved(Image.fromarray(COLOUR), tmp_path / "a.jpg", exif=exif, dpi=(300, 300))
    assert open_image(path).size == (40, 60)
    header = read_image_header(path)
    assert (header.width, header.height) == (40, 60)
    assert header.dpi == (300, 300)


def test_the_limit_is_checked_before_decoding(tmp_path: Path) -> None:
    """A small file that claims to be huge would take all memory."""
    path = tmp_path / "bomb.png"
    path.write_bytes(png_header(100_000, 100_000))
    with pytest.raises(ImageProblem, match="100000 × 100000") as caught:
        open_image(path)
    assert caught.value.reason is SkipReason.IMAGE_TOO_LARGE


def test_pillows_own_limit_does_not_decide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page allowed by our limit would be refused, or warned about, by the library's."""
    path = saved(Image.fromarray(COLOUR), tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert open_image(path, max_pixels=60 * 40).size == (60, 40)
        assert read_image_header(path).width == 60
    with pytest.raises(ImageProblem):
        open_image(path, max_pixels=60 * 40 - 1)
    assert Image.MAX_IMAGE_PIXELS == 100


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif", "a.webp"])
def test_a_truncated_image_is_unreadable(tmp_path: Path, name: str) -> None:
    """Half a page would be trained on as if the rest were blank."""
    path = saved(
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 80, 3), np.uint8)), tmp_path / name
    )
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ImageProblem) as caught:
        open_image(path)
    assert caught.value.reason is SkipReason.UNREADABLE_IMAGE
    assert str(path) in caught.value.detail


@pytest.mark.parametrize(
    ("content", "words"), [(b"", "empty"), (b"<alto/>", "XML"), (b"%!PS-Adobe-3.0 EPSF-3.0\n", "no image")]
)
def test_what_is_no_image_is_named(tmp_path: Path, content: bytes, words: str) -> None:
    """A wrong file would fail opaquely; PostScript would be run by an interpreter."""
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(ImageProblem, match=words) as caught:
        open_image(path)
    assert caught.value.reason is SkipReason.UNREADABLE_IMAGE


def test_a_missing_image_and_a_folder_have_reasons(tmp_path: Path) -> None:
    """Either would end a run with a traceback."""
    with pytest.raises(ImageProblem) as missing:
        open_image(tmp_path / "none.png")
    assert missing.value.reason is SkipReason.MISSING_IMAGE
    with pytest.raises(ImageProblem) as folder:
        open_image(tmp_path)
    assert folder.value.reason is SkipReason.UNREADABLE_IMAGE


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(["PNG", "JPEG", "TIFF", "GIF", "BMP", "WEBP", "PPM"]), st.data())
def test_damaged_bytes_raise_only_image_problems(image_format: str, data: st.DataObject) -> None:
    """Whatever a decoder stumbles over would end the run instead of skipping the file."""
    buffer = io.BytesIO()
    Image.fromarray(COLOUR).save(buffer, format=image_format)
    content = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            mode = decode_image(bytes(content), name="x", max_pixels=10_000_000).mode
        except ImageProblem:
            return
    assert mode in ("1", "L", "RGB")
