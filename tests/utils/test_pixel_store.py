"""utils/pixel_store.py: the same pixels from files, memory and disk."""

from __future__ import annotations

import os
from collections import namedtuple
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from utils.images import ImageError, read_image
from utils.pixel_store import PixelStore, available_memory
from utils.warp import resized

LIMIT = (64, 96)
SIZES = [(120, 200), (60, 90), (200, 40)]


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    """Three smooth images: larger, smaller and much higher than the limit; the second is a PNG."""
    paths = []
    for number, (height, width) in enumerate(SIZES):
        y, x = np.mgrid[:height, :width]
        pixels = np.dstack([x * 255 / width, y * 255 / height, 0 * x + 40 * number]).astype(np.uint8)
        path = tmp_path / "images" / f"{number}{'.png' if number == 1 else '.jpg'}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(cv2.imencode(path.suffix, pixels)[1].tobytes())
        paths.append(path)
    return paths


def store(images: list[Path], mode: Any, limit: tuple[int, int] = LIMIT) -> PixelStore:
    return PixelStore(images, np.array(SIZES), mode, limit, progress=False)


def test_files_are_read_whole_when_needed(images: list[Path]) -> None:
    for index, path in enumerate(images):
        pixels, scale = store(images, "none").read(index, 1.0)
        assert scale == 1 and np.array_equal(pixels, read_image(path))


@pytest.mark.parametrize(
    "scale, factor", [(0.51, 1), (0.5, 2), (0.3, 2), (0.25, 4), (0.1, 8), (0.01, 8), (2.0, 1)]
)
def test_jpeg_is_decoded_as_small_as_it_is_used(images: list[Path], scale: float, factor: int) -> None:
    pixels, found = store(images, "none").read(0, scale)
    assert found == 1 / factor and pixels.shape == (120 // factor, 200 // factor, 3)
    assert store(images, "none").read(1, scale)[1] == 1  # a PNG cannot be


@pytest.mark.parametrize("mode", ["ram", "disk"])
def test_copies_fit_the_limit_and_are_never_enlarged(images: list[Path], mode: str) -> None:
    cached = store(images, mode)
    for _ in range(2):  # made, then read back
        shapes = [(pixels.shape[:2], scale) for pixels, scale in (cached.read(i, 1.0) for i in range(3))]
        assert shapes == [((58, 96), 0.48), ((60, 90), 1.0), ((64, 13), 0.32)]
        pixels, scale = cached.read(0, 1.0)
        expected = resized(read_image(images[0]), scale)
        assert np.array_equal(pixels, expected)


def test_memory_needs_no_files(images: list[Path]) -> None:
    cached = store(images, "ram")
    before = cached.read(2, 1.0)[0].copy()
    images[2].unlink()
    assert np.array_equal(cached.read(2, 1.0)[0], before)


def test_disk_copies_lie_beside_the_images_and_are_used(
    images: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    store(images, "disk").read(0, 1.0)
    folder = images[0].parent.parent / "cache_64x96"
    (copy,) = folder.iterdir()
    assert copy.name.startswith("0.jpg.") and copy.suffix == ".npy"
    monkeypatch.setattr("utils.pixel_store.read_image", lambda *_: pytest.fail("decoded again"))
    store(images, "disk").read(0, 1.0)


def test_disk_copies_without_an_images_folder(images: list[Path]) -> None:
    plain = images[0].rename(images[0].parent.parent / "0.jpg")
    PixelStore([plain], np.array(SIZES[:1]), "disk", LIMIT, progress=False).read(0, 1.0)
    assert len(list((plain.parent / "cache_64x96").iterdir())) == 1


def test_a_changed_image_gets_a_new_copy(images: list[Path]) -> None:
    store(images, "disk").read(0, 1.0)
    images[0].write_bytes(cv2.imencode(".jpg", np.full((120, 200, 3), 7, np.uint8))[1].tobytes())
    os.utime(images[0], ns=(1, 1))
    assert store(images, "disk").read(0, 1.0)[0].mean() == pytest.approx(7, abs=1)


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY\x01\x00", b"garbage" * 20])
def test_damaged_copy_is_made_anew(
    images: list[Path], content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = store(images, "disk").read(0, 1.0)[0].copy()
    (copy,) = (images[0].parent.parent / "cache_64x96").iterdir()
    copy.write_bytes(content)
    assert np.array_equal(store(images, "disk").read(0, 1.0)[0], expected)
    assert "damaged copy" in capsys.readouterr().out
    assert np.array_equal(np.load(copy), expected)


def test_full_disk_is_no_reason_to_stop(
    images: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("utils.pixel_store.write_atomic", full)
    cached = store(images, "disk")
    assert cached.read(0, 1.0)[0].shape == (58, 96, 3)
    assert "No space left on device" in capsys.readouterr().out
    assert cached.read(0, 1.0)[0].shape == (120, 200, 3)  # from the file now


@pytest.mark.parametrize("mode", ["ram", "disk"])
def test_no_room_means_no_cache(
    images: list[Path], mode: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("utils.pixel_store.available_memory", lambda: 20_000.0)
    monkeypatch.setattr("utils.pixel_store.shutil.disk_usage", lambda _: usage(1, 1, 20_000))
    cached = store(images, mode)
    assert cached.mode == "none" and cached.read(0, 1.0)[1] == 1
    assert f"--cache {mode}" in capsys.readouterr().out


def test_available_memory_is_plausible() -> None:
    free = available_memory()
    assert free is None or 2**20 < free < 2**50


def test_unreadable_image_is_named(images: list[Path]) -> None:
    files = store(images, "none")
    images[1].write_bytes(b"nothing")
    with pytest.raises(ImageError, match=r"1\.png"):
        files.read(1, 1.0)


def test_image_that_changes_its_size_is_named(images: list[Path]) -> None:
    files = store(images, "none")
    images[0].write_bytes(cv2.imencode(".jpg", np.zeros((30, 30, 3), np.uint8))[1].tobytes())
    with pytest.raises(
        ImageError, match=r"0\.jpg: the image has changed while in use \(now 30 × 30 pixels\)"
    ):
        files.read(0, 1.0)


def test_rows_that_are_not_needed_are_not_decoded(images: list[Path]) -> None:
    whole, _ = store(images, "none").read(0, 1.0)
    some, scale = store(images, "none").read(0, 1.0, 40)
    assert scale == 1 and 40 <= len(some) < 70 and np.array_equal(some[:40], whole[:40])
    small, scale = store(images, "none").read(0, 0.5, 40)
    assert scale == 0.5 and 20 <= len(small) < 35
    for index in (1, 2):  # a PNG; more rows than there are
        assert len(store(images, "none").read(index, 1.0, 500 if index == 2 else 10)[0]) == SIZES[index][0]
    images[0].write_bytes(images[2].read_bytes())
    with pytest.raises(ImageError, match="has changed"):
        store(images, "none").read(0, 1.0, 40)
