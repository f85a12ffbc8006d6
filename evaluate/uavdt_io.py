"""UAVDT-DET as its official evaluation reads it: the test sequences, ground truth, regions and results.

Reading only; what counts is decided in evaluate/uavdt.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from evaluate.arrays import EvaluationError, IntArray
from evaluate.number_files import Column, read_json, read_rows

NUM_FRAMES = {
    "M0203": 1007, "M0205": 646, "M0208": 265, "M0209": 1576, "M0403": 514, "M0601": 372, "M0602": 480,
    "M0606": 1374, "M0701": 1308, "M0801": 298, "M0802": 1101, "M1001": 1859, "M1004": 269, "M1007": 659,
    "M1009": 604, "M1101": 864, "M1301": 1182, "M1302": 719, "M1303": 445, "M1401": 1050,
}  # fmt: skip
"""The 20 test sequences in the toolkit's order, which decides between equal scores, with their frames."""
WITHOUT_IGNORE_FILE = frozenset({"M0209", "M0801"})
"""Sequences whose ignored regions the toolkit does not read, even where there is a file."""

_BOX = (Column("x"), Column("y"), Column("w"), Column("h"))
_FRAME = (Column("frame", whole=True), Column("target_id"))
_GROUND_TRUTH = (
    *_FRAME, *_BOX, Column("out-of-view", whole=True), Column("occlusion", whole=True), Column("category", whole=True),
)  # fmt: skip
_REGION = (*_FRAME, *_BOX)
_DETECTION = (*_FRAME, *_BOX, Column("score"))


@dataclass(frozen=True)
class UavdtSequence:
    """One sequence: rows of frames 1 to ``frames`` only, in file order; boxes [N, 4] x, y, w, h in pixels.

    Attributes:
        name: such as M0203.
        frames: how many it has.
        frame, xywh: int64 [G] and float64 [G, 4] of the objects.
        attributes: int64 [G, 3] out of view, occlusion, category (columns 7, 8, 9 of the file).
        region_frame, region_xywh: of the ignored regions.
        detection_frame, detection_xywh, score: of the detections; score float64 [D].
    """

    name: str
    frames: int
    frame: IntArray
    xywh: NDArray[np.float64]
    attributes: IntArray
    region_frame: IntArray
    region_xywh: NDArray[np.float64]
    detection_frame: IntArray
    detection_xywh: NDArray[np.float64]
    score: NDArray[np.float64]


def read_num_frames(path: Path) -> dict[str, int]:
    """Which sequences to evaluate, and their numbers of frames: JSON ``{name: frames}``, or such an object below
    the key ``num_frames``; in the order of `NUM_FRAMES`.

    Raises:
        EvaluationError: not such a file.
    """
    content = read_json(path)
    if isinstance(content, dict) and isinstance(content.get("num_frames"), dict):
        content = content["num_frames"]
    if not isinstance(content, dict) or not all(type(n) is int and n > 0 for n in content.values()):
        raise EvaluationError(f"{path}: expected {{sequence: number of frames, …}}")
    try:
        return in_official_order(content)
    except EvaluationError as error:
        raise EvaluationError(f"{path}: {error}") from error


def in_official_order(num_frames: Mapping[str, int]) -> dict[str, int]:
    """The same sequences in the order of `NUM_FRAMES`.

    Raises:
        EvaluationError: none, or one that is no test sequence (its attributes are not known).
    """
    unknown = sorted(num_frames.keys() - NUM_FRAMES.keys())
    if unknown or not num_frames:
        raise EvaluationError(
            f"{', '.join(unknown) or 'no sequence'}: expected some of the test sequences {', '.join(NUM_FRAMES)}"
        )
    return {name: num_frames[name] for name in NUM_FRAMES if name in num_frames}


def read_uavdt(
    ground_truth: Path, results: Path, num_frames: Mapping[str, int] = NUM_FRAMES
) -> list[UavdtSequence]:
    """The sequences to evaluate, in the official order.

    A missing or empty ignore or result file is a sequence without regions or detections (the toolkit stops
    there). Files of other sequences are not read.

    Args:
        ground_truth: folder of ``<sequence>_gt_whole.txt`` and ``<sequence>_gt_ignore.txt``.
        results: folder of ``<sequence>.txt``.
        num_frames: which sequences, and how many frames each has.

    Raises:
        EvaluationError: a folder or a ground-truth file is missing, the result folder holds other things but
            no file of any of the sequences, or a line is malformed.
    """
    num_frames = in_official_order(num_frames)
    for folder in (ground_truth, results):
        if not folder.is_dir():
            raise EvaluationError(f"{folder}: no such folder")
    present = sorted(path.name for path in results.iterdir())
    if present and not any(f"{name}.txt" in present for name in num_frames):
        raise EvaluationError(
            f"{results}: no result file of any sequence (such as {next(iter(num_frames))}.txt); it holds "
            f"{', '.join(present[:5])}"
        )
    return [_read_sequence(ground_truth, results, name, frames) for name, frames in num_frames.items()]


def _read_sequence(ground_truth: Path, results: Path, name: str, frames: int) -> UavdtSequence:
    whole = ground_truth / f"{name}_gt_whole.txt"
    if not whole.is_file():
        raise EvaluationError(f"{whole}: no such file; every evaluated sequence needs its ground truth")
    objects = _rows(whole, _GROUND_TRUTH, frames)
    no_regions = name in WITHOUT_IGNORE_FILE
    regions = _rows(None if no_regions else ground_truth / f"{name}_gt_ignore.txt", _REGION, frames)
    detections = _rows(results / f"{name}.txt", _DETECTION, frames)
    return UavdtSequence(
        name=name,
        frames=frames,
        frame=objects[:, 0].astype(np.int64),
        xywh=objects[:, 2:6],
        attributes=objects[:, 6:9].astype(np.int64),
        region_frame=regions[:, 0].astype(np.int64),
        region_xywh=regions[:, 2:6],
        detection_frame=detections[:, 0].astype(np.int64),
        detection_xywh=detections[:, 2:6],
        score=detections[:, 6],
    )


def _rows(path: Path | None, columns: tuple[Column, ...], frames: int) -> NDArray[np.float64]:
    """The rows of frames 1 to ``frames``; none where there is no file."""
    if path is None or not path.exists():
        return np.zeros((0, len(columns)))
    rows = read_rows(path, columns)
    return rows[(rows[:, 0] >= 1) & (rows[:, 0] <= frames)]
