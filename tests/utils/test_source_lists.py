"""What lists name: CSV with and without header, names on a pipe; errors have a file and a line."""

from __future__ import annotations

import io
import logging
import os
import sys
import threading
import time
from contextlib import closing
from pathlib import Path
from threading import Event

import cv2
import numpy as np
import pytest

from utils.source_lists import PipedNames, read_csv_list
from utils.sources import SourceError, open_source


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with pictures a.png, b.png and "c, d.png"."""
    for name in ("a.png", "b.png", "c, d.png"):
        cv2.imwrite(str(tmp_path / name), np.full((4, 6, 3), 9, np.uint8))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "text, expected",
    [
        ("path\na.png\nb.png\n", ["a.png", "b.png"]),
        ("id,Image\n1,a.png\n2,b.png\n", ["a.png", "b.png"]),
        ("\ufeffid;filename;note\r\n1;b.png;x\r\n2;a.png;\r\n", ["b.png", "a.png"]),
        ("FILE\tid\na.png\t1\n", ["a.png"]),
        ("a.png,7\nb.png,8\n", ["a.png", "b.png"]),
        ('id,path\n1,"c, d.png"\n\n,\n2,a.png\n', ["c, d.png", "a.png"]),
        ("image,path\nwrong,a.png\n", ["a.png"]),
    ],
)
def test_csv(folder: Path, text: str, expected: list[str]) -> None:
    Path("l.csv").write_text(text, encoding="utf-8")
    assert [frame.path.name for frame in open_source("l.csv")] == expected


def test_csv_lines_that_name_nothing_are_told_with_their_number(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Path("l.csv").write_text(
        'id,path,note\n1,gone.png,"two\nlines"\n2,a.png,x\n3\n4,l.csv,x\n', encoding="utf-8"
    )
    with caplog.at_level(logging.WARNING):
        source = open_source("l.csv")
    assert [frame.path.name for frame in source] == ["a.png"] and source.skipped == 3
    assert [problem.partition(": ")[0] for problem in source.problems] == ["l.csv:3", "l.csv:5", "l.csv:6"]
    for text in ("gone.png", "(empty)", "is no picture"):
        assert text in caplog.text


@pytest.mark.parametrize(
    "text, expected", [("", "no lines"), ("path\n", "no lines"), ('a.png,"b\n', r"l\.csv:1: not readable")]
)
def test_csv_without_use(folder: Path, text: str, expected: str) -> None:
    Path("l.csv").write_text(text)
    with pytest.raises(SourceError, match=expected):
        read_csv_list(Path("l.csv"))


# ------------------------------------------------------------------------------------------------- a pipe


def test_names_are_used_as_they_come(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read_end, write_end = os.pipe()
    with os.fdopen(read_end, "rb") as reader, os.fdopen(write_end, "wb", buffering=0) as writer:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(reader))
        source = open_source("-")
        with closing(source.read_ahead(lambda frame: None, 2)) as frames:
            for number, name in enumerate(
                ("a.png", "b.png", "a.png")
            ):  # nothing more is in the pipe: no waiting
                writer.write(f"{name}\r\n".encode())
                frame, _ = next(frames)
                assert (frame.path.name, frame.index, frame.total) == (name, number, None)
            writer.write(b"\n  \ngone.png\nl.txt\n")
            started = time.monotonic()
        assert time.monotonic() - started < 5, "closing waits for nothing"
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("look-ahead")]


def test_piped_names_that_name_nothing_are_told_with_their_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "notes.md").touch()
    lines = b"gone.png\n\na.png\nnotes.md\n\xff.png\nb.png"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines)))
    source = open_source("-")
    assert [frame.path.name for frame in source] == ["a.png", "b.png"] and source.skipped == 3
    assert [problem.split(": ")[0] for problem in source.problems] == [
        f"standard input:{n}" for n in (1, 4, 5)
    ]


def test_outputs_of_piped_names_keep_folders_below_the_working_directory(folder: Path) -> None:
    source = open_source("-")
    assert source.relative(Path("sub/a.png")) == Path("sub/a.png")
    assert source.relative(folder / "sub" / "a.png") == Path("sub/a.png")
    assert source.relative(Path("../elsewhere/a.png")) == Path("a.png")


def test_only_so_many_lines_are_read_in_advance() -> None:
    read_count = 0

    class Endless(io.RawIOBase):
        def __iter__(self) -> Endless:
            return self

        def __next__(self) -> bytes:
            nonlocal read_count
            read_count += 1
            return b"x\n"

    stopped = Event()
    names = iter(PipedNames(stopped, Endless()))  # type: ignore[arg-type]
    assert next(names) == (1, "x")
    time.sleep(0.1)
    assert read_count < 100
    stopped.set()
    assert list(names) == []
