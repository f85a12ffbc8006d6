"""Image files: which names count as images, their size without decoding, their pixels, the files beside them.

Not about what is in the pictures: labels are in utils/labels.py, heatmap files in utils/heatmap.py.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import numpy as np
import numpy.typing as npt

from utils.jpeg import JPEG_END, JPEG_START, JPEG_SUFFIXES, first_rows, jpeg_hw

ByteImage = npt.NDArray[np.uint8]

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"})
MASKED_SUFFIX = "_masked"
"""Stem ending of the copies in which data preparation greyed out the ignored regions."""

_TAIL_BYTES = 65536
_DECODES_TO_RGB = hasattr(cv2, "IMREAD_COLOR_RGB")
"""OpenCV from 4.11 on spares a pass over the pixels."""
_REDUCED_READ = {
    1: cv2.IMREAD_COLOR,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}


class ImageError(ValueError):
    """An image file that cannot be used; the message names it and says why."""


def is_image(path: Path) -> bool:
    """True when the name says image (by suffix) and the file is not hidden."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def prefer_masked(images: Iterable[Path]) -> list[Path]:
    """Images without those that have a ``_masked`` twin beside them; order kept."""
    images = list(images)
    twins = {(p.parent, p.stem.removesuffix(MASKED_SUFFIX)) for p in images if p.stem.endswith(MASKED_SUFFIX)}
    return [p for p in images if (p.parent, p.stem) not in twins]


def list_all_images(folder: Path) -> list[Path]:
    """All images below a folder, sorted."""
    found = (Path(root) / name for root, _, names in os.walk(folder, followlinks=True) for name in names)
    return sorted(path for path in found if is_image(path))


def list_images(folder: Path) -> list[Path]:
    """All images below a folder, sorted; where ``x_masked.jpg`` exists ``x.jpg`` is left out."""
    return prefer_masked(list_all_images(folder))


def sibling_paths(image: Path, folder: str, suffix: str) -> list[Path]:
    """Where a file that belongs to an image may lie, best first.

    The last folder called ``images`` in the path is replaced by ``folder``; without one, the file lies
    beside the image. For ``x_masked.jpg`` the name ``x`` follows as the second choice.
    """
    parts = list(image.parts[:-1])
    if "images" in parts:
        parts[len(parts) - 1 - parts[::-1].index("images")] = folder
    place = Path(*parts)
    stems = dict.fromkeys((image.stem, image.stem.removesuffix(MASKED_SUFFIX)))
    return [place / f"{stem}{suffix}" for stem in stems if stem]


def sibling_path(image: Path, folder: str, suffix: str) -> Path:
    """The first of `sibling_paths` that exists, else the last: where such a file should be written."""
    paths = sibling_paths(image, folder, suffix)
    return next((path for path in paths if path.exists()), paths[-1])


def read_image(path: Path, reduce: int = 1, rows: int | None = None) -> ByteImage:
    """Decode an image file: uint8 [H, W, 3] RGB, EXIF orientation ignored.

    Args:
        path: the file.
        reduce: 1, 2, 4 or 8: side lengths are divided by it (rounded up) while decoding; JPEG only, where
            it saves time. Original pixel x lies at x / reduce.
        rows: that many original rows are enough: the last ones of a JPEG may be missing, which saves time.

    Raises:
        ImageError: the file is missing or not a readable image.
    """
    if reduce != 1 and path.suffix.lower() not in JPEG_SUFFIXES:
        raise ValueError(f"{path}: only JPEG files can be decoded at a reduced size (reduce={reduce})")
    try:
        content = path.read_bytes()
        image = None
        if rows is not None and content.startswith(JPEG_START):
            image = _decode(first_rows(content, rows), reduce)
        if image is None and content:
            # Also where picture data end early: a decoder makes up the rest only before an end marker.
            image = _decode(content, reduce)
    except (OSError, cv2.error) as error:
        raise ImageError(f"{path}: cannot read the image: {error}") from error
    if image is None:
        raise ImageError(f"{path}: not a readable image (damaged, or not what its name says)")
    return image


def decode_jpeg(data: npt.NDArray[np.uint8], *, upright: bool) -> ByteImage | None:
    """The pixels of a JPEG file's bytes at full size: uint8 [H, W, 3] RGB; None when it is damaged.

    Args:
        data: all bytes of the file, which begin with `JPEG_START`.
        upright: turned as its EXIF orientation says; False: as stored.

    Raises:
        cv2.error: OpenCV gives up on it.
    """
    stored = 0 if upright else cv2.IMREAD_IGNORE_ORIENTATION
    if _DECODES_TO_RGB:
        image = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB | stored)
        return None if image is None else np.asarray(image, dtype=np.uint8)
    return _swapped(cv2.imdecode(data, cv2.IMREAD_COLOR | stored))


def _decode(content: bytes, reduce: int) -> ByteImage | None:
    """An image file's bytes of any format as uint8 [H, W, 3] RGB, as stored; None when damaged."""
    data = np.frombuffer(content, dtype=np.uint8)
    if reduce == 1 and content.startswith(JPEG_START):
        return decode_jpeg(data, upright=False)
    return _swapped(cv2.imdecode(data, _REDUCED_READ[reduce] | cv2.IMREAD_IGNORE_ORIENTATION))


def _swapped(bgr: npt.NDArray[Any] | None) -> ByteImage | None:
    """BGR as RGB, in place."""
    return None if bgr is None else np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB, dst=bgr), dtype=np.uint8)


def image_hw(path: Path) -> tuple[int, int]:
    """(height, width) as stored, before any EXIF rotation: from the header for JPEG and PNG, else by decoding.

    Raises ImageError when the file is missing, damaged, or a JPEG or PNG that was cut off.
    """
    try:
        with path.open("rb") as file:
            start = file.read(24)
            if start[:2] == b"\xff\xd8":
                hw = jpeg_hw(file)
                complete = _ends_with(file, JPEG_END)
            elif start[:8] == b"\x89PNG\r\n\x1a\n" and start[12:16] == b"IHDR" and len(start) == 24:
                width, height = struct.unpack(">II", start[16:24])
                hw, complete = (height, width), _ends_with(file, b"IEND")
            else:
                height, width = read_image(path).shape[:2]
                return height, width
    except (OSError, struct.error) as error:
        raise ImageError(f"{path}: cannot read the image: {error}") from error
    if hw is None or min(hw) < 1:
        raise ImageError(f"{path}: not a readable image (no size in its header)")
    if not complete:
        raise ImageError(f"{path}: the image file is cut off (no end marker)")
    return hw


def _ends_with(file: BinaryIO, marker: bytes) -> bool:
    """Is the marker behind the current position? Looks at the end of the file first."""
    begin = file.tell()
    size = file.seek(0, os.SEEK_END)
    for position in (max(begin, size - _TAIL_BYTES), begin):
        file.seek(min(position, size))
        if marker in file.read():
            return True
    return False
