"""Very large pictures by rectangles: the pixels are those of the decoded picture, memory is that of the rectangle."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from utils.decoding import read_picture
from utils.frames import Frame
from utils.images import ImageError
from utils.large_picture import (
    DRAWN_SIDE,
    DecodedPicture,
    RasterPicture,
    _open_raster,
    open_large_picture,
    reduced_hw,
)
from utils.sources import open_source

ROOT = Path(__file__).resolve().parent.parent.parent
rasterio = pytest.importorskip("rasterio")


def write_tiff(path: Path, bands: np.ndarray, **options: Any) -> Path:
    """Bands [C, H, W] as a tiled TIFF."""
    count, height, width = bands.shape
    profile = {"tiled": True, "blockxsize": 64, "blockysize": 64, "compress": "deflate"} | options
    with rasterio.open(
        path, "w", driver="GTiff", count=count, height=height, width=width, dtype=bands.dtype, **profile
    ) as file:
        file.write(bands)
    return path


def pattern(
    count: int = 3, hw: tuple[int, int] = (300, 500), kind: str = "uint8", largest: int = 255
) -> np.ndarray:
    values = np.random.default_rng(0).integers(0, largest + 1, (count, *hw))
    values[:, 0, 0] = largest
    return values.astype(kind)


@pytest.mark.parametrize(
    "bands",
    [pattern(), pattern(1), pattern(3, kind="uint16", largest=4095), pattern(1, kind="float32", largest=1)],
    ids=["rgb", "grey", "12 bits", "float"],
)
def test_rectangles_are_those_of_the_decoded_picture(tmp_path: Path, bands: np.ndarray) -> None:
    options = {"photometric": "rgb"} if len(bands) == 3 else {}
    path = write_tiff(tmp_path / "a.tif", bands, **options)
    whole = read_picture(path)
    picture = _open_raster(path, tiled=True)
    assert picture is not None and picture.hw == whole.shape[:2] == (300, 500)
    for left, top, right, bottom in ((0, 0, 500, 300), (60, 10, 130, 70), (499, 299, 500, 300)):
        assert np.array_equal(picture.read(left, top, right, bottom), whole[top:bottom, left:right])
        assert np.array_equal(
            DecodedPicture(whole).read(left, top, right, bottom), whole[top:bottom, left:right]
        )


def test_brightness_is_that_of_the_whole_picture_in_each_part(tmp_path: Path) -> None:
    bands = np.full((1, 2000, 128), 200, np.uint16)
    bands[0, 1999, 127] = 4095
    picture = _open_raster(write_tiff(tmp_path / "a.tif", bands), tiled=True)
    assert picture is not None and (picture.read(0, 0, 10, 10) == round(200 / 4095 * 255)).all()


def test_alpha_palette_and_more_than_three_bands(tmp_path: Path) -> None:
    bands = pattern(4)
    bands[3] = 0
    clear = _open_raster(
        write_tiff(tmp_path / "alpha.tif", bands, photometric="rgb", alpha="yes"), tiled=True
    )
    assert clear is not None and (clear.read(0, 0, 9, 9) == 114).all()
    many = _open_raster(write_tiff(tmp_path / "many.tif", pattern(6)), tiled=True)
    assert many is not None and np.array_equal(
        many.read(0, 0, 9, 9), np.moveaxis(pattern(6)[:3, :9, :9], 0, 2)
    )
    path = write_tiff(tmp_path / "palette.tif", np.ones((1, 70, 70), np.uint8), photometric="palette")
    with rasterio.open(path, "r+") as file:
        file.write_colormap(1, {0: (0, 0, 0), 1: (10, 20, 30)})
    palette = _open_raster(path, tiled=True)
    assert palette is not None and palette.read(0, 0, 1, 1).tolist() == [[[10, 20, 30]]]


def test_reduced_is_the_mean_of_what_it_stands_for(tmp_path: Path) -> None:
    bands = np.zeros((3, 1200, 800), np.uint8)
    bands[:, :, 400:] = 200
    bands[0, :600] = 100
    picture = _open_raster(write_tiff(tmp_path / "a.tif", bands, photometric="rgb"), tiled=True)
    assert picture is not None
    for large in (picture, DecodedPicture(read_picture(tmp_path / "a.tif"))):
        small = large.reduced(600)
        assert small.shape == (600, 400, 3) and small.dtype == np.uint8
        assert small[100, 100].tolist() == [100, 0, 0] and small[500, 300].tolist() == [200, 200, 200]
        assert large.reduced(5000).shape == (1200, 800, 3)
    assert reduced_hw((30000, 15000), 8192) == (8192, 4096) and reduced_hw((10, 90000), 100) == (1, 100)


def test_only_large_tiled_tiffs_are_read_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tall = np.zeros((1, DRAWN_SIDE + 100, 70), np.uint8)
    assert isinstance(open_large_picture(write_tiff(tmp_path / "tall.tif", tall)), RasterPicture)
    stripes = write_tiff(tmp_path / "stripes.tif", tall, tiled=False, blockxsize=None, blockysize=16)
    assert isinstance(open_large_picture(stripes), DecodedPicture)
    assert isinstance(open_large_picture(write_tiff(tmp_path / "small.tif", pattern(1))), DecodedPicture)
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((20, 30, 3), np.uint8))
    assert isinstance(open_large_picture(tmp_path / "a.png"), DecodedPicture)
    monkeypatch.setitem(sys.modules, "rasterio", None)  # as if it were not installed
    assert isinstance(open_large_picture(tmp_path / "tall.tif"), DecodedPicture)


def test_frames_of_large_pictures_are_drawn_smaller(tmp_path: Path) -> None:
    write_tiff(tmp_path / "a.tif", np.full((1, 2 * DRAWN_SIDE, 100), 7, np.uint8))
    cv2.imwrite(str(tmp_path / "b.png"), np.zeros((20, 30, 3), np.uint8))
    large, small = open_source(str(tmp_path), windows=True)
    assert (
        large.image.shape == (DRAWN_SIDE, 50, 3) and large.hw == (2 * DRAWN_SIDE, 100) and large.scale == 0.5
    )
    assert (large.pixels.read(90, 16000, 100, 16010) == 7).all()
    assert small.large is None and small.hw == (20, 30) and small.scale == 1
    (whole, _) = open_source(str(tmp_path))
    assert isinstance(whole, Frame) and whole.image.shape == (2 * DRAWN_SIDE, 100, 3) and whole.large is None


def test_damaged_tiles_are_an_image_error(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tif", pattern(3, (DRAWN_SIDE + 64, 128)))
    data = bytearray(path.read_bytes())
    data[3000:-3000] = bytes(len(data) - 6000)
    path.write_bytes(data)
    with pytest.raises(ImageError, match=r"a\.tif"):
        open_large_picture(path).read(0, 4000, 128, 4100)


def test_memory_is_that_of_the_window(tmp_path: Path) -> None:
    """12000 × 12000 RGB is 432 MB decoded."""
    path, side = tmp_path / "large.tif", 12000
    with rasterio.open(
        path, "w", driver="GTiff", count=3, height=side, width=side, dtype="uint8", photometric="rgb",
        tiled=True, blockxsize=512, blockysize=512, compress="deflate", zlevel=1,
    ) as file:  # fmt: skip
        stripe = np.tile(np.arange(side, dtype=np.uint8), (3, 512, 1))
        for top in range(0, side, 512):
            rows = min(512, side - top)
            file.write(stripe[:, :rows], window=((top, top + rows), (0, side)))
    code = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from utils.large_picture import open_large_picture\n"
        "import rasterio\n"
        "def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024\n"
        "before = peak()\n"
        "picture = open_large_picture(Path(sys.argv[1]))\n"
        "for top in range(0, 12000, 1000):\n"
        "    for left in range(0, 12000, 1000):\n"
        "        assert picture.read(left, top, left + 1000, top + 1000)[0, 0].tolist() == [left % 256] * 3\n"
        "windows = peak()\n"
        "assert picture.reduced(2048).shape == (2048, 2048, 3)\n"
        "print(windows - before, peak() - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    windows_mb, all_mb = map(int, done.stdout.split())
    assert windows_mb < 150 and all_mb < 200, (
        f"{windows_mb} MB for windows, {all_mb} MB with the smaller version"
    )
