"""Shared small change of the metrics: checked arrays on the CPU, and means that know "not defined".

Not a metric: nothing here decides how something is counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # the official protocols are plain numpy: they start without loading torch
    from torch import Tensor

FloatArray = NDArray[np.floating[Any]]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]


class EvaluationError(ValueError):
    """Detections or labels that cannot be evaluated; the message says which, and what was expected."""


@dataclass(frozen=True)
class Objects:
    """Boxes of all images, sorted by image: its number [N], corners [N, 4] in original pixels, class [N]."""

    image: IntArray
    xyxy: FloatArray
    label: IntArray


def to_array(tensor: Tensor) -> NDArray[Any]:
    """The values on the CPU; bfloat16, which numpy does not have, as float32."""
    tensor = tensor.detach().cpu()
    return np.asarray(tensor.float() if tensor.is_floating_point() else tensor)


def checked_boxes(boxes: Tensor, count: int, what: str) -> NDArray[np.float64]:
    """Corners [count, 4] as float64.

    Raises:
        EvaluationError: another shape, a value that is not finite, or x2 < x1 or y2 < y1.
    """
    array = to_array(boxes).astype(np.float64)
    if array.size == 0 and count == 0:
        return np.zeros((0, 4))
    if array.shape != (count, 4):
        raise EvaluationError(f"{what} have shape {array.shape}; expected ({count}, 4), one row per label")
    if not np.isfinite(array).all():
        row = int(np.flatnonzero(~np.isfinite(array).all(axis=1))[0])
        raise EvaluationError(f"{what}: row {row} is {array[row].tolist()}; expected finite numbers")
    turned = np.flatnonzero((array[:, 2:] < array[:, :2]).any(axis=1))
    if turned.size:
        raise EvaluationError(
            f"{what}: row {turned[0]} is {array[turned[0]].tolist()}; "
            "expected corners (x1, y1, x2, y2) with x1 ≤ x2 and y1 ≤ y2"
        )
    return array


def checked_labels(labels: Tensor, count: int, classes: int, what: str) -> IntArray:
    """Class indices [count] as int64.

    Raises:
        EvaluationError: another shape, or an index outside 0 … classes − 1.
    """
    array = to_array(labels).reshape(-1).astype(np.int64)
    if len(array) != count:
        raise EvaluationError(f"{what}: {len(array)} labels for {count} rows")
    unknown = array[(array < 0) | (array >= classes)]
    if unknown.size:
        raise EvaluationError(
            f"{what}: class {unknown[0]} is not in 0–{classes - 1}; "
            "the names given to the evaluator must be those of the labels and of the model"
        )
    return array


def mean_defined(values: FloatArray | float) -> float | None:
    """Mean of the values that are not NaN; None when there is none."""
    array = np.asarray(values, dtype=np.float64)
    defined = array[~np.isnan(array)]
    return float(defined.mean()) if defined.size else None


def mean_defined_rows(rows: FloatArray) -> FloatArray:
    """[C, P] → [P] mean over the rows that are not NaN there; NaN where all are."""
    count = (~np.isnan(rows)).sum(axis=0)
    mean: FloatArray = np.full(rows.shape[1], np.nan)
    np.divide(np.nansum(rows, axis=0), count, out=mean, where=count > 0)
    return mean


def round_half_away(values: FloatArray) -> NDArray[np.float64]:
    """Whole numbers, halves away from zero as MATLAB and Octave round (numpy rounds them to even)."""
    values = np.asarray(values, dtype=np.float64)
    whole = np.trunc(values)
    # From the remainder, which is exact: floor(|x| + 0.5) is wrong for the double just below 0.5.
    rounded: NDArray[np.float64] = whole + np.sign(values) * (np.abs(values - whole) >= 0.5)
    return rounded


def ratio(part: float, whole: float) -> float | None:
    """Part / whole, None for a whole of 0."""
    return part / whole if whole else None


def json_list(values: FloatArray) -> list[Any]:
    """Nested lists with None for NaN (which JSON does not have), five digits after the point."""
    plain = np.round(values.astype(np.float64), 5).astype(object)
    plain[np.isnan(values)] = None
    nested: list[Any] = plain.tolist()
    return nested


def shown(value: float | None) -> str:
    """A number as a table shows it: three digits after the point, n/a for "not defined"."""
    return "n/a" if value is None else f"{value:.3f}"
