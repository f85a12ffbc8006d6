"""The dataset YAML of people's own images, written beside them."""

from __future__ import annotations

from pathlib import Path

import yaml

from utils.config import DatasetConfig
from utils.datasets.base import DatasetSource, PrepareError
from utils.prepare import write_if_changed
from utils.typed_data import ConfigError, load_config

SMALL_OBJECT_ANCHORS = {
    1536: [[[6, 8], [10, 22], [19, 15]], [[19, 32], [39, 22], [32, 47]], [[74, 38], [65, 74], [136, 112]]]
}
"""VisDrone's: a better start for small objects than COCO's."""


def write_dataset_yaml(path: Path, source: DatasetSource, force: bool = False) -> bool:
    """Write ``dataset.yaml`` with ``path: .``, so that the whole folder can be moved; True when written.

    One that is there already is kept, whatever its anchors and comments, as long as its classes are these.

    Raises PrepareError when its classes are others (unless force), or the folder cannot be written.
    """
    names = list(source.class_names)
    if path.is_file() and not force:
        try:
            present = load_config(DatasetConfig, path).names
        except ConfigError as error:
            raise PrepareError(f"{error}. Mend {path}, or replace it with --force.") from error
        if present == names:
            return False
        raise PrepareError(
            f"{path} names the classes {', '.join(present) or 'none'}, the annotations {', '.join(names)}. Mend it, or "
            "replace it with --force."
        )
    content = {
        "path": ".",
        **{split.name: f"split/{split.name}.txt" for split in source.splits},
        "nc": len(names),
        "names": names,
        "anchors": SMALL_OBJECT_ANCHORS,
    }
    header = (
        "# Written by scripts/data_prepare.py, which keeps it from now on: change what you like.\n"
        "# anchors: [width, height] in pixels at this image size, for strides 8, 16 and 32 (VisDrone's; others fit your\n"
        "# boxes better if training says so: scripts/anchors.py prints them).\n"
    )
    text = header + yaml.safe_dump(
        content, sort_keys=False, allow_unicode=True, default_flow_style=None, width=110
    )
    return write_if_changed(path, text.encode())
