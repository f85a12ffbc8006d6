"""Written files against torch: raw numbers of each graph, and detections from the whole way."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from deploy.metadata import ExportedFileError
from deploy.slicing import PatchTable
from engine.exported import ExportedNetwork
from engine.inference import Detector, load_model
from models.borders import Placement
from models.decode import PostprocessConfig
from models.esod import ESOD
from models.slicer import Patches, cut_patches, fixed_grid
from utils.images import ByteImage
from utils.results import Detections

TOLERANCE = 1e-3
"""Largest difference of raw numbers, relative to the largest of them (but at least 1)."""
BOX_TOLERANCE_PX = 0.5
SCORE_MARGIN = 0.01
"""Detections whose score is this near the threshold may be in one list and not in the other."""
CHECKED_PATCHES = 5


@dataclass(frozen=True)
class Comparison:
    """How far a file is from torch.

    Attributes:
        numbers: largest difference of each output, relative to its largest value.
        detections: that torch found.
        found: that the exported detector found.
        box_px: largest distance of a corner of a box from torch's, in original pixels.
        score: largest difference of a score.
    """

    numbers: dict[str, float]
    detections: int
    found: int
    box_px: float
    score: float

    def line(self) -> str:
        """The numbers in words."""
        raw = ", ".join(f"{name} {value:.1e}" for name, value in self.numbers.items())
        text = f"largest relative difference to torch: {raw}; " if raw else ""
        counts = (
            str(self.detections) if self.found == self.detections else f"{self.detections} and {self.found}"
        )
        if math.isinf(self.box_px):
            return text + f"{counts} detections, some without a partner"
        return text + f"{counts} detections: boxes {self.box_px:.3f} px, scores {self.score:.1e}"


def compare(
    reference: Detector,
    path: Path,
    image: ByteImage,
    config: PostprocessConfig,
    img_size: int | tuple[int, int],
) -> Comparison:
    """The `difference` of an exported detector in 32 bits.

    Raises:
        ExportedFileError: it is more than `TOLERANCE` or `BOX_TOLERANCE_PX`, with the numbers.
    """
    result = difference(reference, path, image, config, img_size)
    if max([*result.numbers.values(), result.score]) > TOLERANCE or result.box_px > BOX_TOLERANCE_PX:
        raise ExportedFileError(f"{path}: differs from torch too much: {result.line()}")
    return result


def difference(
    reference: Detector,
    path: Path,
    image: ByteImage,
    config: PostprocessConfig,
    img_size: int | tuple[int, int],
) -> Comparison:
    """Run torch and an exported detector on one picture and on all graphs' inputs.

    Args:
        reference: the torch detector that was exported, on the CPU, with a dense head.
        path: a file of the exported detector.
        image: uint8 RGB picture.
        config: of the post-processing.
        img_size: see `Detector.predict`.
    """
    exported = load_model(path, "cpu")
    pixels = exported.prepare(image, img_size)  # an input of the size that a single file has
    numbers = {}
    if isinstance(exported.model, ExportedNetwork):
        numbers = _graph_differences(reference, exported.model, exported.batch_of([pixels]))
    expected, found = (one.detect([pixels], config)[0].detections for one in (reference, exported))
    box_px, score = detection_difference(expected, found, config.conf_thres + SCORE_MARGIN)
    return Comparison(numbers, len(expected), len(found), box_px, score)


@torch.inference_mode()
def _graph_differences(reference: Detector, exported: ExportedNetwork, images: Tensor) -> dict[str, float]:
    """Largest relative difference of each output, the second graph on torch's features of fixed patches."""
    model, graphs = reference.model, exported.graphs
    assert isinstance(model, ESOD)
    features = model.stem(images)
    differences = {}
    got, logits = graphs.look(images.numpy())
    differences["features"] = relative_difference(features, got)
    if logits is not None and model.seeker is not None:
        differences["heatmap"] = relative_difference(model.seeker(features), logits)
    map_hw = (features.shape[2], features.shape[3])
    grid = fixed_grid(1, map_hw, 8, images.device)
    patches = Patches(grid.image_index[:CHECKED_PATCHES], grid.xyxy_cell[:CHECKED_PATCHES], grid.size_cell)
    if model.surroundings is not None:
        model.surroundings.place(Placement(patches, 1, map_hw))
    expected = model.head(model.neck(*model.deep(cut_patches(features, patches), patches)))
    table = PatchTable(patches.image_index.numpy(), patches.xyxy_cell.numpy(), patches.size_cell)
    inputs = graphs.patch_inputs(features.numpy(), table)
    for level, array in zip(expected, graphs.predict(inputs, patches.size_cell), strict=True):
        differences[f"raw{level.stride}"] = relative_difference(level.raw, array.raw.reshape(level.raw.shape))
    return differences


def relative_difference(expected: Tensor, found: np.ndarray) -> float:
    """Largest difference, divided by the largest absolute value or 1."""
    if expected.shape != found.shape:
        raise ExportedFileError(f"an output has the shape {found.shape}, torch's has {tuple(expected.shape)}")
    wanted = expected.numpy()
    return float(np.abs(wanted - found).max() / max(1.0, np.abs(wanted).max()))


def detection_difference(expected: Detections, found: Detections, least_score: float) -> tuple[float, float]:
    """Largest distance of a corner in pixels and largest difference of a score between equal detections.

    Each of either list above ``least_score`` needs a partner of its class in the other one, of whatever score; the
    nearest is taken. Infinity when there is none.
    """
    box_px = score = 0.0
    for these, others in ((expected, found), (found, expected)):
        for index in (these.score >= least_score).nonzero().flatten().tolist():
            same = (others.label == these.label[index]).nonzero().flatten()
            if not len(same):
                return float("inf"), float("inf")
            distance = (others.xyxy[same] - these.xyxy[index]).abs().amax(dim=1)
            # Equal boxes of other scores cannot survive suppression, so the nearest is the same one.
            nearest = int(distance.argmin())
            box_px = max(box_px, float(distance[nearest]))
            score = max(score, float((others.score[same[nearest]] - these.score[index]).abs()))
    return box_px, score
