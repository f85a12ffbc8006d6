"""Messages, results.csv (also resumed), TensorBoard, and that the curves are drawn at the end."""

from __future__ import annotations

import builtins
import importlib.util
import logging
import math
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from utils.logger import (
    LOGGER_NAME,
    CombinedLogger,
    CsvLogger,
    LogError,
    PlotLogger,
    TensorBoardLogger,
    TrainLogger,
    build_train_logger,
    get_logger,
)


@pytest.fixture
def fresh_logger() -> Iterator[logging.Logger]:
    """The project's logger before its first use; as it was, afterwards."""
    logger = logging.getLogger(LOGGER_NAME)
    before = (logger.handlers[:], logger.level, logger.propagate)
    logger.handlers.clear()
    yield logger
    logger.handlers[:], logger.propagate = before[0], before[2]
    logger.setLevel(before[1])


def test_messages_go_to_standard_output_once(
    fresh_logger: logging.Logger, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RANK", raising=False)
    get_logger()
    get_logger().info("epoch %d", 3)
    get_logger().warning("an odd label")
    get_logger().debug("not shown")
    captured = capsys.readouterr()
    assert captured.out == "epoch 3\nwarning: an odd label\n"
    assert captured.err == ""


def test_other_processes_say_errors_only(
    fresh_logger: logging.Logger, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    get_logger().warning("said by the main process, too")
    get_logger().error("mine")
    assert capsys.readouterr().out == "error: mine\n"


def test_nothing_happens_at_import(root: Path) -> None:
    code = "import logging as l, utils.logger; print(l.getLogger('esod').handlers, l.getLogger().handlers)"
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout == "[] []\n"


def test_csv_by_hand(tmp_path: Path) -> None:
    logger = CsvLogger(tmp_path / "results.csv")
    assert not (tmp_path / "results.csv").exists()
    logger.log(0, {"train/loss": 1 / 3, "val/AP": 0.5})
    logger.log(1, {"val/AP": math.nan, "train/loss": 1234567.0})
    logger.log(2, {"train/loss": 1, "lr/0": 1e-5})
    logger.image("mosaic", tmp_path / "mosaic.jpg")
    logger.close()
    assert (tmp_path / "results.csv").read_text().splitlines() == [
        "epoch,train/loss,val/AP,lr/0",
        "0,0.333333,0.5,",
        "1,1.23457e+06,nan,",
        "2,1,,1e-05",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["results.csv"]


def test_csv_resumed_drops_what_is_done_again(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    first = CsvLogger(path)
    for epoch in range(5):
        first.log(epoch, {"loss": 10 + epoch, "AP": epoch / 10})
    resumed = CsvLogger(path, resume_epoch=3)
    assert path.read_text().splitlines() == ["epoch,loss,AP", "0,10,0", "1,11,0.1", "2,12,0.2"]
    resumed.log(3, {"AP": 0.9, "loss": 7, "new": 1})
    expected = ["epoch,loss,AP,new", "0,10,0,", "1,11,0.1,", "2,12,0.2,", "3,7,0.9,1"]
    assert path.read_text().splitlines() == expected


def test_csv_resumed_without_a_file_and_begun_over_an_old_one(tmp_path: Path) -> None:
    CsvLogger(tmp_path / "a.csv", resume_epoch=4).log(4, {"loss": 1})
    assert (tmp_path / "a.csv").read_text() == "epoch,loss\n4,1\n"
    CsvLogger(tmp_path / "a.csv").log(0, {"AP": 2})
    assert (tmp_path / "a.csv").read_text() == "epoch,AP\n0,2\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a results file"),
        ("loss,AP\n1,2\n", "not a results file"),
        ("epoch,AP\n0,1\nx,2\n", "line 3"),
    ],
)
def test_csv_that_is_no_results_file_is_refused_and_kept(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    path.write_text(text)
    with pytest.raises(LogError, match=message):
        CsvLogger(path, resume_epoch=1)
    assert path.read_text() == text


def test_a_kill_while_writing_leaves_the_former_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = CsvLogger(tmp_path / "results.csv")
    logger.log(0, {"loss": 1})

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        logger.log(1, {"loss": 2})
    assert (tmp_path / "results.csv").read_text() == "epoch,loss\n0,1\n"
    monkeypatch.undo()
    CsvLogger(tmp_path / "results.csv", resume_epoch=1).log(1, {"loss": 3})
    assert (tmp_path / "results.csv").read_text() == "epoch,loss\n0,1\n1,3\n"
    assert [path.name for path in tmp_path.iterdir()] == ["results.csv"]


class Recorder:
    def __init__(self, name: str, calls: list[tuple[Any, ...]]) -> None:
        self.name, self.calls = name, calls

    def log(self, epoch: int, metrics: Any) -> None:
        self.calls.append((self.name, "log", epoch, dict(metrics)))

    def image(self, name: str, path: Path) -> None:
        self.calls.append((self.name, "image", name, path))

    def close(self) -> None:
        self.calls.append((self.name, "close"))


def test_combined_tells_everyone_in_order() -> None:
    calls: list[tuple[Any, ...]] = []
    loggers: list[TrainLogger] = [Recorder("a", calls), Recorder("b", calls)]
    combined = CombinedLogger(loggers)
    combined.log(1, {"x": 2.0})
    combined.image("m", Path("m.jpg"))
    combined.close()
    assert calls == [
        ("a", "log", 1, {"x": 2.0}),
        ("b", "log", 1, {"x": 2.0}),
        ("a", "image", "m", Path("m.jpg")),
        ("b", "image", "m", Path("m.jpg")),
        ("a", "close"),
        ("b", "close"),
    ]


@pytest.fixture
def plotted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Path, Path]]:
    """Calls of plot_results, which a stand-in takes."""
    calls: list[tuple[Path, Path]] = []
    module = types.ModuleType("utils.plots")
    module.plot_results = lambda csv_path, png_path: calls.append((csv_path, png_path))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "utils.plots", module)
    return calls


def test_curves_are_drawn_when_there_is_something_to_draw(
    tmp_path: Path, plotted: list[tuple[Path, Path]]
) -> None:
    logger = PlotLogger(tmp_path / "results.csv", tmp_path / "results.png")
    logger.close()
    (tmp_path / "results.csv").write_text("epoch,loss\n")
    logger.close()
    assert plotted == []
    (tmp_path / "results.csv").write_text("epoch,loss\n0,1\n")
    logger.log(0, {"loss": 1})
    logger.image("mosaic", tmp_path / "mosaic.jpg")
    logger.close()
    assert plotted == [(tmp_path / "results.csv", tmp_path / "results.png")]


def test_the_real_curves(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    table = CsvLogger(tmp_path / "results.csv")
    for epoch in range(3):
        table.log(epoch, {"train/loss": 1 / (epoch + 1), **({"val/AP": 0.5} if epoch == 2 else {})})
    PlotLogger(tmp_path / "results.csv", tmp_path / "results.png").close()
    picture = cv2.imread(str(tmp_path / "results.png"))
    assert picture is not None
    assert picture.std() > 0


def test_without_tensorboard_there_is_a_notice(
    tmp_path: Path,
    plotted: list[tuple[Path, Path]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    real_find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n, *a: None if n == "tensorboard" else real_find(n, *a)
    )
    real_import = builtins.__import__

    def no_tensorboard(name: str, *args: Any, **kwargs: Any) -> Any:
        if "tensorboard" in name:
            raise ImportError(name)
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", no_tensorboard)
    logger = build_train_logger(tmp_path)
    assert "TensorBoard is not installed" in capsys.readouterr().out
    logger.log(0, {"loss": 1.0})
    logger.image("mosaic", tmp_path / "missing.jpg")
    logger.close()
    assert (tmp_path / "results.csv").read_text() == "epoch,loss\n0,1\n"
    assert len(plotted) == 1


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="tensorboard is not installed")
def test_tensorboard_has_the_numbers_and_the_picture(
    tmp_path: Path, plotted: list[tuple[Path, Path]]
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    picture = tmp_path / "mosaic.png"
    cv2.imwrite(str(picture), np.full((4, 6, 3), (255, 0, 0), np.uint8))
    for resume_epoch in (None, 1):  # epoch 1 is done again after resuming
        logger = build_train_logger(tmp_path, resume_epoch)
        for epoch in range(resume_epoch or 0, 2):
            logger.log(epoch, {"train/loss": epoch + 0.5 * (resume_epoch or 0)})
        logger.image("mosaic", picture)
        logger.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(0, 0.0), (1, 1.5)]
    image = events.Images("mosaic")[-1]
    pixels = cv2.imdecode(np.frombuffer(image.encoded_image_string, np.uint8), cv2.IMREAD_COLOR)
    assert pixels is not None
    assert (pixels.shape, pixels[0, 0].tolist()) == ((4, 6, 3), [255, 0, 0])
    assert (tmp_path / "results.csv").read_text() == "epoch,train/loss\n0,0\n1,1.5\n"
    board = TensorBoardLogger(tmp_path)
    with pytest.raises(LogError, match="not readable as a picture"):
        board.image("mosaic", tmp_path / "missing.png")
    board.close()
