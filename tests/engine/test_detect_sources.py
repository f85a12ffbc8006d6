"""detect.py's sources by its command line: exit status, streams stopped by Ctrl-C, a pipe."""

from __future__ import annotations

import io
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from threading import Thread

import cv2
import numpy as np
import pytest

from tests.conftest import CommandResult, MjpegServer, RunCommand

Detect = Callable[..., CommandResult]


@pytest.fixture
def detect(weights: Path, tmp_path: Path, run_command: RunCommand) -> Detect:
    """``detect(source, *options)`` runs detect.py with a tiny model; results are in ``tmp_path / "runs" / "exp"``."""
    common = ("--weights", weights, "--img-size", 64, "--device", "cpu", "--project", tmp_path / "runs")
    return lambda source, *options: run_command("detect.py", *common, "--source", source, *options)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder with two good pictures."""
    for name in ("a.png", "b.png"):
        (tmp_path / "in").mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / "in" / name), np.full((40, 60, 3), 90, np.uint8))
    return tmp_path / "in"


def frame_count(video: Path) -> int:
    capture = cv2.VideoCapture(str(video))
    count = 0
    while capture.read()[0]:
        count += 1
    return count


def interrupt_when(ready: Callable[[], bool]) -> Thread:
    """Sends this process Ctrl-C once something is the case."""

    def wait() -> None:
        end = time.monotonic() + 60
        while not ready() and time.monotonic() < end:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    thread = Thread(target=wait, daemon=True)
    thread.start()
    return thread


def test_exit_status_says_what_could_be_read(detect: Detect, pictures: Path) -> None:
    assert detect(pictures).status == 0
    (pictures / "broken.jpg").write_text("no picture")
    some = detect(pictures)
    assert some.status == 3 and "broken.jpg" in some.out + some.err and "2 images" in some.out
    assert detect(pictures / "broken.jpg").status == 1
    assert detect(pictures / "nowhere.jpg").status == 1
    assert detect(pictures, "--no-such-option").status == 2
    (pictures / "l.csv").write_text("path\na.png\ngone.png\n")
    listed = detect(pictures / "l.csv")
    assert listed.status == 3 and "l.csv:3" in listed.out + listed.err


def test_names_on_standard_input(
    detect: Detect, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(pictures)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"b.png\na.png\nb.png\n")))
    result = detect("-")
    assert result.status == 0 and "3/? b.png" in result.out
    names = sorted(path.name for path in (tmp_path / "runs" / "exp").iterdir())
    assert names == ["a.png", "b.png", "b_2.png"]


def test_ctrl_c_on_endless_streams_leaves_whole_videos(
    detect: Detect, mjpeg_server: MjpegServer, tmp_path: Path
) -> None:
    (tmp_path / "all.streams").write_text(f"{mjpeg_server.address('yard')}\n{mjpeg_server.address('door')}\n")
    labels = tmp_path / "runs" / "exp" / "labels"
    stopper = interrupt_when(lambda: labels.is_dir() and len(list(labels.iterdir())) >= 12)
    result = detect(tmp_path / "all.streams", "--save-txt", "--view-cluster")
    stopper.join()
    assert result.status == 130
    assert "yard: " in result.out and "dropped" in result.out
    videos = sorted(path for path in (tmp_path / "runs" / "exp").iterdir() if path.is_file())
    endings = ("door.webm", "door_cluster.webm", "yard.webm", "yard_cluster.webm")
    assert len(videos) == 4 and all(v.name.endswith(e) for v, e in zip(videos, endings, strict=True))
    counts = [frame_count(video) for video in videos]
    assert min(counts) >= 4 and abs(counts[0] - counts[2]) <= 3, "in turn"


def test_a_stream_that_comes_back_in_another_size_goes_on_in_another_file(
    detect: Detect, mjpeg_server: MjpegServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("utils.streams.FIRST_WAIT_S", 0.05)
    mjpeg_server.interval_s = 0.05
    mjpeg_server.per_connection, mjpeg_server.hw = [8, 8, 0], [(48, 64), (64, 64)]
    result = detect(mjpeg_server.address(), "--reconnect", 1)
    assert result.status == 3 and "lost after" in result.out
    first, second = sorted((tmp_path / "runs" / "exp").iterdir(), key=lambda path: len(path.name))
    assert second.stem == first.stem + "_2" and min(frame_count(first), frame_count(second)) >= 2
