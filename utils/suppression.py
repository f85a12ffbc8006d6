"""Two other ways of making one detection of many boxes, beside `utils.boxes.non_max_suppression`.

Both take ranked candidates and work class by class on the host: chosen for accuracy, not for speed.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

SOFT_SIGMA = 0.5
"""σ of soft suppression's exp(−IoU² / σ); the value of its paper."""

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Found = tuple[Tensor, Tensor, Tensor]
"""Boxes [M, 4], scores [M], labels [M] int64, best first."""


def soft_suppression(
    boxes: Tensor,
    score: Tensor,
    label: Tensor,
    *,
    conf_thres: float,
    max_det: int = 500,
    agnostic: bool = False,
) -> Found:
    """Soft-NMS with Gaussian decay (arXiv 1704.04503, eq. 3): nothing is removed for its overlap.

    The best box left is taken, and the scores of the others of its class are multiplied by exp(−IoU² / σ), until
    max_det are taken or no score is above conf_thres. There is no threshold of overlap.

    Args:
        boxes, score, label: candidates, best first, as `utils.boxes.ranked_candidates` gives them.
        conf_thres, max_det, agnostic: see `utils.boxes.non_max_suppression`.

    Returns:
        As `utils.boxes.non_max_suppression`; a score is what is left of it.
    """
    group = _groups(label, agnostic)
    kept, left = _soft_order(_array(boxes), _array(score), group, max_det, conf_thres)
    index = torch.from_numpy(kept).to(boxes.device)
    return boxes[index], torch.from_numpy(left).to(score), label[index]


def weighted_fusion(
    boxes: Tensor,
    score: Tensor,
    label: Tensor,
    *,
    iou_thres: float,
    max_det: int = 500,
    agnostic: bool = False,
) -> Found:
    """Weighted boxes fusion (arXiv 1910.13302): overlapping boxes become their mean, weighted by their scores.

    Best first, a box joins the cluster of its class whose mean it overlaps most, if by more than iou_thres, else it
    begins one. The paper's score is a mean over the models that it fuses; within one network how many faint boxes lie
    around an object says nothing, and the score is that of the cluster's best box.

    Args:
        boxes, score, label: candidates, best first, as `utils.boxes.ranked_candidates` gives them.
        iou_thres, max_det: see `utils.boxes.non_max_suppression`.
        agnostic: boxes of different classes join, too; a cluster has the label of its best box.

    Returns:
        As `utils.boxes.non_max_suppression`.
    """
    points, weight, group = _array(boxes), _array(score), _groups(label, agnostic)
    best, fused = [np.zeros(0, dtype=np.int64)], [np.zeros((0, 4))]
    for rows in _by_group(group):
        first, mean = _fuse(points[rows], weight[rows], iou_thres)
        best.append(rows[first])
        fused.append(mean)
    first_of = np.concatenate(best)
    order = np.argsort(first_of)[:max_det]  # candidates come best first, so this is the order of the scores
    index = torch.from_numpy(first_of[order]).to(boxes.device)
    return torch.from_numpy(np.concatenate(fused)[order]).to(boxes), score[index], label[index]


def overlaps(box: FloatArray, others: FloatArray) -> FloatArray:
    """Intersection over union of corners [4] with each of [N, 4]: [N]; 0 where both have no area."""
    shared = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    inner = np.clip(shared, 0, None).prod(axis=1)
    union = (box[2:] - box[:2]).prod() + (others[:, 2:] - others[:, :2]).prod(axis=1) - inner
    result: FloatArray = np.divide(inner, union, out=np.zeros_like(inner), where=union > 0)
    return result


def _soft_order(
    boxes: FloatArray, score: FloatArray, group: IntArray, max_det: int, least: float
) -> tuple[IntArray, FloatArray]:
    """Which candidates are taken, in order, and what is left of their scores."""
    members = list(_by_group(group))
    home = np.zeros(len(group), dtype=np.int64)
    for number, rows in enumerate(members):
        home[rows] = number
    left = score.copy()
    taken: list[int] = []
    kept: list[float] = []
    while len(taken) < min(max_det, len(left)):
        best = int(left.argmax())
        if left[best] <= least:
            break
        taken.append(best)
        kept.append(float(left[best]))
        rows = members[home[best]]
        left[rows] *= np.exp(-np.square(overlaps(boxes[best], boxes[rows])) / SOFT_SIGMA)
        left[best] = -1.0
    return np.array(taken, dtype=np.int64), np.array(kept, dtype=np.float64)


def _fuse(boxes: FloatArray, score: FloatArray, iou_thres: float) -> tuple[IntArray, FloatArray]:
    """Clusters of one class's boxes [N, 4], best first: the index of each one's first box, and the means [M, 4]."""
    total = np.zeros((len(boxes), 4))
    mean, weight = np.zeros_like(total), np.zeros(len(boxes))
    first: list[int] = []
    for index, (box, value) in enumerate(zip(boxes, score, strict=True)):
        count = len(first)
        at = count
        if count:
            overlap = overlaps(box, mean[:count])
            nearest = int(overlap.argmax())
            at = nearest if overlap[nearest] > iou_thres else count
        if at == count:
            first.append(index)
        total[at] += value * box
        weight[at] += value
        mean[at] = total[at] / weight[at]
    return np.array(first, dtype=np.int64), mean[: len(first)]


def _by_group(group: IntArray) -> Iterator[IntArray]:
    """Indices of the candidates of each group, ascending."""
    for number in np.unique(group):
        yield np.flatnonzero(group == number)


def _groups(label: Tensor, agnostic: bool) -> IntArray:
    """Which candidates can overlap each other: those of a class, or all."""
    values: IntArray = label.cpu().numpy().astype(np.int64)
    return np.zeros_like(values) if agnostic else values


def _array(values: Tensor) -> FloatArray:
    return values.detach().double().cpu().numpy()
