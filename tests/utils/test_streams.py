"""Cameras and streams: always the newest frame, opened again when lost, several at once, an end when told to."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event

import cv2
import numpy as np
import pytest

from tests.conftest import MjpegServer
from utils.frames import Frame, SourceError
from utils.sources import open_source
from utils.streams import LONGEST_WAIT_S, LiveStream, StreamAddress, StreamSource


@dataclass
class FakeCapture:
    """Gives frames whose brightness is their number, then nothing; waits for ``gate`` before each, if there is one."""

    count: int
    hw: tuple[int, int] = (4, 6)
    gate: Callable[[int], object] = lambda number: None
    opened: bool = True
    released: bool = False
    number: int = field(default=0)

    def isOpened(self) -> bool:
        return self.opened

    def read(self) -> tuple[bool, np.ndarray]:
        self.gate(self.number)
        if self.number >= self.count:
            return False, np.zeros(0)
        frame = np.zeros((*self.hw, 3), np.uint8)
        frame[..., 0] = self.number  # blue
        self.number += 1
        return True, frame

    def get(self, prop: int) -> float:
        return {cv2.CAP_PROP_FPS: 12.0, cv2.CAP_PROP_FRAME_COUNT: 1000.0}[prop]

    def release(self) -> None:
        self.released = True


class Factory:
    """Opens captures one after the other, whatever the address; remembers when."""

    def __init__(self, *captures: FakeCapture) -> None:
        self.captures, self.asked = list(captures), [0.0] * 0

    def __call__(self, address: StreamAddress) -> FakeCapture:
        self.asked.append(time.monotonic())
        number = len(self.asked) - 1
        return self.captures[number] if number < len(self.captures) else FakeCapture(0, opened=False)


def no_stream_thread_is_left() -> bool:
    return not [thread for thread in threading.enumerate() if thread.name.startswith("stream ")]


def source_of(
    factory: Factory, *addresses: str, reconnects: int = 0, first_wait_s: float = 0.01
) -> StreamSource:
    parsed = [StreamAddress.parse(text) for text in addresses or ("0",)]
    return StreamSource(parsed, None, reconnects, first_wait_s, factory)


# ---------------------------------------------------------------------------------------- addresses


@pytest.mark.parametrize(
    "text, shown, name",
    [
        ("0", "camera 0", "camera_0"),
        ("12", "camera 12", "camera_12"),
        ("rtsp://user:secret@10.0.0.1:554/live/1?token=secret", "rtsp://10.0.0.1:554/live/1", "rtsp_10.0.0.1_554_live_1"),
        ("HTTP://[::1]:80/", "http://[::1]:80/", "http_1_80"),
        ("rtmp://host/../../etc", "rtmp://host/../../etc", "rtmp_host_.._.._etc"),
    ],
)  # fmt: skip
def test_addresses_are_shown_without_secrets_and_give_a_file_name(text: str, shown: str, name: str) -> None:
    address = StreamAddress.parse(text)
    assert (str(address), str(address.name)) == (shown, name)
    assert len(address.name.parts) == 1


@pytest.mark.parametrize(
    "text", ["file:///a", "concat://x", "picture.jpg", "http://host/a.JPG?x=1", "rtsp://h/v.mp4"]
)
def test_what_is_no_stream_is_refused(text: str) -> None:
    with pytest.raises(SourceError):
        StreamAddress.parse(text)


# --------------------------------------------------------------------------- the newest frame, no other


def test_frames_that_nobody_takes_are_dropped_and_counted() -> None:
    news = Event()
    stream = LiveStream(StreamAddress(0), news, Event(), 0, 0.01, Factory(FakeCapture(30)))
    assert stream.take() is None and not stream.finished
    stream.start()
    stream.join()
    assert not stream.finished, "its last frame is still to be taken"
    newest = stream.take()
    assert newest is not None and newest.number == 29 and newest.bgr[0, 0].tolist() == [29, 0, 0]
    assert newest.video.fps == 12.0 and newest.video.frame_count is None and newest.video.hw == (4, 6)
    assert (stream.frames, stream.dropped) == (30, 29) and stream.finished and stream.take() is None
    assert "30 frames, 29 dropped" in stream.line()


@pytest.mark.parametrize("workers", [0, 3])
def test_a_slow_network_sees_the_newest_frame_at_most_one_behind(workers: int) -> None:
    at_number = 0

    def gate(number: int) -> None:
        nonlocal at_number
        at_number = number
        time.sleep(0.002)

    source = source_of(Factory(FakeCapture(10**6, gate=gate)))
    seen: list[int] = []
    with closing(source.read_ahead(lambda frame: at_number, workers)) as frames:
        for frame, when_prepared in frames:
            assert frame.frame_number is not None and when_prepared - frame.frame_number <= 5
            seen.append(frame.frame_number)
            time.sleep(0.05)
            if len(seen) == 8:
                break
    assert seen == sorted(set(seen)) and seen[-1] > 7 * 5, "it did not wait for us"
    assert no_stream_thread_is_left()


def test_frames_are_rgb_and_live() -> None:
    factory = Factory(FakeCapture(1))
    (frame,) = source_of(factory)
    assert frame.image.shape == (4, 6, 3) and frame.live and frame.path == Path("camera_0")
    assert (frame.index, frame.frame_number, frame.total) == (0, 0, None)
    assert factory.captures[0].released


# ------------------------------------------------------------------------------------------ reconnecting


def test_a_lost_stream_is_opened_again_and_its_numbers_go_on(caplog: pytest.LogCaptureFixture) -> None:
    slow = lambda number: time.sleep(0.02)  # noqa: E731
    down = FakeCapture(0, opened=False)
    factory = Factory(FakeCapture(3, gate=slow), down, down, FakeCapture(2, gate=slow))
    source = source_of(factory, "rtsp://user:secret@host/live", reconnects=3, first_wait_s=0.05)
    with caplog.at_level(logging.INFO):
        numbers = [frame.frame_number for frame in source]
    assert numbers == [0, 1, 2, 3, 4]
    waits = np.diff(factory.asked)
    # Lost: wait once, twice, four times as long; there again: the count and the waits begin anew.
    for waited, expected in zip(waits, (0.05, 0.1, 0.2, 0.05, 0.1, 0.2), strict=True):
        assert expected <= waited < expected + 0.15
    assert source.problems == ["rtsp://host/live: lost after 5 frames, 3 tries to reopen it"]
    assert source.skipped == 0, "it gave pictures"
    assert "connection lost 2 times" in caplog.text and "secret" not in caplog.text


def test_a_stream_that_never_was_is_a_problem(caplog: pytest.LogCaptureFixture) -> None:
    factory = Factory()
    source = source_of(factory, "7", reconnects=2)
    assert list(source) == [] and source.skipped == 1 and len(factory.asked) == 3
    assert "camera 7: no such stream" in source.problems[0] and "not there; trying again" in caplog.text


def test_waits_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    stream = LiveStream(StreamAddress(0), Event(), Event(), 9, 1.0, Factory())
    monkeypatch.setattr(
        stream,
        "_stopped",
        type("Clock", (), {"is_set": lambda _: False, "wait": lambda _, s: waits.append(s)})(),
    )
    stream._run()
    assert waits[:5] == [1, 2, 4, 8, 16] and set(waits[5:]) == {LONGEST_WAIT_S} and len(waits) == 9


def test_closing_does_not_wait_for_the_next_try() -> None:
    source = source_of(Factory(FakeCapture(1)), reconnects=5, first_wait_s=60)
    started = time.monotonic()
    with closing(source.read_ahead(lambda frame: None, 2)) as frames:
        next(frames)
    assert time.monotonic() - started < 5 and no_stream_thread_is_left()


# ---------------------------------------------------------------------------------------------- several


def test_several_streams_in_turn() -> None:
    gates = {1: Event(), 2: Event()}
    captures = {
        target: FakeCapture(10**6, hw=(4, 4 * target), gate=lambda number: time.sleep(0.003))
        for target in gates
    }
    source = StreamSource(
        [StreamAddress(1), StreamAddress(2)], None, 0, 0.01, lambda a: captures[int(a.target)]
    )  # type: ignore[arg-type]
    order: list[Frame] = []
    with closing(source.read_ahead(lambda frame: None, 0)) as frames:
        for frame, _ in frames:
            order.append(frame)
            time.sleep(0.02)
            if len(order) == 10:
                break
    names = [frame.path.name for frame in order]
    assert names == [names[0], names[1]] * 5 and set(names) == {"camera_1", "camera_2"}
    assert {(frame.path.name, frame.index) for frame in order} == {(names[0], 0), (names[1], 1)}


def test_another_picture_size_has_another_index() -> None:
    slow = lambda number: time.sleep(0.02)  # noqa: E731
    factory = Factory(
        FakeCapture(2, (4, 6), slow), FakeCapture(2, (8, 6), slow), FakeCapture(1, (8, 6), slow)
    )
    frames = list(source_of(factory, reconnects=1))
    assert [(frame.index, frame.frame_number) for frame in frames] == [(0, 0), (0, 1), (1, 2), (1, 3), (1, 4)]


def test_list_of_streams(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "all.streams"
    path.write_text("# the yard\n\n 0 \nrtsp://user:secret@host/a\nnonsense\n# 1\n0\n")
    source = open_source(str(path))
    assert isinstance(source, StreamSource)
    assert [address.target for address in source.addresses] == [0, "rtsp://user:secret@host/a"]
    assert source.problems == [
        f"{path}:5: 'nonsense' is no camera number and no address (rtsp://, rtmp://, http://)"
    ]
    path.write_text("# nothing\n")
    with pytest.raises(SourceError, match=r"names no stream \(it has no lines"):
        open_source(str(path))


# --------------------------------------------------------------------------------- a real one, over HTTP


@pytest.mark.parametrize("workers", [0, 2])
def test_stream_over_http_that_hangs_up_and_comes_back(mjpeg_server: MjpegServer, workers: int) -> None:
    mjpeg_server.per_connection, mjpeg_server.interval_s = [6, 10**9], 0.03
    source = StreamSource([StreamAddress.parse(mjpeg_server.address())], None, 3, 0.05)
    numbers = []
    with closing(source.read_ahead(lambda frame: frame.image.shape, workers)) as frames:
        for frame, shape in frames:
            assert shape == (48, 64, 3) and frame.frame_number is not None
            numbers.append(frame.frame_number)
            if frame.frame_number >= 12:
                break
    assert mjpeg_server.connections >= 2 and numbers == sorted(set(numbers))
    assert source.problems == [] and no_stream_thread_is_left()


def test_stream_over_http_that_ends_for_good(mjpeg_server: MjpegServer) -> None:
    mjpeg_server.per_connection, mjpeg_server.interval_s = [5, 0], 0.03
    source = StreamSource([StreamAddress.parse(mjpeg_server.address())], None, 2, 0.02)
    frames = list(source)
    assert 3 <= len(frames) <= 5 and frames[0].video is not None and frames[0].video.fps > 0
    assert len(source.problems) == 1 and "2 tries" in source.problems[0]
