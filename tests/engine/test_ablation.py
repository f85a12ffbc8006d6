"""Ablations: what a file may say, the commands it becomes, equal occupancy, tables, going on where it was stopped."""

from __future__ import annotations

import csv
import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml

from engine.ablation.occupancy import Look, at_occupancy, look_at, selection
from engine.ablation.report import Result, page, table
from engine.ablation.spec import (
    Ablation,
    hyper_parameters,
    read_ablation,
    resized,
    runs_of,
    words_for_testing,
    words_for_training,
    words_of,
)
from engine.inference import load_model
from engine.loaders import evaluation_loader
from tests.conftest import ROOT, RunCommand
from utils.config import DatasetConfig, SlicerConfig
from utils.typed_data import ConfigError, load_config

SCRIPT = "scripts/ablation.py"


def content(**changes: Any) -> dict[str, Any]:
    return {
        "title": "A title",
        "train": {"data": "data/sample.yaml", "epochs": 3, "rect": True},
        "test": {"data": "data/sample.yaml"},
        "variants": {"base": {}, "soft": {"trained": "base", "test": {"nms": "soft"}, "note": "a word"}},
    } | changes


def read(tmp_path: Path, **changes: Any) -> Ablation:
    path = tmp_path / "spec.yaml"
    path.write_text(yaml.safe_dump(content(**changes), sort_keys=False), encoding="utf-8")
    return read_ablation(path)


@pytest.mark.parametrize("path", sorted((ROOT / "data" / "ablations").glob("*.yaml")), ids=lambda p: p.stem)
def test_the_shipped_files_are_readable(path: Path) -> None:
    spec = read_ablation(path)
    assert len(spec.variants) > 1 and len(runs_of(spec, Path("x"))) <= 12


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variants": {}}, "at least one variant"),
        ({"occupancy": 1.5}, "occupancy is 1.5"),
        ({"minutes": 3}, "either epochs among the options of train, or minutes"),
        ({"variants": {"a": {"hyp": {"box_": 1}}}}, "did you mean 'box'"),
        ({"variants": {"a": {"train": {"project": "x"}}}}, "project: an ablation sets that itself"),
        ({"variants": {"a": {"test": {"weights": "x"}}}}, "weights: an ablation sets that itself"),
        ({"variants": {"a": {"trained": "b"}}}, "trained is 'b'"),
        ({"variants": {"a": {"trained": "a", "weights": "x"}}}, "leave one out"),
        ({"variants": {"a": {"weights": "x", "hyp": {"box": 1}}}}, "no training of its own"),
        ({"train": {"epochs": 3}}, "expected data"),
    ],
)
def test_what_cannot_be_run_is_refused_before_anything_runs(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        read(tmp_path, **changes)
    assert message in str(raised.value)


def test_unknown_options_end_with_a_usage_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        read(tmp_path, variants={"a": {"train": {"epoch": 3}}})
    assert "--epoch" in capsys.readouterr().err


def test_commands(tmp_path: Path) -> None:
    spec = read(tmp_path, seeds=[4, 5], hyp={"box": 0.1}, variants={
        "base": {"hyp": {"mosaic": 0.0}, "train": {"rect": False}},
        "soft": {"trained": "base", "test": {"nms": "soft"}}, "given": {"weights": "w.pt"},
    })  # fmt: skip
    runs = runs_of(spec, Path("R"))
    assert [run.name for run in runs] == [
        "base-seed4", "base-seed5", "soft-seed4", "soft-seed5", "given",
    ]  # fmt: skip
    assert [run.trains for run in runs] == [True, True, False, False, False]
    assert words_for_training(spec, runs[1], 7) == [
        "--seed", "5", "--data", "data/sample.yaml", "--epochs", "7", "--hyp", "R/base-seed5/hyp.yaml",
        "--project", "R/base-seed5", "--name", "train", "--auto-resume",
    ]  # fmt: skip
    assert words_for_testing(spec, runs[3], 0.25) == [
        "--data", "data/sample.yaml", "--nms", "soft", "--heatmap-thres", "0.25",
        "--weights", "R/base-seed5/train/weights/best.pt", "--project", "R/soft-seed5", "--name", "test", "--exist-ok",
    ]  # fmt: skip
    assert runs[4].weights == Path("w.pt")
    hyp = hyper_parameters(spec, spec.variants["base"])
    assert (hyp.box, hyp.mosaic, hyp.cls) == (0.1, 0.0, 0.5)
    assert words_of({"a": True, "b": False, "c": ["x", "y"]}) == ["--a", "--c", "x", "y"]


def test_sizes_follow_that_of_the_trainings(tmp_path: Path) -> None:
    variants = {"a": {}, "b": {"trained": "a", "test": {"img-size": 800}}, "c": {"train": {"img-size": 320}}}
    train = content()["train"] | {"img-size": 640}
    spec = read(tmp_path, train=train, test=content()["test"] | {"img-size": 640}, variants=variants)
    small = resized(spec, 416)
    assert small.train["img-size"] == small.test["img-size"] == 416
    assert small.variants["b"].test["img-size"] == 512 and small.variants["c"].train["img-size"] == 192
    assert small.variants["a"] == spec.variants["a"]
    with pytest.raises(ConfigError, match="expected a number"):
        resized(read(tmp_path), 416)


def test_the_threshold_for_an_occupancy_is_found_on_flat_steps() -> None:
    """Four patches of the grid with peaks 0.2, 0.4, 0.6 and 0.8: half the map needs a threshold of 0.4 to 0.6."""
    prob = torch.full((1, 1, 16, 16), 0.01)
    for value, (y, x) in zip((0.2, 0.4, 0.6, 0.8), ((4, 4), (4, 12), (12, 4), (12, 12)), strict=True):
        prob[0, 0, y, x] = value
    looks = [Look(prob, torch.tensor([[90.0, 90, 100, 100], [20, 20, 30, 30]]))]
    slicer = SlicerConfig(patches_per_side=2, shift="edge")
    threshold, found = at_occupancy(looks, slicer, 0.5)
    assert 0.4 < threshold <= 0.6 and found.occupancy == pytest.approx(0.5)
    assert found.missing_rate == pytest.approx(0.5)
    assert selection(looks, replace(slicer, threshold=0.2)).occupancy == pytest.approx(1.0)


def test_heatmaps_are_those_of_the_model(weights: Path, tiny_dataset: Path) -> None:
    detector = load_model(weights, "cpu")
    dataset = load_config(DatasetConfig, tiny_dataset)
    loader = evaluation_loader(dataset, str(tiny_dataset), "val", 256, 2, 0, False)
    looks = look_at(detector.model, loader, detector.device)  # type: ignore[arg-type]
    assert len(looks) == 4 and all(look.prob.shape == (1, 1, 20, 32) for look in looks)
    slicer = detector.model.config.slicer
    low, high = (at_occupancy(looks, slicer, share)[1].occupancy for share in (0.2, 0.6))
    # Four images of 64 patches or fewer, and peaks of random weights: near it, not at it.
    assert low is not None and high is not None
    assert low == pytest.approx(0.2, abs=0.15) and high == pytest.approx(0.6, abs=0.15) and low < high


def metrics(ap: float) -> dict[str, Any]:
    environment = {
        "cpu": "a processor",
        "threads": 2,
        "torch": "2.0",
        "git_commit": "0123456789abcdef",
        "gpu": None,
    }
    return {
        "detection": {"protocol": "COCO", "ap": ap, "ap50": ap * 2, "ap_small": None},
        "selector": {"missing_rate": 0.1, "empty_rate": 0.7, "occupancy": 0.3},
        "environment": environment,
        "dataset_note": "not comparable",
    }


def test_tables_have_means_over_seeds_and_say_what_is_missing(tmp_path: Path) -> None:
    spec = read(tmp_path, seeds=[0, 1], occupancy=0.3)
    training = {"epochs": 3, "seconds": 60.0, "patches_per_image": 5.0, "provenance": {}}
    results = [
        Result("base", seed, f"base-seed{seed}", ["python train.py"], metrics(ap), training, 0.25, 9.0)
        for seed, ap in ((0, 0.10), (1, 0.12))
    ]
    row = table(spec, results).splitlines()[2]
    assert row.startswith("| `base` | 11.00 (10.00–12.00) | 22.00 (20.00–24.00) | – | 10.00 (10.00–10.00) |")
    assert row.endswith("| 0.250 | 3 | 60 | 9 |  |")
    text = page("data/ablations/x.yaml", spec, results, runs_of(spec, tmp_path)[2:])
    for words in (
        "Not run: soft-seed0, soft-seed1", "Seeds 0, 1", "at commit 0123456789", "not comparable", "30%",
        "python scripts/ablation.py data/ablations/x.yaml", "# base-seed1\npython train.py",
    ):  # fmt: skip
        assert words in text, words


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("ablation", ROOT / SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "ablation", module)
    spec.loader.exec_module(module)
    return module


def test_a_stopped_ablation_goes_on(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Finished variants are left alone; a training that failed is asked for once more, with the same words."""
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(content(), sort_keys=False), encoding="utf-8")
    asked: list[list[str]] = []
    fails = True

    def execute(name: str, words: list[str], log: Path) -> None:
        asked.append([name, *words])
        folder = Path(words[words.index("--project") + 1]) / words[words.index("--name") + 1]
        folder.mkdir(parents=True, exist_ok=True)
        if name == "train.py":
            if fails:
                raise script.AblationError("stopped")
            (folder / "weights").mkdir()
            (folder / "weights" / "best.pt").touch()
            (folder / "config.yaml").write_text("provenance: {environment: {}}")
            with (folder / "results.csv").open("w", newline="") as file:
                csv.writer(file).writerows([["train/seconds", "train/patches_per_image"], [3.0, 2.0], [4, 4]])
        else:
            (folder / "metrics.json").write_text(json.dumps(metrics(0.2)))

    monkeypatch.setattr(script, "execute", execute)
    words = [str(path), "--project", str(tmp_path / "runs"), "--output", str(tmp_path / "out")]
    with pytest.raises(script.AblationError, match="stopped"):
        script.main(words)
    with pytest.raises(script.AblationError, match="run the variant that it is of first"):
        script.main([*words, "--only", "soft"])
    fails = False
    script.main(words)
    assert [line[0] for line in asked] == ["train.py", "train.py", "test.py", "test.py"] and asked[
        0
    ] == asked[1]
    script.main(words)
    assert len(asked) == 4
    saved = json.loads((tmp_path / "out" / "ablation_small.json").read_text())
    assert [result["variant"] for result in saved["results"]] == ["base", "soft"]
    assert saved["results"][0]["training"] == {
        "epochs": 2, "seconds": 7.0, "patches_per_image": 3.0, "provenance": {"environment": {}},
    }  # fmt: skip
    assert saved["results"][1]["training"] is None
    assert "| `soft` | 20.00 |" in (tmp_path / "out" / "ablation_small.md").read_text()


def test_mistakes_on_the_command_line(tmp_path: Path, run_command: RunCommand) -> None:
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(content(), sort_keys=False), encoding="utf-8")
    assert "has base, soft" in run_command(SCRIPT, path, "--only", "hard").err
    assert "leave it out" in run_command(SCRIPT, path, "--minutes", 3).err
    assert "leave --img-size out" in run_command(SCRIPT, path, "--img-size", 320).err


@pytest.mark.slow
def test_a_real_one(tiny_dataset: Path, tmp_path: Path, run_command: RunCommand) -> None:
    """Epochs by time, equal occupancy, a training of its own and its weights tested in another way."""
    train = {"data": str(tiny_dataset), "cfg": str(tiny_dataset.parent / "model.yaml"), "weights": "none",
             "batch-size": 4, "img-size": "96x160", "workers": 0, "device": "cpu", "amp": "off", "notest": True}  # fmt: skip
    test = {"data": str(tiny_dataset), "img-size": 160, "workers": 0, "device": "cpu", "no-report": True}
    spec = {"title": "Tiny", "minutes": 0.05, "occupancy": 0.5, "train": train, "test": test,
            "variants": {"base": {}, "soft": {"trained": "base", "test": {"nms": "soft"}}}}  # fmt: skip
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(spec, sort_keys=False), encoding="utf-8")
    words = [SCRIPT, path, "--project", tmp_path / "runs", "--output", tmp_path / "out"]
    result = run_command(*words)
    assert result.status == 0, result.err
    saved = json.loads((tmp_path / "out" / "ablation_tiny.json").read_text())
    base, soft = saved["results"]
    plan = json.loads((tmp_path / "runs" / "tiny" / "base" / "plan.json").read_text())
    assert base["training"]["epochs"] == plan["epochs"] == max(1, round(3 / (8 * plan["seconds_per_image"])))
    for one in (base, soft):
        assert one["metrics"]["selector"]["occupancy"] == pytest.approx(0.5, abs=0.15)
    assert soft["metrics"]["options"]["nms"] == "soft" and soft["threshold"] == base["threshold"]
