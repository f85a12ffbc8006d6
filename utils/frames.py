"""What detection reads: frames, one at a time, from some source; and how far ahead of the network they are made.

Which files and streams a source has is decided in utils/sources.py and utils/streams.py.
"""

from __future__ import annotations

import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Event
from typing import NoReturn, TypeVar

from utils.background import Jobs, look_ahead
from utils.decoding import VideoCutError, VideoError, VideoInfo, read_picture, read_video
from utils.images import IMAGE_SUFFIXES, ByteImage, ImageError
from utils.large_picture import DRAWN_SIDE, DecodedPicture, LargePicture, open_large_picture
from utils.logger import LOGGER_NAME

T = TypeVar("T")

logger = logging.getLogger(f"{LOGGER_NAME}.sources")

VIDEO_SUFFIXES = frozenset({
    ".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".webm", ".wmv",
})  # fmt: skip

AHEAD_PER_WORKER = 2
"""So many pictures per thread may be decoded, or being decoded, before they are asked for."""


class SourceError(ValueError):
    """A source that names nothing to detect in; the message says what was given and what to give."""


@dataclass(frozen=True, eq=False)
class Frame:
    """One picture to detect in.

    Attributes:
        image: uint8 [H, W, 3], RGB.
        path: the file it is from; for a stream, a name made of its address.
        index: of the file (or uninterrupted stretch of a stream) in the source, from 0.
        frame_number: of the frame in its video or stream, from 0; None for an image.
        total: number of files in the source; None when the source cannot know.
        video: None for an image.
        live: from a stream: frames of several streams may come in turn.
        large: the picture itself, when ``image`` is a smaller version of it; to be looked at in windows.
        time_s: seconds since the beginning of its video; None for an image, and for a stream.
    """

    image: ByteImage
    path: Path
    index: int
    frame_number: int | None
    total: int | None
    video: VideoInfo | None
    live: bool = False
    large: LargePicture | None = None
    time_s: float | None = None

    @property
    def pixels(self) -> LargePicture:
        """The picture in its own size, read by rectangles."""
        return self.large or DecodedPicture(self.image)

    @property
    def hw(self) -> tuple[int, int]:
        """Height and width of the picture in its own size: detections are in its pixels."""
        return self.pixels.hw

    @property
    def scale(self) -> float:
        """Pixels of ``image`` per pixel of the picture: 1 but for very large ones."""
        return float(self.image.shape[1] / self.hw[1])


Prepare = Callable[[Frame], T]
"""What is made of a frame before it is handed out, by any thread."""


class Source(ABC):
    """Pictures to detect in, one at a time while iterating.

    Attributes:
        problems: one line for each thing that could not be read so far, as logged.
        skipped: number of items that gave no picture at all so far.
    """

    def __init__(self, problems: list[str] | None = None, windows: bool = False) -> None:
        """
        Args:
            problems: what is known to be missing before anything is read; logged here.
            windows: very large pictures are looked at in windows, see `Frame.large`.
        """
        self._windows = windows
        self._known_problems = list(problems or [])
        self._start()
        for problem in self._known_problems:
            logger.warning("%s", problem)

    def __iter__(self) -> Iterator[Frame]:
        for frame, _ in self.read_ahead(lambda frame: None):
            yield frame

    def read_ahead(self, prepare: Prepare[T], workers: int = 0) -> Generator[tuple[Frame, T], None, None]:
        """Each frame with what was made of it; in the order of the items, what cannot be read left out.

        Close the iterator (`contextlib.closing`) if it may not be used up: that ends the threads.

        Args:
            prepare: called with every frame, by any thread; an error it raises comes out here.
            workers: threads that decode and prepare, up to `AHEAD_PER_WORKER` pictures each in advance (the
                frames of a video are decoded by one more thread, one after the other); 0: none, every frame
                is decoded when it is asked for.
        """
        self._start()
        with closing(look_ahead(self._jobs(prepare), *self._limits(workers))) as results:
            try:
                for result in results:
                    try:
                        item = result()
                    except (ImageError, VideoError) as error:
                        self.report(str(error))
                        self.skipped += not isinstance(error, VideoCutError)
                        continue
                    yield item
            finally:
                self._stopped.set()  # a job that waits for its picture would keep its thread

    @abstractmethod
    def relative(self, path: Path) -> Path:
        """Where the outputs of a frame's path belong, below the folder of the run."""

    @abstractmethod
    def _jobs(self, prepare: Prepare[T]) -> Jobs[tuple[Frame, T]]:
        """One job per frame, which gives it or raises what is wrong with its file."""

    def _limits(self, workers: int) -> tuple[int, int]:
        """How many threads work ahead, and on how many frames at once."""
        return workers, AHEAD_PER_WORKER * workers

    def _start(self) -> None:
        self.problems = list(self._known_problems)
        self.skipped = len(self._known_problems)
        self._stopped = Event()

    def report(self, problem: str) -> None:
        """Note and say that something could not be read."""
        self.problems.append(problem)
        logger.warning("skipped: %s", problem)


def file_jobs(
    index: int, path: Path, total: int | None, prepare: Prepare[T], windows: bool
) -> Jobs[tuple[Frame, T]]:
    """One job per frame of a file, a picture or a video; total: number of files in the source; windows: see `Source`."""
    if not is_video(path):
        yield partial(_picture, index, path, total, prepare, windows)
        return
    try:
        for frame in _video(index, path, total):
            yield partial(with_prepared, frame, prepare)
    except VideoError as error:
        yield failing(error)


def with_prepared(frame: Frame, prepare: Prepare[T]) -> tuple[Frame, T]:
    """A frame with what is made of it."""
    return frame, prepare(frame)


def failing(error: Exception) -> Callable[[], NoReturn]:
    """A job that raises an error."""
    return partial(_raise, error)


def is_picture(path: Path) -> bool:
    """Whether the file's name ends like a picture's, in capitals or not."""
    return path.suffix.lower() in IMAGE_SUFFIXES


def is_video(path: Path) -> bool:
    """Whether the file's name ends like a video's, in capitals or not."""
    return path.suffix.lower() in VIDEO_SUFFIXES


def known_suffixes() -> str:
    """The endings of pictures and videos, for messages."""
    return " ".join(sorted(IMAGE_SUFFIXES)) + "; " + " ".join(sorted(VIDEO_SUFFIXES))


def absolute(path: Path) -> Path:
    """Absolute, without "..", links not resolved (a linked folder keeps the name the user knows)."""
    return Path(os.path.normpath(path.absolute()))


def _picture(
    index: int, path: Path, total: int | None, prepare: Prepare[T], windows: bool
) -> tuple[Frame, T]:
    if not windows:
        return with_prepared(Frame(read_picture(path), path, index, None, total, None), prepare)
    picture = open_large_picture(path)
    image = picture.reduced(DRAWN_SIDE)
    large = None if image.shape[:2] == picture.hw else picture
    return with_prepared(Frame(image, path, index, None, total, None, large=large), prepare)


def _video(index: int, path: Path, total: int | None) -> Iterator[Frame]:
    """Frames of a video; VideoCutError after the last when it stops well before its stated end."""
    number, end_s, video = -1, 0.0, None
    for number, (image, time_s, video) in enumerate(read_video(path)):
        end_s = time_s + 1 / video.fps
        yield Frame(image, path, index, number, total, video, time_s=time_s)
    if video is None or video.duration_s is None:
        return
    # The duration in a header is often that of the sound: a few frames are no defect.
    if end_s < video.duration_s - max(5 / video.fps, video.duration_s / 50):
        where = f"frame {number + 1}" + (f" of {video.frame_count}" if video.frame_count else "")
        raise VideoCutError(
            f"{path}: the video after {where}, {end_s:.1f} of {video.duration_s:.1f} s: not readable"
        )


def _raise(error: Exception) -> NoReturn:
    raise error
