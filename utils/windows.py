"""Very large pictures in windows that overlap: where the windows lie, and how their detections become one picture's.

An object on a seam is seen by several windows, whole or cut. What is cut gives way to what is whole; where the object
is larger than the overlap and no window has it whole, its pieces are joined; what two windows saw alike is counted once.
Pure geometry: nothing here reads a file or knows a network.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.ops import nms

from utils.results import Detections

STEP = 32
"""Windows begin at multiples of this, so that the network's grids lie alike on the picture in all of them."""
EDGE_PX = 3.0
EDGE_SHARE = 0.05
"""A box is cut where it comes this near to an inner border: pixels, or share of its side, whichever is more."""
COVERED = 0.5
"""A cut box gives way when this share of its area lies in, or within `EDGE_PX` of, a box that is whole there."""
SAME_IOU = 0.3
"""Boxes of one class from two windows that overlap at least this much are one object seen twice."""
SAME_SIDE = 0.5
"""Pieces belong together when they share this much of the shorter one's extent along the seam."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Window:
    """A rectangle of a picture: from (left, top) up to but without (right, bottom), in its pixels."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def hw(self) -> tuple[int, int]:
        """Height and width."""
        return self.bottom - self.top, self.right - self.left

    def span(self, axis: int) -> tuple[int, int]:
        """Begin and end along x (0) or y (1)."""
        return (self.left, self.right) if axis == 0 else (self.top, self.bottom)


def cut_into_windows(hw: tuple[int, int], size: int, overlap: int) -> list[Window]:
    """As few windows as cover a picture of hw = (height, width), row by row; neighbours share ``overlap`` pixels.

    Args:
        hw: of the picture.
        size: largest side of a window, a multiple of `STEP`. Windows are made smaller where they would only
            overlap more.
        overlap: a multiple of `STEP`, at most half of ``size``.
    """
    if size < STEP or size % STEP or overlap < 0 or overlap % STEP or 2 * overlap > size:
        raise ValueError(
            f"windows of {size} with an overlap of {overlap} pixels: expected multiples of {STEP}, "
            "the overlap at most half of the window"
        )
    rows, columns = (_spans(length, size, overlap) for length in hw)
    return [Window(left, top, right, bottom) for top, bottom in rows for left, right in columns]


def _spans(length: int, size: int, overlap: int) -> list[tuple[int, int]]:
    """Begin and end of the windows along one side."""
    if length <= size:
        return [(0, length)]
    count = math.ceil((length - overlap) / (size - overlap))
    needed = math.ceil((length + (count - 1) * overlap) / count / STEP) * STEP
    begins = range(0, count * (needed - overlap), needed - overlap)
    return [(begin, min(begin + needed, length)) for begin in begins]


def merge_windows(
    found: Sequence[Detections],
    windows: Sequence[Window],
    hw: tuple[int, int],
    iou_thres: float = 0.45,
    agnostic: bool = False,
) -> Detections:
    """The detections of all windows as those of the picture.

    Args:
        found: one per window, in pixels of the picture, suppressed among themselves.
        windows: from `cut_into_windows`.
        hw: height and width of the picture.
        iou_thres: of two boxes of a class that overlap more than this, the better stays.
        agnostic: of any class.
    """
    pieces = _collect(found, windows, hw)
    boxes = _joined(pieces, windows)
    kept = _without_doubles(boxes, windows)
    return _suppressed(boxes, kept, iou_thres, agnostic)


@dataclass(frozen=True, eq=False)
class _Boxes:
    """``xyxy`` [N, 4], ``score``, ``label`` [N]; ``cut`` [N, 4]: at an inner border left, top, right, bottom;
    ``seen`` [N, W]: by which windows."""

    xyxy: Floats
    score: Floats
    label: NDArray[np.int64]
    cut: NDArray[np.bool_]
    seen: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.score)


def cut_sides(xyxy: Floats, window: Window, hw: tuple[int, int]) -> NDArray[np.bool_]:
    """At which sides (left, top, right, bottom) boxes [N, 4] of a window end at a border inside the picture: [N, 4]."""
    limits = np.array([window.left, window.top, window.right, window.bottom])
    inner = limits != np.array([0, 0, hw[1], hw[0]])
    gap = np.abs(xyxy - limits)
    return np.asarray((gap <= np.tile(_tolerance(xyxy), 2)) & inner)


def _tolerance(xyxy: Floats) -> Floats:
    """How near to a border is at it, along x and y: [N, 2]."""
    return np.maximum(EDGE_PX, EDGE_SHARE * (xyxy[:, 2:] - xyxy[:, :2]))


def _collect(found: Sequence[Detections], windows: Sequence[Window], hw: tuple[int, int]) -> _Boxes:
    xyxy = [one.xyxy.to("cpu").double().numpy().reshape(-1, 4) for one in found]
    counts = [len(one) for one in xyxy]
    seen = np.repeat(np.eye(len(windows), dtype=bool), counts, axis=0)
    cut = [cut_sides(boxes, window, hw) for boxes, window in zip(xyxy, windows, strict=True)]
    score = [one.score.to("cpu").double().numpy() for one in found]
    label = [one.label.to("cpu").numpy() for one in found]
    return _Boxes(
        np.concatenate(xyxy), np.concatenate(score), np.concatenate(label), np.concatenate(cut), seen
    )


# --- objects larger than the overlap: their pieces become one box -----------------------------------------------------


def _joined(pieces: _Boxes, windows: Sequence[Window]) -> _Boxes:
    """Boxes whose pieces belong together, as one; the others as they are."""
    group = np.arange(len(pieces))
    for first, second, axis in _facing(windows):
        for a, b in _partners(pieces, first, second, axis, windows):
            group[group == group[b]] = group[a]
    _, number = np.unique(group, return_inverse=True)
    order = np.argsort(number, kind="stable")
    members = np.split(order, np.flatnonzero(np.diff(number[order])) + 1) if len(order) else []
    return _Boxes(
        np.array([_union(pieces.xyxy[m]) for m in members]).reshape(-1, 4),
        np.array([pieces.score[m].max() for m in members]),
        np.array([pieces.label[m[0]] for m in members], dtype=np.int64),
        np.array([_union_cut(pieces, m) for m in members], dtype=bool).reshape(-1, 4),
        np.array([pieces.seen[m].any(axis=0) for m in members], dtype=bool).reshape(-1, len(windows)),
    )


def _facing(windows: Sequence[Window]) -> Iterator[tuple[int, int, int]]:
    """(window, its neighbour to the right or below, axis) for all neighbours in a row or column."""
    for a, first in enumerate(windows):
        for b, second in enumerate(windows):
            for axis in (0, 1):
                (begin_a, end_a), (begin_b, end_b) = first.span(axis), second.span(axis)
                if first.span(1 - axis) == second.span(1 - axis) and begin_a < begin_b <= end_a < end_b:
                    yield a, b, axis


def _partners(
    pieces: _Boxes, first: int, second: int, axis: int, windows: Sequence[Window]
) -> list[tuple[int, int]]:
    """Pieces of two windows that are one object cut by the borders between them, each in one pair at most.

    Both must reach over all that the windows share: an object that ends in there is whole in one of them.
    """
    begin, end = windows[second].span(axis)[0], windows[first].span(axis)[1]
    slack = _tolerance(pieces.xyxy)[:, axis]
    low, high = pieces.xyxy[:, axis], pieces.xyxy[:, axis + 2]
    a = np.flatnonzero(pieces.seen[:, first] & pieces.cut[:, axis + 2] & (low <= begin + slack))
    b = np.flatnonzero(pieces.seen[:, second] & pieces.cut[:, axis] & (high >= end - slack))
    along, to = pieces.xyxy[:, 1 - axis], pieces.xyxy[:, 3 - axis]
    shared = np.minimum(to[a, None], to[b]) - np.maximum(along[a, None], along[b])
    share = shared / np.maximum(np.minimum((to - along)[a, None], (to - along)[b]), 1e-9)
    share[pieces.label[a, None] != pieces.label[b]] = 0
    pairs: list[tuple[int, int]] = []
    while share.size and share.max() >= SAME_SIDE:
        row, column = np.unravel_index(share.argmax(), share.shape)
        pairs.append((int(a[row]), int(b[column])))
        share[row, :] = share[:, column] = 0
    return pairs


def _union(xyxy: Floats) -> Floats:
    return np.concatenate([xyxy[:, :2].min(axis=0), xyxy[:, 2:].max(axis=0)])


def _union_cut(pieces: _Boxes, members: NDArray[np.intp]) -> list[bool]:
    """Sides at which the union of pieces is still cut: those where its outermost piece is."""
    xyxy = pieces.xyxy[members]
    outermost = [*xyxy[:, :2].argmin(axis=0), *xyxy[:, 2:].argmax(axis=0)]
    return [bool(pieces.cut[members[piece], side]) for side, piece in enumerate(outermost)]


# --- what several windows saw -----------------------------------------------------------------------------------------


def _without_doubles(boxes: _Boxes, windows: Sequence[Window]) -> NDArray[np.intp]:
    """Which boxes stay: whole ones first, then by score; each once.

    A box that is kept stands for one of every other window at most, so that neighbours are not taken for doubles.
    """
    rivals = _rivals(boxes, windows)
    kept = np.zeros(len(boxes), dtype=bool)
    stands_for = boxes.seen.copy()
    for box in np.lexsort((-boxes.score, boxes.cut.sum(axis=1))).tolist():
        double = None
        for other, iou, covered in sorted(rivals.get(box, []), key=lambda rival: -rival[1]):
            if not kept[other]:
                continue
            if boxes.cut[box].any() and covered >= COVERED and not (boxes.cut[box] & boxes.cut[other]).any():
                double = other
                break
            same = boxes.label[box] == boxes.label[other] and iou >= SAME_IOU
            if same and not (stands_for[other] & boxes.seen[box]).any():
                stands_for[other] |= boxes.seen[box]
                double = other
                break
        kept[box] = double is None
    return np.flatnonzero(kept)


def _rivals(boxes: _Boxes, windows: Sequence[Window]) -> dict[int, list[tuple[int, float, float]]]:
    """For each box those of other windows near it: (which, IoU, share of the first that it covers)."""
    rivals: dict[int, list[tuple[int, float, float]]] = {}
    area = np.prod(boxes.xyxy[:, 2:] - boxes.xyxy[:, :2], axis=1).clip(min=1e-9)
    for window, rectangle in enumerate(windows):
        limits = np.array([rectangle.left, rectangle.top, rectangle.right, rectangle.bottom])
        reaches = (boxes.xyxy[:, :2] < limits[2:]).all(axis=1) & (boxes.xyxy[:, 2:] > limits[:2]).all(axis=1)
        inside = np.flatnonzero(boxes.seen[:, window])
        outside = np.flatnonzero(reaches & ~boxes.seen[:, window])
        ours, theirs = boxes.xyxy[inside], boxes.xyxy[outside]
        common, ours_covered, theirs_covered = (
            _common_area(ours, theirs),
            _common_area(ours, _grown(theirs)) / area[inside, None],
            _common_area(_grown(ours), theirs) / area[outside],
        )
        for row, column in np.argwhere((ours_covered > 0) | (theirs_covered > 0)).tolist():
            a, b = int(inside[row]), int(outside[column])
            iou = float(common[row, column] / (area[a] + area[b] - common[row, column]))
            rivals.setdefault(a, []).append((b, iou, float(ours_covered[row, column])))
            rivals.setdefault(b, []).append((a, iou, float(theirs_covered[row, column])))
    return rivals


def _common_area(one: Floats, other: Floats) -> Floats:
    """Area that boxes [N, 4] and [M, 4] share: [N, M]."""
    low = np.maximum(one[:, None, :2], other[:, :2])
    high = np.minimum(one[:, None, 2:], other[:, 2:])
    return np.asarray((high - low).clip(min=0).prod(axis=2))


def _grown(xyxy: Floats) -> Floats:
    """Boxes that reach `EDGE_PX` further: a sliver at a border is seldom where the whole object says."""
    return np.asarray(xyxy + np.array([-EDGE_PX, -EDGE_PX, EDGE_PX, EDGE_PX]))


def _suppressed(boxes: _Boxes, kept: NDArray[np.intp], iou_thres: float, agnostic: bool) -> Detections:
    """The kept boxes after suppression over the whole picture, best first."""
    xyxy = torch.from_numpy(boxes.xyxy[kept])
    score, label = torch.from_numpy(boxes.score[kept]), torch.from_numpy(boxes.label[kept])
    groups = (
        [torch.arange(len(label))] if agnostic else [(label == one).nonzero()[:, 0] for one in label.unique()]
    )
    left = torch.cat(
        [group[nms(xyxy[group], score[group], iou_thres)] for group in groups] or [torch.arange(0)]
    )
    left = left[score[left].argsort(descending=True, stable=True)]
    return Detections(xyxy[left].float(), score[left].float(), label[left])
