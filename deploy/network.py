"""The network of exported files: two graphs with slicing in between, or one that does everything."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from deploy.decoding import LevelArray, box_shape
from deploy.metadata import ExportedFileError, ExportInfo, SingleSettings
from deploy.sessions import SUFFIXES, Session, open_session
from deploy.slicing import STRIDE, FloatArray, IntArray, PatchTable, SliceRule, choose_patches, cut_patches

MAX_STRIDE = 32
STEM, PATCHES = "_stem", "_patches"
"""Endings of the names of the two files of a pair."""
FEATURES, CORNERS, OWNERS = "features", "corners", "owners"
"""Inputs of the graph of the patches; the latter two where it looks beyond their borders."""


class Output(NamedTuple):
    """What a pair of graphs says about a batch.

    Attributes:
        logits: heatmap [B, 1, H/8, W/8], or None.
        levels: raw predictions at the network's strides.
        patches: where they are.
    """

    logits: FloatArray | None
    levels: list[LevelArray]
    patches: PatchTable


class Found(NamedTuple):
    """What a single file found in one image, boxes in input pixels, best first.

    Attributes:
        xyxy: [N, 4]; score: [N]; label: [N].
        heatmap: [H/8, W/8] probabilities, or None.
        patches: [K, 4] corners in cells of the patches that hold something.
    """

    xyxy: FloatArray
    score: FloatArray
    label: IntArray
    heatmap: FloatArray | None
    patches: IntArray


@dataclass
class TwoGraphs:
    """Stem with seeker, and deep part with head, as two sessions.

    ``rule`` may be replaced at any time: how patches are chosen is decided in each call. (Patches that see each other,
    ``borders: neighbours``, stay unshifted.)
    """

    info: ExportInfo
    stem: Session
    deep: Session
    rule: SliceRule

    def look(self, images: FloatArray) -> tuple[FloatArray, FloatArray | None]:
        """Images [B, 3, H, W] RGB in 0–1, sides multiples of 32 → stride-8 features, heatmap logits or None.

        Raises:
            ExportedFileError: sides are not multiples of 32.
        """
        height, width = images.shape[2:]
        if height % MAX_STRIDE or width % MAX_STRIDE:
            raise ExportedFileError(
                f"input is {height}×{width}; both sides must be multiples of {MAX_STRIDE}"
            )
        found = self.stem.run({"images": images})
        return found["features"], found.get("heatmap_logits")

    def choose(self, logits: FloatArray | None, features: FloatArray) -> PatchTable:
        """The patches, by the rule."""
        map_hw = (features.shape[2], features.shape[3])
        return choose_patches(None if logits is None else sigmoid(logits), len(features), map_hw, self.rule)

    def patch_inputs(self, features: FloatArray, patches: PatchTable) -> dict[str, Any]:
        """What the graph of the patches takes: their features [K, C, h, w], and perhaps where they lie."""
        inputs: dict[str, Any] = {FEATURES: np.ascontiguousarray(cut_patches(features, patches))}
        if self.info.config.get("borders", "zeros") == "neighbours":
            inputs[CORNERS] = patches.corner_blocks()
            inputs[OWNERS] = patches.block_owners(len(features), (features.shape[2], features.shape[3]))
        return inputs

    def predict(self, inputs: dict[str, Any], size_cell: tuple[int, int]) -> list[LevelArray]:
        """`patch_inputs` of patches of one size → raw predictions; also of no patch, which no graph is asked for."""
        grids = [(size_cell[0] * STRIDE // s, size_cell[1] * STRIDE // s) for s in self.info.strides]
        if len(inputs[FEATURES]):
            found = self.deep.run(inputs)
            raws = [found[f"raw{stride}"] for stride in self.info.strides]
        else:
            boxes, values = box_shape(self.info.config)
            raws = [np.zeros((0, rows * columns, boxes, values), dtype=np.float32) for rows, columns in grids]
        return [
            LevelArray(*entry, number)
            for number, entry in enumerate(zip(raws, self.info.strides, grids, strict=True))
        ]

    def __call__(self, images: FloatArray) -> Output:
        """All of it; see `look`."""
        features, logits = self.look(images)
        patches = self.choose(logits, features)
        return Output(logits, self.predict(self.patch_inputs(features, patches), patches.size_cell), patches)


@dataclass
class SingleGraph:
    """Everything from pixels to boxes in one session; batch, size and number of patches are fixed."""

    info: ExportInfo
    session: Session
    settings: SingleSettings

    def __call__(self, images: FloatArray) -> Iterator[Found]:
        """Images [B, 3, H, W] RGB in 0–1 of the file's height and width, any B: one `Found` each, in order.

        They go through in groups of the file's batch, the last filled up with black.

        Raises:
            ExportedFileError: of another size.
        """
        fixed = self.settings
        if images.shape[2:] != (fixed.height, fixed.width):
            raise ExportedFileError(
                f"input is {images.shape[2]}×{images.shape[3]}; this file takes {fixed.height}×{fixed.width} only: "
                f"give --img-size {fixed.height}x{fixed.width}, or export with another"
            )
        for begin in range(0, len(images), fixed.batch):
            group = images[begin : begin + fixed.batch]
            missing = fixed.batch - len(group)
            if missing:
                black = np.zeros((missing, *group.shape[1:]), dtype=group.dtype)
                found = self.session.run({"images": np.concatenate((group, black))})
            else:
                found = self.session.run({"images": group})
            for image in range(len(group)):
                yield _one_image(found, image)


def _one_image(found: dict[str, Any], image: int) -> Found:
    count, patches = int(found["counts"][image]), int(found["patch_counts"][image])
    heatmap = found["heatmap"][image, 0] if "heatmap" in found else None
    return Found(
        found["boxes"][image, :count],
        found["scores"][image, :count],
        found["classes"][image, :count].astype(np.int64),
        heatmap,
        found["patches"][image, :patches].astype(np.int64),
    )


def open_network(path: str | Path, threads: int = 0, device: str = "cpu") -> TwoGraphs | SingleGraph:
    """Open exported files.

    Args:
        path: one of the two files of a pair (the other one beside it), a single file, or a folder with one of these.
        threads, device: see `deploy.sessions.OnnxSession`.

    Raises:
        ExportedFileError: missing, damaged, of different exports, or its runtime is not installed.
    """
    path = Path(path)
    if path.is_dir():
        path = _only_one(path)
    pair = _pair(path)
    if pair is None:
        session = open_session(path, threads, device)
        info = ExportInfo.from_properties(session.properties, str(path))
        if info.single is None:
            raise ExportedFileError(f"{path}: is one of two files, whose names end in {STEM} and {PATCHES}")
        return SingleGraph(info, session, info.single)
    stem, deep = (open_session(file, threads, device) for file in pair)
    infos = [
        ExportInfo.from_properties(s.properties, str(f)) for s, f in zip((stem, deep), pair, strict=True)
    ]
    if [info.part for info in infos] != ["stem", "patches"] or infos[0].fingerprint != infos[1].fingerprint:
        raise ExportedFileError(f"{pair[0]} and {pair[1]} are not of one export: export both again")
    return TwoGraphs(infos[0], stem, deep, SliceRule.of(infos[0].config["slicer"]))


def is_exported(path: str | Path) -> bool:
    """Whether it looks like an exported file, or a folder of them, by names alone."""
    path = Path(path)
    if path.is_dir():
        return any(file.suffix in SUFFIXES for file in path.iterdir())
    return path.suffix in SUFFIXES


def sigmoid(logits: FloatArray) -> FloatArray:
    """1 / (1 + e^−x), in the type given."""
    with np.errstate(over="ignore"):  # infinity gives 0, which is right
        result: FloatArray = np.reciprocal(1 + np.exp(-logits))
    return result


def _pair(path: Path) -> tuple[Path, Path] | None:
    """Stem and patches file, when the name is of either."""
    for ending in (STEM, PATCHES):
        if path.stem.endswith(ending):
            name = path.stem.removesuffix(ending)
            return path.with_name(f"{name}{STEM}{path.suffix}"), path.with_name(
                f"{name}{PATCHES}{path.suffix}"
            )
    return None


def _only_one(folder: Path) -> Path:
    """The one detector in a folder.

    Raises:
        ExportedFileError: there is none, or several.
    """
    files = sorted(file for file in folder.iterdir() if file.suffix in SUFFIXES)
    files = [file for file in files if not file.stem.endswith(PATCHES)]
    if len(files) != 1:
        names = ", ".join(file.name for file in files) or "none"
        raise ExportedFileError(f"{folder}: expected one exported detector, found {names}: give the file")
    return files[0]
