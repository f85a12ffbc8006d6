"""What an exported file says about itself: names, strides, thresholds, sizes; the same in ONNX and OpenVINO files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

FORMAT = "1"
"""Version of the metadata and of the names of inputs and outputs."""
PREFIX = "esod_"
PARTS = ("stem", "patches", "single")


class ExportedFileError(ValueError):
    """An exported file that cannot be used, or is asked for what it cannot do; the message says what to do."""


@dataclass(frozen=True)
class SingleSettings:
    """What is fixed in a single-file detector.

    Attributes:
        batch: images per call.
        height, width: of the input in pixels.
        max_patches: per image, always so many are computed.
        conf_thres: only higher scores come out.
        iou_thres: of the suppression.
        max_det: at most so many detections per image come out.
        multi_label: a box stands for each of its classes (as test.py counts), not only for its best (as detect.py).
        max_candidates: best-scored boxes that take part in the suppression.
    """

    batch: int
    height: int
    width: int
    max_patches: int
    conf_thres: float
    iou_thres: float
    max_det: int
    multi_label: bool
    max_candidates: int


@dataclass(frozen=True)
class ExportInfo:
    """The metadata of a file.

    Attributes:
        part: "stem" and "patches" are the two graphs of a pair, "single" is all in one.
        fingerprint: the same in both files of a pair.
        names: of the classes.
        strides: input pixels per grid step of the levels.
        parameters: numbers in the whole network.
        conf_thres, iou_thres, max_det: what detect.py takes when nothing else is asked for.
        config: the model's configuration as plain data; ``slicer`` and ``head`` say how its files are to be run.
        single: of part "single" only.
    """

    part: str
    fingerprint: str
    names: list[str]
    strides: list[int]
    parameters: int
    conf_thres: float
    iou_thres: float
    max_det: int
    config: dict[str, Any]
    single: SingleSettings | None = None

    def to_properties(self) -> dict[str, str]:
        """As text by key: ``esod_format``, and ``esod_`` + name with the value as JSON for every attribute."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        values["single"] = None if self.single is None else asdict(self.single)
        return {f"{PREFIX}format": FORMAT} | {
            PREFIX + name: json.dumps(value, ensure_ascii=False) for name, value in values.items()
        }

    @classmethod
    def from_properties(cls, properties: Mapping[str, str], where: str) -> ExportInfo:
        """Read what `to_properties` wrote; ``where`` names the file in messages.

        Raises:
            ExportedFileError: it is not a file of export.py, or of another version.
        """
        version = properties.get(f"{PREFIX}format")
        if version != FORMAT:
            found = "no metadata of this project" if version is None else f"metadata of version {version}"
            raise ExportedFileError(
                f"{where}: {found}; expected a file written by export.py, version {FORMAT}"
            )
        try:
            values = {field.name: json.loads(properties[PREFIX + field.name]) for field in fields(cls)}
            single = values.pop("single")
            info = cls(**values, single=None if single is None else SingleSettings(**single))
        except (KeyError, ValueError, TypeError) as error:
            raise ExportedFileError(f"{where}: its metadata is damaged ({error}); export it again") from error
        if info.part not in PARTS or (info.part == "single") != (info.single is not None):
            raise ExportedFileError(f"{where}: part {info.part!r} is not one of {', '.join(PARTS)}")
        return info
