"""utils/jpeg.py: the header's size, and files cut down to their first rows."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.images import read_image
from utils.jpeg import JPEG_END, JPEG_START, first_rows, jpeg_hw

Image = npt.NDArray[np.uint8]
SAMPLINGS = {
    "4:4:4": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
    "4:2:2": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_422,
    "4:2:0": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420,
    "4:4:0": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_440,
    "4:1:1": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_411,
}
READ = {1: cv2.IMREAD_COLOR, 2: cv2.IMREAD_REDUCED_COLOR_2, 8: cv2.IMREAD_REDUCED_COLOR_8}


def noise(height: int = 203, width: int = 117) -> Image:
    """Something that differs from row to row in all channels."""
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def jpeg(image: Image, *parameters: int) -> bytes:
    return cv2.imencode(".jpg", image, list(parameters))[1].tobytes()


def decoded(data: bytes, reduce: int = 1) -> Image:
    return np.asarray(cv2.imdecode(np.frombuffer(data, np.uint8), READ[reduce]), dtype=np.uint8)


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("reduce", READ)
def test_the_first_rows_are_the_same(sampling: str, reduce: int, capfd: pytest.CaptureFixture[str]) -> None:
    data = jpeg(noise(), cv2.IMWRITE_JPEG_SAMPLING_FACTOR, SAMPLINGS[sampling])
    whole = decoded(data, reduce)
    for rows in (0, 1, 7, 16, 17, 64, 100, 150, 170):
        short = decoded(first_rows(data, rows), reduce)
        needed = -(-rows // reduce)
        assert needed <= len(short) < len(whole) and np.array_equal(short[:needed], whole[:needed])
    assert capfd.readouterr() == ("", "")  # the decoder has nothing to complain about


def test_grey() -> None:
    data = jpeg(np.ascontiguousarray(noise()[..., 0]))
    short = decoded(first_rows(data, 40))
    assert len(short) == 48 and np.array_equal(short[:40], decoded(data)[:40])


@pytest.mark.parametrize("rows", [190, 203, 1000])
def test_where_nothing_is_saved_the_file_stays(rows: int) -> None:
    data = jpeg(noise())
    assert first_rows(data, rows) is data


def test_what_cannot_be_shortened_stays() -> None:
    data, progressive = jpeg(noise()), jpeg(noise(), cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
    restarts = jpeg(noise(), cv2.IMWRITE_JPEG_RST_INTERVAL, 2)
    for other in (
        progressive,
        restarts,
        data[:-2],
        data[:300] + JPEG_END,
        JPEG_START + JPEG_END,
        b"",
    ):
        assert first_rows(other, 10) is other


@pytest.mark.parametrize("behind", [b"\0", JPEG_END, jpeg(noise())])
def test_what_lies_behind_the_picture_goes(behind: bytes) -> None:
    data = jpeg(noise())
    assert first_rows(data + behind, 40) == first_rows(data, 40)


def test_picture_data_that_end_early_are_filled_up_all_the_same(tmp_path: Path) -> None:
    data, path = jpeg(noise()), tmp_path / "cut.jpg"
    path.write_bytes(data[: len(data) // 4] + JPEG_END)
    whole = read_image(path)
    for rows in (20, 100, 150):
        assert np.array_equal(read_image(path, rows=rows)[:rows], whole[:rows])


def test_a_scan_of_some_components_only_stays() -> None:
    frame = struct.pack(">BHHB", 8, 480, 640, 3) + bytes([1, 0x22, 0, 2, 0x11, 1, 3, 0x11, 1])

    def file(scanned: int) -> bytes:
        scan = bytes([scanned]) + bytes([1, 0] * scanned) + bytes([0, 63, 0])
        return b"".join(
            [b"\xff\xd8", *(b"\xff" + kind + struct.pack(">H", len(content) + 2) + content
                            for kind, content in ((b"\xc0", frame), (b"\xda", scan))), b"data", JPEG_END]
        )  # fmt: skip

    assert first_rows(file(1), 100) == file(1)
    nothing = file(0).replace(frame, frame[:5] + bytes([0]) + frame[6:])
    assert first_rows(nothing, 100) == nothing
    assert jpeg_hw(io.BytesIO(first_rows(file(3), 100))) == (128, 640)
    assert jpeg_hw(io.BytesIO(file(3))) == (480, 640)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=60), st.integers(0, 300))
def test_any_bytes_are_taken(content: bytes, cut: int) -> None:
    for data in (JPEG_START + content + JPEG_END, jpeg(noise(40, 40))[:cut] + content + JPEG_END):
        assert isinstance(first_rows(data, 8), bytes)
