"""What the readers of all datasets share: their types, boxes inside an image, pairing names, wording.

Reading only. Labels, greyed copies and heatmaps are made in utils/prepare.py.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from utils.images import MASKED_SUFFIX, is_image

BoxArray = npt.NDArray[np.float64]
Corners = tuple[float, float, float, float]

MIN_SIDE = 0.05
"""Pixels; a box with less on a side could read 0.000000 in a label file."""

_MAX_MESSAGES = 5
_SHOWN_ENTRIES = 10
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,3})?", re.ASCII)
_LINE_END = re.compile(r"\r\n|\n|\r")


class PrepareError(ValueError):
    """A dataset that cannot be prepared, or not further; the message says what to do."""


@dataclass(frozen=True, eq=False)
class ImageAnnotations:
    """What is known of the objects in one image.

    Attributes:
        boxes: float64 [N, 4] corners (x1, y1, x2, y2)_orig, inside the image.
        labels: int64 [N] class index.
        ignored: float64 [M, 4] corners_orig of regions that are not to be looked at.
        dropped: rows that gave no label, by reason.
        clipped: boxes that were cut at the border of the image.
        messages: what is wrong with the rows, with file and line; at most a handful.
    """

    boxes: BoxArray
    labels: npt.NDArray[np.int64]
    ignored: BoxArray
    dropped: Mapping[str, int] = field(default_factory=dict)
    clipped: int = 0
    messages: Sequence[str] = ()


class AnnotationSource(Protocol):
    """Where the annotations of one image come from; sent to worker processes, so plain data."""

    def read(self, hw: tuple[int, int]) -> ImageAnnotations:
        """The annotations of an image of this height and width.

        Never raises on bad content, which is dropped and told. Raises OSError when a file cannot be read.
        """


@dataclass(frozen=True)
class ImageJob:
    """One image to prepare; without annotations (a test set) it is only checked and listed."""

    image: Path
    annotations: AnnotationSource | None


@dataclass(frozen=True)
class Split:
    """What is to be prepared of one split.

    Attributes:
        name: of its list, ``split/<name>.txt``.
        jobs: images with their annotations, in the order of the list.
        problems: images that cannot be used, and annotations without an image.
        warnings: rows of annotation files that belong to no image or cannot be read.
        thinned: take every n-th image of each sequence into a list ``<name>_ds.txt`` too; 0: no such list.
    """

    name: str
    jobs: list[ImageJob]
    problems: list[str]
    warnings: list[str] = field(default_factory=list)
    thinned: int = 0


@dataclass(frozen=True)
class DatasetSource:
    """A dataset that was found on the disk.

    Attributes:
        name: as in --dataset.
        class_names: by class index.
        splits: to prepare.
        mask_ignored: ignored regions are greyed in copies of the images, unless the user asks not to.
        keep_labels: the label files are the user's own and are not written.
    """

    name: str
    class_names: Sequence[str]
    splits: list[Split]
    mask_ignored: bool = True
    keep_labels: bool = False


@dataclass(frozen=True, eq=False)
class BoxRows:
    """Boxes of one image out of a file that covers many images; an `AnnotationSource`.

    Attributes:
        name: file and image, for messages.
        xywh: float64 [N, 4] (left, top, width, height)_orig of objects.
        labels: int64 [N] class index.
        ignored_xywh: float64 [M, 4] (left, top, width, height)_orig of ignored regions.
        drop_in_ignored: objects whose centre lies in an ignored region are no labels.
        dropped: rows of this image that were found useless before.
        messages: what was wrong with them.
    """

    name: str
    xywh: BoxArray
    labels: npt.NDArray[np.int64]
    ignored_xywh: BoxArray
    drop_in_ignored: bool = False
    dropped: Mapping[str, int] = field(default_factory=dict)
    messages: Sequence[str] = ()

    def read(self, hw: tuple[int, int]) -> ImageAnnotations:
        """Boxes clipped to an image of this height and width, without duplicates and useless ones."""
        dropped, messages = Counter(self.dropped), list(self.messages)
        ignored = dict.fromkeys(filter(None, (clip_box(row, hw) for row in self.ignored_xywh.tolist())))
        objects: dict[tuple[int, Corners], bool] = {}
        for row, label in zip(self.xywh.tolist(), self.labels.tolist(), strict=True):
            corners = clip_box(row, hw)
            if corners is None:
                reason = size_fault(row)
                dropped[reason] += 1
                messages.append(f"{self.name}: {reason}: {row}")
            elif self.drop_in_ignored and centre_in_any(corners, ignored):
                dropped["centre in an ignored region"] += 1
            elif (label, corners) in objects:
                dropped["duplicate"] += 1
            else:
                objects[label, corners] = is_cut(row, hw)
        return ImageAnnotations(
            boxes=box_array(corners for _, corners in objects),
            labels=np.array([label for label, _ in objects], dtype=np.int64),
            ignored=box_array(ignored),
            dropped=dict(dropped),
            clipped=sum(objects.values()),
            messages=few_messages(messages, self.name),
        )


# ------------------------------------------------------------------------------------------------ boxes


def clip_box(xywh: Sequence[float], hw: tuple[int, int]) -> Corners | None:
    """Corners of a box (left, top, width, height)_orig inside the image; None when nothing remains."""
    left, top, width, height = xywh
    x1, x2 = max(left, 0.0), min(left + width, float(hw[1]))
    y1, y2 = max(top, 0.0), min(top + height, float(hw[0]))
    return (x1, y1, x2, y2) if min(x2 - x1, y2 - y1) >= MIN_SIDE else None


def size_fault(xywh: Sequence[float]) -> str:
    """Why `clip_box` left nothing of a box."""
    return "zero or negative size" if min(xywh[2:]) < MIN_SIDE else "outside the image"


def is_cut(xywh: Sequence[float], hw: tuple[int, int]) -> bool:
    """Whether a box (left, top, width, height)_orig reaches over the border of the image."""
    x, y, width, height = xywh
    return x < 0 or y < 0 or x + width > hw[1] or y + height > hw[0]


def centre_in_any(box: Corners, regions: Iterable[Corners]) -> bool:
    """Whether the centre of a box lies in one of the regions (corners_orig, borders included)."""
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    return any(left <= x <= right and top <= y <= bottom for left, top, right, bottom in regions)


def box_array(boxes: Iterable[Sequence[float]]) -> BoxArray:
    """Boxes as float64 [N, 4], also when there is none."""
    return np.array(list(boxes), dtype=np.float64).reshape(-1, 4)


# ------------------------------------------------------------------------------------------------- text


def split_lines(content: bytes) -> list[str]:
    """Lines of a text file in UTF-8, whatever its line ends; a byte-order mark is dropped."""
    return _LINE_END.split(content.decode("utf-8-sig", errors="replace"))


def parse_numbers(line: str, count: int) -> list[float] | None:
    """The numbers of a line ``a,b,c``, trailing commas allowed; None when it is not count finite numbers."""
    fields = [part.strip(" \t") for part in line.rstrip(" \t,").split(",")]
    if len(fields) != count or not all(_NUMBER.fullmatch(part) for part in fields):
        return None
    numbers = [float(part) for part in fields]
    return numbers if all(map(math.isfinite, numbers)) else None


def few_messages(messages: Sequence[str], name: str) -> list[str]:
    """At most a handful of messages and how many more there are."""
    if len(messages) <= _MAX_MESSAGES:
        return list(messages)
    return [*messages[:_MAX_MESSAGES], f"{name}: {len(messages) - _MAX_MESSAGES} more lines are wrong"]


def found_in(folder: Path) -> str:
    """What is in a folder, for messages."""
    if not folder.is_dir():
        return "there is no such folder"
    names = sorted(path.name for path in folder.iterdir())
    shown = ", ".join(names[:_SHOWN_ENTRIES]) + (", …" if len(names) > _SHOWN_ENTRIES else "")
    return f"found {shown}" if names else "found nothing in it"


# ------------------------------------------------------------------------------------------------ names


def images_in(folder: Path) -> list[Path]:
    """Images directly in a folder, sorted; no copies that an earlier preparation made."""
    return without_own_copies(sorted(path for path in folder.iterdir() if is_image(path)))


def without_own_copies(images: Iterable[Path], annotated_stems: Iterable[str] = ()) -> list[Path]:
    """Images without the greyed copies of an earlier preparation: ``x_masked.jpg`` beside an ``x.*``.

    A picture of such a name that has annotations of its own is no copy.
    """
    images, annotated = list(images), set(annotated_stems)
    stems = {(path.parent, path.stem) for path in images}

    def is_copy(path: Path) -> bool:
        original = path.stem.removesuffix(MASKED_SUFFIX)
        return original != path.stem and (path.parent, original) in stems and path.stem not in annotated

    return [path for path in images if not is_copy(path)]


def usable_names(images: Iterable[Path]) -> tuple[list[Path], list[str]]:
    """Images that can be prepared under their names, and what is wrong with the others."""
    images = list(images)
    places = {path.with_suffix("") for path in images}
    usable: dict[Path, Path] = {}
    problems: list[str] = []
    for image in images:
        place = image.with_suffix("")
        if problem := _name_problem(image, usable.get(place), places):
            problems.append(problem)
        else:
            usable[place] = image
    return list(usable.values()), problems


def _name_problem(image: Path, twin: Path | None, places: set[Path]) -> str:
    """Why an image cannot be used under its name; empty: it can."""
    if not _fits_into_list(image.name):
        return f"{str(image)!a}: a list file cannot hold this name; rename it"
    if twin is not None:
        return f"{image}: shares its label file with {twin.name}; rename or remove one of them"
    if image.with_name(f"{image.stem}{MASKED_SUFFIX}") in places:
        return f"{image}: its greyed copy would replace {image.stem}{MASKED_SUFFIX}.jpg; rename one of them"
    return ""


def _fits_into_list(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return len(name.splitlines()) == 1


def held_out(names: Iterable[str], share: float) -> set[str]:
    """A fixed choice of names for validation: the same for the same names, on every machine.

    Names are ranked by a hash, so that adding some moves few of the others.

    Args:
        names: of images or sequences.
        share: 0–1; of two names or more at least one is chosen and one left, of one none is.
    """
    ranked = sorted(
        set(names), key=lambda name: hashlib.sha256(name.encode(errors="surrogateescape")).digest()
    )
    count = min(max(round(share * len(ranked)), 1), len(ranked) - 1) if share > 0 and len(ranked) > 1 else 0
    return set(ranked[:count])
