"""Messages, results.csv (also resumed), and that the curves are drawn at the end."""

from __future__ import annotations

import logging
import math
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import pytest

from utils.logger import (
    LOGGER_NAME,
    CombinedLogger,
    CsvLogger,
    LogError,
    PlotLogger,
    RunLogger,
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
    logger.log_metrics(0, {"train/loss": 1 / 3, "val/AP": 0.5})
    logger.log_metrics(1, {"val/AP": math.nan, "train/loss": 1234567.0})
    logger.log_metrics(2, {"train/loss": 1, "lr/0": 1e-5})
    logger.log_image("mosaic", tmp_path / "mosaic.jpg")
    logger.finish(True)
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
        first.log_metrics(epoch, {"loss": 10 + epoch, "AP": epoch / 10})
    resumed = CsvLogger(path, resume_epoch=3)
    assert path.read_text().splitlines() == ["epoch,loss,AP", "0,10,0", "1,11,0.1", "2,12,0.2"]
    resumed.log_metrics(3, {"AP": 0.9, "loss": 7, "new": 1})
    expected = ["epoch,loss,AP,new", "0,10,0,", "1,11,0.1,", "2,12,0.2,", "3,7,0.9,1"]
    assert path.read_text().splitlines() == expected


def test_csv_resumed_without_a_file_and_begun_over_an_old_one(tmp_path: Path) -> None:
    CsvLogger(tmp_path / "a.csv", resume_epoch=4).log_metrics(4, {"loss": 1})
    assert (tmp_path / "a.csv").read_text() == "epoch,loss\n4,1\n"
    CsvLogger(tmp_path / "a.csv").log_metrics(0, {"AP": 2})
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
    logger.log_metrics(0, {"loss": 1})

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        logger.log_metrics(1, {"loss": 2})
    assert (tmp_path / "results.csv").read_text() == "epoch,loss\n0,1\n"
    monkeypatch.undo()
    CsvLogger(tmp_path / "results.csv", resume_epoch=1).log_metrics(1, {"loss": 3})
    assert (tmp_path / "results.csv").read_text() == "epoch,loss\n0,1\n1,3\n"
    assert [path.name for path in tmp_path.iterdir()] == ["results.csv"]


class Recorder:
    def __init__(self, name: str, calls: list[tuple[Any, ...]]) -> None:
        self.name, self.calls = name, calls

    def log_config(self, config: Any) -> None:
        self.calls.append((self.name, "config", dict(config)))

    def log_metrics(self, epoch: int, metrics: Any) -> None:
        self.calls.append((self.name, "metrics", epoch, dict(metrics)))

    def log_image(self, name: str, path: Path) -> None:
        self.calls.append((self.name, "image", name, path))

    def log_file(self, path: Path) -> None:
        self.calls.append((self.name, "file", path))

    def finish(self, completed: bool) -> None:
        self.calls.append((self.name, "finish", completed))


def test_combined_tells_everyone_in_order() -> None:
    calls: list[tuple[Any, ...]] = []
    loggers: list[RunLogger] = [Recorder("a", calls), Recorder("b", calls)]
    combined = CombinedLogger(loggers)
    combined.log_config({"lr0": 0.1})
    combined.log_metrics(1, {"x": 2.0})
    combined.log_image("m", Path("m.jpg"))
    combined.log_file(Path("best.pt"))
    combined.finish(False)
    told = [("config", {"lr0": 0.1}), ("metrics", 1, {"x": 2.0}), ("image", "m", Path("m.jpg")),
            ("file", Path("best.pt")), ("finish", False)]  # fmt: skip
    assert calls == [(name, *call) for call in told for name in "ab"]


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
    logger.finish(True)
    (tmp_path / "results.csv").write_text("epoch,loss\n")
    logger.finish(True)
    assert plotted == []
    (tmp_path / "results.csv").write_text("epoch,loss\n0,1\n")
    logger.log_metrics(0, {"loss": 1})
    logger.log_image("mosaic", tmp_path / "mosaic.jpg")
    logger.finish(True)
    assert plotted == [(tmp_path / "results.csv", tmp_path / "results.png")]


def test_the_real_curves(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    table = CsvLogger(tmp_path / "results.csv")
    for epoch in range(3):
        table.log_metrics(epoch, {"train/loss": 1 / (epoch + 1), **({"val/AP": 0.5} if epoch == 2 else {})})
    PlotLogger(tmp_path / "results.csv", tmp_path / "results.png").finish(True)
    picture = cv2.imread(str(tmp_path / "results.png"))
    assert picture is not None
    assert picture.std() > 0
