"""Which images a dataset YAML means by train, val and test, and a fingerprint of them.

Paths only: nothing is opened but list files, and label files for the fingerprint.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from utils.config import DatasetConfig
from utils.images import IMAGE_SUFFIXES, list_images
from utils.labels import DataError, label_path
from utils.logger import get_logger
from utils.typed_data import ConfigError, load_config

_PREPARE = "python scripts/data_prepare.py --dataset"
_HOW_TO_GET = {
    **{
        name.lower(): f"Download it (docs/datasets.md says where), then run: {_PREPARE} {name}"
        for name in ("VisDrone", "UAVDT", "TinyPerson")
    },
    "sample": f"Run: python scripts/make_sample.py, then {_PREPARE} VisDrone --root sample",
}


def dataset_root(config: DatasetConfig, yaml_path: str | Path) -> Path:
    """The dataset's folder: ``path`` of the YAML, relative to the YAML's folder or the working directory.

    Raises DataError when neither exists, with both names.
    """
    path = Path(config.path).expanduser()
    places = list(dict.fromkeys((Path(yaml_path).parent / path, path)))
    for place in places:
        if place.is_dir():
            return place
    looked = " and ".join(str(place.absolute()) for place in places)
    raise DataError(f"{yaml_path}: the dataset's folder is not there; looked for {looked}. {_advice(path)}")


def dataset_yaml_of(root: Path, usual: Path) -> Path:
    """The dataset file for a folder of images: the usual one, unless only another of the same classes names it.

    Looked for beside the usual one, among the files that are datasets of ours.
    """
    names = load_config(DatasetConfig, usual).names
    for path in (usual, *sorted(usual.parent.glob("*.yaml"))):
        with suppress(ConfigError):
            config = load_config(DatasetConfig, path)
            if config.names == names and Path(config.path).expanduser().absolute() == root.absolute():
                return path
    return usual


def resolve_split(config: DatasetConfig, yaml_path: str | Path, split: str) -> list[Path]:
    """The images of a split, each once.

    An entry is a folder (all images below it; of ``x.jpg`` and ``x_masked.jpg`` only the latter), or a
    ``.txt`` list of images, absolute or relative to the dataset's folder, the list's folder or the folder
    above it.

    Args:
        config: the dataset YAML.
        yaml_path: where it was read from.
        split: "train", "val" or "test".

    Raises:
        DataError: an entry is missing, is neither of these, or names no image that exists.
    """
    if split not in ("train", "val", "test"):
        raise DataError(f"unknown split {split!r}; known: train, val, test")
    value: str | list[str] = getattr(config, split)
    entries = [value] if isinstance(value, str) else value
    if not any(entries):
        raise DataError(f"{yaml_path}: no {split!r} entry; give a folder, a .txt list, or a list of these")
    root = dataset_root(config, yaml_path)
    images = [image for entry in entries for image in _images_of_entry(root, entry, f"{yaml_path}: {split}")]
    unique = list(dict.fromkeys(images))
    if len(unique) < len(images):
        get_logger().warning(
            f"{yaml_path}: {split}: {len(images) - len(unique)} images are listed twice; used once"
        )
    return unique


def _images_of_entry(root: Path, entry: str, where: str) -> list[Path]:
    path = root / Path(entry).expanduser()
    if path.is_dir():
        images = list_images(path)
        if not images:
            raise DataError(f"{where}: no images in {path} (looked for {' '.join(sorted(IMAGE_SUFFIXES))})")
        return images
    if path.suffix.lower() != ".txt":
        raise DataError(f"{where}: {path} is neither a folder nor a .txt list. {_advice(root)}")
    if not path.is_file():
        raise DataError(f"{where}: no such list: {path}. {_advice(root)}")
    images = read_list(path, root)
    if not images:
        raise DataError(f"{where}: the list {path} is empty. {_advice(root)}")
    if not any(image.is_file() for image in images):
        raise DataError(
            f"{where}: none of the {len(images)} images in {path} exists, e.g. {images[0]}. {_advice(root)}"
        )
    return images


def read_list(path: Path, root: Path) -> list[Path]:
    """Images of a list file, one a line; empty lines and lines that start with # are skipped.

    A relative name is looked for below root, beside the list, in the folder above it and in the working
    directory; where it is nowhere, it is taken as below root. Raises DataError when it is not a text file.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as a list of images: {error}") from error
    bases = [root, path.parent, path.parent.parent, Path()]
    images = []
    for line in lines:
        if not line or line.startswith("#"):
            continue
        base = next((base for base in bases if (base / line).is_file()), None)
        if base is None:
            images.append(root / line)
            continue
        if base is not bases[0]:  # the next line is most likely relative to the same folder
            bases.remove(base)
            bases.insert(0, base)
        images.append(base / line)
    return images


def _advice(root: Path) -> str:
    return _HOW_TO_GET.get(root.name.lower(), "Check 'path' and the splits in the YAML.")


def dataset_fingerprint(images: Sequence[Path]) -> str:
    """SHA-256 (hex) of a list of images: their names, file sizes and labels, not where they lie or when
    they were written, so that a copy on another machine has the same one."""
    digest = hashlib.sha256()
    for image in images:
        labels = label_path(image)
        content = labels.read_bytes() if labels.is_file() else b""
        size = image.stat().st_size if image.is_file() else -1
        digest.update(f"{image.name}\0{size}\0{len(content)}\0".encode("utf-8", "surrogateescape"))
        digest.update(content)
    return digest.hexdigest()
