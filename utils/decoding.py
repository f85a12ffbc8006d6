"""Pictures and videos decoded for detection: whatever a file holds, as 8-bit RGB the way a viewer shows it.

Not for labelled images, whose pixels must lie where the labels say: those are read by `utils.images.read_image`.
Which files are read, and in which order, is decided in utils/sources.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from utils.images import ByteImage, ImageError, decode_jpeg
from utils.jpeg import JPEG_END, JPEG_START

_FALLBACK_FPS = 25.0
_RATE_FRAMES = 33
"""So many frames at the beginning of a video tell its rate."""
_RATE_TOLERANCE = 0.1
_LONGEST_STILL_S = 60.0
"""A frame that seems to be shown for longer has a wrong time."""
_LARGEST_BY_BITS = (255, 1023, 4095, 16383, 65535)
_TRANSPARENT_RGB = 114  # the grey that letterboxing pads with: to the network, "no picture here"


class Capture(Protocol):
    """What is needed of OpenCV's VideoCapture."""

    def isOpened(self) -> bool:
        """Whether there is something to read from."""

    def read(self) -> tuple[bool, NDArray[Any]]:
        """Wait for the next frame, uint8 BGR [H, W, 3]; False when there is none any more."""

    def get(self, prop: int) -> float:
        """A property, such as frames per second."""

    def release(self) -> None:
        """Close it."""


class VideoError(ValueError):
    """A video that cannot be decoded; the message names the file and the reason."""


class VideoCutError(VideoError):
    """A video that stops well before its stated end: what came before is good."""


@dataclass(frozen=True)
class VideoInfo:
    """What is known of a video: frames per second, number of frames (None: not said), (height, width), how long it is.

    Where frames do not come at a constant rate, ``fps`` is that of the first second or so.
    """

    fps: float
    frame_count: int | None
    hw: tuple[int, int]
    duration_s: float | None = None


def read_picture(path: str | Path) -> ByteImage:
    """Read a picture as 8-bit RGB, uint8 [H, W, 3], the way a viewer shows it.

    Unlike `utils.images.read_image`, whose pixels must lie where the label files say: here a JPEG is turned
    upright by its EXIF orientation.
    Grey becomes three equal channels, transparent pixels are laid over grey, more than 8 bits are scaled
    down (see `to_uint8`). Any path the file system knows works, also non-ASCII ones on Windows.
    Raises ImageError for a missing, empty, truncated or undecodable file.
    """
    try:
        data = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise ImageError(f"{path}: {error.strerror or error}") from error
    if not data.size:
        raise ImageError(f"{path}: the file is empty")
    is_jpeg = data[: len(JPEG_START)].tobytes() == JPEG_START
    if is_jpeg and JPEG_END not in data[-65536:].tobytes():  # some OpenCV versions fill the rest with grey
        raise ImageError(f"{path}: the file ends early (truncated JPEG)")
    try:
        if is_jpeg:
            picture = decode_jpeg(data, upright=True)
        else:
            decoded = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
            picture = None if decoded is None else bgr_to_rgb(decoded)
    except cv2.error as error:
        if "CV_IO_MAX_IMAGE" in str(error):
            raise ImageError(
                f"{path}: larger than OpenCV reads (2^30 pixels): give --window 4096, and pip install rasterio"
            ) from error
        raise ImageError(f"{path}: not decodable as a picture ({str(error).strip()})") from error
    except ValueError as error:
        raise ImageError(f"{path}: {error}") from error
    if picture is None:
        raise ImageError(f"{path}: not a picture, or a damaged one")
    return picture


def to_uint8(values: NDArray[Any], full_scale: float | None = None) -> ByteImage:
    """Pixel values of any depth as 0–255, brightness in proportion; the same shape.

    8-bit stays as it is. Negative and not-a-number become 0.

    Args:
        values: any shape and type.
        full_scale: the value that becomes 255; None: `full_scale_of` the largest.
    """
    if values.dtype == np.uint8:
        return values.astype(np.uint8, copy=False)
    numbers = np.nan_to_num(values.astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    if full_scale is None:
        full_scale = full_scale_of(float(numbers.max(initial=0.0)), np.issubdtype(values.dtype, np.floating))
    scaled: ByteImage = np.rint(np.clip(numbers * (255.0 / full_scale), 0, 255)).astype(np.uint8)
    return scaled


def full_scale_of(largest: float, floating: bool) -> float:
    """What is taken as white in a picture with this largest value.

    Integers: the full scale of the fewest bits (8, 10, 12, 14 or 16) that hold it, because 12-bit cameras often
    store their values unscaled in 16 bits. Floats up to 1 are taken as 0–1, larger ones as integers.
    """
    if floating and largest <= 1.0:
        return 1.0
    return next((float(limit) for limit in _LARGEST_BY_BITS if largest <= limit), largest)


def read_video(path: Path) -> Iterator[tuple[ByteImage, float, VideoInfo]]:
    """Frames (uint8 [H, W, 3], RGB) of a video in order, when each is shown, and what is known of the video.

    Times are seconds since the first frame, as the file says them, because many files (of phones, browsers, screen
    recorders) have no constant rate. Where a time is missing or impossible the frame comes 1/fps after the last one.
    Raises VideoError, at the first frame, when not a single frame can be decoded.
    """
    if not path.is_file():
        raise VideoError(f"{path}: no such file")
    intervals_s = _first_intervals(path)
    capture = cv2.VideoCapture(str(path))
    try:
        video: VideoInfo | None = None
        time_s = said_s = 0.0
        while True:
            success, bgr = capture.read()
            if not success:
                break
            last_said_s, said_s = said_s, _said_time(capture)
            if video is None:
                video = _with_true_rate(video_info(capture, bgr), intervals_s)
            else:
                step_s = said_s - last_said_s
                time_s += step_s if 0 < step_s <= _LONGEST_STILL_S else 1 / video.fps
            yield bgr_to_rgb(bgr), time_s, video
        if video is None:
            raise VideoError(f"{path}: not a video, a damaged one, or a codec that OpenCV cannot read")
    finally:
        capture.release()


def video_info(capture: Capture, first: NDArray[Any]) -> VideoInfo:
    """What an open capture says about itself; first: a frame of it, [H, W, 3]."""
    fps = float(capture.get(cv2.CAP_PROP_FPS))
    count = float(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    known_fps = fps if math.isfinite(fps) and 0 < fps <= 1000 else _FALLBACK_FPS
    known_count = int(count) if math.isfinite(count) and 0 < count < 1e9 else None
    # Where the count is an estimate it was made from the duration by this rate, however wrong the rate is.
    duration_s = known_count / fps if known_count and math.isfinite(fps) and fps > 0 else None
    return VideoInfo(known_fps, known_count, (first.shape[0], first.shape[1]), duration_s)


def _said_time(capture: Capture) -> float:
    """Seconds at which the frame that was decoded last is shown, as the file says; 0 where it does not."""
    said_s = float(capture.get(cv2.CAP_PROP_POS_MSEC)) / 1e3
    return said_s if math.isfinite(said_s) else 0.0


def _first_intervals(path: Path) -> NDArray[np.float64]:
    """Seconds between the first frames of a video, those that are possible."""
    capture = cv2.VideoCapture(str(path))
    try:
        times: list[float] = []
        while len(times) < _RATE_FRAMES and capture.grab():
            times.append(_said_time(capture))
    finally:
        capture.release()
    steps = np.diff(np.array(times, dtype=np.float64))
    return steps[(steps > 0) & (steps <= _LONGEST_STILL_S)]


def _with_true_rate(video: VideoInfo, intervals_s: NDArray[np.float64]) -> VideoInfo:
    """With the rate at which frames come, where the stated one is another: 1000 per second say some files."""
    if not len(intervals_s):
        return video
    usual = intervals_s[intervals_s <= 1.5 * np.median(intervals_s)]
    measured = float(1 / usual.mean())
    if abs(video.fps / measured - 1) <= _RATE_TOLERANCE:
        return video
    return VideoInfo(measured, None, video.hw, video.duration_s)


def bgr_to_rgb(decoded: NDArray[Any]) -> ByteImage:
    """OpenCV's grey, BGR or BGRA array of any depth as contiguous 8-bit RGB."""
    channels = 1 if decoded.ndim == 2 else decoded.shape[2]
    if (
        channels == 3 and decoded.dtype == np.uint8
    ):  # the most frequent kind; numpy would take six times as long
        return np.asarray(cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB), dtype=np.uint8)
    if channels not in (1, 2, 3, 4):
        raise ValueError(f"{channels} channels; convert it to grey, RGB or RGBA first")
    layers = decoded.reshape(*decoded.shape[:2], channels)
    has_alpha = channels in (2, 4)
    picture = to_uint8(layers[..., : channels - has_alpha])
    if has_alpha:
        picture = over_grey(picture, layers[..., -1:])
    if picture.shape[2] == 1:
        picture = np.repeat(picture, 3, axis=2)
    return np.ascontiguousarray(picture[..., ::-1])


def over_grey(picture: ByteImage, alpha: NDArray[Any]) -> ByteImage:
    """A picture [H, W, C] with opacity alpha [H, W, 1] (0 to the largest of its type) laid over plain grey."""
    largest = float(np.iinfo(alpha.dtype).max) if np.issubdtype(alpha.dtype, np.integer) else 1.0
    opacity = np.clip(alpha.astype(np.float32) / largest, 0.0, 1.0)
    if float(opacity.min(initial=1.0)) >= 1.0:
        return picture
    blended: ByteImage = np.rint(picture * opacity + _TRANSPARENT_RGB * (1.0 - opacity)).astype(np.uint8)
    return blended
