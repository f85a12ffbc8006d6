"""UAVDT (UAV-benchmark-M) as it is published: frames by sequence, one annotation file per sequence."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

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
    images_in,
    parse_numbers,
    split_lines,
    usable_names,
)

CLASS_NAMES = ("car", "truck", "bus")
SINGLE_CLASS_NAMES = ("vehicle",)
TEST_SEQUENCES = (
    "M0203", "M0205", "M0208", "M0209", "M0403", "M0601", "M0602", "M0606", "M0701", "M0801",
    "M0802", "M1001", "M1004", "M1007", "M1009", "M1101", "M1301", "M1302", "M1303", "M1401",
)  # fmt: skip
"""The official test set; every other sequence is for training."""
THINNING = 10
"""Every 10th frame of a sequence goes into the lists ``*_ds.txt``: neighbours in a video look alike."""
VALID_SHARE = 0.2
"""Of the training sequences, held out as ``valid``."""

FRAMES, TRUTH, ATTRIBUTES = "UAV-benchmark-M", "UAV-benchmark-MOTD_v1.0/GT", "M_attr"
_FRAME_NAME = re.compile(r"img(\d+)")
_FIELDS = 9
_SHOWN_FRAMES = 3


@dataclass
class Frame:
    """What a sequence's files say of one frame."""

    xywh: list[list[float]] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    ignored: list[list[float]] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    messages: list[str] = field(default_factory=list)


def find_uavdt(root: Path, single_class: bool = False) -> DatasetSource:
    """The sequences below a UAVDT folder as splits ``train``, ``valid`` and ``test``: those that are there.

    Args:
        root: holds UAV-benchmark-M, UAV-benchmark-MOTD_v1.0/GT and maybe M_attr.
        single_class: cars, trucks and buses are one class, as in the released model and many published numbers.

    Raises PrepareError, saying what was expected and what is there, when a folder is missing or empty.
    """
    for needed in (FRAMES, TRUTH):
        if not (root / needed).is_dir():
            raise PrepareError(
                f"{root}: not a UAVDT folder. Expected in it {FRAMES}/<sequence>/img000001.jpg and "
                f"{TRUTH}/<sequence>_gt_whole.txt; {needed} is missing, {found_in(root)}. Unpack the archives there, "
                "or give the folder with --root."
            )
    folders = {path.name: path for path in sorted((root / FRAMES).iterdir()) if path.is_dir()}
    truths = {
        path.name.removesuffix("_gt_whole.txt"): path
        for path in sorted((root / TRUTH).glob("*_gt_whole.txt"))
    }
    if not folders:
        raise PrepareError(f"{root / FRAMES}: expected one folder per sequence; {found_in(root / FRAMES)}.")
    problems = [
        f"{truths[name]}: no frames; expected {FRAMES}/{name}" for name in sorted(truths.keys() - folders)
    ]
    problems += _attribute_problems(root / ATTRIBUTES)
    testing = [name for name in folders if name in TEST_SEQUENCES]
    training = [name for name in folders if name not in TEST_SEQUENCES]
    valid = held_out(training, VALID_SHARE)
    chosen = {
        "train": [name for name in training if name not in valid],
        "valid": [name for name in training if name in valid],
        "test": testing,
    }
    splits = [
        _read_split(name, [folders[sequence] for sequence in sequences], truths, single_class)
        for name, sequences in chosen.items()
        if sequences
    ]
    splits[0].problems.extend(problems)
    return DatasetSource("UAVDT", SINGLE_CLASS_NAMES if single_class else CLASS_NAMES, splits)


def _attribute_problems(folder: Path) -> list[str]:
    """Where the attribute files, if there are any, disagree with the official list of test sequences."""
    wrong = [path for path in sorted(folder.glob("train/*_attr.txt")) if _sequence_of(path) in TEST_SEQUENCES]
    wrong += [
        path for path in sorted(folder.glob("test/*_attr.txt")) if _sequence_of(path) not in TEST_SEQUENCES
    ]
    return [f"{path}: contradicts the official list of test sequences; move or remove it" for path in wrong]


def _sequence_of(attribute_file: Path) -> str:
    return attribute_file.name.removesuffix("_attr.txt")


def _read_split(name: str, folders: Iterable[Path], truths: dict[str, Path], single_class: bool) -> Split:
    split = Split(name, [], [], thinned=THINNING)
    for folder in folders:
        truth = truths.get(folder.name)
        if truth is None:
            split.problems.append(f"{folder}: no annotations; expected {TRUTH}/{folder.name}_gt_whole.txt")
            continue
        _read_sequence(folder, truth, single_class, split)
    return split


def _read_sequence(folder: Path, truth: Path, single_class: bool, split: Split) -> None:
    """Add the frames of one sequence with their boxes to a split; frames without a row show no vehicle."""
    images, problems = usable_names(images_in(folder))
    split.problems.extend(problems)
    try:
        frames, faults = parse_sequence(truth.read_bytes(), truth.name, single_class)
        ignore_file = truth.with_name(f"{folder.name}_gt_ignore.txt")
        if ignore_file.is_file():
            faults += add_ignored_regions(frames, ignore_file.read_bytes(), ignore_file.name)
    except OSError as error:
        split.problems.append(f"{error.filename or truth}: {error.strerror or error}")
        return
    split.warnings.extend(faults)
    seen: set[int] = set()
    for image in images:
        match = _FRAME_NAME.fullmatch(image.stem)
        if match is None:
            split.problems.append(f"{image}: not a frame; expected a name like img000001.jpg")
            continue
        number = int(match[1])
        seen.add(number)
        split.jobs.append(ImageJob(image, _rows(frames.get(number, Frame()), f"{truth.name} frame {number}")))
    if not images:
        split.problems.append(f"{folder}: no frames in it")
    elif missing := sorted(number for number, frame in frames.items() if frame.xywh and number not in seen):
        shown = ", ".join(f"img{number:06d}.jpg" for number in missing[:_SHOWN_FRAMES])
        more = f" and {len(missing) - _SHOWN_FRAMES} more" if len(missing) > _SHOWN_FRAMES else ""
        split.problems.append(f"{folder}: {len(missing)} annotated frames have no image: {shown}{more}")


def _rows(frame: Frame, name: str) -> BoxRows:
    return BoxRows(
        name=name,
        xywh=box_array(frame.xywh),
        labels=np.array(frame.labels, dtype=np.int64),
        ignored_xywh=box_array(frame.ignored),
        drop_in_ignored=True,
        dropped=frame.dropped,
        messages=frame.messages,
    )


def parse_sequence(content: bytes, name: str, single_class: bool) -> tuple[dict[int, Frame], list[str]]:
    """Read ``<seq>_gt_whole.txt``: frame, id, x, y, w, h, out-of-view, occlusion, category (1 car, 2 truck, 3 bus).

    Never raises, whatever the content.

    Returns frames by number (from 1), and what is wrong with lines that belong to no frame.
    """
    frames: defaultdict[int, Frame] = defaultdict(Frame)
    faults: list[str] = []
    for number, line in enumerate(split_lines(content), start=1):
        if not line.strip(" \t,"):
            continue
        row = parse_numbers(line, _FIELDS)
        if row is None or not _is_frame(row[0]):
            faults.append(f"{name}:{number}: malformed line: {line[:80]!r}")
            continue
        frame = frames[int(row[0])]
        if row[8] not in (1, 2, 3):
            frame.dropped["category out of range"] += 1
            frame.messages.append(f"{name}:{number}: category out of range: {line[:80]!r}")
            continue
        frame.xywh.append(row[2:6])
        frame.labels.append(0 if single_class else int(row[8]) - 1)
    return dict(frames), few_messages(faults, name)


def add_ignored_regions(frames: dict[int, Frame], content: bytes, name: str) -> list[str]:
    """Read ``<seq>_gt_ignore.txt`` (frame, id, x, y, w, h, …) into frames; an empty file is normal.

    Returns what is wrong with lines. Never raises, whatever the content.
    """
    faults: list[str] = []
    for number, line in enumerate(split_lines(content), start=1):
        if not line.strip(" \t,"):
            continue
        row = _first_numbers(line)
        if row is None or not _is_frame(row[0]):
            faults.append(f"{name}:{number}: malformed line: {line[:80]!r}")
            continue
        frame = frames.setdefault(int(row[0]), Frame())
        frame.ignored.append(list(row[2:6]))
    return few_messages(faults, name)


def _first_numbers(line: str) -> Sequence[float] | None:
    """Frame, id and box of a line with six columns or more."""
    return parse_numbers(",".join(line.split(",")[:6]), 6)


def _is_frame(value: float) -> bool:
    return value.is_integer() and 1 <= value < 1e9
