"""TinyPerson as it is published: COCO-like JSON with flags of its own, erased training images."""

from __future__ import annotations

from pathlib import Path

from utils.datasets.base import (
    DatasetSource,
    ImageJob,
    PrepareError,
    Split,
    found_in,
    images_in,
    usable_names,
)
from utils.datasets.coco import CocoFile, CocoImage, Row, read_coco, to_box_rows

CLASS_NAMES = ("person",)
ANNOTATIONS = {
    "train": "mini_annotations/tiny_set_train_all_erase.json",
    "test": "mini_annotations/tiny_set_test_all.json",
}
FOLDERS = {
    "train": ("erase_with_uncertain_dataset/train",),
    "test": ("erase_with_uncertain_dataset/test", "test"),
}
"""Where the images of a split may lie, best first."""
SUBFOLDERS = ("labeled_images", "pure_bg_images")


def is_ignored(row: Row) -> bool:
    """Not a person to learn from: an ignored or uncertain one, or a crowd (what the official protocol ignores)."""
    return any(bool(row.get(key)) for key in ("ignore", "uncertain", "iscrowd"))


def find_tinyperson(root: Path) -> DatasetSource:
    """The splits below a TinyPerson folder: any that are there.

    Training images come with their ignored regions erased; test images stay as they are. So nothing is greyed.

    Raises PrepareError, saying what was expected and what is there, when none is or one is incomplete.
    """
    present = {name: root / file for name, file in ANNOTATIONS.items() if (root / file).is_file()}
    if not present:
        raise PrepareError(
            f"{root}: not a TinyPerson folder. Expected in it {' and '.join(ANNOTATIONS.values())}, and the images in "
            f"{FOLDERS['train'][0]} and {FOLDERS['test'][0]}; {found_in(root)}. Unpack the archives there, or give the "
            "folder with --root."
        )
    splits = [_read_split(name, read_coco(path), root) for name, path in present.items()]
    return DatasetSource("TinyPerson", CLASS_NAMES, splits, mask_ignored=False)


def _read_split(name: str, file: CocoFile, root: Path) -> Split:
    folders = [root / folder for folder in FOLDERS[name] if (root / folder).is_dir()]
    if not folders:
        expected = " or ".join(FOLDERS[name])
        raise PrepareError(
            f"{root}: expected the images of {file.path.name} in {expected}; {found_in(root)}."
        )
    split = Split(name, [], list(file.problems), list(file.warnings))
    classes = dict.fromkeys(file.categories, 0)
    sources: dict[Path, CocoImage] = {}
    for image in file.images:
        path = _image_path(folders, image.file_name)
        if path is None:
            split.problems.append(
                f"{folders[0] / image.file_name}: no such image, but {file.path.name} lists it"
            )
        elif path in sources:
            split.problems.append(f"{path}: {file.path.name} lists it twice")
        else:
            sources[path] = image
    usable, problems = usable_names(sources)
    split.problems.extend(problems)
    for path in usable:
        rows = to_box_rows(
            f"{file.path.name} {sources[path].file_name}", sources[path].rows, classes, is_ignored
        )
        split.jobs.append(ImageJob(path, rows))
    split.problems.extend(
        f"{path}: no entry for it in {file.path.name}"
        for path in _images_below(folders)
        if path not in sources
    )
    return split


def _image_path(folders: list[Path], file_name: str) -> Path | None:
    """The image that a file name means: with or without its subfolder; None when there is none."""
    name = Path(file_name).name
    places = [folder / file_name for folder in folders]
    places += [folder / subfolder / name for folder in folders for subfolder in SUBFOLDERS]
    places += [folder / name for folder in folders]
    return next((place for place in places if place.is_file()), None)


def _images_below(folders: list[Path]) -> list[Path]:
    places = [place for folder in folders for place in (folder, *(folder / sub for sub in SUBFOLDERS))]
    return [image for place in places if place.is_dir() for image in images_in(place)]
