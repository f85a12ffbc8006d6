"""How well anchors fit the labelled boxes, and anchors that fit better (k-means). Nothing is changed here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from utils.config import Anchors

GOOD_RECALL = 0.98
"""Below this best possible recall the anchors are worth replacing."""
LEVELS = 3
"""Strides 8, 16 and 32, which every model has."""
_MIN_SIDE_PX = 2.0  # smaller boxes are dropped by augmentation anyway, and would pull the anchors down
_RESTARTS = 20
_MOST_POINTS = 20_000


def best_possible_recall(wh_px: npt.ArrayLike, anchors: Anchors, anchor_t: float) -> tuple[float, float]:
    """Share of boxes that some anchor matches, and how many anchors match a box on average.

    An anchor matches a box when neither width nor height differs by the factor anchor_t or more.

    Args:
        wh_px: [N, 2] widths and heights in input pixels.
        anchors: of all levels.
        anchor_t: the factor, above 1.

    Returns:
        (best possible recall in 0–1, mean number of matching anchors); (0, 0) without boxes.
    """
    sizes = _as_sizes(wh_px)
    if not len(sizes):
        return 0.0, 0.0
    flat = np.array([anchor for level in anchors for anchor in level], dtype=np.float64)
    ratio = sizes[:, None] / flat[None]
    matches = np.maximum(ratio, 1 / ratio).max(axis=2) < anchor_t
    return float(matches.any(axis=1).mean()), float(matches.sum(axis=1).mean())


def kmeans_anchors(wh_px: npt.ArrayLike, n: int = 9, levels: int = LEVELS) -> Anchors:
    """Anchors by k-means of box sizes, for an input of the same scale; the same for the same boxes.

    Clusters are made of logarithms, because anchors match by ratios: k-means of pixels would spend
    most anchors on the few large boxes.

    Args:
        wh_px: [N, 2] widths and heights in input pixels; boxes under 2 pixels are left out.
        n: number of anchors, a multiple of levels.
        levels: of the pyramid.

    Returns:
        n / levels anchors for each level, from the finest on, by area, in whole pixels where they are larger than 10.

    Raises:
        ValueError: n is not a multiple of levels, or there are too few different box sizes.
    """
    if n < levels or n % levels:
        raise ValueError(f"number of anchors: expected a multiple of {levels}, found {n}")
    sizes = _as_sizes(wh_px)
    sizes = sizes[(sizes >= _MIN_SIDE_PX).all(axis=1)]
    different = len(np.unique(sizes, axis=0))
    if different < n:
        raise ValueError(f"{n} anchors need at least as many different box sizes, found {different}")
    points = np.log(sizes)
    spread = points.std(axis=0)
    spread[spread == 0] = 1.0
    found = np.exp(_best_clusters(points / spread, n) * spread)
    found = found[np.argsort(found.prod(axis=1), kind="stable")]
    rounded = np.where(found > 10, np.rint(found), np.round(found, 1))
    return [level.tolist() for level in np.array_split(rounded, levels)]


def scaled_sizes(
    sizes_orig: Sequence[tuple[npt.ArrayLike, tuple[int, int]]], longer_side_px: int
) -> npt.NDArray[np.float64]:
    """Box sizes as a network input shows them.

    Args:
        sizes_orig: per image the widths and heights of its boxes [N, 2]_orig, and its height and width.
        longer_side_px: what the longer side of the images is scaled to.

    Returns:
        float64 [sum of N, 2] in input pixels.
    """
    rows = [_as_sizes(wh) * (longer_side_px / max(hw)) for wh, hw in sizes_orig if max(hw) > 0]
    return np.concatenate([np.zeros((0, 2)), *rows])


def anchor_advice(
    sizes_orig: Sequence[tuple[npt.ArrayLike, tuple[int, int]]],
    longer_side_px: int,
    anchors: Anchors,
    yaml_name: str,
    anchor_t: float = 4.0,
) -> str:
    """A line on how well anchors fit the boxes of a training set, and what to do when they do not.

    Args:
        sizes_orig, longer_side_px: as in `scaled_sizes`.
        anchors: at that size. yaml_name: where they are written.
        anchor_t: see `best_possible_recall`.
    """
    sizes = scaled_sizes(sizes_orig, longer_side_px)
    if not len(sizes):
        return "anchors: not checked, there are no boxes to train with"
    recall, matching = best_possible_recall(sizes, anchors, anchor_t)
    line = (
        f"anchors of {yaml_name} at {longer_side_px} pixels: best possible recall {recall:.4f}, {matching:.1f} of "
        f"{sum(map(len, anchors))} match an object"
    )
    if recall >= GOOD_RECALL:
        return line
    return (
        f"{line}: too little. Training would replace them (unless --noautoanchor); to see better ones: python "
        f"scripts/anchors.py --data {yaml_name} --img-size {longer_side_px}"
    )


def _best_clusters(points: npt.NDArray[Any], n: int) -> npt.NDArray[Any]:
    """Centres [n, 2] with the least distortion of several starts."""
    from scipy.cluster.vq import kmeans  # slow to import, and seldom needed

    rng = np.random.default_rng(0)
    if len(points) > _MOST_POINTS:
        points = points[rng.choice(len(points), _MOST_POINTS, replace=False)]
    results = [kmeans(points, _far_apart(points, n, rng)) for _ in range(_RESTARTS)]
    complete = [(distortion, centres) for centres, distortion in results if len(centres) == n]
    if not complete:  # every start lost a cluster on the way
        raise ValueError(f"the box sizes do not fall into {n} groups: set the anchors by hand")
    best: npt.NDArray[Any] = min(complete, key=lambda result: result[0])[1]
    return best


def _far_apart(points: npt.NDArray[Any], n: int, rng: np.random.Generator) -> npt.NDArray[Any]:
    """Different points, n of them, to start from, likelier the farther they are from those before (k-means++)."""
    chosen = [points[rng.integers(len(points))]]
    distance = np.full(len(points), np.inf)
    while len(chosen) < n:
        distance = np.minimum(distance, np.square(points - chosen[-1]).sum(axis=1))
        if not distance.any():
            raise ValueError(f"the box sizes do not fall into {n} groups: set the anchors by hand")
        chosen.append(points[rng.choice(len(points), p=distance / distance.sum())])
    return np.array(chosen)


def _as_sizes(wh_px: npt.ArrayLike) -> npt.NDArray[Any]:
    return np.asarray(wh_px, dtype=np.float64).reshape(-1, 2)
