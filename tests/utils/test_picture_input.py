"""Pictures of every kind that a caller may hold become the same 8-bit RGB, or are refused with what to give."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from utils.decoding import read_picture
from utils.images import ImageError
from utils.picture_input import PictureInputError, is_single_picture, to_picture


def colours(hw: tuple[int, int] = (5, 7), channels: int = 3, dtype: Any = np.uint8) -> np.ndarray:
    largest = np.iinfo(dtype).max
    return np.random.default_rng(0).integers(0, largest, (*hw, channels), dtype=dtype, endpoint=True)


def over_grey(rgb: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """A picture [H, W, 3] over the grey 114 with opacity [H, W, 1] in 0–1; written from the description."""
    return np.rint(rgb * alpha + 114 * (1 - alpha)).astype(np.uint8)


RGB = colours()
RGBA = colours(channels=4)
BLENDED = over_grey(RGBA[..., :3], RGBA[..., 3:] / np.float32(255))


@pytest.mark.parametrize(
    "given, order",
    [
        (RGB, "rgb"),
        (RGB[..., ::-1], "bgr"),
        (np.ascontiguousarray(RGB[..., ::-1]), "bgr"),
        (RGB / np.float64(255), "rgb"),
        (RGB.astype(np.float32)[..., ::-1] / 255, "bgr"),
        (torch.from_numpy(RGB).permute(2, 0, 1), "rgb"),
        (torch.from_numpy(RGB).permute(2, 0, 1).flip(0) / 255, "bgr"),
        (torch.from_numpy(RGB).permute(2, 0, 1).float().div(255).requires_grad_(), "rgb"),
        (torch.from_numpy(RGB).permute(2, 0, 1).double() / 255, "rgb"),
        (Image.fromarray(RGB), "rgb"),
        (Image.fromarray(RGB), "bgr"),  # knows its own order
        (np.dstack([RGB, np.full((5, 7), 255, np.uint8)]), "rgb"),  # opaque
    ],
)
def test_colour(given: Any, order: Any) -> None:
    made = to_picture(given, order)
    assert made.dtype == np.uint8 and made.flags.c_contiguous
    assert np.array_equal(made, RGB)


@pytest.mark.parametrize(
    "given, order",
    [
        (RGBA, "rgb"),
        (RGBA[..., [2, 1, 0, 3]], "bgr"),
        (RGBA.astype(np.float32) / 255, "rgb"),
        (torch.from_numpy(RGBA).permute(2, 0, 1), "rgb"),
        (Image.fromarray(RGBA), "rgb"),
    ],
)
def test_opacity_is_laid_over_grey(given: Any, order: Any) -> None:
    difference = np.abs(to_picture(given, order).astype(int) - BLENDED)
    assert difference.max() <= (1 if getattr(given, "dtype", None) == np.float32 else 0)


GREY = RGB[..., 0]


@pytest.mark.parametrize(
    "given",
    [
        GREY,
        GREY[..., None],
        GREY / np.float32(255),
        torch.from_numpy(GREY)[None],
        (torch.from_numpy(GREY)[None] / 255),
        Image.fromarray(GREY),
        GREY.astype(np.uint16) * 257,
        Image.fromarray(GREY.astype(np.uint16) * 257),
    ],
)
def test_grey(given: Any) -> None:
    made = to_picture(given)
    assert made.shape == (5, 7, 3)
    # Data that ends below 255 · 257 may be scaled up a little: 16 bits hold the largest value, 65535 is full.
    assert np.abs(made.astype(int) - GREY[..., None]).max() <= 1


def test_pil_modes(tmp_path: Path) -> None:
    picture = Image.fromarray(RGB)
    for mode in ("1", "L", "P", "CMYK", "YCbCr", "HSV", "RGBX"):
        other = picture.convert(mode)
        assert np.array_equal(to_picture(other), np.asarray(other.convert("RGB"))), mode
    # A palette with a transparent colour, as GIF and PNG files have it.
    palette = Image.new("P", (2, 1))
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.putdata([0, 1])
    palette.info["transparency"] = 1
    assert to_picture(palette).tolist() == [[[255, 0, 0], [114, 114, 114]]]
    assert to_picture(Image.fromarray(RGBA).convert("LA")).shape == (5, 7, 3)


def test_a_pil_image_is_taken_as_it_is_and_a_file_is_turned_upright(tmp_path: Path) -> None:
    stored = np.zeros((8, 16, 3), np.uint8)
    stored[:, :8] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise
    file = io.BytesIO()
    Image.fromarray(stored).save(file, "JPEG", exif=exif, quality=100)
    path = tmp_path / "turned.jpg"
    path.write_bytes(file.getvalue())
    assert to_picture(path).shape == (16, 8, 3)
    with Image.open(path) as opened:
        assert to_picture(opened).shape == (8, 16, 3)


@pytest.mark.parametrize("channels, dtype", [(1, np.uint16), (3, np.uint16), (4, np.uint8), (4, np.uint16)])
def test_a_file_and_its_values_are_one_picture(tmp_path: Path, channels: int, dtype: Any) -> None:
    values = colours((9, 11), channels, dtype)
    if dtype == np.uint16:
        values[..., :3] >>= 4  # a camera of 12 bits
    path = tmp_path / "a.png"
    assert cv2.imwrite(str(path), values)
    as_read = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert as_read is not None
    expected = read_picture(path)
    assert np.array_equal(to_picture(as_read, "bgr"), expected)
    assert np.array_equal(to_picture(str(path)), expected) and np.array_equal(to_picture(path), expected)


def test_a_picture_as_the_network_wants_it_is_not_copied() -> None:
    assert to_picture(RGB) is RGB or np.shares_memory(to_picture(RGB), RGB)
    assert np.shares_memory(to_picture(torch.from_numpy(RGB).permute(2, 0, 1)), RGB)


def test_what_was_given_stays_as_it_is() -> None:
    given = RGBA.copy()
    to_picture(given, "bgr")
    assert np.array_equal(given, RGBA)


FLOATS = np.full((4, 6, 3), 0.5, np.float32)


def with_value(value: float) -> np.ndarray:
    changed = FLOATS.copy()
    changed[1, 2, 0] = value
    return changed


@pytest.mark.parametrize(
    "given, words",
    [
        (np.zeros((2, 8, 8, 3), np.uint8), r"batch; give list\(array\)"),
        (torch.zeros(2, 3, 8, 8), r"batch; give list\(tensor\)"),
        (np.zeros((3, 8, 8), np.uint8), r"channels first.*transpose\(1, 2, 0\)"),
        (torch.zeros(8, 8, 3), r"channels last.*permute\(2, 0, 1\)"),
        (torch.zeros(8, 8), r"no picture; expected \[3, H, W\]"),
        (np.zeros(8, np.uint8), r"no picture; expected \[H, W, 3\]"),
        (np.zeros((0, 8, 3), np.uint8), "no picture"),
        (torch.zeros(3, 0, 8), "no picture"),
        (np.zeros((8, 8, 2), np.uint8), "2 channels; expected 1, 3 or 4"),
        (torch.zeros(5, 8, 8), "5 channels; expected 1, 3 or 4"),
        (np.zeros((8, 8, 3), np.int64), "array of int64; expected uint8, uint16, or floats in 0–1"),
        (np.zeros((8, 8, 3), bool), "array of bool"),
        (torch.zeros(3, 8, 8, dtype=torch.int32), "tensor of int32"),
        (np.zeros((8, 8), object), "array of object"),
        (with_value(255.0), "0.5 to 255; expected 0–1; for values in 0–255 give uint8"),
        (with_value(-1.0), "-1 to 0.5; expected 0–1$"),
        (with_value(np.nan), "nan to nan; expected 0–1$"),
        (with_value(np.inf), "inf; expected 0–1$"),
        (Image.fromarray(FLOATS[..., 0]), "mode 'F'"),
        (17, "image is of type int"),
        (None, "image is of type NoneType"),
        (b"\xff\xd8\xff", "image is of type bytes"),
    ],
)
def test_what_cannot_be_understood_is_refused(given: Any, words: str) -> None:
    with pytest.raises(PictureInputError, match=words):
        to_picture(given)


def test_rounding_errors_are_forgiven() -> None:
    assert to_picture(with_value(1.0004)).max() == 255 and to_picture(with_value(-0.0004)).min() == 0


def test_a_wrong_channel_order_is_refused() -> None:
    with pytest.raises(PictureInputError, match='channel_order is \'BGR\'; expected "rgb" or "bgr"'):
        to_picture(RGB, "BGR")  # type: ignore[arg-type]


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="No such file"):
        to_picture(tmp_path / "none.jpg")
    (tmp_path / "text.jpg").write_text("no picture")
    with pytest.raises(ImageError, match="not a picture"):
        to_picture(str(tmp_path / "text.jpg"))


def test_one_picture_or_several() -> None:
    for one in ("a.jpg", Path("a.jpg"), RGB, torch.zeros(3, 4, 4), Image.fromarray(RGB)):
        assert is_single_picture(one) is True
        assert is_single_picture([one]) is False and is_single_picture((one, one)) is False
    assert is_single_picture([]) is False
    for wrong in (3, None, b"abc", {"a.jpg"}, iter([RGB])):
        with pytest.raises(PictureInputError, match="a list of these"):
            is_single_picture(wrong)
