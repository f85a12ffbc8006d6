"""Files of numbers as the official protocols publish them: comma-separated rows in, JSON in and out.

What a row means is written beside each protocol. Nothing is repaired: what cannot be read is an error that
names the file and the line.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluate.arrays import EvaluationError

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_PADDING = b" \t,"
_SHOWN_CHARACTERS = 80
_LARGEST_WHOLE = 2.0**53
"""Up to here a double holds every whole number."""


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
            and (not self.whole or (value.is_integer() and abs(value) <= _LARGEST_WHOLE))
        )

    def __str__(self) -> str:
        limits = f" {self.least:g} to {self.most:g}" if math.isfinite(self.least) else ""
        return f"{self.name} ({'whole' if self.whole else 'finite'} number{limits})"


def read_rows(path: Path, columns: Sequence[Column], most_fields: int | None = None) -> NDArray[np.float64]:
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
    data = path.read_bytes().removeprefix(_BYTE_ORDER_MARK)
    values = _quickly_parsed(data, len(columns), most_fields)
    if values is None or not _accepted(values, columns):
        values = _parsed(path, data, columns, most_fields)
    return values


def _quickly_parsed(data: bytes, width: int, most_fields: int | None) -> NDArray[np.float64] | None:
    """The rows when all lines are plainly in order, else None: five times as fast as `_parsed`."""
    if not data.strip() or not data.isascii():
        return None
    if most_fields is not None:
        characters = np.frombuffer(data, dtype=np.uint8)
        ends = np.flatnonzero(characters == ord("\n"))
        begins = np.concatenate(([0], ends + 1))
        commas = np.add.reduceat(characters == ord(","), begins[begins < len(data)], dtype=np.int64)
        if commas.max() >= most_fields:
            return None
    try:
        return np.loadtxt(BytesIO(data), delimiter=",", comments=None, usecols=range(width), ndmin=2)
    except ValueError:
        return None


def _accepted(values: NDArray[np.float64], columns: Sequence[Column]) -> bool:
    """`Column.accepts` for all rows at once."""
    whole = np.array([column.whole for column in columns])
    least, most = (np.array([getattr(column, name) for column in columns]) for name in ("least", "most"))
    if not (np.isfinite(values).all() and ((values >= least) & (values <= most)).all()):
        return False
    numbers = values[:, whole]
    return bool(((np.floor(numbers) == numbers) & (np.abs(numbers) <= _LARGEST_WHOLE)).all())


def _parsed(
    path: Path, data: bytes, columns: Sequence[Column], most_fields: int | None
) -> NDArray[np.float64]:
    """The rows, line by line; raises EvaluationError at the first that is wrong."""
    rows: list[list[float]] = []
    for number, line in enumerate(data.splitlines(), start=1):
        if not line.strip():
            continue
        fields = line.rstrip(_PADDING).split(b",")
        row = [_number(field) for field in fields[: len(columns)]]
        if fault := _fault(fields, row, columns, most_fields):
            text = line.decode(errors="replace").strip()[:_SHOWN_CHARACTERS]
            raise EvaluationError(f"{path}:{number}: {fault}, in {text!r}")
        rows.append(row)
    return np.array(rows, dtype=np.float64).reshape(-1, len(columns))


def _number(field: bytes) -> float:
    """The value; NaN when it is no number (which Python's 1_000 is not, either)."""
    try:
        return math.nan if b"_" in field else float(field)
    except ValueError:
        return math.nan


def _fault(
    fields: Sequence[bytes], row: Sequence[float], columns: Sequence[Column], most_fields: int | None
) -> str | None:
    """What is wrong with a line, if anything."""
    if len(row) < len(columns) or (most_fields is not None and len(fields) > most_fields):
        expected = ",".join(column.name for column in columns)
        more = "" if most_fields == len(columns) else " (more may follow)"
        return f"{len(fields)} fields; expected {expected}{more}"
    for column, field, value in zip(columns, fields, row, strict=False):
        if not column.accepts(value):
            return f"{field.decode(errors='replace').strip()!r} is no {column}"
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
