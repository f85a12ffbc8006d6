"""People's own images with Darknet (YOLO) label files, which stay as they are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils.datasets.base import (
    DatasetSource,
    ImageAnnotations,
    ImageJob,
    PrepareError,
    Split,
    box_array,
    few_messages,
    held_out,
    usable_names,
    without_own_copies,
)
from utils.images import list_all_images, sibling_paths
from utils.labels import parse_label_text

_TRAIN_FOLDERS, _VAL_FOLDERS = ("train",), ("val", "valid", "validation")
_NAME_FILES = ("classes.txt", "obj.names")


@dataclass(frozen=True)
class DarknetFile:
    """The label file of one image; an `AnnotationSource`."""

    path: Path
    num_classes: int | None

    def read(self, hw: tuple[int, int]) -> ImageAnnotations:
        """Its boxes as corners. Raises OSError when the file cannot be read."""
        text = self.path.read_bytes().decode("utf-8-sig", errors="replace")
        parsed = parse_label_text(text, self.num_classes, str(self.path))
        rows = parsed.rows.astype(np.float64)
        half = rows[:, 3:] / 2
        corners = np.hstack([rows[:, 1:3] - half, rows[:, 1:3] + half]).clip(0, 1)
        return ImageAnnotations(
            boxes=corners * (hw[1], hw[0], hw[1], hw[0]),
            labels=rows[:, 0].astype(np.int64),
            ignored=box_array([]),
            dropped=Counter(problem.reason.split(":")[0] for problem in parsed.problems),
            clipped=parsed.clipped,
            messages=few_messages([str(problem) for problem in parsed.problems], str(self.path)),
        )


def find_yolo(images: Path, names: Sequence[str] = (), val_share: float = 0.2) -> DatasetSource:
    """People's own images, as splits ``train`` and ``val``.

    Where the folder has subfolders ``train`` and ``val`` (or ``valid``) these are the splits; else a fixed share of
    the images is held out. Labels are where the Darknet rule says: the last ``/images/`` of the path becomes
    ``/labels/``, or beside the image. An empty label file is an image without objects; a missing one is a problem.

    Args:
        images: folder, searched through. names: of the classes; empty: from classes.txt or obj.names beside the
            images or labels, else made up.
        val_share: 0–1.

    Raises PrepareError when there are no images.
    """
    if not images.is_dir():
        raise PrepareError(f"{images}: no such folder; --images names the folder with your images")
    pictures = without_own_copies(list_all_images(images))
    if not pictures:
        raise PrepareError(f"{images}: no images in it or below it")
    class_names = list(names) or _names_from_file(images)
    usable, problems = usable_names(pictures)
    train, val = Split("train", [], problems), Split("val", [], [])
    held = _validation_images(images, usable, val_share)
    for image in usable:
        label = sibling_paths(image, "labels", ".txt")[0]
        split = val if image in held else train
        if label.is_file():
            split.jobs.append(ImageJob(image, DarknetFile(label, len(class_names) or None)))
        else:
            split.problems.append(
                f"{image}: no label file; expected {label} (an empty one says that nothing is in the picture)"
            )
    train.problems.extend(_orphans(pictures))
    class_names = class_names or [f"class {index}" for index in range(_highest_class([train, val]) + 1)]
    return DatasetSource("yolo", class_names, [train, val], keep_labels=True)


def _names_from_file(images: Path) -> list[str]:
    labels = sibling_paths(images / "x.jpg", "labels", ".txt")[0].parent
    for folder in dict.fromkeys((images, labels, images.parent)):
        for name in _NAME_FILES:
            if (folder / name).is_file():
                text = (folder / name).read_text(encoding="utf-8-sig", errors="replace")
                return [line.strip() for line in text.splitlines() if line.strip()]
    return []


def _validation_images(root: Path, images: Sequence[Path], share: float) -> set[Path]:
    def top(image: Path) -> str:
        return image.relative_to(root).parts[0].lower()

    tops = {top(image) for image in images if image.parent != root}
    if tops & set(_TRAIN_FOLDERS) and tops & set(_VAL_FOLDERS):
        return {image for image in images if top(image) in _VAL_FOLDERS}
    held = held_out((image.relative_to(root).as_posix() for image in images), share)
    return {image for image in images if image.relative_to(root).as_posix() in held}


def _orphans(images: Sequence[Path]) -> list[str]:
    """Label files in the images' label folders that belong to no image."""
    wanted = {path for image in images for path in sibling_paths(image, "labels", ".txt")}
    folders = sorted({path.parent for path in wanted if path.parent.is_dir()})
    texts = [
        path
        for folder in folders
        for path in sorted(folder.glob("*.txt"))
        if path.name not in _NAME_FILES and not path.name.startswith(".")
    ]
    copies = {path.with_name(f"{path.stem}_masked.txt") for path in wanted}
    return [f"{path}: no image belongs to it" for path in texts if path not in wanted and path not in copies]


def _highest_class(splits: Sequence[Split]) -> int:
    """The highest class number in any label file, -1 without one."""
    highest = -1
    for split in splits:
        for job in split.jobs:
            try:
                labels = job.annotations.read((1, 1)).labels if job.annotations else np.zeros(0)
            except OSError:
                continue  # reported when the image is prepared
            highest = max(highest, int(labels.max(initial=-1)))
    return highest
