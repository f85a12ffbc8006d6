"""Live sources: cameras and network streams, each read by a thread of its own, always the newest frame.

A frame that nobody took before the next one came is dropped and counted: the network sees what is there now, however
slow it is. A lost connection is opened again, after waits that double.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any, TypeVar
from urllib.parse import urlsplit

import cv2
from numpy.typing import NDArray

from utils.background import Jobs
from utils.decoding import Capture, VideoCutError, VideoError, VideoInfo, bgr_to_rgb, video_info
from utils.frames import (
    Frame,
    Prepare,
    Source,
    SourceError,
    failing,
    is_picture,
    is_video,
    logger,
    with_prepared,
)

T = TypeVar("T")

SCHEMES = frozenset({"rtsp", "rtsps", "rtmp", "rtmps", "http", "https", "udp", "tcp"})
"""Beginnings of addresses that are read as streams."""

RECONNECTS = 5
FIRST_WAIT_S = 1.0
LONGEST_WAIT_S = 30.0

_TIMEOUT_MS = 10_000
_POLL_S = 0.2
_JOIN_S = 2.0


@dataclass(frozen=True)
class StreamAddress:
    """A camera's number, or the address of a stream; `str` shows it without password and query."""

    target: int | str

    @classmethod
    def parse(cls, text: str) -> StreamAddress:
        """From what a user writes; raises SourceError for what is no camera number and no address of a stream."""
        if text.isdecimal():
            return cls(int(text))
        scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", text)
        if scheme is None:
            raise SourceError(f"{text!r} is no camera number and no address (rtsp://, rtmp://, http://)")
        if scheme[1].lower() not in SCHEMES:  # the address is not repeated: it may hold a password
            known = " ".join(sorted(SCHEMES))
            raise SourceError(f"{scheme[1]}:// addresses cannot be read; known are {known}")
        address = cls(text)
        path = Path(urlsplit(text).path)
        if is_picture(path) or is_video(path):
            raise SourceError(f"{address} is a file, not a live stream: download it, then give the file")
        return address

    def __str__(self) -> str:
        if isinstance(self.target, int):
            return f"camera {self.target}"
        parts = urlsplit(self.target)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"

    @property
    def name(self) -> Path:
        """What outputs are called: "camera_0", "rtsp_10.0.0.1_554_live"."""
        return Path(re.sub(r"[^A-Za-z0-9.-]+", "_", str(self)).strip("_."))


def open_capture(address: StreamAddress) -> Capture:
    """OpenCV's capture of a camera or stream, which gives up on a silent network after ten seconds."""
    if isinstance(address.target, int):
        return cv2.VideoCapture(address.target)
    waits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, _TIMEOUT_MS, cv2.CAP_PROP_READ_TIMEOUT_MSEC, _TIMEOUT_MS]
    return cv2.VideoCapture(address.target, cv2.CAP_FFMPEG, waits)


@dataclass(frozen=True, eq=False)
class StreamFrame:
    """A frame as it came: ``bgr`` [H, W, 3], its number since the start (dropped ones count), what is known."""

    bgr: NDArray[Any]
    number: int
    video: VideoInfo


class LiveStream:
    """One stream and the thread that reads it; keeps the newest frame that was not taken yet.

    Attributes:
        frames, dropped, lost: frames that came, those of them nobody took in time, connections lost.
        problem: why it ended for good, or None.
    """

    def __init__(
        self,
        address: StreamAddress,
        news: Event,
        stopped: Event,
        reconnects: int = RECONNECTS,
        first_wait_s: float | None = None,
        capture: Callable[[StreamAddress], Capture] = open_capture,
    ) -> None:
        """
        Args:
            address: of the stream.
            news: set by it whenever there is a frame to take, or an end.
            stopped: set by the caller, to end it.
            reconnects: how many times in a row it is tried to open a lost stream again.
            first_wait_s: before the first of them (None: `FIRST_WAIT_S`); doubles, up to `LONGEST_WAIT_S`.
            capture: opens an address.
        """
        self.address = address
        self.frames = self.dropped = self.lost = 0
        self.problem: VideoError | None = None
        self._news, self._stopped, self._capture = news, stopped, capture
        self._reconnects = reconnects
        self._first_wait_s = FIRST_WAIT_S if first_wait_s is None else first_wait_s
        self._newest: StreamFrame | None = None
        self._lock = Lock()
        self._ended = False
        self._thread = Thread(target=self._run, name=f"stream {address.name}", daemon=True)

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    def join(self) -> None:
        """Wait until it has ended, once stopped; a thread that hangs in the network is left to its timeout."""
        with suppress(RuntimeError):  # interrupted before it was started
            self._thread.join(_JOIN_S)

    def take(self) -> StreamFrame | None:
        """The newest frame, if it was not taken before."""
        with self._lock:
            newest, self._newest = self._newest, None
        return newest

    @property
    def finished(self) -> bool:
        """Whether it has ended and its last frame was taken."""
        with self._lock:
            return self._ended and self._newest is None

    def line(self) -> str:
        """What became of its frames, in words."""
        return (
            f"{self.address}: {self.frames} frames, {self.dropped} dropped, connection lost {self.lost} times"
        )

    def _run(self) -> None:
        try:
            self._read_and_reopen()
        finally:
            with self._lock:
                self._ended = True
            self._news.set()

    def _read_and_reopen(self) -> None:
        failures = 0
        while not self._stopped.is_set():
            before = self.frames
            self._read_until_lost()
            if self._stopped.is_set():
                break
            failures = 1 if self.frames > before else failures + 1
            self.lost += self.frames > before
            if failures > self._reconnects:
                self._give_up(failures - 1)
                break
            wait_s = min(self._first_wait_s * 2 ** (failures - 1), LONGEST_WAIT_S)
            logger.warning(
                "%s: %s; trying again in %g s (%d of %d)",
                self.address, "lost" if self.frames else "not there", wait_s, failures, self._reconnects,
            )  # fmt: skip
            self._stopped.wait(wait_s)

    def _read_until_lost(self) -> None:
        capture = self._capture(self.address)
        try:
            video: VideoInfo | None = None
            while capture.isOpened() and not self._stopped.is_set():
                success, bgr = capture.read()
                if not success:
                    break
                video = video or _endless(video_info(capture, bgr))
                self._put(bgr, video)
        finally:
            capture.release()

    def _put(self, bgr: NDArray[Any], video: VideoInfo) -> None:
        with self._lock:
            self.dropped += self._newest is not None
            self._newest = StreamFrame(bgr, self.frames, video)
            self.frames += 1
        self._news.set()

    def _give_up(self, tries: int) -> None:
        if self.frames:
            self.problem = VideoCutError(
                f"{self.address}: lost after {self.frames} frames, {tries} tries to reopen it"
            )
        else:
            self.problem = VideoError(
                f"{self.address}: no such stream, or none that can be read ({tries + 1} tries)"
            )


class StreamSource(Source):
    """Cameras and network streams, in turn; ends when all of them have ended for good, or when it is closed.

    The frames of one picture size of one stream have an index of their own, as files have elsewhere: a video holds
    one size only.
    """

    def __init__(
        self,
        addresses: Sequence[StreamAddress],
        problems: list[str] | None = None,
        reconnects: int = RECONNECTS,
        first_wait_s: float | None = None,
        capture: Callable[[StreamAddress], Capture] = open_capture,
    ) -> None:
        """problems: of the list they are from. The others: see `LiveStream`."""
        super().__init__(problems)
        self.addresses = list(dict.fromkeys(addresses))
        self._open = partial(LiveStream, reconnects=reconnects, first_wait_s=first_wait_s, capture=capture)

    def relative(self, path: Path) -> Path:
        """A stream's outputs lie in the folder of the run itself."""
        return path

    def _limits(self, workers: int) -> tuple[int, int]:
        """One frame ahead: what waits longer is old when its turn comes."""
        return min(workers, 1), 1

    def _jobs(self, prepare: Prepare[T]) -> Jobs[tuple[Frame, T]]:
        news = Event()
        streams = [self._open(address, news, self._stopped) for address in self.addresses]
        segments = _Segments()
        try:
            for stream in streams:
                stream.start()
            for stream, taken in self._in_turn(streams, news):
                if isinstance(taken, VideoError):
                    yield failing(taken)
                else:
                    yield partial(_convert, stream.address, segments.index(stream, taken), taken, prepare)
        finally:
            self._stopped.set()
            for stream in streams:
                stream.join()
                logger.info("%s", stream.line())

    def _in_turn(
        self, streams: Sequence[LiveStream], news: Event
    ) -> Iterator[tuple[LiveStream, StreamFrame | VideoError]]:
        """One new frame of each stream after the other, and the end of each; waits while there is none."""
        running = list(streams)
        while running and not self._stopped.is_set():
            news.clear()
            idle = True
            for stream in list(running):
                taken = stream.take()
                if taken is not None:
                    idle = False
                    yield stream, taken
                elif stream.finished:
                    running.remove(stream)
                    if stream.problem is not None:
                        yield stream, stream.problem
            if idle:
                news.wait(_POLL_S)


class _Segments:
    """Numbers the stretches of one picture size of each stream, in the order in which they begin."""

    def __init__(self) -> None:
        self._current: dict[LiveStream, tuple[int, tuple[int, ...]]] = {}
        self._count = 0

    def index(self, stream: LiveStream, frame: StreamFrame) -> int:
        index, shape = self._current.get(stream, (-1, ()))
        if frame.bgr.shape != shape:
            index, self._count = self._count, self._count + 1
            self._current[stream] = (index, frame.bgr.shape)
        return index


def _convert(address: StreamAddress, index: int, frame: StreamFrame, prepare: Prepare[T]) -> tuple[Frame, T]:
    image = bgr_to_rgb(frame.bgr)
    return with_prepared(
        Frame(image, address.name, index, frame.number, None, frame.video, live=True), prepare
    )


def _endless(video: VideoInfo) -> VideoInfo:
    """Without the number of frames, which a live stream makes up."""
    return VideoInfo(video.fps, None, video.hw)
