"""VisDrone-DET as it is published: where its files are and what its annotation files say."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from utils.datasets.base import (
    Corners,
    DatasetSource,
    ImageAnnotations,
    ImageJob,
    PrepareError,
    Split,
    box_array,
    clip_box,
    few_messages,
    found_in,
    is_cut,
    parse_numbers,
    size_fault,
    split_lines,
    usable_names,
    without_own_copies,
)
from utils.images import is_image

CLASS_NAMES = (
    "pedestrian", "people", "bicycle", "car", "van", "truck", "tricycle", "awning-tricycle", "bus", "motor",
)  # fmt: skip
SPLITS = ("train", "val", "test-dev", "test-challenge")
UNLABELLED_SPLITS = frozenset({"test-challenge"})

_IGNORED_REGION, _OTHERS = 0, 11
_FIELDS = 8


@dataclass(frozen=True)
class VisDroneFile:
    """The annotation file of one image; an `AnnotationSource`."""

    path: Path

    def read(self, hw: tuple[int, int]) -> ImageAnnotations:
        """See `parse_annotations`. Raises OSError when the file cannot be read."""
        return parse_annotations(self.path.read_bytes(), hw, str(self.path))


class _Row(NamedTuple):
    xywh: list[float]
    score: float
    category: float


def parse_annotations(content: bytes, hw: tuple[int, int], name: str) -> ImageAnnotations:
    """Read a VisDrone annotation file: lines ``x,y,w,h,score,category,truncation,occlusion``.

    Any line end, trailing commas, blank lines and a byte-order mark are accepted. Categories 1–10 are classes
    0–9. Categories 0 (ignored region) and 11 (others) and objects of score 0 are no labels but ignored regions.
    Boxes are clipped to the image. Whatever gives no label is counted by reason; lines that are wrong also get
    a message. Never raises, whatever the content.

    Args:
        content: of the file, UTF-8.
        hw: height and width of the image.
        name: of the file, for messages.
    """
    dropped: Counter[str] = Counter()
    messages: list[str] = []
    objects: dict[tuple[int, Corners], bool] = {}  # (class, corners) → was cut at the border
    ignored: dict[Corners, None] = {}
    for number, line in enumerate(split_lines(content), start=1):
        if not line.strip(" \t,"):
            continue
        row = _parse_line(line)
        corners = clip_box(row.xywh, hw) if row else None
        if row is None or corners is None or not 0 <= row.category <= _OTHERS:
            fault = _fault(row)
            dropped[fault] += 1
            messages.append(f"{name}:{number}: {fault}: {line[:80]!r}")
        elif reason := _ignored_reason(row):
            dropped[reason] += 1
            ignored[corners] = None
        elif (key := (int(row.category) - 1, corners)) in objects:
            dropped["duplicate"] += 1
        else:
            objects[key] = is_cut(row.xywh, hw)
    return ImageAnnotations(
        boxes=box_array(corners for _, corners in objects),
        labels=np.array([label for label, _ in objects], dtype=np.int64),
        ignored=box_array(ignored),
        dropped=dict(dropped),
        clipped=sum(objects.values()),
        messages=few_messages(messages, name),
    )


def _parse_line(line: str) -> _Row | None:
    """The row of a line; None when it is not eight numbers with an integer category."""
    numbers = parse_numbers(line, _FIELDS)
    if numbers is None or not numbers[5].is_integer():
        return None
    return _Row(numbers[:4], numbers[4], numbers[5])


def _fault(row: _Row | None) -> str:
    """Why a row that is neither an object nor an ignored region is not."""
    if row is None:
        return "malformed line"
    if not 0 <= row.category <= _OTHERS:
        return "category out of range"
    return size_fault(row.xywh)


def _ignored_reason(row: _Row) -> str:
    """Why a row is an ignored region; empty: it is an object."""
    if row.category == _IGNORED_REGION:
        return "ignored region"
    if row.category == _OTHERS:
        return "others"
    return "score 0" if row.score == 0 else ""


def find_visdrone(root: Path) -> DatasetSource:
    """The splits below a VisDrone folder: any that are there.

    Raises PrepareError, saying what was expected and what is there, when none is or one is incomplete.
    """
    folders = {name: root / f"VisDrone2019-DET-{name}" for name in SPLITS}
    present = {name: folder for name, folder in folders.items() if folder.is_dir()}
    if not present:
        expected = ", ".join(folder.name for folder in folders.values())
        raise PrepareError(
            f"{root}: not a VisDrone folder. Expected in it at least one of {expected}, each with the folders "
            f"images and annotations; {found_in(root)}. Unpack the archives there, or give the folder with --root."
        )
    splits = [_read_split(name, folder) for name, folder in present.items()]
    return DatasetSource("VisDrone", CLASS_NAMES, splits)


def _read_split(name: str, folder: Path) -> Split:
    for needed in ("images",) if name in UNLABELLED_SPLITS else ("images", "annotations"):
        if not (folder / needed).is_dir():
            raise PrepareError(f"{folder}: expected a folder {needed!r} in it; {found_in(folder)}.")
    images = sorted(path for path in (folder / "images").iterdir() if is_image(path))
    texts = _annotation_files(folder / "annotations")
    sources = without_own_copies(images, texts)
    jobs, problems = _pair(sources, texts, labelled=name not in UNLABELLED_SPLITS or bool(texts))
    if not sources:
        problems.append(f"{folder / 'images'}: no images in it")
    return Split(name, jobs, problems)


def _annotation_files(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        return {}
    return {p.stem: p for p in sorted(folder.iterdir()) if p.suffix == ".txt" and not p.name.startswith(".")}


def _pair(images: list[Path], texts: dict[str, Path], labelled: bool) -> tuple[list[ImageJob], list[str]]:
    """Match images and annotation files by name; what does not match, or would overwrite another, is told."""
    usable, problems = usable_names(images)
    jobs: list[ImageJob] = []
    for image in usable:
        text = texts.get(image.stem)
        if labelled and text is None:
            problems.append(f"{image}: no annotation file; expected annotations/{image.stem}.txt")
        else:
            jobs.append(ImageJob(image, VisDroneFile(text) if text else None))
    orphans = sorted(texts.keys() - {path.stem for path in images})
    problems += [f"{texts[stem]}: no image; expected images/{stem}.jpg" for stem in orphans]
    return jobs, problems
