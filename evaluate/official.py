"""A split's label files through the dataset's official protocol: converted, evaluated, one call.

What the files look like is in official_layout.py, what is computed in visdrone.py, uavdt.py and tinyperson.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from evaluate.arrays import EvaluationError
from evaluate.official_layout import (
    original_image,
    read_results,
    tinyperson_ids,
    write_tinyperson,
    write_uavdt,
    write_visdrone,
)
from evaluate.tinyperson import evaluate_tinyperson
from evaluate.tinyperson_io import read_tinyperson
from evaluate.uavdt import evaluate_uavdt
from evaluate.uavdt_io import NUM_FRAMES, in_official_order, read_uavdt
from evaluate.visdrone import evaluate_visdrone
from evaluate.visdrone_io import ImageSizes, read_visdrone
from utils.datasets.tinyperson import ANNOTATIONS
from utils.datasets.uavdt import TRUTH
from utils.datasets.visdrone import CLASS_NAMES

DATASETS = ("VisDrone", "UAVDT", "TinyPerson")
DEFAULT_SPLIT = {"VisDrone": "test-dev", "UAVDT": "test", "TinyPerson": "test"}


class Metrics(Protocol):
    """What every official protocol gives."""

    def to_dict(self) -> dict[str, Any]:
        """Plain data, unrounded."""

    def table(self) -> str:
        """The official table, rounded as the toolkit prints it."""


@dataclass(frozen=True)
class OfficialSplit:
    """A split of a dataset that has an official protocol.

    Attributes:
        dataset: one of `DATASETS`.
        root: of the dataset, as unpacked.
        split: VisDrone: val or test-dev; UAVDT and TinyPerson: test.
        images: of the split, as lists name them (greyed copies allowed).
    """

    dataset: str
    root: Path
    split: str
    images: Sequence[Path]

    @classmethod
    def of_images(
        cls, dataset: str, root: Path, images: Sequence[Path], names: Sequence[str] = CLASS_NAMES
    ) -> OfficialSplit:
        """The split that images of a dataset belong to, by the folder they lie in; checked.

        Args:
            dataset: one of `DATASETS`.
            root: of the dataset.
            images: of the split.
            names: of the classes that a detector tells apart; VisDrone's protocol is about its ten, in their order.

        Raises EvaluationError as `check`, for other classes, or when VisDrone's images come from several of its parts.
        """
        name = DEFAULT_SPLIT.get(dataset, "test")
        if dataset == "VisDrone":
            if [text.lower() for text in names] != list(CLASS_NAMES):
                raise EvaluationError(
                    f"the official protocol of VisDrone scores its ten classes, {', '.join(CLASS_NAMES)}, in this order; "
                    f"here they are {', '.join(names)}: leave out --official, or --single-cls"
                )
            folders = {image.parent.parent.name for image in images}
            if len(folders) != 1:
                raise EvaluationError(
                    f"the images lie in several parts of VisDrone ({', '.join(sorted(folders))}), which have no common "
                    "protocol: test one of them"
                )
            name = folders.pop().removeprefix("VisDrone2019-DET-")
        split = cls(dataset, root, name, images)
        split.check()
        return split

    def check(self) -> None:
        """Refuse early what cannot be evaluated in the end.

        Raises EvaluationError when the dataset or the split has no official ground truth, it is not there, or the images
        are not those that it is about.
        """
        if self.dataset not in DATASETS:
            raise EvaluationError(
                f"no official protocol for {self.dataset or 'this dataset'}: known are {', '.join(DATASETS)}; the "
                "dataset YAML says which with its key 'official'"
            )
        truth = self._ground_truth()
        if not truth.exists():
            raise EvaluationError(
                f"{truth}: the official ground truth of {self.dataset} {self.split} is not there"
            )
        if self.dataset == "VisDrone":
            self._check_images(truth)
        elif self.dataset == "UAVDT":
            self._check_frames()
        else:
            tinyperson_ids([original_image(image) for image in self.images], truth)

    def convert(self, labels: Path, output: Path, name: str = "ESOD") -> Path:
        """Write label files in the layout that the official toolkit reads; returns its folder or file.

        Args:
            labels: folder of ``test.py --save-txt --save-conf``.
            output: folder for ``DET_results-<split>/``, ``RES_DET/<name>/`` or ``TinyPerson_results.json``.
            name: of the detector (UAVDT).

        Raises EvaluationError when files and images do not fit together.
        """
        results = read_results(labels, self.images)
        if self.dataset == "VisDrone":
            return write_visdrone(
                results, output / f"DET_results-{self.split}", range(1, len(CLASS_NAMES) + 1)
            )
        if self.dataset == "UAVDT":
            return write_uavdt(results, output / "RES_DET" / name)
        return write_tinyperson(results, output / "TinyPerson_results.json", self._ground_truth())

    def evaluate(self, converted: Path) -> Metrics:
        """The official protocol on what `convert` wrote."""
        truth = self._ground_truth()
        if self.dataset == "VisDrone":
            sizes = ImageSizes(images=truth.parent / "images")
            return evaluate_visdrone(read_visdrone(truth, converted, sizes))
        if self.dataset == "UAVDT":
            return evaluate_uavdt(read_uavdt(truth, converted, self._frames()))
        return evaluate_tinyperson(read_tinyperson(truth, converted))

    def notes(self) -> list[str]:
        """What keeps the numbers from being comparable with published ones."""
        notes = []
        if self.dataset == "UAVDT" and self._frames() != NUM_FRAMES:
            notes.append(
                "not the whole official test set: these numbers are not comparable with published ones"
            )
        if self.dataset == "UAVDT" and any(original_image(image) != image for image in self.images):
            notes.append(
                "ignored regions were greyed in the images, with the objects in them, which the official protocol counts: "
                "for numbers to publish prepare the dataset with --no-mask-ignored"
            )
        return notes

    def _check_images(self, truth: Path) -> None:
        """VisDrone: every annotation file is of an image, and every image has one."""
        listed = {original_image(image).stem for image in self.images}
        annotated = {path.stem for path in truth.glob("*.txt")}
        if different := sorted(listed ^ annotated):
            raise EvaluationError(
                f"{truth}: the official protocol scores all images that are annotated here, {len(annotated)}; "
                f"{len(annotated - listed)} of them are not in the list, and {len(listed - annotated)} of the list are not here, "
                f"among them {', '.join(different[:3])}"
            )

    def _check_frames(self) -> None:
        """UAVDT: test sequences only, and all frames of each."""
        listed = Counter(image.parent.name for image in self.images)
        for name, last in in_official_order(self._frames()).items():
            if listed[name] < last:
                raise EvaluationError(
                    f"{name}: the official protocol scores every frame; {listed[name]} of {last} are in the list. Use a "
                    "list of all frames, such as split/test.txt"
                )

    def _ground_truth(self) -> Path:
        if self.dataset == "VisDrone":
            return self.root / f"VisDrone2019-DET-{self.split}" / "annotations"
        if self.dataset == "UAVDT":
            return self.root / TRUTH
        return self.root / ANNOTATIONS.get(self.split, f"no annotations of {self.split}")

    def _frames(self) -> dict[str, int]:
        """Sequences of the images and the number of their last frame, which officially is the last of all."""
        frames: dict[str, int] = {}
        for image in self.images:
            digits = "".join(filter(str.isdecimal, image.stem))
            if digits:
                frames[image.parent.name] = max(frames.get(image.parent.name, 0), int(digits))
        return frames
