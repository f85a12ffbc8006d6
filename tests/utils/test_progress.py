"""The progress bar: how far a run is, what is on the line, and that there is none without a terminal."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import pytest

from utils.decoding import VideoInfo
from utils.frames import Frame
from utils.progress import Progress, files_done


def frame(
    index: int, total: int | None, number: int | None = None, count: int | None = None, name: str = "a.jpg"
) -> Frame:
    video, time_s = None, None
    if number is not None:
        video, time_s = VideoInfo(25.0, count, (4, 4), None if count is None else count / 25), number / 25
    return Frame(np.zeros((4, 4, 3), np.uint8), Path(name), index, number, total, video, time_s=time_s)


def test_files_done() -> None:
    assert files_done(frame(0, 4)) == 1
    assert files_done(frame(3, 4)) == 4
    assert files_done(frame(0, None)) is None
    assert files_done(frame(1, 4, number=9, count=40)) == 1.25
    assert files_done(frame(1, 4, number=50, count=40)) == 2  # longer than its header says
    assert files_done(frame(1, 4, number=9)) == 1
    assert files_done(frame(0, 1, number=9)) is None  # one video of unknown length
    assert files_done(frame(0, None, number=9, count=40)) is None


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def terminal_in(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """A screen as standard error; no fixture, because pytest puts its own back before the test begins."""
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("COLUMNS", "120")
    return screen


def last_line(screen: Terminal) -> str:
    return [line for line in screen.getvalue().split("\r") if line.strip()][-1]


def test_a_bar_with_rate_and_remaining_time(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = terminal_in(monkeypatch)
    with Progress(interval_s=0) as progress:
        assert progress.shown
        for index in range(3):
            progress.update(frame(index, 4), f"{index + 1}/4 a.jpg: 2 car")
        line = last_line(terminal)
    assert line.startswith(" 75% ") and " FPS, 00:0" in line and " left, 3/4 a.jpg: 2 car" in line
    assert terminal.getvalue().split("\r")[-1].strip() == ""  # gone at the end


def test_a_stream_has_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = terminal_in(monkeypatch)
    with Progress(interval_s=0) as progress:
        for number in range(3):
            progress.update(frame(0, None, number), "camera 0")
        line = last_line(terminal)
    assert "%" not in line and "left" not in line and " FPS, 00:0" in line and "camera 0" in line


def test_skipped_files_count_as_done(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = terminal_in(monkeypatch)
    with Progress(interval_s=0) as progress:
        progress.update(frame(0, 4), "")
        progress.update(frame(3, 4), "")
        assert last_line(terminal).startswith("100% ")


def test_nothing_without_a_terminal_or_when_not_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = terminal_in(monkeypatch)
    with Progress(wanted=False) as progress:
        progress.update(frame(0, 4), "x")
    assert not progress.shown and terminal.getvalue() == ""
    plain = io.StringIO()
    monkeypatch.setattr(sys, "stderr", plain)
    with Progress(interval_s=0) as progress:
        progress.update(frame(0, 4), "x")
    assert not progress.shown and plain.getvalue() == ""
