"""Label heatmaps, "some object is here": rendering from boxes (paper eq. 3), their files, their warping.

One compact file per image holds a map at a quarter of the original resolution. Making masks with SAM and
the heatmap's loss are elsewhere.
"""

from __future__ import annotations

import hashlib
import json
import math
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import cv2
import numpy as np
import numpy.typing as npt

from utils.files import write_atomic
from utils.images import sibling_path

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]
HeatmapMode = Literal["gaussian", "sam", "hybrid"]

FILE_STRIDE = 4
"""Original pixels per side of a file's cell."""
SAMPLE_STRIDE = 2
"""Input pixels between the samples that `warp_heatmap` takes before it looks for the block maximum."""

_FORMAT_VERSION = 1
_BORDER_TOLERANCE = 1e-6  # pixels; a box border through a pixel centre counts as inside despite rounding
_CELLS_AT_ONCE = 1_000_000


class HeatmapError(ValueError):
    """A heatmap file that cannot be used; the message names it and says why."""


@dataclass(frozen=True, eq=False)
class HeatmapFile:
    """The label heatmap of one image as it is stored.

    Attributes:
        values: uint8 [ceil(H/stride), ceil(W/stride)], 255 is 1.0; block maxima over original pixels.
        mode: "gaussian" (boxes alone), "sam" (masks alone) or "hybrid" (mask times Gaussian, or Gaussian).
        tau: value at a box corner that it was made with.
        image_hw: height and width of the original image.
        fingerprint: of what it was made from, see `heatmap_fingerprint`.
        stride: original pixels per cell.
        fallbacks: objects whose mask was not used but their Gaussian, by reason (modes sam and hybrid).
    """

    values: npt.NDArray[np.uint8]
    mode: HeatmapMode
    tau: float
    image_hw: tuple[int, int]
    fingerprint: str
    stride: int = FILE_STRIDE
    fallbacks: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        expected = tuple(math.ceil(side / self.stride) for side in self.image_hw)
        if self.values.dtype != np.uint8 or self.values.shape != expected:
            found = f"{self.values.dtype} {self.values.shape}"
            raise HeatmapError(
                f"a heatmap of a {self.image_hw} image must be uint8 {expected}, found {found}"
            )
        if self.mode not in get_args(HeatmapMode):
            raise HeatmapError(
                f"unknown heatmap mode {self.mode!r}; known: {', '.join(get_args(HeatmapMode))}"
            )


def render_heatmap(
    boxes_cxcywh_px: npt.ArrayLike, input_hw: tuple[int, int], tau: float = 0.5, stride: int = 8
) -> FloatArray:
    """Label heatmap of boxes: paper eq. 3 at pixel centres, maximum over blocks and objects.

    The value of a box at a pixel centre (x, y) inside it, borders included, is
    ``exp(½ [(x − cx)² / (w/2)² + (y − cy)² / (h/2)²] log τ)``; outside it is 0. The function is separable and
    falls from the centre, so the maximum in a cell is at the pixel nearest to the centre on each axis. A box
    that holds no pixel centre puts 1 into the cell of its centre. So with τ ≥ 0.5 every box whose centre lies
    in the picture has a cell ≥ 0.5.

    Args:
        boxes_cxcywh_px: [N, 4] centre and size, pixels of the picture (any picture: input or original).
        input_hw: height and width of that picture.
        tau: value at a corner of a box, in (0, 1).
        stride: pixels per side of a cell.

    Returns:
        float32 [ceil(H/stride), ceil(W/stride)] in 0–1.
    """
    if not 0 < tau < 1:
        raise ValueError(f"tau must be between 0 and 1, found {tau}")
    height, width = input_hw
    boxes = np.asarray(boxes_cxcywh_px, dtype=np.float64).reshape(-1, 4)
    heatmap = np.zeros((math.ceil(height / stride), math.ceil(width / stride)), dtype=np.float32)
    along_x = _profile(boxes[:, 0], boxes[:, 2], width, tau, stride)
    along_y = _profile(boxes[:, 1], boxes[:, 3], height, tau, stride)
    cells = along_x.count * along_y.count
    for group in _groups(cells):
        _render_group(heatmap, along_x, along_y, group, np.float32(tau))
    centre = boxes[cells == 0, :2]
    centre = centre[((centre >= 0) & (centre < (width, height))).all(axis=1)]
    column, row = (centre // stride).astype(np.int64).T
    heatmap[row, column] = 1.0
    return heatmap


@dataclass(frozen=True, eq=False)
class _Profile:
    """One axis of N boxes: for each a run of cells, and the best value of its Gaussian in each of them."""

    cell: IntArray
    """[N] first cell of the run."""
    count: IntArray
    """[N] cells in the run; 0 when the box holds no pixel centre."""
    start: IntArray
    """[N] where the run begins in ``value``."""
    value: FloatArray
    """[sum of count]"""


def _profile(
    centre: npt.NDArray[np.float64], size: npt.NDArray[np.float64], length: int, tau: float, stride: int
) -> _Profile:
    half = np.maximum(size, 1e-9) / 2
    first = np.maximum(np.ceil(centre - half - 0.5 - _BORDER_TOLERANCE), 0).astype(np.int64)
    last = np.minimum(np.floor(centre + half - 0.5 + _BORDER_TOLERANCE), length - 1).astype(np.int64)
    count = np.where(first <= last, last // stride - first // stride + 1, 0)
    owner, position = _runs(count)
    cell = first[owner] // stride + position
    low, high = np.maximum(first[owner], cell * stride), np.minimum(last[owner], cell * stride + stride - 1)
    best = np.clip(np.rint(centre[owner] - 0.5), low, high)
    exponent = np.square((best + 0.5 - centre[owner]) / half[owner]) * (0.5 * math.log(tau))
    return _Profile(first // stride, count, count.cumsum() - count, np.exp(exponent).astype(np.float32))


def _runs(count: IntArray) -> tuple[IntArray, IntArray]:
    """For runs of given lengths, laid end to end: the run each element belongs to, and its place in it."""
    owner = np.repeat(np.arange(len(count)), count)
    return owner, np.arange(len(owner)) - (count.cumsum() - count)[owner]


def _groups(cells: IntArray) -> list[IntArray]:
    """Indices of the boxes with cells, in groups of a limited number of cells in all (to limit memory)."""
    boxes = np.flatnonzero(cells)
    group = cells[boxes].cumsum() // _CELLS_AT_ONCE
    return np.split(boxes, np.flatnonzero(np.diff(group)) + 1) if len(boxes) else []


def _render_group(heatmap: FloatArray, x: _Profile, y: _Profile, boxes: IntArray, tau: np.float32) -> None:
    """Maximum of the heatmap and some boxes, in place."""
    owner, position = _runs(x.count[boxes] * y.count[boxes])
    owner = boxes[owner]
    row, column = np.divmod(position, x.count[owner])
    value = y.value[y.start[owner] + row] * x.value[x.start[owner] + column]
    cell = (y.cell[owner] + row) * heatmap.shape[1] + x.cell[owner] + column
    np.maximum.at(heatmap.reshape(-1), cell, np.maximum(value, tau))  # rounding must not go below a corner


def block_maximum(values: npt.NDArray[Any], stride: int) -> npt.NDArray[Any]:
    """Maximum of every stride×stride block of [H, W]; the last blocks may be smaller."""
    height, width = values.shape
    rows, columns = math.ceil(height / stride), math.ceil(width / stride)
    if (rows * stride, columns * stride) != (height, width):
        values = np.pad(values, ((0, rows * stride - height), (0, columns * stride - width)), mode="edge")
    # One axis after the other, over slices: several times faster than a reduction over a 4-d view.
    by_row = values[::stride]
    for offset in range(1, stride):
        by_row = np.maximum(by_row, values[offset::stride])
    by_column = by_row[:, ::stride]
    for offset in range(1, stride):
        by_column = np.maximum(by_column, by_row[:, offset::stride])
    return np.ascontiguousarray(by_column)


def to_bytes(values: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.uint8]:
    """Values in 0–1 as uint8, rounded up, so that nothing falls below a threshold by being stored."""
    scaled: npt.NDArray[np.floating[Any]] = np.ceil(np.clip(values, 0, 1) * 255 - 1e-3)
    return scaled.astype(np.uint8)


def gaussian_heatmap_file(
    boxes_cxcywh_orig: npt.ArrayLike, image_hw: tuple[int, int], tau: float, fingerprint: str
) -> HeatmapFile:
    """The file of an image whose objects are known by their boxes [N, 4] (original pixels) alone."""
    values = to_bytes(render_heatmap(boxes_cxcywh_orig, image_hw, tau, FILE_STRIDE))
    return HeatmapFile(values, "gaussian", tau, image_hw, fingerprint)


def heatmap_fingerprint(
    image_sha256: bytes, label_rows: npt.ArrayLike, settings: Mapping[str, object]
) -> str:
    """SHA-256 (hex) of what a heatmap is made from: the image file, by its own SHA-256, its label rows, the settings."""
    digest = hashlib.sha256(image_sha256)
    rows = np.ascontiguousarray(label_rows, dtype=np.float64)
    digest.update(json.dumps([rows.shape, dict(settings), _FORMAT_VERSION], sort_keys=True).encode())
    digest.update(rows.tobytes())
    return digest.hexdigest()


def heatmap_path(image: Path) -> Path:
    """Where the heatmap of an image is, or belongs: the last ``/images/`` becomes ``/heatmaps/``, ``.npz``."""
    return sibling_path(image, "heatmaps", ".npz")


def save_heatmap(path: Path, heatmap: HeatmapFile) -> None:
    """Write a heatmap file, whole or not at all. Raises OSError when the folder cannot be written."""
    header = {
        "version": _FORMAT_VERSION,
        "stride": heatmap.stride,
        "mode": heatmap.mode,
        "tau": heatmap.tau,
        "image_hw": list(heatmap.image_hw),
        "fingerprint": heatmap.fingerprint,
        "fallbacks": dict(heatmap.fallbacks),
    }
    text = np.frombuffer(json.dumps(header).encode(), dtype=np.uint8)
    write_atomic(path, lambda file: np.savez_compressed(file, header=text, values=heatmap.values))


def load_heatmap(path: Path) -> HeatmapFile:
    """Read a heatmap file. Raises HeatmapError, naming the file, when it is missing, damaged or not one."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            header = _read_header(archive)
            return HeatmapFile(
                archive["values"],
                header["mode"],
                float(header["tau"]),
                (int(header["image_hw"][0]), int(header["image_hw"][1])),
                str(header["fingerprint"]),
                int(header["stride"]),
                {str(reason): int(count) for reason, count in header.get("fallbacks", {}).items()},
            )
    except _DAMAGE as error:
        raise _damaged(path, error) from error


def load_heatmap_header(path: Path) -> dict[str, Any]:
    """Only mode, tau, stride, image_hw and fingerprint of a heatmap file; quicker than all of it.

    Raises HeatmapError like `load_heatmap`, as far as the damage shows.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return _read_header(archive)
    except _DAMAGE as error:
        raise _damaged(path, error) from error


_DAMAGE = (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, EOFError,
           zipfile.BadZipFile, zlib.error, NotImplementedError, MemoryError,
           RuntimeError)  # fmt: skip  # zipfile raises it for a member that is marked as encrypted


def _read_header(archive: Mapping[str, npt.NDArray[Any]]) -> dict[str, Any]:
    header = json.loads(archive["header"].tobytes().decode())
    if not isinstance(header, dict) or header.get("version") != _FORMAT_VERSION:
        raise ValueError(f"expected format version {_FORMAT_VERSION}")
    missing = {"mode", "tau", "stride", "image_hw", "fingerprint"} - header.keys()
    if missing:
        raise ValueError(f"header lacks {', '.join(sorted(missing))}")
    return header


def _damaged(path: Path, error: BaseException) -> HeatmapError:
    advice = "delete it, or run scripts/data_prepare.py again to write it anew"
    return HeatmapError(f"{path}: not a usable heatmap file ({type(error).__name__}: {error}); {advice}")


def warp_heatmap(
    heatmap: HeatmapFile, matrix: npt.ArrayLike, input_hw: tuple[int, int], stride: int = 8
) -> FloatArray:
    """A stored heatmap as it looks in a network input, block maxima.

    Nearest samples at `SAMPLE_STRIDE` input pixels, then the maximum of each cell. Where the picture is made
    smaller the file is reduced by block maxima first, so that no cell of it falls between the samples.

    Args:
        heatmap: the file.
        matrix: [2, 3], original pixels (x, y, 1) to input pixels.
        input_hw: height and width of the input, multiples of stride.
        stride: input pixels per cell, a multiple of `SAMPLE_STRIDE`.

    Returns:
        float32 [H/stride, W/stride] in 0–1; 0 outside the image.
    """
    affine = np.vstack([np.asarray(matrix, dtype=np.float64).reshape(2, 3), (0.0, 0.0, 1.0)])
    linear = affine[:2, :2]
    shrink = float(np.linalg.svd(linear, compute_uv=False)[-1])
    if shrink < 1e-6:
        raise ValueError(f"the matrix maps the image onto a line or point: {np.asarray(matrix).tolist()}")
    # A square that may be turned holds a point of every square lattice whose diagonal fits into it.
    turned = min(abs(linear[[0, 1], [1, 0]]).max(), abs(linear[[0, 1], [0, 1]]).max()) > 1e-9
    needed = SAMPLE_STRIDE * (math.sqrt(2.0) if turned else 1.0)
    reduce = max(1, math.ceil(needed / (heatmap.stride * shrink) - 1e-9))
    values = block_maximum(heatmap.values, reduce) if reduce > 1 else heatmap.values
    to_original = _scale_about_centres(heatmap.stride * reduce)
    to_sample = np.linalg.inv(_scale_about_centres(SAMPLE_STRIDE))
    rows, columns = math.ceil(input_hw[0] / SAMPLE_STRIDE), math.ceil(input_hw[1] / SAMPLE_STRIDE)
    sampled = cv2.warpAffine(
        values,
        (to_sample @ affine @ to_original)[:2],
        (columns, rows),
        flags=cv2.INTER_NEAREST,
        borderValue=0,
    )
    pooled: FloatArray = block_maximum(sampled, stride // SAMPLE_STRIDE).astype(np.float32)
    pooled /= 255
    return pooled


def _scale_about_centres(size: float) -> npt.NDArray[np.float64]:
    """3×3 matrix from indices of cells (0: centre of the first) to pixels, for cells of a size."""
    return np.array([[size, 0.0, size / 2], [0.0, size, size / 2], [0.0, 0.0, 1.0]])
