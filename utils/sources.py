"""Where pictures to detect in come from: an image, a folder, a glob, a list file or a video.

`open_source` finds the items, iterating yields frames that are always 8-bit RGB (utils/decoding.py), with
`Source.read_ahead` while the model is still busy with earlier ones. An item that cannot be read is reported,
counted and skipped. Not here: live streams and cameras, what becomes of a frame, batching.
"""

from __future__ import annotations

import glob
import logging
import os
import re
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NoReturn, TypeVar

from utils.background import Jobs, look_ahead
from utils.decoding import VideoCutError, VideoError, VideoInfo, read_picture, read_video
from utils.images import IMAGE_SUFFIXES, MASKED_SUFFIX, ByteImage, ImageError
from utils.logger import LOGGER_NAME

T = TypeVar("T")
Prepare = Callable[[ByteImage], T]
"""What becomes of a frame's pixels (uint8 [H, W, 3] RGB) before it is handed out."""

logger = logging.getLogger(f"{LOGGER_NAME}.sources")

VIDEO_SUFFIXES = frozenset({
    ".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".webm", ".wmv",
})  # fmt: skip

AHEAD_PER_WORKER = 2
"""So many pictures per thread may be decoded, or being decoded, before they are asked for."""

_OFFERED = "give an image, a video, a folder, a glob or a .txt list"


class SourceError(ValueError):
    """A source that names nothing to detect in; the message says what was given and what to give."""


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
        for frame, _ in self.read_ahead(lambda image: None):
            yield frame

    def read_ahead(self, prepare: Prepare[T], workers: int = 0) -> Generator[tuple[Frame, T], None, None]:
        """Each frame with what was made of it; in the order of the items, what cannot be read left out.

        Close the iterator (`contextlib.closing`) if it may not be used up: that ends the threads.

        Args:
            prepare: called with the pixels of every frame, by any thread; an error it raises comes out here.
            workers: threads that decode and prepare, up to `AHEAD_PER_WORKER` pictures each in advance (the
                frames of a video are decoded by one more thread, one after the other); 0: none, every frame
                is decoded when it is asked for.
        """
        self._start()
        with closing(look_ahead(self._jobs(prepare), workers, AHEAD_PER_WORKER * workers)) as results:
            for result in results:
                try:
                    item = result()
                except (ImageError, VideoError) as error:
                    self._report(str(error))
                    self.skipped += not isinstance(error, VideoCutError)
                    continue
                yield item

    def relative(self, path: Path) -> Path:
        """Path below `root`, for output files that keep the folders of the source; else its name alone."""
        return _absolute(path).relative_to(self.root) if self.root else Path(path.name)

    def _start(self) -> None:
        self.problems = list(self._listing_problems)
        self.skipped = len(self._listing_problems)

    def _report(self, problem: str) -> None:
        self.problems.append(problem)
        logger.warning("skipped: %s", problem)

    def _jobs(self, prepare: Prepare[T]) -> Jobs[tuple[Frame, T]]:
        """One job per frame, which gives it or raises what is wrong with its file."""
        for index, path in enumerate(self.paths):
            if not is_video(path):
                yield partial(self._image, index, path, prepare)
                continue
            try:
                for frame in self._video(index, path):
                    yield partial(_with_prepared, frame, prepare)
            except VideoError as error:
                yield partial(_raise, error)

    def _image(self, index: int, path: Path, prepare: Prepare[T]) -> tuple[Frame, T]:
        return _with_prepared(Frame(read_picture(path), path, index, None, len(self), None), prepare)

    def _video(self, index: int, path: Path) -> Iterator[Frame]:
        """Frames of a video; VideoCutError after the last when it stops well before its stated end."""
        number, expected = -1, None
        for number, (image, video) in enumerate(read_video(path)):
            expected = video.frame_count
            yield Frame(image, path, index, number, len(self), video)
        # The count in a header is often an estimate from the duration: a few frames are no defect.
        if expected is not None and number + 1 < expected - max(5, expected // 50):
            raise VideoCutError(f"{path}: the video after frame {number + 1} of {expected}: not readable")


def _with_prepared(frame: Frame, prepare: Prepare[T]) -> tuple[Frame, T]:
    return frame, prepare(frame.image)


def _raise(error: Exception) -> NoReturn:
    raise error


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
