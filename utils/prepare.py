"""Preparing a dataset, whatever it is called: per image a label file, a greyed copy and a heatmap file.

Where a dataset keeps its pictures and how its annotations read is in utils/datasets; what all images together
amount to, in utils/prepare_report.py.
Nothing is written that is there already, so a second run changes nothing and a killed one is repaired.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import re
import signal
import threading
from collections.abc import Generator, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
import numpy.typing as npt

from utils.datasets.base import BoxArray, ImageAnnotations, ImageJob, PrepareError
from utils.files import write_atomic
from utils.heatmap import (
    HeatmapError,
    HeatmapFile,
    HeatmapMode,
    gaussian_heatmap_file,
    heatmap_fingerprint,
    load_heatmap,
    save_heatmap,
)
from utils.images import MASKED_SUFFIX, ByteImage, ImageError, image_hw, read_image, sibling_paths

GREY = 114
"""What covers ignored regions; letterboxing pads with the same."""
GRID_SIDE = 8
"""Cells per side of the grid whose empty share is reported (the paper's 8×8)."""

_JPEG_QUALITY = 95
_FORMAT_VERSION = 1
_TEMPORARY = re.compile(r"\..+\.\d+-\d+\.tmp")  # the names that write_atomic makes
_JOBS_AT_ONCE = 4


class MaskSource(Protocol):
    """Makes heatmaps from masks of the objects instead of their boxes alone."""

    @property
    def mode(self) -> HeatmapMode:
        """What is made: sam or hybrid."""

    @property
    def identity(self) -> str:
        """Changes when the masks would."""

    def heatmap(self, image: ByteImage, boxes: BoxArray, tau: float, fingerprint: str) -> HeatmapFile:
        """Heatmap of an image uint8 [H, W, 3] RGB with boxes float64 [N, 4] (corners_orig)."""


@dataclass(frozen=True)
class PrepareSettings:
    """How images are prepared."""

    mask_ignored: bool = True
    """Grey the ignored regions in copies of the images."""
    keep_labels: bool = False
    """The label files are the user's own: they are read, not written."""
    tau: float = 0.5
    """Heatmap value at a box corner (paper eq. 3)."""
    force: bool = False
    """Write everything anew."""


@dataclass(frozen=True, eq=False)
class ImageReport:
    """What came of one image.

    Attributes:
        image: the original.
        listed: the file that lists name (the greyed copy where there is one); None: left out.
        problem: why it was left out.
        labels: int64 [N] class index of every object.
        boxes: float32 [N, 4] corners_orig of every object.
        hw: height and width of the image; (0, 0): unreadable.
        digest: SHA-256 of the image file; empty: not computed.
        dropped, clipped, messages: see `ImageAnnotations`.
        empty_cells: cells of the 8×8 grid without an object.
        heatmap_bytes: size of the heatmap file.
        fallbacks: objects whose mask was not used, by reason.
        changed: something was written.
    """

    image: Path
    listed: Path | None
    problem: str = ""
    labels: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    boxes: npt.NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 4), dtype=np.float32))
    hw: tuple[int, int] = (0, 0)
    digest: str = ""
    dropped: Mapping[str, int] = field(default_factory=dict)
    clipped: int = 0
    messages: Sequence[str] = ()
    empty_cells: int = 0
    heatmap_bytes: int = 0
    fallbacks: Mapping[str, int] = field(default_factory=dict)
    changed: bool = False

    @property
    def wh(self) -> npt.NDArray[np.float32]:
        """float32 [N, 2] width and height of every object, original pixels."""
        return self.boxes[:, 2:] - self.boxes[:, :2]


def label_rows(annotations: ImageAnnotations, hw: tuple[int, int]) -> BoxArray:
    """Darknet rows, float64 [N, 5]: class, centre x, centre y, width, height, all but the class in 0–1."""
    boxes, (height, width) = annotations.boxes, hw
    centre_and_size = np.hstack([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]])
    return np.hstack([annotations.labels[:, None], centre_and_size / (width, height, width, height)])


def label_text(rows: BoxArray) -> str:
    """The Darknet label file of rows as `label_rows` gives them."""
    return "".join(f"{int(row[0])} {row[1]:.6f} {row[2]:.6f} {row[3]:.6f} {row[4]:.6f}\n" for row in rows)


def grey_out(image: ByteImage, ignored: BoxArray, boxes: BoxArray) -> ByteImage:
    """A copy of an image with the ignored regions grey, except where a labelled object is.

    Args:
        image: uint8 [H, W, 3].
        ignored: [M, 4] corners_orig, made grey (114).
        boxes: [N, 4] corners_orig of objects that count; their pixels stay, because they stay labels.
    """
    result: ByteImage = image.copy()
    for left, top, right, bottom in _pixel_ranges(ignored):
        result[top:bottom, left:right] = GREY
    for left, top, right, bottom in _pixel_ranges(boxes):
        result[top:bottom, left:right] = image[top:bottom, left:right]
    return result


def _pixel_ranges(boxes: BoxArray) -> list[list[int]]:
    outer = np.hstack([np.floor(boxes[:, :2]), np.ceil(boxes[:, 2:])])
    ranges: list[list[int]] = outer.astype(np.int64).tolist()
    return ranges


def empty_grid_cells(boxes: BoxArray, hw: tuple[int, int], side: int = GRID_SIDE) -> int:
    """How many cells of a side×side grid over the image no box [N, 4] (corners_orig) reaches into."""
    occupied = np.zeros((side, side), dtype=bool)
    scale = np.array([side / hw[1], side / hw[0]])
    first = np.floor(boxes[:, :2] * scale + 1e-9).astype(np.int64)
    last = np.ceil(boxes[:, 2:] * scale - 1e-9).astype(np.int64)
    for (left, top), (right, bottom) in zip(first, last, strict=True):
        occupied[top:bottom, left:right] = True
    return int(occupied.size - np.count_nonzero(occupied))


def masked_path(image: Path) -> Path:
    """Where the greyed copy of an image goes: beside it, ``x_masked.jpg``."""
    return image.with_name(f"{image.stem}{MASKED_SUFFIX}.jpg")


def write_if_changed(path: Path, data: bytes, force: bool = False) -> bool:
    """Write a file whole or not at all, unless it holds just that already. True when written.

    Raises PrepareError when the folder cannot be written.
    """
    try:
        if not force and path.is_file() and path.stat().st_size == len(data) and path.read_bytes() == data:
            return False
        write_atomic(path, lambda file: file.write(data))
    except OSError as error:
        raise _cannot_write(path, error) from error
    return True


def _cannot_write(path: Path, error: OSError) -> PrepareError:
    reason = error.strerror or str(error)
    return PrepareError(
        f"cannot write {path}: {reason}. Make room or give write permission, then run this again: "
        "what has been prepared is kept."
    )


@dataclass(frozen=True, eq=False)
class _Work:
    """One image with all that its files are made from."""

    image: Path
    image_sha256: bytes
    hw: tuple[int, int]
    annotations: ImageAnnotations
    settings: PrepareSettings
    masks: MaskSource | None

    @property
    def masked(self) -> Path | None:
        """Where its greyed copy belongs; None: it needs none."""
        needed = self.settings.mask_ignored and len(self.annotations.ignored) > 0
        return masked_path(self.image) if needed else None

    @property
    def heatmap(self) -> Path:
        return sibling_paths(self.image, "heatmaps", ".npz")[0]

    @property
    def rows(self) -> BoxArray:
        return label_rows(self.annotations, self.hw)

    def fingerprint(self) -> str:
        """Of everything its files are made from, and of the greyed copy as it lies on the disk."""
        copy = hashlib.sha256(self.masked.read_bytes()).hexdigest() if self.masked else ""
        grey = [GREY, _JPEG_QUALITY, self.annotations.ignored.tolist(), copy] if self.masked else None
        settings = {"version": _FORMAT_VERSION, "mode": "gaussian", "tau": self.settings.tau, "grey": grey}
        if self.masks is not None:
            settings |= {"mode": self.masks.mode, "masks": self.masks.identity}
        return heatmap_fingerprint(self.image_sha256, self.rows, settings)


def prepare_image(job: ImageJob, settings: PrepareSettings, masks: MaskSource | None = None) -> ImageReport:
    """Make what belongs to one image: label file, greyed copy, heatmap file; each only if it is not there.

    With masks the heatmap is made from them, else from the boxes. An image or annotation file that cannot be
    read is reported, not raised. Raises PrepareError when nothing can be written.
    """
    try:
        hw = image_hw(job.image)
        if job.annotations is None:
            return ImageReport(job.image, job.image, hw=hw)
        annotations = job.annotations.read(hw)
        image_sha256 = hashlib.sha256(job.image.read_bytes()).digest()
        return _prepare_annotated(_Work(job.image, image_sha256, hw, annotations, settings, masks))
    except ImageError as error:
        return ImageReport(job.image, None, str(error))
    except OSError as error:
        return ImageReport(job.image, None, f"{error.filename or job.image}: {error.strerror or error}")


def _prepare_annotated(work: _Work) -> ImageReport:
    settings, annotations = work.settings, work.annotations
    heatmap = None if settings.force else _current_heatmap(work)
    changed = heatmap is None
    if heatmap is None:
        heatmap = _build(work)
    if not settings.keep_labels:
        text = label_text(work.rows).encode()
        for path in _label_files(work):
            changed |= write_if_changed(path, text, settings.force)
    return ImageReport(
        work.image,
        work.masked or work.image,
        labels=annotations.labels,
        boxes=annotations.boxes.astype(np.float32),
        hw=work.hw,
        digest=work.image_sha256.hex(),
        dropped=annotations.dropped,
        clipped=annotations.clipped,
        messages=annotations.messages,
        empty_cells=empty_grid_cells(annotations.boxes, work.hw),
        heatmap_bytes=work.heatmap.stat().st_size,
        fallbacks=heatmap.fallbacks,
        changed=changed,
    )


def _current_heatmap(work: _Work) -> HeatmapFile | None:
    """The heatmap on the disk, if it and the greyed copy come from just this image, its labels and settings."""
    try:
        heatmap = load_heatmap(work.heatmap)
        return heatmap if heatmap.fingerprint == work.fingerprint() else None
    except (HeatmapError, FileNotFoundError):
        return None


def _build(work: _Work) -> HeatmapFile:
    """Write the greyed copy, then the heatmap: its fingerprint vouches for the copy."""
    pixels = read_image(work.image)
    if work.masked is not None:
        grey = grey_out(pixels, work.annotations.ignored, work.annotations.boxes)
        write_if_changed(work.masked, _encode_jpeg(grey), work.settings.force)
    tau, fingerprint = work.settings.tau, work.fingerprint()
    if work.masks is not None:
        heatmap = work.masks.heatmap(pixels, work.annotations.boxes, tau, fingerprint)
    else:
        height, width = work.hw
        boxes = work.rows[:, 1:] * (width, height, width, height)
        heatmap = gaussian_heatmap_file(boxes, work.hw, tau, fingerprint)
    try:
        save_heatmap(work.heatmap, heatmap)
    except OSError as error:
        raise _cannot_write(work.heatmap, error) from error
    return heatmap


def _label_files(work: _Work) -> list[Path]:
    """Label files of an image: its own, and its greyed copy's for tools that know but the Darknet rule."""
    twin = masked_path(work.image)
    pictures = [work.image, twin] if twin == work.masked or twin.exists() else [work.image]
    return [sibling_paths(picture, "labels", ".txt")[0] for picture in pictures]


def folders_written(jobs: Iterable[ImageJob]) -> set[Path]:
    """The folders that files are written into when these images are prepared."""
    parents = {job.image.parent for job in jobs}
    return parents | {
        sibling_paths(parent / "x.jpg", folder, "")[0].parent
        for parent in parents
        for folder in ("labels", "heatmaps")
    }


def _encode_jpeg(image_rgb: ByteImage) -> bytes:
    bgr = cv2.cvtColor(image_rgb, cv2.COLOR_RGB2BGR)
    _, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    return bytes(data)


def remove_leftovers(folders: Iterable[Path]) -> None:
    """Delete the temporary files that killed runs left in these folders. No other run may be at work there."""
    for folder in filter(Path.is_dir, folders):
        for path in folder.iterdir():
            if _TEMPORARY.fullmatch(path.name):
                path.unlink(missing_ok=True)


def prepare_images(
    jobs: Sequence[ImageJob], settings: PrepareSettings, workers: int, masks: MaskSource | None = None
) -> Generator[ImageReport, None, None]:
    """Prepare images in several processes; the reports come in the order of the jobs.

    With masks all work is done in this process: the model that makes them is here, and takes most of the time.

    Raises PrepareError when nothing can be written, or when a process dies.
    """
    if workers <= 1 or len(jobs) <= 1 or masks is not None:
        yield from (prepare_image(job, settings, masks) for job in jobs)
        return
    context = multiprocessing.get_context("spawn")  # a fork would copy whatever threads the parent has
    with ProcessPoolExecutor(min(workers, len(jobs)), context, initializer=_start_worker) as pool:
        try:
            yield from pool.map(prepare_image, jobs, repeat(settings), chunksize=_JOBS_AT_ONCE)
        except BrokenProcessPool as error:
            raise PrepareError(
                "a worker process died, most likely for want of memory. Run this again with fewer --workers: "
                "what has been prepared is kept."
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    """One thread each; Ctrl-C is the parent's business; no worker outlives a killed parent."""
    cv2.setNumThreads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
