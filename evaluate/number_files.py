"""Files of numbers as the official protocols publish them: comma-separated rows in, JSON in and out.

What a row means is written beside each protocol. Nothing is repaired: what cannot be read is an error that
names the file and the line.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from evaluate.arrays import EvaluationError
from utils.images import write_atomic

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_PADDING = b" \t,"
_SHOWN_CHARACTERS = 80


@dataclass(frozen=True)
class Column:
    """A column of numbers, and what is allowed in it; never NaN or infinity."""

    name: str
    whole: bool = False
    least: float = -math.inf
    most: float = math.inf

    def accepts(self, value: float) -> bool:
        """Whether a row may have this value."""
        return (
            math.isfinite(value)
            and self.least <= value <= self.most
            and (not self.whole or value.is_integer())
        )

    def __str__(self) -> str:
        limits = f" {self.least:g} to {self.most:g}" if math.isfinite(self.least) else ""
        return f"{self.name} ({'whole' if self.whole else 'finite'} number{limits})"


def read_rows(
    path: Path, columns: Sequence[Column], most_fields: int | None = None
) -> NDArray[np.float64]:
    """Comma-separated numbers: the first columns of every line, float64 [N, len(columns)], in file order.

    LF, CRLF and CR line ends, a last line without one, trailing commas, blank lines and a byte-order mark are
    accepted. A 0-byte file has no rows.

    Args:
        path: the file.
        columns: what every line begins with; fields behind them are not looked at.
        most_fields: more fields than these are an error; by default any number may follow.

    Raises:
        EvaluationError: a line has too few or too many fields, or a value that its column does not accept.
        OSError: the file cannot be read.
    """
    lines = path.read_bytes().removeprefix(_BYTE_ORDER_MARK).splitlines()
    width = len(columns)
    split = [line.rstrip(_PADDING).split(b",") for line in lines if line.strip()]
    if not split:
        return np.zeros((0, width))
    lengths = set(map(len, split))
    if min(lengths) < width or (most_fields is not None and max(lengths) > most_fields):
        _raise_first_fault(path, lines, columns, most_fields)
    try:
        numbers = [float(field) for row in split for field in row[:width]]
    except ValueError:
        _raise_first_fault(path, lines, columns, most_fields)
    values = np.array(numbers).reshape(-1, width)
    if not _accepted(values, columns) or any(b"_" in line for line in lines):
        _raise_first_fault(path, lines, columns, most_fields)
    return values


def _accepted(values: NDArray[np.float64], columns: Sequence[Column]) -> bool:
    """`Column.accepts` for all rows at once."""
    whole = np.array([column.whole for column in columns])
    least, most = (np.array([getattr(column, name) for column in columns]) for name in ("least", "most"))
    inside = np.isfinite(values).all() and ((values >= least) & (values <= most)).all()
    return bool(inside and (np.floor(values[:, whole]) == values[:, whole]).all())


def _raise_first_fault(
    path: Path, lines: Sequence[bytes], columns: Sequence[Column], most_fields: int | None
) -> NoReturn:
    """The error for the first line that is wrong: the slow way round, only taken when there is one."""
    for number, line in enumerate(lines, start=1):
        if line.strip() and (fault := _fault(line, columns, most_fields)):
            text = line.decode(errors="replace").strip()[:_SHOWN_CHARACTERS]
            raise EvaluationError(f"{path}:{number}: {fault}, in {text!r}")
    raise EvaluationError(f"{path}: cannot be read as rows of numbers")


def _fault(line: bytes, columns: Sequence[Column], most_fields: int | None) -> str | None:
    fields = line.rstrip(_PADDING).split(b",")
    if len(fields) < len(columns) or (most_fields is not None and len(fields) > most_fields):
        expected = ",".join(column.name for column in columns)
        more = "" if most_fields == len(columns) else " (more may follow)"
        return f"{len(fields)} fields; expected {expected}{more}"
    for column, field in zip(columns, fields, strict=False):
        text = field.decode(errors="replace").strip()
        try:
            value = math.nan if "_" in text else float(field)
        except ValueError:
            value = math.nan
        if not column.accepts(value):
            return f"{text!r} is no {column}"
    return None


def row_place(path: Path, row: int) -> str:
    """``path:line`` of a row that `read_rows` gave, for the message of an error found later."""
    numbered: Iterator[tuple[int, bytes]] = enumerate(path.read_bytes().splitlines(), start=1)
    filled = [number for number, line in numbered if line.strip()]
    return f"{path}:{filled[row]}"


def text_files(folder: Path) -> dict[str, Path]:
    """The ``.txt`` files of a folder by stem, in order of their names; hidden ones are left out.

    Raises:
        EvaluationError: there is no such folder.
    """
    if not folder.is_dir():
        raise EvaluationError(f"{folder}: no such folder")
    paths = sorted(folder.iterdir(), key=lambda path: path.name)
    return {p.stem: p for p in paths if p.suffix == ".txt" and not p.name.startswith(".") and p.is_file()}


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        EvaluationError: not JSON; the message names the line.
        OSError: the file cannot be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise EvaluationError(f"{path}: not UTF-8 text: {error}") from error
    except json.JSONDecodeError as error:
        raise EvaluationError(f"{path}:{error.lineno}: not JSON: {error.msg}") from error


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file, whole or not at all; numbers unrounded, never NaN."""
    text = json.dumps(content, indent=1, allow_nan=False) + "\n"
    write_atomic(path, lambda file: file.write(text.encode()))
