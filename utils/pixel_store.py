"""Pixels of a dataset's images, from the files or from smaller copies kept in memory or on disk.

Choosing, warping and colouring are elsewhere; the copies are only as large as the network input can use.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from utils.files import write_atomic
from utils.images import ByteImage, ImageError, read_image, sibling_paths
from utils.jpeg import JPEG_SUFFIXES
from utils.logger import get_logger
from utils.warp import resized

CacheMode = Literal["none", "ram", "disk"]

FREE_SHARE = 0.8
"""A cache may use up to this share of the free memory or disk space."""


class PixelStore:
    """Reads the images of a dataset by index.

    Attributes:
        mode: what is really used: falls back to "none", with a notice, where there is no room.
    """

    def __init__(
        self,
        images: Sequence[Path],
        image_hw: npt.NDArray[np.int64],
        mode: CacheMode,
        limit_hw: tuple[int, int],
        *,
        progress: bool = True,
    ) -> None:
        """
        Args:
            images: the files.
            image_hw: [n, 2], their heights and widths.
            mode: "none": read the files every time; "ram": keep all in memory, read now; "disk": keep
                decoded copies beside the images' folder, written when first needed.
            limit_hw: the copies are reduced to fit into this (never enlarged).
            progress: show a progress bar while filling memory.
        """
        self._images = images
        self._hw = image_hw
        self._limit = limit_hw
        self._memory: list[ByteImage] = []
        self.mode: CacheMode = mode if self._has_room(mode) else "none"
        if self.mode == "ram":
            with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
                copies = pool.map(self._copy, range(len(images)))
                bar = tqdm(copies, "Caching images", len(images), unit=" images", disable=not progress)
                self._memory = list(bar)

    def read(self, index: int, scale: float, rows: int | None = None) -> tuple[ByteImage, float]:
        """Pixels of an image and how many there are per original pixel.

        Args:
            index: of the image.
            scale: output pixels per original pixel that will be made of it; when it is small, fewer pixels
                are decoded (JPEG) or the smaller copy is used. 1 or more: nothing is lost unless cached.
            rows: how many original rows will be looked at; those below may be missing. None: all.

        Returns:
            uint8 RGB [h, w, 3], which must not be changed, and its scale.

        Raises:
            ImageError: the file cannot be read, or has changed since its size was noted.
        """
        if self.mode == "ram":
            return self._memory[index], self._copy_scale(index)
        if self.mode == "disk":
            return self._from_disk(index), self._copy_scale(index)
        path = self._images[index]
        reduce = 1
        if path.suffix.lower() in JPEG_SUFFIXES:
            reduce = next((factor for factor in (8, 4, 2) if scale * factor <= 1), 1)
        image = read_image(path, reduce, rows)
        height, width = (-(-int(side) // reduce) for side in self._hw[index])
        least = height if rows is None else min(height, rows // reduce)
        if image.shape[1] != width or not least <= len(image) <= height:
            found = " × ".join(str(side) for side in image.shape[1::-1])
            raise ImageError(f"{path}: the image has changed while in use (now {found} pixels); start again")
        return image, 1 / reduce

    def _copy_scale(self, index: int) -> float:
        height, width = (int(side) for side in self._hw[index])
        return min(1.0, self._limit[0] / height, self._limit[1] / width)

    def _copy(self, index: int) -> ByteImage:
        """The image, made as small as the network input allows."""
        image = read_image(self._images[index])
        scale = self._copy_scale(index)
        if scale == 1:
            return image
        return resized(image, scale)

    def _from_disk(self, index: int) -> ByteImage:
        path = self._disk_path(index)
        try:
            return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
        except FileNotFoundError:
            pass
        except (OSError, ValueError, EOFError):
            get_logger().warning(f"{path}: damaged copy of an image, made anew")
        copy = self._copy(index)
        try:
            write_atomic(path, lambda file: np.save(file, copy))
        except OSError as error:
            get_logger().warning(f"no more copies of images are kept: {error}")
            self.mode = "none"
        return copy

    def _disk_path(self, index: int) -> Path:
        """Where the copy lies; the name changes with the original's size and time."""
        image = self._images[index]
        state = image.stat()
        key = hashlib.sha256(f"{state.st_size} {state.st_mtime_ns}".encode()).hexdigest()[:12]
        return self._disk_folder(image) / f"{image.name}.{key}.npy"

    def _disk_folder(self, image: Path) -> Path:
        name = f"cache_{self._limit[0]}x{self._limit[1]}"
        folder = sibling_paths(image, name, "")[0].parent
        return folder if folder != image.parent else folder / name

    def _has_room(self, mode: CacheMode) -> bool:
        """Is there memory or disk space for all copies? Says so where not."""
        if mode == "none" or not len(self._images):
            return True
        scales = np.array([self._copy_scale(i) for i in range(len(self._images))])
        needed = float((self._hw.prod(axis=1) * scales**2 * 3).sum())
        folder = self._images[0].parent
        free = available_memory() if mode == "ram" else float(shutil.disk_usage(folder).free)
        if free is None or needed <= free * FREE_SHARE:
            return True
        sizes = f"{needed / 2**30:.1f} GiB needed, {free / 2**30:.1f} GiB free"
        get_logger().warning(f"--cache {mode}: {sizes}; images are read from their files instead")
        return False


def available_memory() -> float | None:
    """Bytes of memory that can still be had on Linux, a container's limit included; None when unknown."""
    free = _first_number(_lines("/proc/meminfo"), "MemAvailable:")
    if free is None:
        return None
    limit = _first_number(_lines("/sys/fs/cgroup/memory.max"), "")
    used = _first_number(_lines("/sys/fs/cgroup/memory.current"), "")
    free *= 1024
    return free if limit is None or used is None else min(free, limit - used)


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError):
        return []


def _first_number(lines: Iterable[str], prefix: str) -> float | None:
    """The number after a prefix in the first line that starts with it; None: no such line, or no number."""
    for line in lines:
        if line.startswith(prefix):
            words = line.removeprefix(prefix).split()
            return float(words[0]) if words and words[0].isdigit() else None
    return None
