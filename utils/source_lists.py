"""Files that list what to detect in: ``.txt`` and ``.csv`` of pictures and videos, ``.streams``, names on a pipe.

A line that names nothing usable becomes a problem, "FILE:LINE: what is wrong"; the others are used.
"""

from __future__ import annotations

import csv
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, Full, Queue
from threading import Event, Thread
from typing import BinaryIO, Generic, TypeVar

from utils.frames import SourceError, is_picture, is_video

T = TypeVar("T")

PATH_COLUMNS = ("path", "image", "file", "filename")
"""Headers that mark the column of paths in a ``.csv``, in capitals or not; without one it is the first."""

_WAIT_S = 0.1
_PIPE_LINES_AHEAD = 64


@dataclass
class Listed(Generic[T]):
    """What a list names, in its order, and one line for each entry that cannot be used."""

    items: list[T] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def read_text_list(path: Path) -> Listed[Path]:
    """Pictures and videos of a ``.txt`` list, one a line, relative to the working directory or to the list.

    Raises SourceError when not one can be used.
    """
    names = [(number, line.strip()) for number, line in enumerate(_text(path).splitlines(), start=1)]
    return _listed_files(path, names)


def read_csv_list(path: Path) -> Listed[Path]:
    """Pictures and videos of a ``.csv``: the column headed by one of `PATH_COLUMNS`, else the first column.

    Columns are separated by commas, semicolons or tabs, whichever the first line has most of. Names are
    relative as in a ``.txt`` list. Raises SourceError when not one can be used.
    """
    text = _text(path)
    separator = max(",;\t", key=text.partition("\n")[0].count)
    reader = csv.reader(text.splitlines(keepends=True), delimiter=separator, strict=True)
    names: list[tuple[int, str]] = []
    column: int | None = None
    try:
        for row in reader:
            if column is None and any(row):
                column = _path_column(row)
                if column is not None:
                    continue
                column = 0
            if any(row):
                cell = row[column or 0].strip() if len(row) > (column or 0) else ""
                names.append((reader.line_num, cell or "(empty)"))
    except csv.Error as error:
        raise SourceError(f"{path}:{reader.line_num}: not readable as CSV: {error}") from error
    return _listed_files(path, names)


def read_stream_list(path: Path, parse: Callable[[str], T]) -> Listed[T]:
    """Streams of a ``.streams`` file, one a line; lines that begin with # are comments.

    Args:
        path: the file.
        parse: makes a stream of a line, raises SourceError for what is none.

    Raises SourceError when not one can be used.
    """
    listed: Listed[T] = Listed()
    for number, line in enumerate(_text(path).splitlines(), start=1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        try:
            listed.items.append(parse(text))
        except SourceError as error:
            listed.problems.append(f"{path}:{number}: {error}")
    return _not_empty(path, listed, "stream")


def file_problem(name: str, found: Path | None, where: str) -> str | None:
    """What is wrong with a file that a list names, or None; where: it was looked for."""
    if found is None:
        return f"no file {name!r}, {where}"
    if not (is_picture(found) or is_video(found)):
        return f"{name!r} is no picture or video"
    return None


class PipedNames:
    """Names from a pipe, line by line as they come; waiting for the next ends when it is told to.

    A thread of its own reads them, because reading from a pipe cannot be interrupted.
    """

    def __init__(self, stopped: Event, pipe: BinaryIO | None = None) -> None:
        """stopped: ends the iteration when set. pipe: None means standard input."""
        self._stopped = stopped
        self._pipe = pipe or sys.stdin.buffer
        self._lines: Queue[tuple[int, str] | None] = Queue(_PIPE_LINES_AHEAD)

    def __iter__(self) -> Iterator[tuple[int, str]]:
        """(line number from 1, name) of each line that is not empty."""
        Thread(target=self._read, name="piped-names", daemon=True).start()
        while not self._stopped.is_set():
            try:
                line = self._lines.get(timeout=_WAIT_S)
            except Empty:
                continue
            if line is None:
                return
            yield line

    def _read(self) -> None:
        for number, raw in enumerate(self._pipe, start=1):
            name = os.fsdecode(raw).strip()
            if name and not self._put((number, name)):
                return
        self._put(None)

    def _put(self, line: tuple[int, str] | None) -> bool:
        while not self._stopped.is_set():
            try:
                self._lines.put(line, timeout=_WAIT_S)
                return True
            except Full:
                continue
        return False


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (UnicodeDecodeError, OSError) as error:
        raise SourceError(f"list {path}: not readable as UTF-8 text: {error}") from error


def _path_column(header: list[str]) -> int | None:
    """Which column holds the paths, if this row is a header."""
    titles = [title.strip().lower() for title in header]
    return next((titles.index(known) for known in PATH_COLUMNS if known in titles), None)


def _listed_files(path: Path, names: list[tuple[int, str]]) -> Listed[Path]:
    listed: Listed[Path] = Listed()
    for number, name in names:
        if not name:
            continue
        item = _resolve(name, path.parent)
        problem = file_problem(name, item, "neither here nor beside the list")
        if problem is not None:
            listed.problems.append(f"{path}:{number}: {problem}")
        elif item is not None:
            listed.items.append(item)
    return _not_empty(path, listed, "picture or video that exists")


def _resolve(name: str, folder: Path) -> Path | None:
    """The file a list means: relative to the working directory if it is there, else to the list's folder."""
    path = Path(name).expanduser()
    return next((option for option in (path, folder / path) if option.is_file()), None)


def _not_empty(path: Path, listed: Listed[T], kind: str) -> Listed[T]:
    if not listed.items:
        count = len(listed.problems)
        reason = f"{count} lines, the first: {listed.problems[0]}" if count else "it has no lines"
        raise SourceError(f"list {path} names no {kind} ({reason})")
    return listed
