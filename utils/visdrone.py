"""VisDrone-DET as it is published: where its files are and what its annotation files say.

Reading only. Labels, greyed copies and heatmaps are made in utils/prepare.py, lists by scripts/data_prepare.py.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from utils.images import MASKED_SUFFIX, is_image
from utils.prepare import MIN_SIDE, BoxArray, ImageAnnotations, ImageJob, PrepareError, clip_box

CLASS_NAMES = (
    "pedestrian", "people", "bicycle", "car", "van", "truck", "tricycle", "awning-tricycle", "bus", "motor",
)  # fmt: skip
SPLITS = ("train", "val", "test-dev", "test-challenge")
UNLABELLED_SPLITS = frozenset({"test-challenge"})

_IGNORED_REGION, _OTHERS = 0, 11
_FIELDS = 8
_MAX_MESSAGES = 5
_SHOWN_ENTRIES = 10
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,3})?", re.ASCII)
_LINE_END = re.compile(r"\r\n|\n|\r")

Corners = tuple[float, float, float, float]


class _Row(NamedTuple):
    xywh: tuple[float, float, float, float]
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
    for number, line in enumerate(_LINE_END.split(content.decode("utf-8-sig", errors="replace")), start=1):
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
            objects[key] = _is_cut(row, hw)
    if len(messages) > _MAX_MESSAGES:
        messages[_MAX_MESSAGES:] = [f"{name}: {len(messages) - _MAX_MESSAGES} more lines are wrong"]
    return ImageAnnotations(
        boxes=_box_array(corners for _, corners in objects),
        labels=np.array([label for label, _ in objects], dtype=np.int64),
        ignored=_box_array(ignored),
        dropped=dict(dropped),
        clipped=sum(objects.values()),
        messages=messages,
    )


def _parse_line(line: str) -> _Row | None:
    """The row of a line; None when it is not eight numbers with an integer category."""
    fields = [part.strip(" \t") for part in line.rstrip(" \t,").split(",")]
    if len(fields) != _FIELDS or not all(_NUMBER.fullmatch(part) for part in fields):
        return None
    x, y, width, height, score, category = (float(part) for part in fields[:6])
    if not all(map(math.isfinite, (x, y, width, height, score))) or not category.is_integer():
        return None
    return _Row((x, y, width, height), score, category)


def _fault(row: _Row | None) -> str:
    """Why a row that is neither an object nor an ignored region is not."""
    if row is None:
        return "malformed line"
    if not 0 <= row.category <= _OTHERS:
        return "category out of range"
    if min(row.xywh[2:]) < MIN_SIDE:
        return "zero or negative size"
    return "outside the image"


def _ignored_reason(row: _Row) -> str:
    """Why a row is an ignored region; empty: it is an object."""
    if row.category == _IGNORED_REGION:
        return "ignored region"
    if row.category == _OTHERS:
        return "others"
    return "score 0" if row.score == 0 else ""


def _is_cut(row: _Row, hw: tuple[int, int]) -> bool:
    x, y, width, height = row.xywh
    return x < 0 or y < 0 or x + width > hw[1] or y + height > hw[0]


def _box_array(boxes: Iterable[Corners]) -> BoxArray:
    return np.array(list(boxes), dtype=np.float64).reshape(-1, 4)


@dataclass(frozen=True)
class Split:
    """What is to be prepared of one split.

    Attributes:
        name: "train", "val", "test-dev" or "test-challenge".
        folder: below the dataset's root.
        jobs: images with their annotation files, by name.
        problems: images that cannot be used, and annotation files without an image.
    """

    name: str
    folder: Path
    jobs: list[ImageJob]
    problems: list[str]


def find_splits(root: Path) -> list[Split]:
    """The splits below a VisDrone folder: any that are there.

    Raises PrepareError, saying what was expected and what is there, when none is or one is incomplete.
    """
    folders = {name: root / f"VisDrone2019-DET-{name}" for name in SPLITS}
    present = {name: folder for name, folder in folders.items() if folder.is_dir()}
    if not present:
        expected = ", ".join(folder.name for folder in folders.values())
        raise PrepareError(
            f"{root}: not a VisDrone folder. Expected in it at least one of {expected}, each with the folders "
            f"images and annotations; {_found(root)}. Unpack the archives there, or give the folder with --root."
        )
    return [_read_split(name, folder) for name, folder in present.items()]


def _read_split(name: str, folder: Path) -> Split:
    for needed in ("images",) if name in UNLABELLED_SPLITS else ("images", "annotations"):
        if not (folder / needed).is_dir():
            raise PrepareError(f"{folder}: expected a folder {needed!r} in it; {_found(folder)}.")
    images = sorted(path for path in (folder / "images").iterdir() if is_image(path))
    texts = _annotation_files(folder / "annotations")
    sources = without_own_copies(images, texts)
    jobs, problems = _pair(sources, texts, labelled=name not in UNLABELLED_SPLITS or bool(texts))
    if not sources:
        problems.append(f"{folder / 'images'}: no images in it")
    return Split(name, folder, jobs, problems)


def _annotation_files(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        return {}
    return {p.stem: p for p in sorted(folder.iterdir()) if p.suffix == ".txt" and not p.name.startswith(".")}


def without_own_copies(images: Iterable[Path], annotated_stems: Iterable[str] = ()) -> list[Path]:
    """Images without the greyed copies of an earlier preparation: ``x_masked.jpg`` beside an ``x.*``.

    A picture of such a name that has annotations of its own is no copy.
    """
    images, annotated = list(images), set(annotated_stems)
    stems = {path.stem for path in images}

    def is_copy(path: Path) -> bool:
        original = path.stem.removesuffix(MASKED_SUFFIX)
        return original != path.stem and original in stems and path.stem not in annotated

    return [path for path in images if not is_copy(path)]


def _pair(images: list[Path], texts: dict[str, Path], labelled: bool) -> tuple[list[ImageJob], list[str]]:
    """Match images and annotation files by name; what does not match, or would overwrite another, is told."""
    jobs: list[ImageJob] = []
    problems: list[str] = []
    taken: dict[str, Path] = {}
    stems = {path.stem for path in images}
    for image in images:
        problem = _name_problem(image, stems, taken)
        if not problem and labelled and image.stem not in texts:
            problem = f"{image}: no annotation file; expected annotations/{image.stem}.txt"
        if problem:
            problems.append(problem)
        else:
            jobs.append(ImageJob(image, texts.get(image.stem)))
            taken[image.stem] = image
    orphans = sorted(texts.keys() - stems)
    problems += [f"{texts[stem]}: no image; expected images/{stem}.jpg" for stem in orphans]
    return jobs, problems


def _name_problem(image: Path, stems: set[str], taken: dict[str, Path]) -> str:
    """Why an image cannot be used under its name; empty: it can."""
    if not _fits_into_list(image.name):
        return f"{str(image)!a}: a list file cannot hold this name; rename it"
    if image.stem in taken:
        return f"{image}: shares its label file with {taken[image.stem].name}; rename or remove one of them"
    if f"{image.stem}{MASKED_SUFFIX}" in stems:
        return f"{image}: its greyed copy would replace {image.stem}{MASKED_SUFFIX}.jpg; rename one of them"
    return ""


def _fits_into_list(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return len(name.splitlines()) == 1


def _found(folder: Path) -> str:
    """What is in a folder, for messages."""
    if not folder.is_dir():
        return "there is no such folder"
    names = sorted(path.name for path in folder.iterdir())
    shown = ", ".join(names[:_SHOWN_ENTRIES]) + (", …" if len(names) > _SHOWN_ENTRIES else "")
    return f"found {shown}" if names else "found nothing in it"
