"""The converter's command line: models, default paths, refusals, and what the written file says of its source."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from torchvision.models import resnet50
from torchvision.models.detection import retinanet_resnet50_fpn

from models.weights import read_weights
from tests.conftest import ROOT, RunCommand
from tests.models.gpvit_reference import published_state
from utils.checkpoint import load_checkpoint
from utils.published import PUBLISHED

GOLDEN = ROOT / "tests" / "golden" / "yolov5_visdrone" / "checkpoint.pt"


@pytest.fixture
def pretrained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty weights/pretrained/ that the command works in."""
    folder = tmp_path / "weights" / "pretrained"
    folder.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    return folder


def test_a_model_alone_reads_and_writes_the_default_paths(pretrained: Path, run_command: RunCommand) -> None:
    missing = run_command("scripts/model_convert.py", "--model", "retinanet")
    assert missing.status == 1 and "retinanet_resnet50_fpn*.pth" in missing.err
    classifier = pretrained / "resnet50-0676ba61.pth"
    torch.save(resnet50(weights=None).state_dict(), classifier)
    first = run_command("scripts/model_convert.py", "--model", "retinanet")
    assert first.status == 0 and "resnet50-0676ba61.pth" in first.out, first.err
    detector = pretrained / "retinanet_resnet50_fpn_coco-eeacb38b.pth"
    torch.save(retinanet_resnet50_fpn(weights=None, weights_backbone=None).state_dict(), detector)
    second = run_command("scripts/model_convert.py", "--model", "retinanet")
    assert second.status == 0 and "330 of 410 tensors matched" in second.out, "a detector before a classifier"
    written = load_checkpoint(pretrained / "retinanet.pt")
    assert written["config"]["family"] == "retinanet"
    assert written["provenance"]["source"] == detector.name
    assert written["provenance"]["sha256"] == hashlib.sha256(detector.read_bytes()).hexdigest()
    assert "BSD-3-Clause" in written["provenance"]["license"]


def test_every_published_name_belongs_to_a_model() -> None:
    models = {path.stem for path in (ROOT / "models" / "cfg").glob("*.yaml")}
    assert set(PUBLISHED) <= models


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ([], 2, "--model"),
        (["--weights", GOLDEN], 2, "--output"),
        (["--model", "retinanet", "--weights", GOLDEN], 1, "has family retinanet, the file yolov5"),
        (["--model", "yolov5m", "--weights", GOLDEN], 1, "width 0.75, the file 0.125"),
        (["--model", "yolov9", "--weights", GOLDEN], 1, "the file is of the family yolov5"),
        (["--model", "yolov5n", "--output", "x.pt"], 1, "no published file is known"),
        (["--weights", GOLDEN, "--output", GOLDEN], 1, "the source is kept"),
        (["--weights", "nowhere.pt", "--output", "x.pt"], 1, "no such weights file"),
        (["--weights", ".", "--output", "x.pt"], 1, "a folder, not a weights file"),
    ],
)
def test_refusals(
    arguments: list[str], status: int, message: str, pretrained: Path, run_command: RunCommand
) -> None:
    result = run_command("scripts/model_convert.py", *arguments)
    assert result.status == status and message in result.err, result.err
    assert list(pretrained.iterdir()) == []


def test_another_size_of_gpvit_is_refused(pretrained: Path, run_command: RunCommand) -> None:
    """All four sizes have width 1: they differ in their own fields."""
    source, output = pretrained / "source.pth", pretrained / "out.pt"
    torch.save({"state_dict": published_state(24, [4, 4], 1, 4)}, source)
    line = ["--weights", source, "--output", output]
    result = run_command("scripts/model_convert.py", "--model", "gpvit_l2", *line)
    assert result.status == 1 and "has gpvit.channels 348, the file 24" in result.err and not output.exists()
    assert run_command("scripts/model_convert.py", "--model", "gpvit", *line).status == 0


def test_too_little_that_fits_is_an_error_and_writes_nothing(
    pretrained: Path, run_command: RunCommand
) -> None:
    state = retinanet_resnet50_fpn(weights=None, weights_backbone=None).state_dict()
    source, output = pretrained / "source.pth", pretrained / "out.pt"
    torch.save(state, source)
    line = ["--weights", source, "--output", output, "--min-match", 0.9]
    result = run_command("scripts/model_convert.py", *line)
    # torchvision's head and two more pyramid levels are a third of the file.
    assert result.status == 1 and "less than --min-match 90%" in result.err and not output.exists()
    assert run_command("scripts/model_convert.py", *line[:-1], 0.6).status == 0


def test_a_family_is_enough(pretrained: Path, run_command: RunCommand) -> None:
    output = pretrained / "out.pt"
    result = run_command(
        "scripts/model_convert.py", "--model", "yolov5", "--weights", GOLDEN, "--output", output
    )
    assert result.status == 0, result.err
    assert read_weights(output).provenance["license"].startswith("released with ESOD's code: GPL-3.0")
