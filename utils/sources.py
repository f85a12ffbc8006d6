"""Where pictures to detect in come from: an image, a folder, a glob, a list file or a video.

`open_source` finds the items, iterating yields frames that are always 8-bit RGB. An item that cannot be
read is reported, counted and skipped. Not here: live streams and cameras, letterboxing, batching.
"""

from __future__ import annotations

import glob
import logging
import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from utils.images import IMAGE_SUFFIXES, MASKED_SUFFIX, ByteImage, ImageError
from utils.logger import LOGGER_NAME

logger = logging.getLogger(f"{LOGGER_NAME}.sources")

VIDEO_SUFFIXES = frozenset({
    ".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".webm", ".wmv",
})  # fmt: skip

_OFFERED = "give an image, a video, a folder, a glob or a .txt list"
_FALLBACK_FPS = 25.0
_LARGEST_BY_BITS = (255, 1023, 4095, 16383, 65535)
_TRANSPARENT_RGB = 114  # the grey that letterboxing pads with: to the network, "no picture here"
_JPEG_START, _JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"


class SourceError(ValueError):
    """A source that names nothing to detect in; the message says what was given and what to give."""


class VideoError(ValueError):
    """A video that cannot be decoded; the message names the file and the reason."""


@dataclass(frozen=True)
class VideoInfo:
    """What is known of a video: frames per second, number of frames (None: not said), (height, width)."""

    fps: float
    frame_count: int | None
    hw: tuple[int, int]


@dataclass(frozen=True, eq=False)
class Frame:
    """One picture to detect in.

    Attributes:
        image: uint8 [H, W, 3], RGB.
        path: the file it is from.
        index: of the file in the source, from 0.
        frame_number: of the frame in its video, from 0; None for an image.
        total: number of files in the source; None when the source cannot know.
        video: None for an image.
    """

    image: ByteImage
    path: Path
    index: int
    frame_number: int | None
    total: int | None
    video: VideoInfo | None


class Source:
    """Files to detect in, decoded one at a time while iterating; may be iterated again.

    Attributes:
        paths: the files, in the order of iteration, each once.
        root: the deepest folder that holds all of them, or None when there is none (several drives).
        problems: one line for each thing that could not be read so far, as logged.
        skipped: number of items that gave no picture at all so far.
    """

    def __init__(self, paths: Sequence[Path], problems: Sequence[str] = ()) -> None:
        self.paths = list(dict.fromkeys(paths))
        self.root = common_folder(self.paths)
        self._listing_problems = list(problems)
        self._start()
        for problem in self._listing_problems:
            logger.warning("%s", problem)

    def __len__(self) -> int:
        return len(self.paths)

    def __iter__(self) -> Iterator[Frame]:
        self._start()
        for index, path in enumerate(self.paths):
            frames = self._video(index, path) if is_video(path) else self._image(index, path)
            try:
                yield from frames
            except (ImageError, VideoError) as error:
                self._report(str(error))
                self.skipped += 1

    def relative(self, path: Path) -> Path:
        """Path below `root`, for output files that keep the folders of the source; else its name alone."""
        return _absolute(path).relative_to(self.root) if self.root else Path(path.name)

    def _start(self) -> None:
        self.problems = list(self._listing_problems)
        self.skipped = len(self._listing_problems)

    def _report(self, problem: str) -> None:
        self.problems.append(problem)
        logger.warning("skipped: %s", problem)

    def _image(self, index: int, path: Path) -> Iterator[Frame]:
        yield Frame(read_picture(path), path, index, None, len(self), None)

    def _video(self, index: int, path: Path) -> Iterator[Frame]:
        """Frames of a video; one that stops well before its stated end is reported but not called skipped."""
        number, expected = -1, None
        for number, (image, video) in enumerate(read_video(path)):
            expected = video.frame_count
            yield Frame(image, path, index, number, len(self), video)
        # The count in a header is often an estimate from the duration: a few frames are no defect.
        if expected is not None and number + 1 < expected - max(5, expected // 50):
            self._report(f"{path}: the video after frame {number + 1} of {expected}: not readable")


def open_source(spec: str) -> Source:
    """Find the pictures and videos that spec names.

    Args:
        spec: an image or video file; a folder (searched recursively, hidden names left out); a glob, with
            ``**`` for any depth; or a ``.txt`` file that lists images and videos, one a line, relative to
            the working directory or else to the list's own folder.

    Returns:
        The items sorted by path (in a list: as listed), each once. Folders and globs leave out
        ``x_masked.*`` where ``x.*`` is there too.

    Raises:
        SourceError: spec names nothing that exists, holds no picture, or is of a kind not offered.
    """
    _refuse_other_kinds(spec)
    path = Path(spec).expanduser()
    if path.is_dir():
        found = _without_masked_twins(_media_below(path))
        if not found:
            raise SourceError(f"source folder {spec!r} holds no picture or video ({_known_suffixes()})")
        return Source(found)
    if path.is_file():
        return _source_of_file(spec, path)
    if glob.has_magic(spec):
        return Source(_without_masked_twins(_media_of_glob(spec)))
    raise SourceError(f"source {spec!r} does not exist; {_OFFERED}")


def is_picture(path: Path) -> bool:
    """Whether the file's name ends like a picture's, in capitals or not."""
    return path.suffix.lower() in IMAGE_SUFFIXES


def is_video(path: Path) -> bool:
    """Whether the file's name ends like a video's, in capitals or not."""
    return path.suffix.lower() in VIDEO_SUFFIXES


def common_folder(paths: Sequence[Path]) -> Path | None:
    """The deepest folder (absolute) that holds all paths; None for no path or several drives."""
    folders = {_absolute(path).parent for path in paths}
    try:
        return Path(os.path.commonpath(folders))
    except ValueError:
        return None


def _absolute(path: Path) -> Path:
    """Absolute, without "..", links not resolved (a linked folder keeps the name the user knows)."""
    return Path(os.path.normpath(path.absolute()))


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
    is_jpeg = data[:3].tobytes() == _JPEG_START
    if is_jpeg and _JPEG_END not in data[-65536:].tobytes():  # some OpenCV versions fill the rest with grey
        raise ImageError(f"{path}: the file ends early (truncated JPEG)")
    try:
        decoded = cv2.imdecode(data, cv2.IMREAD_COLOR if is_jpeg else cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise ImageError(f"{path}: not decodable as a picture ({str(error).strip()})") from error
    if decoded is None:
        raise ImageError(f"{path}: not a picture, or a damaged one")
    try:
        return _bgr_to_rgb(decoded)
    except ValueError as error:
        raise ImageError(f"{path}: {error}") from error


def to_uint8(values: NDArray[Any]) -> ByteImage:
    """Pixel values of any depth as 0–255, brightness in proportion; the same shape.

    8-bit stays as it is. Integers are divided by the full scale of the fewest bits (8, 10, 12, 14 or 16)
    that hold the largest value, because 12-bit cameras often store their values unscaled in 16 bits.
    Floats up to 1 are taken as 0–1, larger ones as integers. Negative and not-a-number become 0.
    """
    if values.dtype == np.uint8:
        return values.astype(np.uint8, copy=False)
    numbers = np.nan_to_num(values.astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    largest = float(numbers.max(initial=0.0))
    if np.issubdtype(values.dtype, np.floating) and largest <= 1.0:
        full_scale = 1.0
    else:
        full_scale = next((float(limit) for limit in _LARGEST_BY_BITS if largest <= limit), largest)
    scaled: ByteImage = np.rint(np.clip(numbers * (255.0 / full_scale), 0, 255)).astype(np.uint8)
    return scaled


def read_video(path: Path) -> Iterator[tuple[ByteImage, VideoInfo]]:
    """Frames (uint8 [H, W, 3], RGB) of a video in order, each with what is known of the video.

    Raises VideoError, at the first frame, when not a single frame can be decoded.
    """
    if not path.is_file():
        raise VideoError(f"{path}: no such file")
    capture = cv2.VideoCapture(str(path))
    try:
        video: VideoInfo | None = None
        while True:
            success, bgr = capture.read()
            if not success:
                break
            video = video or _video_info(capture, bgr)
            yield _bgr_to_rgb(bgr), video
        if video is None:
            raise VideoError(f"{path}: not a video, a damaged one, or a codec that OpenCV cannot read")
    finally:
        capture.release()


def _video_info(capture: cv2.VideoCapture, first: NDArray[Any]) -> VideoInfo:
    fps = float(capture.get(cv2.CAP_PROP_FPS))
    count = float(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    known_fps = fps if math.isfinite(fps) and 0 < fps <= 1000 else _FALLBACK_FPS
    known_count = int(count) if math.isfinite(count) and 0 < count < 1e9 else None
    return VideoInfo(known_fps, known_count, (first.shape[0], first.shape[1]))


def _bgr_to_rgb(decoded: NDArray[Any]) -> ByteImage:
    """OpenCV's grey, BGR or BGRA array of any depth as contiguous 8-bit RGB."""
    channels = 1 if decoded.ndim == 2 else decoded.shape[2]
    if channels not in (1, 2, 3, 4):
        raise ValueError(f"{channels} channels; convert it to grey, RGB or RGBA first")
    layers = decoded.reshape(*decoded.shape[:2], channels)
    has_alpha = channels in (2, 4)
    picture = to_uint8(layers[..., : channels - has_alpha])
    if has_alpha:
        picture = _over_grey(picture, layers[..., -1:])
    if picture.shape[2] == 1:
        picture = np.repeat(picture, 3, axis=2)
    return np.ascontiguousarray(picture[..., ::-1])


def _over_grey(picture: ByteImage, alpha: NDArray[Any]) -> ByteImage:
    """A picture [H, W, C] with opacity alpha [H, W, 1] laid over plain grey."""
    largest = float(np.iinfo(alpha.dtype).max) if np.issubdtype(alpha.dtype, np.integer) else 1.0
    opacity = np.clip(alpha.astype(np.float32) / largest, 0.0, 1.0)
    if float(opacity.min(initial=1.0)) >= 1.0:
        return picture
    blended: ByteImage = np.rint(picture * opacity + _TRANSPARENT_RGB * (1.0 - opacity)).astype(np.uint8)
    return blended


def _refuse_other_kinds(spec: str) -> None:
    """Raise SourceError for what looks like a source but is none that is offered."""
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", spec)
    if scheme:  # the address is not repeated: it may hold a password
        raise SourceError(f"{scheme[1]}:// addresses are not offered yet; save it as a file first")
    if not spec.strip():
        raise SourceError(f"the source is empty; {_OFFERED}")
    if spec == "-":
        raise SourceError("reading names from standard input is not offered; write them to a .txt list")
    if Path(spec).exists():
        return
    if spec.isdecimal():
        raise SourceError(f"source {spec!r}: cameras are not offered yet; record a video file first")


def _source_of_file(spec: str, path: Path) -> Source:
    if is_picture(path) or is_video(path):
        return Source([path])
    if path.suffix.lower() == ".txt":
        return _source_of_list(path)
    raise SourceError(f"source {spec!r} is no picture, video or .txt list ({_known_suffixes()})")


def _source_of_list(path: Path) -> Source:
    """The files named in a list; those that are missing or of no known kind become problems."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (UnicodeDecodeError, OSError) as error:
        raise SourceError(f"list {path}: not readable as UTF-8 text: {error}") from error
    found: list[Path] = []
    problems: list[str] = []
    for number, line in enumerate(lines, start=1):
        name = line.strip()
        if not name:
            continue
        item = _resolve_listed(name, path.parent)
        if item is None:
            problems.append(f"{path}:{number}: no file {name!r}, neither here nor beside the list")
        elif not (is_picture(item) or is_video(item)):
            problems.append(f"{path}:{number}: {name!r} is no picture or video")
        else:
            found.append(item)
    if not found:
        reason = f"{len(problems)} lines, the first: {problems[0]}" if problems else "it has no lines"
        raise SourceError(f"list {path} names no picture or video that exists ({reason})")
    return Source(found, problems)


def _resolve_listed(name: str, folder: Path) -> Path | None:
    """The file a list means: relative to the working directory if it is there, else to the list's folder."""
    path = Path(name).expanduser()
    return next((option for option in (path, folder / path) if option.is_file()), None)


def _media_below(folder: Path) -> list[Path]:
    """Pictures and videos in a folder and its subfolders, links followed, sorted; hidden names left out."""
    found: list[Path] = []
    visited: set[str] = set()
    for parent, subfolders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in visited:  # a link back to a folder above would never end
            subfolders.clear()
            continue
        visited.add(real)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        found += [Path(parent, name) for name in names if not name.startswith(".")]
    return sorted(path for path in found if is_picture(path) or is_video(path))


def _media_of_glob(pattern: str) -> list[Path]:
    expanded = str(Path(pattern).expanduser())
    matches = [Path(name) for name in glob.glob(expanded, recursive=True)]  # noqa: PTH207 - absolute ones too
    found = sorted(path for path in matches if path.is_file() and (is_picture(path) or is_video(path)))
    if not found:
        what = f"only {len(matches)} other names" if matches else "nothing"
        raise SourceError(f"pattern {pattern!r} matches {what}: no picture or video ({_known_suffixes()})")
    return found


def _without_masked_twins(paths: list[Path]) -> list[Path]:
    """Paths without each ``x_masked.*`` whose original ``x.*`` picture is among them."""
    originals = {(path.parent, path.stem) for path in paths if is_picture(path)}
    kept = [
        path
        for path in paths
        if not path.stem.endswith(MASKED_SUFFIX)
        or (path.parent, path.stem.removesuffix(MASKED_SUFFIX)) not in originals
    ]
    if len(kept) < len(paths):
        logger.info("%d masked twins of other pictures are left out", len(paths) - len(kept))
    return kept


def _known_suffixes() -> str:
    return " ".join(sorted(IMAGE_SUFFIXES)) + "; " + " ".join(sorted(VIDEO_SUFFIXES))
