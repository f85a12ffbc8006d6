"""Annotations in COCO's JSON form: people's own datasets, and the reading that TinyPerson shares."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeGuard

import numpy as np

from utils.datasets.base import (
    BoxRows,
    DatasetSource,
    ImageJob,
    PrepareError,
    Split,
    box_array,
    few_messages,
    found_in,
    held_out,
    usable_names,
    without_own_copies,
)
from utils.images import list_all_images

_SHOWN_UNLISTED = 5

Row = Mapping[str, Any]


@dataclass(frozen=True)
class CocoImage:
    """One entry of ``images`` with the entries of ``annotations`` that name it."""

    identity: int | str
    file_name: str
    rows: list[Row]


@dataclass(frozen=True)
class CocoFile:
    """A COCO JSON file.

    Attributes:
        path: of the file.
        categories: name by id, in the order of the ids.
        images: in the order of the file.
        problems: entries that cannot be used and are left out: whole images.
        warnings: annotations that belong to no image.
    """

    path: Path
    categories: dict[int, str]
    images: list[CocoImage]
    problems: list[str]
    warnings: list[str]


def read_coco(path: Path) -> CocoFile:
    """Read a COCO JSON file; entries that make no sense are told, not fatal.

    Raises PrepareError when it is not a JSON object with the lists images, annotations and categories.
    """
    try:
        content = json.loads(path.read_bytes().decode("utf-8-sig"))
    except FileNotFoundError as error:
        raise PrepareError(f"{path}: no such file; {found_in(path.parent)} in its folder") from error
    except OSError as error:
        raise PrepareError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise PrepareError(f"{path}: not a JSON file ({str(error)[:100]})") from error
    lists: dict[str, list[Any]] = {}
    for key in _LISTS:
        entries = content.get(key) if isinstance(content, dict) else None
        if not isinstance(entries, list):
            raise PrepareError(f"{path}: not in COCO's form: no list {key!r} (expected {', '.join(_LISTS)})")
        lists[key] = entries
    categories = _categories(path, lists["categories"])
    images, problems = _images(path, lists["images"])
    warnings = _distribute(path, lists["annotations"], {image.identity: image for image in images})
    return CocoFile(path, categories, images, problems, warnings)


_LISTS = ("images", "annotations", "categories")


def _categories(path: Path, entries: list[Any]) -> dict[int, str]:
    names: dict[int, str] = {}
    for entry in entries:
        if (
            not isinstance(entry, dict)
            or not _is_int(entry.get("id"))
            or not isinstance(entry.get("name"), str)
        ):
            raise PrepareError(f"{path}: a category needs an integer id and a name, found {str(entry)[:80]}")
        if entry["id"] in names:
            raise PrepareError(f"{path}: two categories have the id {entry['id']}")
        names[entry["id"]] = entry["name"]
    if not names:
        raise PrepareError(f"{path}: no categories")
    return dict(sorted(names.items()))


def _images(path: Path, entries: list[Any]) -> tuple[list[CocoImage], list[str]]:
    images: dict[int | str, CocoImage] = {}
    files: set[str] = set()
    problems: list[str] = []
    for entry in entries:
        identity = entry.get("id") if isinstance(entry, dict) else None
        name = entry.get("file_name") if isinstance(entry, dict) else None
        if not (_is_int(identity) or isinstance(identity, str)) or not isinstance(name, str) or not name:
            problems.append(f"{path}: an image needs an id and a file_name, found {str(entry)[:80]}")
        elif identity in images:
            problems.append(
                f"{path}: image {name}: the id {identity!r} is that of {images[identity].file_name} too"
            )
        elif name in files:
            problems.append(f"{path}: image {name} is listed twice")
        elif PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            problems.append(f"{path}: image {name}: expected a path below the folder of images")
        else:
            images[identity] = CocoImage(identity, name, [])
            files.add(name)
    return list(images.values()), problems


def _distribute(path: Path, entries: list[Any], images: Mapping[int | str, CocoImage]) -> list[str]:
    """Give annotations to their images; what is wrong with those that have none."""
    messages: list[str] = []
    for index, entry in enumerate(entries):
        identity = entry.get("image_id") if isinstance(entry, dict) else None
        image = images.get(identity) if isinstance(identity, (int, str)) else None
        if image is None:
            messages.append(f"{path}: annotations[{index}] is of the image {identity!r}, which is not listed")
        else:
            image.rows.append(entry)
    return few_messages(messages, str(path))


def _is_int(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def to_box_rows(
    name: str, rows: Sequence[Row], classes: Mapping[int, int], ignored: Callable[[Row], bool]
) -> BoxRows:
    """The boxes of one image.

    Args:
        name: of the image, for messages.
        rows: its annotations.
        classes: class index by category id.
        ignored: whether an annotation is an ignored region instead of an object.
    """
    objects: list[list[float]] = []
    labels: list[int] = []
    regions: list[list[float]] = []
    dropped: Counter[str] = Counter()
    messages: list[str] = []
    for row in rows:
        box, category = _box(row.get("bbox")), row.get("category_id")
        if box is None:
            dropped["no bbox"] += 1
            messages.append(f"{name}: no bbox of four finite numbers: {str(row)[:80]}")
        elif ignored(row):
            dropped["ignored region"] += 1
            regions.append(box)
        elif not _is_int(category) or category not in classes:
            dropped["category out of range"] += 1
            messages.append(f"{name}: unknown category_id {category!r}")
        else:
            objects.append(box)
            labels.append(classes[category])
    return BoxRows(
        name,
        box_array(objects),
        np.array(labels, dtype=np.int64),
        box_array(regions),
        False,
        dropped,
        messages,
    )


def _box(value: object) -> list[float] | None:
    if not isinstance(value, list) or len(value) != 4:
        return None
    if not all(isinstance(number, (int, float)) and not isinstance(number, bool) for number in value):
        return None
    try:
        numbers = [float(number) for number in value]
    except OverflowError:
        return None
    return numbers if all(map(math.isfinite, numbers)) else None


def is_crowd(row: Row) -> bool:
    """A region that is not annotated one by one: COCO's iscrowd, or ignore, which many tools write."""
    return bool(row.get("iscrowd")) or bool(row.get("ignore"))


def find_coco(
    annotations: Path,
    images: Path,
    val_annotations: Path | None = None,
    val_images: Path | None = None,
    val_share: float = 0.2,
) -> DatasetSource:
    """People's own images with COCO annotations, as splits ``train`` and ``val``.

    Args:
        annotations: JSON file. images: the folder that its file names are relative to.
        val_annotations: JSON file of the validation images; None: a fixed share of the images is held out.
        val_images: folder of the validation images; None: the same.
        val_share: that share, 0–1.

    Raises PrepareError when a file or folder is missing or not of this form, or classes differ.
    """
    first = read_coco(annotations)
    classes = {category: index for index, category in enumerate(first.categories)}
    train = _split("train", first, images, classes)
    if val_annotations is None:
        names = {job.image: job.image.relative_to(images).as_posix() for job in train.jobs}
        chosen = held_out(names.values(), val_share)
        val = Split("val", [job for job in train.jobs if names[job.image] in chosen], [])
        train.jobs[:] = [job for job in train.jobs if names[job.image] not in chosen]
        listed = {images: first.images}
    else:
        second = read_coco(val_annotations)
        if second.categories != first.categories:
            raise PrepareError(f"{val_annotations}: its categories differ from those of {annotations}")
        folder = val_images or images
        val = _split("val", second, folder, classes)
        listed = {images: first.images, folder: second.images}
        if folder == images:
            listed = {images: first.images + second.images}
    for folder, entries in listed.items():
        train.problems.extend(_unlisted(folder, {folder / entry.file_name for entry in entries}))
    return DatasetSource("coco", list(first.categories.values()), [train, val])


def _split(name: str, file: CocoFile, folder: Path, classes: Mapping[int, int]) -> Split:
    if not folder.is_dir():
        raise PrepareError(
            f"{folder}: no such folder; --images names the folder with the images of {file.path}"
        )
    split = Split(name, [], list(file.problems), list(file.warnings))
    sources = {folder / image.file_name: image for image in file.images}
    missing = [path for path in sources if not path.is_file()]
    split.problems.extend(
        f"{path}: no such image, but {file.path.name} has annotations for it" for path in missing
    )
    usable, problems = usable_names(path for path in sources if path.is_file())
    split.problems.extend(problems)
    for path in usable:
        rows = to_box_rows(
            f"{file.path.name} {sources[path].file_name}", sources[path].rows, classes, is_crowd
        )
        split.jobs.append(ImageJob(path, rows))
    return split


def _unlisted(folder: Path, listed: set[Path]) -> list[str]:
    """Images in a folder that no annotation file names."""
    others = [path for path in without_own_copies(list_all_images(folder)) if path not in listed]
    shown = [f"{path}: no entry for it in the annotations" for path in others[:_SHOWN_UNLISTED]]
    more = len(others) - len(shown)
    return [*shown, *([f"{folder}: {more} more images have no entry in the annotations"] if more else [])]
