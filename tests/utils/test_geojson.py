"""Boxes on the map: against the transverse Mercator projection computed here, not by the library under test."""

from __future__ import annotations

import itertools
import json
import logging
import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from utils.boxes import Letterbox
from utils.frames import Frame
from utils.geojson import (
    GeoJsonFile,
    GeoreferenceError,
    detection_features,
    read_georeference,
    require_rasterio,
)
from utils.logger import LOGGER_NAME
from utils.results import Detections

rasterio = pytest.importorskip("rasterio")

NAMES = ["car", "van"]
HW = (80, 120)
METRES = 0.05
EAST, NORTH = 391_000.0, 5_820_000.0
"""Pixel size and upper left corner of the test raster in UTM zone 33 N, near Berlin."""


def utm33_to_lonlat(east: float, north: float) -> tuple[float, float]:
    """Longitude and latitude in degrees from Krüger's series of the inverse transverse Mercator projection.

    WGS 84, central meridian 15° east, scale 0.9996, false easting 500 km; Krüger 1912, third order: better
    than a tenth of a millimetre inside a zone.
    """
    n = 1 / (2 * 298.257223563 - 1)  # third flattening
    radius = 6378137.0 / (1 + n) * (1 + n**2 / 4 + n**4 / 64)
    beta = (n / 2 - 2 * n**2 / 3 + 37 * n**3 / 96, n**2 / 48 + n**3 / 15, 17 * n**3 / 480)
    delta = (2 * n - 2 * n**2 / 3 - 2 * n**3, 7 * n**2 / 3 - 8 * n**3 / 5, 56 * n**3 / 15)
    xi, eta = north / (0.9996 * radius), (east - 500_000.0) / (0.9996 * radius)
    xi_, eta_ = xi, eta
    for j, b in enumerate(beta, start=1):
        xi_ -= b * math.sin(2 * j * xi) * math.cosh(2 * j * eta)
        eta_ -= b * math.cos(2 * j * xi) * math.sinh(2 * j * eta)
    chi = math.asin(math.sin(xi_) / math.cosh(eta_))
    latitude = chi + sum(d * math.sin(2 * j * chi) for j, d in enumerate(delta, start=1))
    return 15 + math.degrees(math.atan2(math.sinh(eta_), math.cos(xi_))), math.degrees(latitude)


def write_raster(path: Path, crs: str | None = "EPSG:32633", transform: Any = None, **more: Any) -> Path:
    if transform is None:
        transform = rasterio.Affine(METRES, 0, EAST, 0, -METRES, NORTH)
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        height=HW[0],
        width=HW[1],
        count=3,
        dtype="uint8",
        crs=crs,
        transform=transform,
        **more,
    ) as raster:
        raster.write(np.full((3, *HW), 90, np.uint8))
    return path


def found(*boxes: tuple[float, float, float, float]) -> Detections:
    count = len(boxes)
    return Detections(
        torch.tensor(boxes).reshape(-1, 4), torch.full((count,), 0.75), torch.ones(count).long()
    )


def prediction(detections: Detections, hw: tuple[int, int] = HW) -> Any:
    return SimpleNamespace(detections=detections, letterbox=Letterbox.fit(hw, (128, 128)))


def frame(path: Path) -> Frame:
    return Frame(np.zeros((*HW, 3), np.uint8), path, 0, None, 1, None)


def test_the_projection_by_hand() -> None:
    # On the central meridian north is 0.9996 times the arc from the equator: 4 984 944.378 m to 45° (Snyder 1987).
    longitude, latitude = utm33_to_lonlat(500_000.0, 0.9996 * 4_984_944.378)
    assert (longitude, latitude) == (15.0, pytest.approx(45.0, abs=1e-8))


def test_a_box_in_a_geotiff(tmp_path: Path) -> None:
    georeference = read_georeference(write_raster(tmp_path / "a.tif"))
    (feature,) = detection_features("a.tif", found((10, 20, 30, 60)), NAMES, georeference)
    assert feature["type"] == "Feature" and feature["geometry"]["type"] == "Polygon"
    assert feature["properties"] == {"image": "a.tif", "class": 1, "name": "van", "score": 0.75}
    (ring,) = feature["geometry"]["coordinates"]
    west, east, top, bottom = EAST + 0.5, EAST + 1.5, NORTH - 1.0, NORTH - 3.0
    corners = [utm33_to_lonlat(x, y) for x in (west, east) for y in (top, bottom)]
    assert ring[0] == ring[-1] and len(ring) == 5
    # 2e-8 degrees are 2 mm: what rounding to 8 decimals leaves.
    assert np.allclose(sorted(map(tuple, ring[:4])), sorted(corners), atol=2e-8, rtol=0)
    assert 13.3 < ring[0][0] < 13.5 and 52.4 < ring[0][1] < 52.6  # longitude first, Berlin
    area = sum(a[0] * b[1] - b[0] * a[1] for a, b in itertools.pairwise(ring))
    assert area > 0  # counterclockwise


def test_a_turned_raster_is_counterclockwise_too(tmp_path: Path) -> None:
    for name, matrix in (
        ("mirrored", (-METRES, 0, EAST, 0, -METRES, NORTH)),
        ("turned", (0, METRES, EAST, METRES, 0, NORTH)),
    ):
        georeference = read_georeference(
            write_raster(tmp_path / f"{name}.tif", transform=rasterio.Affine(*matrix))
        )
        (feature,) = detection_features("a", found((10, 20, 30, 60)), NAMES, georeference)
        ring = np.array(feature["geometry"]["coordinates"][0]) - feature["geometry"]["coordinates"][0][0]
        assert ring[:-1, 0] @ ring[1:, 1] - ring[1:, 0] @ ring[:-1, 1] > 0
        x = EAST + matrix[0] * 10 + matrix[1] * 20
        y = NORTH + matrix[3] * 10 + matrix[4] * 20
        corners = np.array(feature["geometry"]["coordinates"][0])
        assert np.abs(corners - utm33_to_lonlat(x, y)).max(axis=1).min() < 2e-8


def test_a_raster_in_degrees(tmp_path: Path) -> None:
    degrees = rasterio.Affine(1e-4, 0, 13.0, 0, -1e-4, 52.0)
    georeference = read_georeference(write_raster(tmp_path / "a.tif", "EPSG:4326", degrees))
    (feature,) = detection_features("a.tif", found((0, 0, 120, 80)), NAMES, georeference)
    ring = np.array(feature["geometry"]["coordinates"][0])
    assert ring.min(axis=0) == pytest.approx([13.0, 51.992]) and ring.max(axis=0) == pytest.approx(
        [13.012, 52.0]
    )


def test_the_file_of_a_run(tmp_path: Path) -> None:
    file = GeoJsonFile(tmp_path / "out" / "d.geojson", NAMES)
    for name, boxes in (
        ("a.tif", [(10, 20, 30, 60)]),
        ("b.tif", []),
        ("c.tif", [(0, 0, 5, 5), (5, 5, 9, 9)]),
    ):
        file.add(frame(write_raster(tmp_path / name)), Path(name), prediction(found(*boxes)))
    file.close()
    data = json.loads((tmp_path / "out" / "d.geojson").read_text())
    assert data["type"] == "FeatureCollection" and set(data) == {"type", "features"}
    images = [Path(feature["properties"]["image"]).name for feature in data["features"]]
    assert images == ["a.tif", "c.tif", "c.tif"]


def write_plain(path: Path) -> Path:
    import cv2

    cv2.imwrite(str(path), np.zeros((*HW, 3), np.uint8))
    return path


def test_what_is_not_georeferenced_is_told_and_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger(LOGGER_NAME), "propagate", True)
    file = GeoJsonFile(tmp_path / "d.geojson", NAMES)
    file.add(frame(write_plain(tmp_path / "plain.tif")), Path("plain.tif"), prediction(found((0, 0, 5, 5))))
    file.add(frame(write_plain(tmp_path / "plain.png")), Path("plain.png"), prediction(found((0, 0, 5, 5))))
    file.add(frame(write_raster(tmp_path / "a.tif")), Path("a.tif"), prediction(found((0, 0, 5, 5))))
    file.close()
    # Each is recorded twice where an earlier test left the logger another way to the root.
    messages = list(dict.fromkeys(record.getMessage() for record in caplog.records))
    assert len(messages) == 2
    assert "plain.tif: it has no georeference; its detections are left out" in messages[0]
    assert "2 of 3 pictures are not in" in messages[1]
    assert len(json.loads((tmp_path / "d.geojson").read_text())["features"]) == 1


def test_a_place_without_a_coordinate_system(tmp_path: Path) -> None:
    with pytest.raises(GeoreferenceError, match="no coordinate system"):
        read_georeference(write_raster(tmp_path / "a.tif", None))


def test_a_coordinate_system_that_is_not_of_the_earth(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger(LOGGER_NAME), "propagate", True)
    path = write_raster(tmp_path / "a.tif", 'LOCAL_CS["site",UNIT["metre",1]]')
    file = GeoJsonFile(tmp_path / "d.geojson", NAMES)
    file.add(frame(path), Path("a.tif"), prediction(found((0, 0, 5, 5), (5, 5, 9, 9))))
    file.close()
    assert "2 boxes have no longitude and latitude" in caplog.records[0].getMessage()
    assert json.loads((tmp_path / "d.geojson").read_text())["features"] == []


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_control_points_only(tmp_path: Path) -> None:
    points = [rasterio.control.GroundControlPoint(r, c, c, -r) for r in (0, 80) for c in (0, 120)]
    path = tmp_path / "a.tif"
    with rasterio.open(path, "w", driver="GTiff", height=80, width=120, count=1, dtype="uint8") as raster:
        raster.gcps = (points, rasterio.crs.CRS.from_epsg(4326))
    with pytest.raises(GeoreferenceError, match="ground control points only"):
        read_georeference(path)


def test_a_damaged_file(tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_bytes(b"II*\0 not a raster")
    with pytest.raises(GeoreferenceError, match="cannot open"):
        read_georeference(tmp_path / "a.tif")


def test_boxes_outside_of_the_projection_are_left_out(tmp_path: Path) -> None:
    # An azimuthal map of half the Earth: the corners of its square are in space.
    width = 2 * 6378137.0
    half = rasterio.Affine(width / HW[1], 0, -width / 2, 0, -width / HW[0], width / 2)
    path = write_raster(tmp_path / "a.tif", "+proj=ortho +lat_0=0 +lon_0=0 +datum=WGS84", half)
    boxes = found((0, 0, 2, 2), (50, 30, 60, 40))
    assert len(detection_features("a", boxes, NAMES, read_georeference(path))) == 1


def test_without_rasterio_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rasterio", None)
    with pytest.raises(GeoreferenceError, match="pip install rasterio"):
        require_rasterio()
