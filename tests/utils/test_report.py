"""Run reports: which sections come of which files, nothing foreign in the markup, and a failure that costs nothing."""

from __future__ import annotations

import json
import math
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

from utils.report import REPORT_FILE, render_report, report_finished_run, write_report
from utils.report_data import ReportError, flat, number, percent, read_run
from utils.report_training import best_epoch, charts, duration

EVIL = '"><script>alert(1)</script><img src=x onerror=alert(2)>'
TAGS = {
    "html", "head", "meta", "title", "style", "body", "main", "section", "h1", "h2", "h3", "p", "div", "b", "span", "i",
    "table", "thead", "tbody", "tr", "th", "td", "dl", "dt", "dd", "details", "summary", "figure", "figcaption", "img", "svg",
    "line", "text", "polyline", "circle",
}  # fmt: skip


class Reader(HTMLParser):
    """Collects tags, attributes and text as a browser would see them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data


def checked(page: str) -> Reader:
    """The page, after making sure that it loads and runs nothing."""
    reader = Reader(page)
    assert reader.tags - {"title"} <= TAGS
    assert not [name for name, _ in reader.attributes if name.startswith("on") or name in ("href", "srcset")]
    assert all(value.startswith("data:image/") for name, value in reader.attributes if name == "src")
    return reader


def write_picture(path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8))


@pytest.fixture
def training(tmp_path: Path) -> Path:
    folder = tmp_path / "exp"
    folder.mkdir()
    (folder / "results.csv").write_text(
        "epoch,train/box_loss,val/AP,val/AP50,val/missing_rate,train/seconds,other\n"
        "0,0.5,0.10,0.2,0.03,60,1\n1,0.4,0.30,0.5,0.02,61,2\n2,0.3,0.20,,0.01,62,3\n"
    )
    config = {
        "train": {"epochs": 3, "data": f"{EVIL}.yaml", "weights": "w.pt", "img_size": 640},
        "dataset": {"names": ["car", EVIL]},
        "provenance": {"environment": {"cpu": "a cpu", "git_commit": "0123456789abcdef", "git_dirty": True}, "data": "f00d"},
    }  # fmt: skip
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    write_picture(folder / "train_batch0.jpg")
    return folder


@pytest.fixture
def accuracy(tmp_path: Path) -> Path:
    folder = tmp_path / "test"
    folder.mkdir()
    row = {"images": 2, "labels": 9, "ap": 0.25, "ap50": None, "precision": 0.5, "recall": 0.4, "f1": 0.44}
    detection = {"protocol": "COCO AP, here", "images": 3, "labels": 9, "detections": 12345, "ap": 0.25, "ap50": 0.5,
                 "ap_small": None, "best_confidence": 0.3, "per_class": [{"name": EVIL, **row}]}  # fmt: skip
    selector = {
        "protocol": "patches, here",
        "missing_rate": 0.02,
        "empty_rate": 0.7,
        "by_size": [],
        "by_class": [],
    }
    metrics = {"detection": detection, "selector": selector, "options": {"task": "val", "data": EVIL},
               "dataset_note": f"not comparable {EVIL}", "environment": {"cpu": "a cpu"}}  # fmt: skip
    worst = {"confidence": 0.3, "iou": 0.5, "images": [
        {"file": f"images/{EVIL}.jpg", "labels": 9, "missed": 4, "false_alarms": 1, "missed_by_class": {EVIL: 4},
         "picture": "worst/1.jpg", "closer": "../secret.jpg"},
    ]}  # fmt: skip
    analysis = {"protocol": "missed, here", "total": {"name": "all", "labels": 9, "missed": 4, "causes": {"no_patch": 4}},
                "by_size": [], "meaning": {"no_patch": f"nowhere {EVIL}"}}  # fmt: skip
    for name, content in (("metrics", metrics), ("worst", worst), ("analysis", analysis)):
        (folder / f"{name}.json").write_text(json.dumps(content))
    write_picture(folder / "worst" / "1.jpg")
    write_picture(folder / "PR_curve.png")
    write_picture(folder / "batch0_labels.jpg")
    write_picture(tmp_path / "secret.jpg")
    return folder


@pytest.fixture
def cost(tmp_path: Path) -> Path:
    folder = tmp_path / "cost"
    folder.mkdir()
    spread = {"mean": 2.0, "median": 2.0, "p95": 2.5, "least": 1.0, "most": 3.0}
    content = {"images": 3, "input": "1×160×256", "device": EVIL, "gflops_2mac": spread, "dense": {"gflops_2mac": 4.5},
               "latency_ms": spread, "fps": 400.0, "patches": spread, "occupancy": spread, "notes": [EVIL],
               "stages_ms": {"stem": {"median_ms": 1.5}, "nms": {"median_ms": 0.5}}, "options": {"task": "measure"}}  # fmt: skip
    (folder / "measure.json").write_text(json.dumps(content))
    write_picture(folder / "measure.png")
    return folder


def test_a_training(training: Path) -> None:
    reader = checked(write_report(training).read_text(encoding="utf-8"))
    for text in ("3 of 3", "0.300", "3 min 3 s", "Losses", "commit 0123456789 with changes", "Fingerprint of the data", "f00d",
                 "train_batch0.jpg", "best (epoch 2)", "last (epoch 3)"):  # fmt: skip
        assert text in reader.text, text
    assert EVIL in reader.text, "shown as the text that it is"
    assert "Cost" not in reader.text and "Detection" not in reader.text


def test_an_accuracy_test(accuracy: Path) -> None:
    page = render_report(read_run(accuracy))
    reader = checked(page)
    for text in ("COCO AP, here", f"not comparable {EVIL}", "4 of 9 objects missed", "Compare these scores only", "12,345",
                 "no patch", "Precision over recall"):  # fmt: skip
        assert text in reader.text, text
    pictures = [value for name, value in reader.attributes if name == "src"]
    assert len(pictures) == 3, (
        "the curve, the batch and one worst picture: what lies outside of the run is not shown"
    )
    assert "trained on" not in reader.text


def test_scores_on_the_training_split_say_so(accuracy: Path) -> None:
    metrics = json.loads((accuracy / "metrics.json").read_text())
    metrics["options"]["task"] = "train"
    (accuracy / "metrics.json").write_text(json.dumps(metrics))
    assert "trained on (--task train)" in checked(render_report(read_run(accuracy))).text


def test_no_missed_object_is_said(accuracy: Path) -> None:
    (accuracy / "worst.json").write_text(json.dumps({"confidence": 0.3, "images": []}))
    assert "No labelled object is missed" in checked(render_report(read_run(accuracy))).text


def test_a_measurement(cost: Path) -> None:
    reader = checked(render_report(read_run(cost)))
    for text in ("4.50", "decode, NMS", "1.5 ms", EVIL, "measure"):
        assert text in reader.text, text
    assert [value for name, value in reader.attributes if name == "style"] == [
        "width:100.00%",
        "width:33.33%",
    ]


def test_one_folder_may_hold_all_three(training: Path, accuracy: Path, cost: Path) -> None:
    for source in (accuracy, cost):
        for path in source.glob("*.json"):
            (training / path.name).write_bytes(path.read_bytes())
    reader = checked(render_report(read_run(training)))
    assert "Training and Test and Cost: exp" in reader.text


def test_a_run_that_was_stopped_before_its_first_validation(tmp_path: Path) -> None:
    (tmp_path / "results.csv").write_text("epoch,train/box_loss,val/AP\n0,0.5,\n")
    reader = checked(render_report(read_run(tmp_path)))
    assert "Losses" in reader.text and "Best and last epoch" not in reader.text


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metrics.json", "{", "cannot be read"),
        ("metrics.json", "[1]", "holds a list"),
        ("config.yaml", "a: [", "cannot be read"),
        ("results.csv", "epoch\n", "give the folder of a finished"),
    ],
)
def test_damaged_runs_are_refused_by_name(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ReportError, match=message):
        read_run(tmp_path)


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="not a folder"):
        write_report(tmp_path / "nowhere")


def test_a_failing_report_is_a_warning(
    tmp_path: Path, training: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (training / "config.yaml").write_text("a: [")
    report_finished_run(training)
    assert "warning: no report of" in capsys.readouterr().out
    assert not (training / REPORT_FILE).exists()

    def broken(run: object) -> str:
        raise ZeroDivisionError("a bug")

    (training / "config.yaml").unlink()
    monkeypatch.setattr("utils.report.render_report", broken)
    report_finished_run(training)
    assert "ZeroDivisionError: a bug" in capsys.readouterr().out


def test_best_epoch_is_the_first_of_equals_and_knows_nan() -> None:
    nan = math.nan
    assert best_epoch({"val/AP": [nan, 0.2, 0.3, 0.3]}) == 2
    assert best_epoch({"val/AP": [nan]}) is None
    assert best_epoch({}) is None


def test_every_column_gets_a_chart_and_many_lines_are_divided() -> None:
    results = {"epoch": [0.0, 1.0], "new": [1.0, 2.0], **{f"train/{i}_loss": [1.0, 2.0] for i in range(8)}}
    titles = [chart.partition("<h3>")[2].partition("</h3>")[0] for chart in charts(results)]
    assert titles == ["Losses", "Losses", "new"]


def test_words_for_numbers() -> None:
    assert [duration(s) for s in (49, 200, 18_720)] == ["49 s", "3 min 20 s", "5 h 12 min"]
    assert number(None) == number(math.nan) == number(True) == percent(None) == "n/a"
    assert (number(1234), number(0.5), percent(0.125)) == ("1,234", "0.500", "12.5 %")
    assert flat({"a": {"b": [1, 2], "c": None}, "d": False}) == [("a.b", "1, 2"), ("d", "False")]
