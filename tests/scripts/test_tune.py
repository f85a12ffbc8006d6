"""scripts/tune.py: what it searches, what it refuses, when it stops a training, and that it goes on."""

from __future__ import annotations

import csv
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT, RunCommand
from tests.engine.test_training import options
from utils.config import HypConfig
from utils.typed_data import ConfigError, load_config

SCRIPT = "scripts/tune.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tune", ROOT / SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["tune"] = module
    spec.loader.exec_module(module)
    return module


def test_the_space_for_adamw_holds_the_hyp_files_for_it(script: ModuleType) -> None:
    space = script.read_space(ROOT / "data" / "hyps" / "search_adamw.yaml")
    for file in ("finetune.yaml", "quickstart.yaml"):
        hyp = load_config(HypConfig, ROOT / "data" / "hyps" / file)
        for name, limits in space.items():
            assert limits.low <= getattr(hyp, name) <= limits.high, f"{file}: {name} is outside"


def test_the_shipped_space_is_readable(script: ModuleType) -> None:
    space = script.read_space(ROOT / "data" / "hyps" / "search.yaml")
    assert space["lr0"] == script.Range(0.001, 0.03, True) and not space["mosaic"].log
    default = HypConfig()
    for name, limits in space.items():
        assert limits.low <= getattr(default, name) <= limits.high, f"{name}: the default is outside"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"lr": [0.1, 1.0]}, "'lr' is not one of"),
        ({"heatmap_loss": [0, 1]}, "'heatmap_loss' is not one of"),
        ({"lr0": [1.0, 0.1]}, "expected [least, largest]"),
        ({"lr0": [0.0, 0.1, "log"]}, "least > 0"),
        ({"lr0": 0.1}, "lr0 is 0.1"),
        ({"lr0": [0.1, "much"]}, "expected [least, largest]"),
    ],
)
def test_spaces_that_are_none(
    script: ModuleType, tmp_path: Path, content: dict[str, Any], message: str
) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError) as raised:
        script.read_space(path)
    assert message in str(raised.value)


def test_options_that_the_search_sets(script: ModuleType) -> None:
    assert script.split_words(["--trials", "3", "--", "--epochs", "2"]) == (
        ["--trials", "3"],
        ["--epochs", "2"],
    )
    assert script.split_words(["--trials", "3"]) == (["--trials", "3"], [])
    script.check_training_options(["--epochs", "3", "--rect"])
    with pytest.raises(ConfigError, match="--project, --notest cannot be given"):
        script.check_training_options(["--project", "x", "--notest"])


def test_without_optuna_it_says_what_to_install(
    run_command: RunCommand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "optuna" else real(name, *a)
    )
    result = run_command(SCRIPT, "--project", tmp_path)
    assert result.status == 1 and "pip install optuna" in result.err


def test_scores_of_a_table(script: ModuleType, tmp_path: Path) -> None:
    table = tmp_path / "results.csv"
    assert script.scores(table) == []
    table.write_text("epoch,train/box_loss,val/AP\n0,1.0,0.1\n1,1.0,nan\n2,1.0,\n")
    assert script.scores(table) == [(0, 0.1), (1, 0.0), (2, 0.0)]


class FakeProcess:
    """A training that writes an epoch each time it is looked at."""

    def __init__(self, table: Path, scores: list[float]) -> None:
        self.table, self.scores, self.looks = table, scores, 0
        self.returncode = 0

    def poll(self) -> int | None:
        self.looks += 1
        rows = "".join(f"{epoch},{score}\n" for epoch, score in enumerate(self.scores[: self.looks]))
        self.table.write_text("epoch,val/AP\n" + rows)
        return None if self.looks <= len(self.scores) else 0


def test_pruning_epoch_by_epoch(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The best score so far is reported; a hopeless trial ends while its training still runs."""
    optuna = pytest.importorskip("optuna")
    monkeypatch.setattr(script, "POLL_S", 0.0)
    study = script.open_study(tmp_path, 0, 1, 0)
    good = study.ask()
    table = tmp_path / "results.csv"
    assert script.watch(FakeProcess(table, [0.2, 0.5, 0.4]), good, table) == 0.5
    study.tell(good, 0.5)
    assert study.trials[0].intermediate_values == {0: 0.2, 1: 0.5, 2: 0.5}
    poor = study.ask()
    process = FakeProcess(table, [0.1, 0.1, 0.1])
    with pytest.raises(optuna.TrialPruned):
        script.watch(process, poor, table)
    assert process.looks < 3
    study.tell(poor, state=optuna.trial.TrialState.PRUNED)
    assert [t.number for t in script.finished(script.open_study(tmp_path, 0, 1, 0))] == [0, 1], (
        "from the file"
    )


def test_the_first_trial_is_the_file_given(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("optuna")
    hyp, space = tmp_path / "hyp.yaml", tmp_path / "space.yaml"
    hyp.write_text("{lr0: 0.004, box: 0.9}")
    space.write_text("{lr0: [0.001, 0.01, log], box: [0.02, 0.1], scale: [0.0, 0.6]}")
    tried: list[dict[str, float]] = []

    def run_trial(
        trial: Any, folder: Path, base: HypConfig, ranges: dict[str, Any], train: list[str]
    ) -> float:
        tried.append(
            {name: trial.suggest_float(name, r.low, r.high, log=r.log) for name, r in ranges.items()}
        )
        return 0.1

    monkeypatch.setattr(script, "run_trial", run_trial)
    line = ["--project", str(tmp_path), "--name", "s", "--space", str(space), "--hyp", str(hyp)]
    script.main([*line, "--trials", "1"])
    script.main([*line, "--trials", "3"])
    assert tried[0] == {"lr0": 0.004, "box": 0.1, "scale": HypConfig().scale}
    assert len(tried) == 3 and tried[0] not in tried[1:]


@pytest.mark.slow
def test_a_real_search_goes_on(run_command: RunCommand, tiny_dataset: Path, tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    space = tmp_path / "space.yaml"
    space.write_text("lr0: [0.001, 0.01, log]\n")
    line = options(tiny_dataset, tmp_path, epochs=1)
    at = line.index("--project")
    train = line[:at] + line[at + 2 :]
    own = [
        "--project",
        tmp_path,
        "--name",
        "search",
        "--space",
        space,
        "--hyp",
        ROOT / "data/hyps/finetune.yaml",
    ]
    first = run_command(SCRIPT, *own, "--trials", 1, "--", *train)
    assert first.status == 0, first.err
    second = run_command(SCRIPT, *own, "--trials", 2, "--", *train)
    assert second.status == 0, second.err
    with (tmp_path / "search" / "trials.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["trial"] for row in rows] == ["0", "1"] and rows[0]["lr0"] != rows[1]["lr0"]
    best = load_config(HypConfig, tmp_path / "search" / "best.yaml")
    assert f"{best.lr0:.6g}" in {row["lr0"] for row in rows}
    assert (tmp_path / "search" / "trial001" / "weights" / "last.pt").is_file()
