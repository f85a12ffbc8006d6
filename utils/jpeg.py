"""JPEG files without decoding them: the size in the header, and a file cut down to its first rows.

Pixels are decoded in utils/images.py. The segments of a file are described in ITU-T T.81, annex B.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

JPEG_SUFFIXES = frozenset({".jpg", ".jpeg"})
JPEG_START = b"\xff\xd8\xff"
"""The first bytes of every JPEG file, whatever its name."""
JPEG_END = b"\xff\xd9"

_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_ROW_BY_ROW = frozenset({0xC0, 0xC1})
"""Frames whose scan, where it is the only one, holds one row of blocks behind the other."""
_SCAN, _RESTARTS = 0xDA, 0xDD
_BARE = frozenset({0x01, *range(0xD0, 0xD9)})
"""Markers without a segment."""
_BLOCK = 8
_HEIGHT_BYTE = 3
"""Of a frame's segment: where the two bytes of the height begin, behind the length and the bits per sample."""


class Segment(NamedTuple):
    """One of the header: its marker's second byte, and where it begins in the file, with the two bytes of its length."""

    marker: int
    begin: int


def header_segments(file: BinaryIO) -> Iterator[Segment]:
    """The segments in front of a JPEG's picture data, the scan's the last; ends early where the file makes no sense.

    The file may be read between two of them.

    Raises:
        struct.error: the file ends within a segment.
    """
    position = len(JPEG_START) - 1
    while True:
        file.seek(position)
        if file.read(1) != b"\xff":
            return
        byte = b"\xff"
        while byte == b"\xff":  # any number of fill bytes may precede a marker
            byte = file.read(1)
        if not byte:
            return
        position = file.tell()
        if byte[0] in _BARE:
            continue
        length = struct.unpack(">H", file.read(2))[0]
        yield Segment(byte[0], position)
        if byte[0] == _SCAN:
            return
        position += length


def jpeg_hw(file: BinaryIO) -> tuple[int, int] | None:
    """(height, width) that a JPEG's header states; None where it has none.

    Leaves the file behind the beginning of the last segment in front of the picture data.

    Raises:
        struct.error: the file ends within a segment.
    """
    hw, found_scan = None, False
    for segment in header_segments(file):
        found_scan = segment.marker == _SCAN
        if segment.marker in _FRAMES:
            file.seek(segment.begin + _HEIGHT_BYTE)
            height, width = struct.unpack(">HH", file.read(4))
            hw = (height, width)
    return hw if found_scan else None


def first_rows(data: bytes, rows: int) -> bytes:
    """A JPEG of which a decoder makes only the first rows, with the same pixels, in a share of the time.

    A smaller height in the header is all it takes: the picture data are in rows of blocks, and the decoder stops
    behind the last one. The end marker goes too, and all behind it, lest it warn of what is left in front of it.

    Args:
        data: all bytes of the file.
        rows: how many are needed at least; a few more are kept, since the last ones may differ.

    Returns:
        The shortened file; ``data`` itself where that is not possible (several scans, arithmetic coding, restart
        markers, of which the decoder would complain, a damaged or otherwise unusual file) or saves nothing.
    """
    file, frame = io.BytesIO(data), None
    try:
        for segment in header_segments(file):
            if segment.marker == _RESTARTS:
                return data
            if segment.marker in _FRAMES:
                frame = segment
            if segment.marker == _SCAN and frame is not None and frame.marker in _ROW_BY_ROW:
                return _with_rows(data, frame.begin, segment.begin, rows)
    except (struct.error, IndexError):
        pass
    return data


def _with_rows(data: bytes, frame: int, scan: int, rows: int) -> bytes:
    """Of a file whose frame's and scan's segments begin there; `data` itself where the scan has not all components."""
    height = int.from_bytes(data[frame + _HEIGHT_BYTE : frame + _HEIGHT_BYTE + 2], "big")
    components = data[frame + 7]
    end = data.find(JPEG_END, scan)  # not within picture data: a 0 follows each 255 there
    if components == 0 or data[scan + 2] != components or end < 0:
        return data
    tallest = max(data[frame + 9 + 3 * number] & 15 for number in range(components))
    step = _BLOCK * max(tallest, 1)
    # One row of blocks more: colours are smoothed over the border of two.
    kept = (-(-max(rows, 1) // step) + 1) * step
    if kept >= height:
        return data
    changed = bytearray(memoryview(data)[:end])
    changed[frame + _HEIGHT_BYTE : frame + _HEIGHT_BYTE + 2] = kept.to_bytes(2, "big")
    return bytes(changed)
