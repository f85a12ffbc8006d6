"""The report says what is true here, and bears the absence of git and of a repository."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision

from utils import environment


def test_report_is_plain_and_true() -> None:
    report = environment.environment_report()
    assert json.loads(json.dumps(report)) == report
    assert report["python"] == platform.python_version()
    assert report["torch"] == torch.__version__
    assert report["numpy"] == np.__version__
    assert str(torchvision.__version__).startswith(str(report["torchvision"]).split("+")[0])
    assert report["opencv"]
    assert report["cpu"]
    assert (report["gpu"] is not None) == torch.cuda.is_available()


def test_head_of_a_measurement() -> None:
    head = environment.measurement_head("scripts/speed.py", ["--cfg", "a b.yaml"], torch.device("cpu"))
    assert head["command"] == "python scripts/speed.py --cfg 'a b.yaml'"
    assert head["device"] == f"{environment.cpu_name()}, {torch.get_num_threads()} threads"
    assert head["environment"] == environment.environment_report()
    assert head["load"] is None or float(str(head["load"])) >= 0


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_commit_and_dirty_flag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*arguments: str) -> str:
        command = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    monkeypatch.setattr(environment, "_ROOT", tmp_path)
    assert environment.environment_report()["git_commit"] is None
    assert environment.environment_report()["git_dirty"] is None
    git("init", "-q")
    assert environment.environment_report()["git_commit"] is None
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-q", "-m", "one")
    (tmp_path / "untracked").write_text("1")
    report = environment.environment_report()
    assert report["git_commit"] == git("rev-parse", "HEAD")
    assert report["git_dirty"] is False
    (tmp_path / "a").write_text("2")
    assert environment.environment_report()["git_dirty"] is True
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert environment.environment_report()["git_commit"] is None
