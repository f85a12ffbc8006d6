"""utils/images.py: sizes from headers, damaged files, names beside images, whole writes."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.images import (
    ImageError,
    image_hw,
    list_images,
    prefer_masked,
    read_image,
    sibling_path,
    sibling_paths,
)

PIXELS = np.random.default_rng(0).integers(0, 255, (37, 53, 3), dtype=np.uint8)


def write(path: Path, pixels: np.ndarray = PIXELS) -> Path:
    done, data = cv2.imencode(path.suffix, pixels)
    assert done
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.tobytes())
    return path


def with_exif(jpeg: bytes, orientation: int, thumbnail: bytes = b"") -> bytes:
    """A JPEG with an APP1 segment that says how to turn it (and holds a thumbnail)."""
    entry = b"\x01\x12\x00\x03\x00\x00\x00\x01" + orientation.to_bytes(2, "big") + b"\x00\x00"
    tiff = b"MM\x00\x2a\x00\x00\x00\x08\x00\x01" + entry + b"\x00\x00\x00\x00"
    segment = b"Exif\x00\x00" + tiff + thumbnail
    return jpeg[:2] + b"\xff\xe1" + (len(segment) + 2).to_bytes(2, "big") + segment + jpeg[2:]


@pytest.mark.parametrize("suffix", [".jpg", ".JPEG", ".png", ".bmp", ".tif", ".webp"])
def test_size_is_what_decoding_gives(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"ein Bild ü{suffix}")
    assert image_hw(path) == read_image(path).shape[:2] == (37, 53)


def test_pixels_are_rgb(tmp_path: Path) -> None:
    blue = np.zeros((4, 4, 3), np.uint8)
    blue[..., 0] = 255  # OpenCV's order
    assert read_image(write(tmp_path / "x.png", blue))[0, 0].tolist() == [0, 0, 255]


def test_grey_and_transparent_images_have_three_channels(tmp_path: Path) -> None:
    assert read_image(write(tmp_path / "grey.png", PIXELS[..., 0])).shape == (37, 53, 3)
    assert read_image(write(tmp_path / "alpha.png", np.dstack([PIXELS, PIXELS[..., 0]]))).shape == (37, 53, 3)


@pytest.mark.parametrize("reduce", [2, 4, 8])
def test_reduced_jpeg(tmp_path: Path, reduce: int) -> None:
    smooth = cv2.GaussianBlur(PIXELS, (31, 31), 9)
    path = write(tmp_path / "x.jpg", smooth)
    small = read_image(path, reduce)
    assert small.shape[:2] == (-(-37 // reduce), -(-53 // reduce))
    blocks = cv2.resize(read_image(path)[: 37 // reduce * reduce, : 53 // reduce * reduce], None,
                        fx=1 / reduce, fy=1 / reduce, interpolation=cv2.INTER_AREA)  # fmt: skip
    assert np.abs(small[: 37 // reduce, : 53 // reduce].astype(int) - blocks).mean() < 3
    with pytest.raises(ValueError, match="only JPEG"):
        read_image(write(tmp_path / "x.png"), reduce)


def test_exif_rotation_is_ignored_everywhere(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jpg")
    path.write_bytes(with_exif(path.read_bytes(), orientation=6))
    assert cv2.imread(str(path)).shape[:2] == (53, 37)  # the file does say "turn me"
    assert image_hw(path) == read_image(path).shape[:2] == (37, 53)
    assert read_image(path, 2).shape[:2] == (19, 27)


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_cut_off_file_is_refused_by_name(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"x{suffix}", np.tile(PIXELS, (4, 4, 1)))
    data = path.read_bytes()
    for keep in (0, 1, 3, 10, 23, 24, 100, len(data) // 2, len(data) - 13):
        path.write_bytes(data[:keep])
        with pytest.raises(ImageError, match=f"x{suffix}"):
            image_hw(path)


def test_a_thumbnails_end_is_not_the_images_end(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jpg")
    jpeg = path.read_bytes()
    whole = with_exif(jpeg, 1, thumbnail=jpeg)
    path.write_bytes(whole)
    assert image_hw(path) == (37, 53)
    path.write_bytes(whole[:-200])
    with pytest.raises(ImageError, match="cut off"):
        image_hw(path)


def test_something_behind_the_end_is_no_harm(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jpg")
    path.write_bytes(path.read_bytes() + b"\x00" * 200_000)
    assert image_hw(path) == (37, 53)


@pytest.mark.parametrize(
    "content", [b"", b"not an image at all, only text", b"\xff\xd8\xff\xe0", b"\xff\xd8" + b"\xff" * 50]
)
def test_not_an_image(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "text.jpg"
    path.write_bytes(content)
    for function in (image_hw, read_image):
        with pytest.raises(ImageError, match=r"text\.jpg"):
            function(path)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "no.jpg", tmp_path):
        for function in (image_hw, read_image):
            with pytest.raises(ImageError, match="cannot read the image"):
                function(path)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_after_a_jpeg_start(tmp_path_factory: pytest.TempPathFactory, tail: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.jpg"
    path.write_bytes(b"\xff\xd8\xff" + tail)
    try:
        height, width = image_hw(path)
    except ImageError:
        return
    assert height > 0 and width > 0


def test_listing(tmp_path: Path) -> None:
    for name in (
        "b/2.JPG",
        "b/1.png",
        "a.jpeg",
        "notes.txt",
        ".hidden.jpg",
        "c.jpg",
        "c_masked.jpg",
        "d_masked.jpg",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = [str(path.relative_to(tmp_path)) for path in list_images(tmp_path)]
    assert found == ["a.jpeg", "b/1.png", "b/2.JPG", "c_masked.jpg", "d_masked.jpg"]


def test_masked_twin_counts_in_its_own_folder_only() -> None:
    paths = [Path("a/x.jpg"), Path("b/x.jpg"), Path("b/x_masked.jpg")]
    assert prefer_masked(paths) == [paths[0], paths[2]]


def test_sibling_names() -> None:
    assert sibling_paths(Path("/a/images/b/images/x_masked.jpg"), "labels", ".txt") == [
        Path("/a/images/b/labels/x_masked.txt"),
        Path("/a/images/b/labels/x.txt"),
    ]
    assert sibling_paths(Path("x.jpg"), "labels", ".txt") == [Path("x.txt")]
    assert sibling_path(Path("images.jpg/x.jpg"), "labels", ".txt") == Path("images.jpg/x.txt")
