"""Detections on the map: boxes in georeferenced pictures as polygons of longitude and latitude (RFC 7946).

Needs the optional package rasterio, which knows georeferenced files (GeoTIFF and whatever else GDAL reads)
and coordinate systems.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from utils.frames import Frame
from utils.logger import LOGGER_NAME
from utils.records import Record, detection_rows
from utils.results import Detections, PredictionLike
from utils.writers import GrowingJson

logger = logging.getLogger(f"{LOGGER_NAME}.geojson")

DECIMALS = 8
"""Of longitude and latitude: about a millimetre, because pixels of drones' pictures are a centimetre."""
_WGS84 = "EPSG:4326"


class GeoreferenceError(RuntimeError):
    """Pixels that cannot be placed on the Earth; the message says why, and what would help."""


@dataclass(frozen=True, eq=False)
class Georeference:
    """Where the pixels of a picture lie.

    Attributes:
        crs: coordinate reference system, rasterio's.
        matrix: [2, 3], from (x, y, 1) in pixels, (0, 0) being the outer corner of the first one, to the
            coordinates of the system.
        image_hw: height and width of the picture.
    """

    crs: Any
    matrix: NDArray[np.float64]
    image_hw: tuple[int, int]

    def lonlat(self, xy_orig: NDArray[np.float64]) -> NDArray[np.float64]:
        """Longitude and latitude, WGS 84 degrees, of points [N, 2] in pixels; not finite where there is none."""
        from rasterio._err import CPLE_BaseError
        from rasterio.errors import RasterioError
        from rasterio.warp import transform

        places = np.column_stack([xy_orig, np.ones(len(xy_orig))]) @ self.matrix.T
        try:
            longitudes, latitudes = transform(self.crs, _WGS84, places[:, 0].tolist(), places[:, 1].tolist())
        except (RasterioError, CPLE_BaseError):
            if len(xy_orig) == 1:
                return np.full((1, 2), np.nan)
            # One point outside of the projection fails all of them.
            return np.concatenate([self.lonlat(point[None]) for point in xy_orig])
        return np.column_stack([longitudes, latitudes])


def require_rasterio() -> None:
    """Raise GeoreferenceError, which says what to install, when rasterio is missing."""
    try:
        import rasterio  # noqa: F401 - only whether it is there
    except ImportError as error:
        raise GeoreferenceError(
            f"--save-geojson needs a package that does not import ({error}): pip install rasterio"
        ) from error


def read_georeference(path: Path) -> Georeference:
    """What a picture file (or what lies beside it) says about its place.

    Raises GeoreferenceError: it says nothing, or not enough.
    """
    import rasterio
    from rasterio.errors import NotGeoreferencedWarning, RasterioError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            with rasterio.open(path) as raster:
                crs, transform, image_hw = raster.crs, raster.transform, (raster.height, raster.width)
                control_points = raster.gcps[0]
    except RasterioError as error:
        raise GeoreferenceError(f"rasterio cannot open it ({error})") from error
    if control_points and transform.is_identity:
        raise GeoreferenceError(
            "it has ground control points only; rectify it first, with gdalwarp for instance"
        )
    if transform.is_identity:
        raise GeoreferenceError("it has no georeference")
    if not crs:
        raise GeoreferenceError(
            "it has a place but no coordinate system; set it with gdal_edit -a_srs for instance"
        )
    return Georeference(crs, np.array(transform[:6], dtype=np.float64).reshape(2, 3), image_hw)


def detection_features(
    image: str, found: Detections, names: Sequence[str], georeference: Georeference
) -> list[Record]:
    """GeoJSON features: for each detection a polygon of its box's four corners, counterclockwise, and what it is.

    Properties are image, class, name and score. A box whose corners have no longitude and latitude in the
    coordinate system is left out. Boxes over the antimeridian are not cut.

    Args:
        image: how it is called.
        found: in its pixels.
        names: class names.
        georeference: of the image.
    """
    boxes = found.xyxy.cpu().double().numpy().reshape(-1, 4)
    corners = boxes[:, [0, 1, 0, 3, 2, 3, 2, 1]].reshape(-1, 2)
    rings = georeference.lonlat(corners).reshape(-1, 4, 2)
    features = []
    for ring, row in zip(rings, detection_rows(image, found, names), strict=True):
        if not np.isfinite(ring).all():
            continue
        if _signed_area(ring) < 0:
            ring = ring[::-1]
        closed = np.concatenate([ring, ring[:1]]).round(DECIMALS).tolist()
        properties = {key: row[key] for key in ("image", "class", "name", "score")}
        features.append({
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [closed]},
            "properties": properties,
        })  # fmt: skip
    return features


class GeoJsonFile:
    """A feature collection of all detections in georeferenced pictures; the others are told and left out."""

    def __init__(self, path: Path, names: Sequence[str]) -> None:
        """Raises GeoreferenceError when rasterio is missing."""
        require_rasterio()
        self._names = names
        self._frames = self._left_out = 0
        self._file = GrowingJson(path, "features")

    def add(self, frame: Frame, relative: Path, prediction: PredictionLike) -> None:
        """Write the features of a picture, or a warning: the first time and, in numbers, at the end."""
        self._frames += 1
        try:
            features = self._features(frame, prediction)
        except GeoreferenceError as error:
            self._left_out += 1
            if self._left_out == 1:
                logger.warning("--save-geojson: %s: %s; its detections are left out", frame.path, error)
            return
        missing = len(prediction.detections) - len(features)
        if missing:
            logger.warning(
                "--save-geojson: %s: %d boxes have no longitude and latitude in its coordinate system",
                frame.path,
                missing,
            )
        self._file.add(features)

    def close(self) -> None:
        """Give the file its name."""
        if self._left_out:
            logger.warning(
                "--save-geojson: %d of %d pictures are not in %s, because they have no usable georeference",
                self._left_out, self._frames, self._file.path,
            )  # fmt: skip
        self._file.close({"type": "FeatureCollection"})

    def _features(self, frame: Frame, prediction: PredictionLike) -> list[Record]:
        if frame.video is not None:
            raise GeoreferenceError("it is a video, which has no georeference")
        georeference = read_georeference(frame.path)
        if georeference.image_hw != prediction.letterbox.original_hw:
            raise GeoreferenceError(
                f"the raster is {georeference.image_hw} (height, width), "
                f"the picture as read {prediction.letterbox.original_hw}"
            )
        return detection_features(str(frame.path), prediction.detections, self._names, georeference)


def _signed_area(ring: NDArray[np.float64]) -> float:
    """Twice the area inside corners [N, 2]; above 0 when they go counterclockwise."""
    x, y = (ring - ring[0]).T
    return float(x @ np.roll(y, -1) - y @ np.roll(x, -1))
