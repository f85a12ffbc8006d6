"""Labels on disk: Darknet text files, what is wrong with them, and a cache of a whole split's labels.

A label file has one line per object: ``class cx cy w h``, all but the class as shares of the image's width
and height. What cannot be used is left out, counted and reported with file and line. Nothing here loads
pixels or knows about augmentation.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from utils.files import write_atomic
from utils.heatmap import HeatmapError, load_heatmap_header
from utils.images import ImageError, image_hw, sibling_path, sibling_paths
from utils.logger import get_logger
from utils.typed_data import ConfigError

LabelArray = npt.NDArray[np.float32]
"""[N, 5]: class, cx, cy, w, h; the box as shares of the image (``_norm``)."""

PARSER_VERSION = 2  # part of the cache's key: raise it whenever the same files would be read differently
NORM_TOLERANCE = 1e-3
"""Coordinates may leave 0–1 by this much (rounding by other tools) before a row is refused."""
LEAST_SIDE = 1e-7
"""Sides below it, as shares of the image, are none: a hundredth of a pixel in the largest picture is more."""
MAX_CLASSES = 1_000_000
"""Where the number of classes is not known; float32 still tells all of these apart."""
PROBLEMS_SHOWN = 20
"""At most this many problems are printed; the others are counted."""


class DataError(ConfigError):
    """A dataset that is not where its YAML says, or has nothing usable; the message says what to do."""


@dataclass(frozen=True)
class Problem:
    """One thing that was left out of a dataset: where and why. ``line`` 0 means the whole file."""

    file: str
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.reason}" if self.line else f"{self.file}: {self.reason}"


@dataclass(frozen=True)
class LabelReport:
    """What was found while the labels of a split were read.

    Attributes:
        images: usable images.
        objects: boxes in them.
        background: images whose label file is empty.
        unlabelled: images without a label file; they count as background.
        clipped: boxes that reached over the border of their image and were clipped.
        skipped_images: images left out because they cannot be read.
        per_class: boxes by class.
        problems: everything left out.
    """

    images: int
    objects: int
    background: int
    unlabelled: int
    clipped: int
    skipped_images: int
    per_class: dict[int, int]
    problems: list[Problem]

    def lines(self, num_classes: int) -> list[str]:
        """The report in words, one fact a line; problems come first come, first shown, the rest as a count."""
        text = [f"{self.images} images, {self.objects} objects, {self.background} empty"]
        if self.unlabelled:
            text.append(f"{self.unlabelled} images have no label file and count as empty")
        if self.clipped:
            text.append(f"{self.clipped} boxes clipped at the border of their image")
        unused = [c for c in range(num_classes) if c not in self.per_class]
        if self.objects and unused:
            text.append(f"no object of class {', '.join(map(str, unused))} (of {num_classes} classes)")
        if self.problems:
            text.append(f"{len(self.problems)} problems, {self.skipped_images} images left out:")
            text += [f"  {problem}" for problem in self.problems[:PROBLEMS_SHOWN]]
            if len(self.problems) > PROBLEMS_SHOWN:
                rest = Counter(problem.reason.split(":")[0] for problem in self.problems[PROBLEMS_SHOWN:])
                counts = ", ".join(f"{count} × {reason}" for reason, count in rest.most_common(10))
                text.append(f"  and {len(self.problems) - PROBLEMS_SHOWN} more: {counts}")
        return text


@dataclass(frozen=True, eq=False)
class LabelSet:
    """The usable images of a split with their labels, in the order they were given.

    Attributes:
        images: [n] paths.
        image_hw: int64 [n, 2].
        labels: n arrays [N, 5].
        mask_tau: float64 [n], τ of the image's heatmap file where that knows more than its boxes (mode sam or
            hybrid); 0 where the heatmap is to be rendered from the boxes.
        report: what was found and what was left out.
    """

    images: list[Path]
    image_hw: npt.NDArray[np.int64]
    labels: list[LabelArray]
    mask_tau: npt.NDArray[np.float64]
    report: LabelReport


def label_path(image: Path) -> Path:
    """Where the labels of an image are, or belong: the last ``/images/`` becomes ``/labels/``, ``.txt``."""
    return sibling_path(image, "labels", ".txt")


@dataclass
class ParsedLabels:
    """The usable rows of one label file, how many of them were clipped, and what was left out."""

    rows: LabelArray
    clipped: int = 0
    problems: list[Problem] = field(default_factory=list)


def parse_label_text(text: str, num_classes: int | None, file: str = "labels") -> ParsedLabels:
    """Read the text of a Darknet label file; never fails, reports instead.

    Args:
        text: lines of ``class cx cy w h``; empty lines are ignored.
        num_classes: classes are 0 to num_classes − 1; None: any number from 0.
        file: name for the report.
    """
    parsed = ParsedLabels(np.zeros((0, 5), dtype=np.float32))
    rows: dict[tuple[float, ...], None] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        columns = line.split()
        if not columns:
            continue
        row = _parse_row(columns, num_classes)
        if isinstance(row, str):
            parsed.problems.append(Problem(file, number, row))
        elif row in rows:
            parsed.problems.append(Problem(file, number, "duplicate of an earlier line"))
        else:
            rows[row] = None
    if rows:
        parsed.rows, parsed.clipped = _clip(np.array(list(rows), dtype=np.float64))
    return parsed


def _parse_row(columns: list[str], num_classes: int | None) -> tuple[float, ...] | str:
    """The five numbers of a line, or what is wrong with it."""
    if len(columns) != 5:
        return f"wrong number of columns: {len(columns)}, expected 5 (class cx cy w h)"
    try:
        row = tuple(float(column) for column in columns)
    except ValueError:
        return f"not a number: {' '.join(columns)[:60]!r}"
    if not all(map(math.isfinite, row)):
        return f"not a finite number: {' '.join(columns)[:60]!r}"
    category, cx, cy, width, height = row
    if category != int(category) or not 0 <= category < (num_classes or MAX_CLASSES):
        return f"class out of range: {columns[0]}, expected 0 to {(num_classes or MAX_CLASSES) - 1}"
    if width <= 0 or height <= 0:
        return f"no area: width {width:g}, height {height:g}"
    if max(row[1:]) > 1 + NORM_TOLERANCE or min(cx, cy) < -NORM_TOLERANCE:
        return f"not normalised: {cx:g} {cy:g} {width:g} {height:g}, expected shares of the image, 0 to 1"
    if (
        min(min(c + side / 2, 1) - max(c - side / 2, 0) for c, side in ((cx, width), (cy, height)))
        < LEAST_SIDE
    ):
        return f"no area inside the image: {cx:g} {cy:g} {width:g} {height:g}"
    return row


def _clip(rows: npt.NDArray[np.float64]) -> tuple[LabelArray, int]:
    """Rows limited to the image, and how many lost more than rounding could explain."""
    low = np.clip(rows[:, 1:3] - rows[:, 3:] / 2, 0, 1)
    high = np.clip(rows[:, 1:3] + rows[:, 3:] / 2, 0, 1)
    lost = (rows[:, 3:] - (high - low)).max(axis=1)
    inside = np.concatenate([rows[:, :1], (low + high) / 2, high - low], axis=1)
    exact = (lost <= 1e-12)[:, None]
    return np.where(exact, rows, inside).astype(np.float32), int((lost > NORM_TOLERANCE).sum())


@dataclass
class _Entry:
    """What was found out about one image; ``hw`` None: it cannot be used."""

    hw: tuple[int, int] | None = None
    rows: LabelArray = field(default_factory=lambda: np.zeros((0, 5), dtype=np.float32))
    labelled: bool = False
    clipped: int = 0
    mask_tau: float = 0.0
    problems: list[Problem] = field(default_factory=list)


def load_labels(images: Sequence[Path], num_classes: int | None, *, progress: bool = True) -> LabelSet:
    """Labels and sizes of all usable images, from the cache when nothing has changed.

    The cache lies beside the labels' folder and is keyed by name, size and time of every image, label and
    heatmap file; a stale or damaged one is made anew, and where it cannot be written the work goes on without.

    Args:
        images: image files; problems with them are reported, not raised.
        num_classes: for the check of class numbers; None: any number from 0.
        progress: show a progress bar while reading.

    Raises:
        DataError: the list is empty.
    """
    if not images:
        raise DataError("no images are given: the list of a split is empty")
    key = _content_key(images, num_classes)
    cache = cache_path(images, num_classes)
    entries = _read_cache(cache, key)
    if entries is None:
        with ThreadPoolExecutor(min(16, 2 * (os.cpu_count() or 1))) as pool:
            results = pool.map(lambda image: _scan(image, num_classes), images)
            entries = list(tqdm(results, "Reading labels", len(images), unit=" images", disable=not progress))
        _write_cache(cache, key, entries)
    return _label_set(images, entries)


def _scan(image: Path, num_classes: int | None) -> _Entry:
    """Everything about one image that the cache holds."""
    entry = _Entry()
    try:
        hw = image_hw(image)
    except ImageError as error:
        reason = str(error).removeprefix(f"{image}: ")
        entry.problems.append(Problem(str(image), 0, f"image left out: {reason}"))
        return entry
    path = label_path(image)
    try:
        text = path.read_bytes().decode("utf-8-sig", errors="replace")
    except FileNotFoundError:
        text = None
    except OSError as error:
        entry.problems.append(
            Problem(str(path), 0, f"image left out: cannot read its labels ({error.strerror})")
        )
        return entry
    if text is not None:
        parsed = parse_label_text(text, num_classes, str(path))
        entry.rows, entry.clipped, entry.labelled = parsed.rows, parsed.clipped, True
        entry.problems += parsed.problems
    entry.hw = hw
    _scan_heatmap(image, entry)
    return entry


def _scan_heatmap(image: Path, entry: _Entry) -> None:
    """Does the heatmap file, if there is one, know more than the boxes?"""
    path = sibling_path(image, "heatmaps", ".npz")
    if not path.exists():
        return
    try:
        header = load_heatmap_header(path)
    except HeatmapError as error:
        reason = str(error).removeprefix(f"{path}: ")
        entry.problems.append(Problem(str(path), 0, f"heatmap not used (the boxes are instead): {reason}"))
        return
    if tuple(header["image_hw"]) != entry.hw:
        reason = f"made for an image of {header['image_hw']}, not {list(entry.hw or ())}"
        entry.problems.append(Problem(str(path), 0, f"heatmap not used (the boxes are instead): {reason}"))
        return
    if header["mode"] in ("sam", "hybrid"):
        entry.mask_tau = float(header["tau"])


def _label_set(images: Sequence[Path], entries: Sequence[_Entry]) -> LabelSet:
    usable = [(image, entry, entry.hw) for image, entry in zip(images, entries, strict=True) if entry.hw]
    classes = Counter(int(c) for _, entry, _ in usable for c in entry.rows[:, 0])
    report = LabelReport(
        images=len(usable),
        objects=sum(len(entry.rows) for _, entry, _ in usable),
        background=sum(entry.labelled and not len(entry.rows) for _, entry, _ in usable),
        unlabelled=sum(not entry.labelled for _, entry, _ in usable),
        clipped=sum(entry.clipped for _, entry, _ in usable),
        skipped_images=len(images) - len(usable),
        per_class=dict(sorted(classes.items())),
        problems=[problem for entry in entries for problem in entry.problems],
    )
    return LabelSet(
        [image for image, _, _ in usable],
        np.array([hw for _, _, hw in usable], dtype=np.int64).reshape(-1, 2),
        [entry.rows for _, entry, _ in usable],
        np.array([entry.mask_tau for _, entry, _ in usable], dtype=np.float64),
        report,
    )


def check_labels(found: LabelSet, num_classes: int, tau: float, *, needed: bool) -> None:
    """Say what was found in a split.

    Args:
        found: of `load_labels`, with classes as they will be used.
        num_classes: how many there are.
        tau: of this run's heatmaps; heatmap files made with another one are reported.
        needed: labels are needed (training).

    Raises:
        DataError: no usable image, or no label where they are needed.
    """
    log = get_logger()
    for line in found.report.lines(num_classes):
        (log.warning if line.startswith(("  ", "no object")) else log.info)(line)
    if not found.images:
        problems = "; ".join(str(problem) for problem in found.report.problems[:3])
        raise DataError(f"none of {found.report.skipped_images} images can be used. {problems}")
    if found.report.objects == 0:
        example = f"{found.images[0]} belongs {label_path(found.images[0])}"
        if needed:
            raise DataError(f"no labels to train with in {len(found.images)} images; to {example}")
        log.warning(f"no labels in {len(found.images)} images (to {example}): accuracy cannot be measured")
    other = found.mask_tau[(found.mask_tau > 0) & (np.abs(found.mask_tau - tau) > 1e-6)]
    if len(other):
        log.warning(f"{len(other)} heatmap files were made with tau {other[0]:g}, not heatmap_tau {tau:g}")


# ----------------------------------------------------------------------------------------------- cache


def cache_path(images: Sequence[Path], num_classes: int | None) -> Path:
    """``labels.<what>.cache.pt`` beside the folder of the first image's labels; <what> is the list's hash."""
    folder = label_path(images[0]).parent
    names = "\n".join([str(num_classes), *(os.path.relpath(image, folder) for image in images)])
    listed = hashlib.sha256(names.encode("utf-8", "surrogateescape")).hexdigest()[:12]
    return folder.parent / f"{folder.name or 'labels'}.{listed}.cache.pt"


def _content_key(images: Sequence[Path], num_classes: int | None) -> str:
    """SHA-256 over the state of every file that the labels are read from."""
    digest = hashlib.sha256(f"{PARSER_VERSION} {num_classes}".encode())
    for image in images:
        files = (image, *sibling_paths(image, "labels", ".txt"), *sibling_paths(image, "heatmaps", ".npz"))
        states = "\0".join(f"{file} {_file_state(file)}" for file in files)
        digest.update(states.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _file_state(path: Path) -> str:
    try:
        state = path.stat()
    except OSError:
        return "-"
    return f"{state.st_size} {state.st_mtime_ns}"


def _write_cache(path: Path, key: str, entries: Sequence[_Entry]) -> None:
    """Save plain data; a folder that cannot be written is no reason to stop."""
    data = {
        "key": key,
        "hw": torch.tensor([entry.hw or (0, 0) for entry in entries], dtype=torch.int64).reshape(-1, 2),
        "count": torch.tensor([len(entry.rows) for entry in entries], dtype=torch.int64),
        "rows": torch.from_numpy(np.concatenate([np.zeros((0, 5), np.float32), *(e.rows for e in entries)])),
        "flags": torch.tensor([[e.labelled, e.clipped, e.mask_tau] for e in entries], dtype=torch.float64),
        "problems": json.dumps([[[p.file, p.line, p.reason] for p in entry.problems] for entry in entries]),
    }
    try:
        write_atomic(path, lambda file: torch.save(data, file))
    except OSError as error:
        get_logger().warning(f"labels are not cached: {path.parent} cannot be written ({error.strerror})")


def _read_cache(path: Path, key: str) -> list[_Entry] | None:
    """The cached entries; None when there are none, or they are of other files, or damaged."""
    if not path.is_file():
        return None
    try:
        data: Any = torch.load(path, map_location="cpu", weights_only=True)
        if data["key"] != key:
            return None
        rows = np.split(data["rows"].numpy(), data["count"].cumsum(0)[:-1].numpy())
        problems = [[Problem(*problem) for problem in entry] for entry in json.loads(data["problems"])]
        return [
            _Entry(
                (hw[0], hw[1]) if hw[0] else None, rows[i], bool(flag[0]), int(flag[1]), flag[2], problems[i]
            )
            for i, (hw, flag) in enumerate(zip(data["hw"].tolist(), data["flags"].tolist(), strict=True))
        ]
    except Exception as error:  # noqa: BLE001 - whatever is wrong with a cache, the labels themselves are there
        get_logger().warning(f"{path}: damaged label cache ({type(error).__name__}), made anew")
        return None
