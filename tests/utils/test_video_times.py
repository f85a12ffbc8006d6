"""Videos without a constant rate: when each frame is shown, and that what is written lasts as long."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest

from utils.decoding import VideoInfo, read_video
from utils.sources import open_source
from utils.writers import VideoWriter

HW = (48, 64)
PHONE_MS = [0, 33, 67, 100, 133, 167, 200, 400, 600, 633, 667, 1667, 1700, 1733]
"""Thirty frames per second, with two slow stretches and a pause."""


def element(name: int, content: bytes | int | float) -> bytes:
    """An element of EBML (RFC 8794): its name, the length of the content in 8 bytes, the content."""
    if isinstance(content, float):
        content = struct.pack(">d", content)
    elif isinstance(content, int):
        content = content.to_bytes(8, "big")
    names = name.to_bytes((name.bit_length() + 7) // 8, "big")
    return names + (len(content) | 1 << 56).to_bytes(8, "big") + content


def write_matroska(path: Path, times_ms: Sequence[int], stated_fps: float | None = None) -> Path:
    """A video of JPEGs in Matroska (RFC 9559) that are shown at these times; brightness is their number times ten."""
    head = element(0x1A45DFA3, element(0x4282, b"matroska") + element(0x4287, 4) + element(0x4285, 2))
    last_ms = times_ms[-1] - times_ms[-2] if len(times_ms) > 1 else 0
    info = element(0x1549A966, element(0x2AD7B1, 10**6) + element(0x4489, float(times_ms[-1] + last_ms)))
    size = element(0xE0, element(0xB0, HW[1]) + element(0xBA, HW[0]))
    rate = b"" if stated_fps is None else element(0x23E383, round(1e9 / stated_fps))
    track = element(0xD7, 1) + element(0x73C5, 1) + element(0x83, 1) + element(0x86, b"V_MJPEG") + rate + size
    frames = element(0xE7, 0)
    for number, time_ms in enumerate(times_ms):
        jpeg = cv2.imencode(".jpg", np.full((*HW, 3), 10 * number, np.uint8))[1].tobytes()
        frames += element(0xA3, b"\x81" + struct.pack(">hB", time_ms, 0x80) + jpeg)
    segment = info + element(0x1654AE6B, element(0xAE, track)) + element(0x1F43B675, frames)
    path.write_bytes(head + element(0x18538067, segment))
    return path


@pytest.mark.parametrize("stated_fps", [None, 1000, 30, 4.0])
def test_each_frame_has_the_time_that_the_file_says(tmp_path: Path, stated_fps: float | None) -> None:
    source = open_source(str(write_matroska(tmp_path / "v.mkv", PHONE_MS, stated_fps)))
    frames = list(source)
    assert [frame.frame_number for frame in frames] == list(range(len(PHONE_MS)))
    times = [frame.time_s for frame in frames]
    assert times == pytest.approx([time / 1e3 for time in PHONE_MS], abs=1e-6)
    video = frames[0].video
    assert video is not None and video.fps == pytest.approx(30, rel=0.02)
    assert video.duration_s == pytest.approx(1.766, abs=0.1)
    assert source.problems == [], "it does not end early"


def test_a_video_that_ends_early_is_told_by_its_time(tmp_path: Path) -> None:
    whole = write_matroska(tmp_path / "v.mkv", PHONE_MS, 1000)
    whole.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    source = open_source(str(whole))
    assert 3 < len(list(source)) < 9
    assert len(source.problems) == 1 and "of 1.8 s: not readable" in source.problems[0]


def test_what_is_written_lasts_as_long_and_shows_each_frame_at_its_time(tmp_path: Path) -> None:
    source = open_source(str(write_matroska(tmp_path / "v.mkv", PHONE_MS, 1000)))
    writer = None
    for frame in source:
        assert frame.video is not None
        writer = writer or VideoWriter(tmp_path / "w", frame.video.fps)
        writer.write(frame.image, frame.time_s)
    assert writer is not None
    writer.close()
    assert writer.path is not None
    written = [(time_s, image.mean()) for image, time_s, _ in read_video(writer.path)]
    assert written[-1][0] == pytest.approx(PHONE_MS[-1] / 1e3, abs=0.02)
    for number, (begin, end) in enumerate(zip(PHONE_MS, [*PHONE_MS[1:], 1767], strict=True)):
        middle = (begin + end) / 2e3
        shown = max((time_s, mean) for time_s, mean in written if time_s <= middle)[1]
        assert shown == pytest.approx(10 * number, abs=4), f"at {middle} s"


def test_frames_that_come_faster_than_the_rate_are_left_out(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "v", 10) as writer:
        for time_s in (0, 0.02, 0.04, 0.1, 0.11, 0.2):
            writer.write(np.zeros((*HW, 3), np.uint8), time_s)
    assert writer.frame_count == 3


@pytest.mark.parametrize("fps", [25.0, 29.97, 60000 / 1001, 240.0])
def test_a_constant_rate_is_kept_and_no_frame_repeated_or_lost(tmp_path: Path, fps: float) -> None:
    with VideoWriter(tmp_path / "v", fps) as writer:
        for number in range(70):
            writer.write(np.full((*HW, 3), 3 * number, np.uint8))
    assert writer.path is not None
    with VideoWriter(tmp_path / "again", fps) as again:
        for image, time_s, video in read_video(writer.path):
            assert video == VideoInfo(pytest.approx(fps, abs=0.05), 70, HW, pytest.approx(70 / fps, rel=0.02))  # type: ignore[arg-type]
            again.write(image, time_s)
    assert again.frame_count == 70


def test_times_that_are_impossible_count_as_one_frame(tmp_path: Path) -> None:
    times = [0, 40, 80, 80, 120, 32000, 32040]
    path = write_matroska(tmp_path / "v.mkv", times, 25)
    assert [t for _, t, _ in read_video(path)][-1] == pytest.approx(32.08, abs=0.01), "a pause is no mistake"
