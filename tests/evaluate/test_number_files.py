"""Rows of numbers and JSON: what is accepted, what is refused, and that both ways of reading agree."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from evaluate.arrays import EvaluationError, round_half_away
from evaluate.average_precision import printed
from evaluate.number_files import Column, read_json, read_rows, row_place, text_files

COLUMNS = (Column("frame", whole=True), Column("score"))


@pytest.mark.parametrize(
    "content",
    [
        b"1,0.5\n2,0.25\n",
        b"1,0.5\n2,0.25",
        b"1,0.5\r\n2,0.25\r\n",
        b"1,0.5\r2,0.25\r",
        b"1,0.5,\n2,0.25,,\n",
        b"\n1,0.5\n\n  \n2,0.25\n\n",
        b"\xef\xbb\xbf1,0.5\n2,0.25\n",
        b" 1 , 0.5 \n2,\t2.5e-1\n",
        b"1,0.5,car\n2,0.25,b\xc3\xa4r\n",
        b"1.0,.5,7\n2,0.25\n",
    ],
)
def test_rows_that_are_accepted(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    rows = read_rows(path, COLUMNS)
    assert rows.dtype == np.float64
    assert rows.tolist() == [[1, 0.5], [2, 0.25]]
    assert row_place(path, 1).startswith(f"{path}:")


@pytest.mark.parametrize("content", [b"", b"\n", b" \r\n\r\n", b"\xef\xbb\xbf"])
def test_a_file_without_rows(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    assert read_rows(path, COLUMNS, most_fields=2).shape == (0, 2)


@pytest.mark.parametrize(
    "line",
    ["1", "x,1", "1.5,1", "1,nan", "1,-inf", "1,", ",1", ",,", "1e300,1", "1;2", "#1,2", "1,2,3", "1,0x10"],
)
def test_a_wrong_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "a.txt"
    path.write_text(f"1,0.5\n{line}\n1,0.5\n")
    with pytest.raises(EvaluationError) as error:
        read_rows(path, COLUMNS, most_fields=2)
    assert str(error.value).startswith(f"{path}:2: ")


def test_limits_of_a_column(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("3\n12\n")
    with pytest.raises(EvaluationError, match=r"a.txt:2: '12' is no k \(whole number 0 to 11\)"):
        read_rows(path, (Column("k", whole=True, least=0, most=11),))


def test_text_files_are_listed_by_name(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", "a-1.txt", ".hidden.txt", "c.csv"):
        (tmp_path / name).touch()
    (tmp_path / "folder.txt").mkdir()
    assert list(text_files(tmp_path)) == ["a-1", "a", "b"]


def test_json(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"a": 0.30000000000000004}')
    assert read_json(path) == {"a": 0.1 + 0.2}
    path.write_text('{"a": 1,\n"b" 2}')
    with pytest.raises(EvaluationError, match=r"a.json:2: not JSON"):
        read_json(path)
    path.write_bytes(b"\xff\xff")
    with pytest.raises(EvaluationError, match="UTF-8"):
        read_json(path)


def test_rounding_is_half_away_from_zero() -> None:
    below_half = np.nextafter(0.5, 0)
    values = np.array([0.5, 1.5, 2.5, -0.5, -2.5, below_half, 2.4999, 4503599627370497.0])
    assert round_half_away(values).tolist() == [1, 2, 3, -1, -3, 0, 2, 4503599627370497]
    assert (printed(0.125), printed(-0.125), printed(None), printed(12.345678, 4)) == (
        "0.13",
        "-0.13",
        "n/a",
        "12.3457",
    )
