"""The options of train.py: all of them, their defaults, what is refused, and the initial weights."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from utils.train_cli import LATEST, REFUSED, build_train_parser, given_options, initial_weights
from utils.typed_data import ConfigError

# What the documentation promises, with the defaults.
OPTIONS: dict[str, Any] = {
    "data": "data/visdrone.yaml",
    "cfg": "models/cfg/yolov5m.yaml",
    "weights": None,
    "hyp": "data/hyps/default.yaml",
    "epochs": 50,
    "batch_size": 8,
    "img_size": 1536,
    "rect": False,
    "resume": None,
    "auto_resume": False,
    "config": None,
    "nosave": False,
    "notest": False,
    "noautoanchor": False,
    "cache": "none",
    "image_weights": False,
    "repeat_factor": 0.0,
    "device": "",
    "multi_scale": False,
    "single_cls": False,
    "optimizer": "sgd",
    "sync_bn": False,
    "checkpoint_activations": "none",
    "project": "runs/train",
    "name": "exp",
    "exist_ok": False,
    "freeze": [],
    "patience": 100,
    "save_period": -1,
    "label_smoothing": None,
    "seed": 0,
    "deterministic": False,
    "logger": ["tensorboard"],
    "amp": "auto",
    "train_patches": None,
    "slicer": None,
    "head": None,
    "heatmap_thres": None,
    "max_patches": None,
    "borders": None,
    "no_report": False,
    "debug": False,
}


def test_defaults() -> None:
    parsed = vars(build_train_parser().parse_args([]))
    assert parsed.pop("workers") >= 1
    assert parsed == OPTIONS


@pytest.mark.parametrize(
    ("line", "name", "value"),
    [
        ("--weights none", "weights", "none"),
        ("--resume", "resume", LATEST),
        ("--resume runs/train/exp/weights/last.pt", "resume", "runs/train/exp/weights/last.pt"),
        ("--cache", "cache", "ram"),
        ("--cache disk", "cache", "disk"),
        ("--optimizer AdamW", "optimizer", "adamw"),
        ("--freeze 10", "freeze", ["10"]),
        ("--freeze stem deep.stage4 --rect", "freeze", ["stem", "deep.stage4"]),
        ("--img-size 544x960", "img_size", (544, 960)),
        ("--img 640", "img_size", 640),
        ("--batch 16", "batch_size", 16),
        ("--batch-size -1", "batch_size", -1),
        ("--checkpoint-activations", "checkpoint_activations", "stem"),
        ("--checkpoint-activations all", "checkpoint_activations", "all"),
        ("--amp bf16", "amp", "bf16"),
        ("--train-patches uniform", "train_patches", "uniform"),
        ("--label-smoothing 0.1", "label_smoothing", 0.1),
        ("--patience 0", "patience", 0),
        ("--save-period 5", "save_period", 5),
        ("--device cpu", "device", "cpu"),
    ],
)
def test_values(line: str, name: str, value: object) -> None:
    parsed = vars(build_train_parser().parse_args(line.split()))
    assert parsed[name] == value
    changed = {key for key, default in OPTIONS.items() if parsed[key] != default}
    assert changed - {"rect"} == {name}


def test_given_options_are_those_on_the_line() -> None:
    assert given_options([]) == {}
    given = given_options(["--epochs", "50", "--rect", "--img-size", "96x160", "--freeze", "stem"])
    assert given == {"epochs": 50, "rect": True, "img_size": (96, 160), "freeze": ["stem"]}


@pytest.mark.parametrize("line", ["--local-rank 3", "--local_rank=3"])
def test_the_old_launchers_argument_is_accepted(line: str) -> None:
    assert build_train_parser().parse_args(line.split()).epochs == 50


@pytest.mark.parametrize("option", sorted(REFUSED))
def test_refused_options_say_what_to_use(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        build_train_parser().parse_args([option])
    assert raised.value.code == 2
    assert f"train.py: error: {option} is not offered: {REFUSED[option]}" in capsys.readouterr().err


def test_replacements_exist() -> None:
    known = build_train_parser()._option_string_actions
    for text in REFUSED.values():
        assert all(flag in known for flag in re.findall(r"--[a-z-]+", text)), text


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--epoch 3", "did you mean --epochs?"),
        ("--batch_size 3", "did you mean --batch-size?"),
        ("--cache tape", "tape"),
        ("--optimizer lion", "lion"),
        ("--batch-size 0", "at least 1"),
        ("--label-smoothing 2", "from 0 to 1"),
    ],
)
def test_usage_errors(line: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        build_train_parser().parse_args(line.split())
    assert raised.value.code == 2
    assert message in capsys.readouterr().err


def test_help_says_what_each_option_does(capsys: pytest.CaptureFixture[str]) -> None:
    parser = build_train_parser()
    with pytest.raises(SystemExit) as raised:
        parser.parse_args(["--help"])
    assert raised.value.code == 0
    text = capsys.readouterr().out
    assert "start of all random numbers (default: 0)" in " ".join(text.split())
    for action in parser._actions:
        if "--local-rank" in action.option_strings:
            assert "--local-rank" not in text
            continue
        assert action.option_strings[0] in text
        assert len((action.help or "").split()) >= 3, action.option_strings


def test_initial_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for scratch in ("none", "None", "", " "):
        assert initial_weights(scratch, "models/cfg/yolov5m.yaml") is None
    with pytest.raises(ConfigError) as raised:
        initial_weights(None, "models/cfg/yolov5m.yaml")
    expected = (
        "python scripts/model_convert.py --weights DOWNLOADED_FILE --output weights/pretrained/yolov5m.pt",
        "--weights none",
    )
    assert all(text in str(raised.value) for text in expected)
    with pytest.raises(ConfigError, match=r"elsewhere/x\.pt: no such file"):
        initial_weights("elsewhere/x.pt", "models/cfg/yolov5m.yaml")
    pretrained = tmp_path / "weights" / "pretrained"
    pretrained.mkdir(parents=True)
    (pretrained / "yolov5m.pt").write_text("")
    assert initial_weights(None, "models/cfg/yolov5m.yaml") == Path("weights/pretrained/yolov5m.pt")
    assert initial_weights(None, "models/cfg/yolov5m-p2.yaml") == Path("weights/pretrained/yolov5m.pt")
    assert initial_weights(str(pretrained / "yolov5m.pt"), "x.yaml") == pretrained / "yolov5m.pt"
