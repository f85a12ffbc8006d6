"""Pictures read rectangle by rectangle: decoded ones, and tiled TIFF files too large to be decoded at once.

Only tiled TIFF files can be read in parts at a bounded cost; every other picture is decoded as a whole. Reading parts
is done by rasterio, an optional package; without it a tiled TIFF is decoded as a whole, too.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from utils.decoding import full_scale_of, over_grey, read_picture, to_uint8
from utils.images import ByteImage, ImageError
from utils.logger import LOGGER_NAME

logger = logging.getLogger(f"{LOGGER_NAME}.sources")

DRAWN_SIDE = 8192
"""Pictures with a longer side above this are drawn smaller when they are looked at in windows."""
TIFF_STARTS = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")
OPENCV_PIXELS = 2**30
"""OpenCV refuses pictures with more, unless OPENCV_IO_MAX_IMAGE_PIXELS is set before it is loaded."""

_CACHE_MB = 64
_STRIPE_PX = 512


class LargePicture(Protocol):
    """Anything that gives its pixels in rectangles; by any thread."""

    @property
    def hw(self) -> tuple[int, int]:
        """Height and width."""

    def read(self, left: int, top: int, right: int, bottom: int) -> ByteImage:
        """The pixels from (left, top) up to but without (right, bottom): uint8 [H, W, 3] RGB."""

    def reduced(self, longest: int) -> ByteImage:
        """The whole, with no side longer than this, uint8 [H, W, 3] RGB; never enlarged."""


@dataclass(frozen=True, eq=False)
class DecodedPicture:
    """A picture in memory: uint8 [H, W, 3] RGB."""

    image: ByteImage

    @property
    def hw(self) -> tuple[int, int]:
        """Height and width."""
        return self.image.shape[0], self.image.shape[1]

    def read(self, left: int, top: int, right: int, bottom: int) -> ByteImage:
        """See `LargePicture`; not a copy."""
        return self.image[top:bottom, left:right]

    def reduced(self, longest: int) -> ByteImage:
        """See `LargePicture`."""
        height, width = reduced_hw(self.hw, longest)
        if (height, width) == self.hw:
            return self.image
        return np.asarray(
            cv2.resize(self.image, (width, height), interpolation=cv2.INTER_AREA), dtype=np.uint8
        )


@dataclass(frozen=True)
class RasterPicture:
    """A picture that rasterio reads; opened for each rectangle, so that it can be read by several threads.

    Attributes:
        path: the file.
        hw: height and width.
        bands: numbers of the one or three bands that are shown, from 1.
        alpha: number of the band of opacity, or None.
        palette: [256, 3] colours of the values of a single band, or None.
        full_scale: the value shown as 255; None for bytes.
    """

    path: Path
    hw: tuple[int, int]
    bands: tuple[int, ...]
    alpha: int | None
    palette: tuple[tuple[int, int, int], ...] | None
    full_scale: float | None

    def read(self, left: int, top: int, right: int, bottom: int) -> ByteImage:
        """See `LargePicture`. Raises ImageError where the file is damaged."""
        rectangle = (left, top, right, bottom)
        layers = np.moveaxis(_raster_values(self.path, self.bands, rectangle), 0, 2)
        if self.palette is not None:
            picture: ByteImage = np.array(self.palette, np.uint8)[layers[..., 0]]
        else:
            picture = to_uint8(layers, self.full_scale)
        if self.alpha is not None:
            opacity = _raster_values(self.path, (self.alpha,), rectangle)
            picture = over_grey(picture, np.moveaxis(opacity, 0, 2))
        return np.ascontiguousarray(np.broadcast_to(picture, (*picture.shape[:2], 3)))

    def reduced(self, longest: int) -> ByteImage:
        """See `LargePicture`; read in stripes, because rasterio's own averaging takes several times as long."""
        height, width = reduced_hw(self.hw, longest)
        picture = np.empty((height, width, 3), np.uint8)
        for top, bottom in _stripes(height, max(1, round(_STRIPE_PX * height / self.hw[0]))):
            begin, end = (round(edge * self.hw[0] / height) for edge in (top, bottom))
            stripe = self.read(0, begin, self.hw[1], end)
            if stripe.shape[:2] != (bottom - top, width):
                stripe = np.asarray(
                    cv2.resize(stripe, (width, bottom - top), interpolation=cv2.INTER_AREA), np.uint8
                )
            picture[top:bottom] = stripe
        return picture


def open_large_picture(path: Path) -> LargePicture:
    """A picture to be read in rectangles: a large tiled TIFF from its file, anything else decoded.

    Raises ImageError as `read_picture` does.
    """
    if not _is_tiff(path):
        return _decoded(path)
    picture = _open_tiled(path)
    return _decoded(path) if picture is None else picture


def reduced_hw(hw: tuple[int, int], longest: int) -> tuple[int, int]:
    """Height and width of a picture made as small as to have no side longer than this; never enlarged."""
    scale = min(1.0, longest / max(hw))
    return max(1, round(hw[0] * scale)), max(1, round(hw[1] * scale))


def _decoded(path: Path) -> LargePicture:
    """The whole picture by OpenCV, or by rasterio where it has more pixels than OpenCV takes."""
    try:
        return DecodedPicture(read_picture(path))
    except ImageError:
        picture = _open_raster(path)
        if picture is None or picture.hw[0] * picture.hw[1] <= OPENCV_PIXELS:
            raise
        return DecodedPicture(picture.reduced(max(picture.hw)))


def _open_tiled(path: Path) -> RasterPicture | None:
    """A TIFF whose tiles can be read one by one, if it is large enough to be worth it."""
    try:
        import rasterio  # noqa: F401
    except ImportError:
        logger.info(
            "%s: decoded as a whole; with rasterio a tiled TIFF is read in parts: pip install rasterio", path
        )
        return None
    picture = _open_raster(path, tiled=True)
    return picture if picture is not None and max(picture.hw) > DRAWN_SIDE else None


def _is_tiff(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(4) in TIFF_STARTS
    except OSError:
        return False  # told when it is read


def _open_raster(path: Path, tiled: bool = False) -> RasterPicture | None:
    """A picture as rasterio sees it; None where rasterio is missing or cannot, or where it is not ``tiled``."""
    try:
        import rasterio
    except ImportError:
        return None
    _accept_pictures_without_a_place()
    try:
        with rasterio.open(path) as dataset:
            colours = [colour.name for colour in dataset.colorinterp]
            bands = tuple(colours.index(name) + 1 for name in ("red", "green", "blue") if name in colours)
            if len(bands) < 3:
                bands = (1, 2, 3) if dataset.count >= 3 else (1,)
            palette = None
            if colours[0] == "palette":
                table = dataset.colormap(1)
                palette = tuple(tuple(table.get(value, (0, 0, 0, 0))[:3]) for value in range(256))
            kind = np.dtype(dataset.dtypes[bands[0] - 1])
            width_of_block = dataset.block_shapes[0][1]
            hw = (dataset.height, dataset.width)
    except (rasterio.errors.RasterioError, TypeError):  # TypeError: types of pixels that numpy does not have
        return None
    if tiled and width_of_block >= hw[1]:
        return None
    alpha = colours.index("alpha") + 1 if "alpha" in colours else None
    full_scale = None if kind == np.uint8 else _full_scale(path, bands, hw, kind)
    return RasterPicture(path, hw, bands, alpha, palette, full_scale)


def _full_scale(path: Path, bands: tuple[int, ...], hw: tuple[int, int], kind: np.dtype[Any]) -> float:
    """What is shown as 255 in a picture of more than 8 bits: one value for all of it, so it is read once for this."""
    largest = 0.0
    for top, bottom in _stripes(hw[0], _STRIPE_PX):
        values = _raster_values(path, bands, (0, top, hw[1], bottom))
        largest = max(largest, float(np.nan_to_num(values, posinf=0.0, neginf=0.0).max()))
    return full_scale_of(largest, floating=np.issubdtype(kind, np.floating))


def _raster_values(path: Path, bands: tuple[int, ...], rectangle: tuple[int, int, int, int]) -> NDArray[Any]:
    """Values [bands, height, width] of a rectangle (left, top, right, bottom)."""
    import rasterio

    left, top, right, bottom = rectangle
    try:
        with rasterio.Env(GDAL_CACHEMAX=_CACHE_MB), rasterio.open(path) as dataset:
            values = dataset.read(list(bands), window=((top, bottom), (left, right)))
    except rasterio.errors.RasterioError as error:
        raise ImageError(f"{path}: cannot read the picture: {error}") from error
    return np.asarray(values)


def _accept_pictures_without_a_place() -> None:
    """A picture that says not where on earth it lies is an ordinary one; rasterio warns of each."""
    from rasterio.errors import NotGeoreferencedWarning

    warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)


def _stripes(height: int, rows: int) -> Iterator[tuple[int, int]]:
    """First row and end of each stripe, of at most so many rows, of a picture."""
    return ((top, min(top + rows, height)) for top in range(0, height, rows))
