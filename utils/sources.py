"""Where pictures to detect in come from: files of all kinds, lists of them, a pipe of names, live streams.

`open_source` finds the items, iterating yields frames that are always 8-bit RGB (utils/decoding.py), with
`Source.read_ahead` (utils/frames.py) while the model is still busy with earlier ones. An item that cannot be read is
reported, counted and skipped. Not here: what becomes of a frame, batching.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from utils.background import Jobs
from utils.decoding import read_picture
from utils.frames import (
    AHEAD_PER_WORKER,
    VIDEO_SUFFIXES,
    Frame,
    Prepare,
    Source,
    SourceError,
    absolute,
    failing,
    file_jobs,
    is_picture,
    is_video,
    known_suffixes,
    logger,
)
from utils.images import MASKED_SUFFIX, ImageError
from utils.source_lists import PipedNames, file_problem, read_csv_list, read_stream_list, read_text_list
from utils.streams import RECONNECTS, StreamAddress, StreamSource

__all__ = [
    "AHEAD_PER_WORKER", "VIDEO_SUFFIXES", "FileSource", "Frame", "PipedSource", "Source", "SourceError",
    "common_folder", "open_source", "read_picture",
]  # fmt: skip

T = TypeVar("T")

_OFFERED = (
    "give an image, a video, a folder, a glob, a .txt or .csv list, - for names on standard input, "
    "a camera number, the address of a stream, or a .streams list"
)


class FileSource(Source):
    """Files to detect in; may be iterated again.

    Attributes:
        paths: the files, in the order of iteration, each once.
        root: the deepest folder that holds all of them, or None when there is none (several drives).
    """

    def __init__(self, paths: Sequence[Path], problems: Sequence[str] = (), windows: bool = False) -> None:
        self.paths = list(dict.fromkeys(paths))
        self.root = common_folder(self.paths)
        super().__init__(list(problems), windows)

    def __len__(self) -> int:
        return len(self.paths)

    def relative(self, path: Path) -> Path:
        """Path below `root`, for output files that keep the folders of the source; else its name alone."""
        return absolute(path).relative_to(self.root) if self.root else Path(path.name)

    def _jobs(self, prepare: Prepare[T]) -> Jobs[tuple[Frame, T]]:
        for index, path in enumerate(self.paths):
            yield from file_jobs(index, path, len(self), prepare, self._windows)


class PipedSource(Source):
    """Files whose names come from standard input, line by line, possibly for hours; each is read when it is named."""

    def relative(self, path: Path) -> Path:
        """Path below the working directory; elsewhere its name alone."""
        here = Path.cwd()
        return absolute(path).relative_to(here) if absolute(path).is_relative_to(here) else Path(path.name)

    def _jobs(self, prepare: Prepare[T]) -> Jobs[tuple[Frame, T]]:
        for index, (line, name) in enumerate(PipedNames(self._stopped)):
            path = Path(name).expanduser()
            problem = file_problem(name, path if path.is_file() else None, "seen from the working directory")
            if problem is None:
                yield from file_jobs(index, path, None, prepare, self._windows)
            else:
                yield failing(ImageError(f"standard input:{line}: {problem}"))


def open_source(spec: str, reconnects: int = RECONNECTS, windows: bool = False) -> Source:
    """Find the pictures, videos and streams that spec names.

    Args:
        spec: an image or video file; a folder (searched recursively, hidden names left out); a glob, with ``**`` for
            any depth; a ``.txt`` or ``.csv`` file that lists images and videos, relative to the working directory or
            else to the list's own folder; ``-`` for such names on standard input; a camera's number; the address of
            a stream; or a ``.streams`` file that lists cameras and streams.
        reconnects: see `LiveStream`.
        windows: see `Source`.

    Returns:
        The items sorted by path (in a list: as listed), each once; of streams: in turn. Folders and globs leave out
        ``x_masked.*`` where ``x.*`` is there too.

    Raises:
        SourceError: spec names nothing that exists, holds no picture, or is of a kind not offered.
    """
    if not spec.strip():
        raise SourceError(f"the source is empty; {_OFFERED}")
    if spec == "-":
        return PipedSource(windows=windows)
    path = Path(spec).expanduser()
    if path.is_dir():
        found = _without_masked_twins(_media_below(path))
        if not found:
            raise SourceError(f"source folder {spec!r} holds no picture or video ({known_suffixes()})")
        return FileSource(found, windows=windows)
    if path.is_file():
        return _source_of_file(spec, path, reconnects, windows)
    if "://" in spec or spec.isdecimal():
        return StreamSource([StreamAddress.parse(spec)], reconnects=reconnects)
    if glob.has_magic(spec):
        return FileSource(_without_masked_twins(_media_of_glob(spec)), windows=windows)
    raise SourceError(f"source {spec!r} does not exist; {_OFFERED}")


def common_folder(paths: Sequence[Path]) -> Path | None:
    """The deepest folder (absolute) that holds all paths; None for no path or several drives."""
    folders = {absolute(path).parent for path in paths}
    try:
        return Path(os.path.commonpath(folders))
    except ValueError:
        return None


def _source_of_file(spec: str, path: Path, reconnects: int, windows: bool) -> Source:
    suffix = path.suffix.lower()
    if is_picture(path) or is_video(path):
        return FileSource([path], windows=windows)
    if suffix in (".txt", ".csv"):
        listed = read_text_list(path) if suffix == ".txt" else read_csv_list(path)
        return FileSource(listed.items, listed.problems, windows)
    if suffix == ".streams":
        streams = read_stream_list(path, StreamAddress.parse)
        return StreamSource(streams.items, streams.problems, reconnects)
    raise SourceError(
        f"source {spec!r} is no picture, no video and no .txt, .csv or .streams list ({known_suffixes()})"
    )


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
        raise SourceError(f"pattern {pattern!r} matches {what}: no picture or video ({known_suffixes()})")
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
