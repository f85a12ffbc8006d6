"""Run folders: names, races, the latest checkpoint."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from utils.runs import LAST_CHECKPOINT, RunError, latest_run, new_run_dir


def test_names_count_up(tmp_path: Path) -> None:
    project = tmp_path / "runs" / "train"
    made = [new_run_dir(project) for _ in range(3)]
    assert [folder.name for folder in made] == ["exp", "exp2", "exp3"]
    assert all(folder.is_dir() and folder.parent == project for folder in made)
    assert new_run_dir(str(project), "small").name == "small"


def test_a_gap_is_not_filled_and_other_names_do_not_count(tmp_path: Path) -> None:
    for name in ("exp", "exp7", "exp_old", "experiment9", "exp8.txt"):
        (tmp_path / name).mkdir()
    (tmp_path / "exp9").write_text("a file takes a name, too")
    assert new_run_dir(tmp_path).name == "exp10"


def test_exist_ok_uses_the_folder_itself(tmp_path: Path) -> None:
    first = new_run_dir(tmp_path, exist_ok=True)
    (first / "results.csv").write_text("kept")
    assert new_run_dir(tmp_path, exist_ok=True) == first
    assert (first / "results.csv").read_text() == "kept"


def test_processes_at_the_same_time_get_different_folders(tmp_path: Path) -> None:
    with ThreadPoolExecutor(16) as pool:
        made = list(pool.map(lambda _: new_run_dir(tmp_path / "runs"), range(64)))
    assert len({folder.name for folder in made}) == 64


def test_a_name_taken_between_looking_and_making(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_mkdir = Path.mkdir
    stolen: list[Path] = []

    def mkdir(self: Path, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        if self.name == "exp" and not stolen:
            stolen.append(self)
            real_mkdir(self)
        real_mkdir(self, mode, parents, exist_ok)

    monkeypatch.setattr(Path, "mkdir", mkdir)
    assert new_run_dir(tmp_path).name == "exp2"
    assert stolen


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/absolute", "exp/"])
def test_a_name_is_a_plain_folder_name(name: str, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="--project"):
        new_run_dir(tmp_path, name)


@pytest.mark.parametrize("exist_ok", [False, True])
def test_a_file_in_the_way_is_a_clear_error(exist_ok: bool, tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    with pytest.raises(RunError, match="cannot make"):
        new_run_dir(tmp_path / "runs", exist_ok=exist_ok)
    (tmp_path / "exp").write_text("")
    if exist_ok:
        with pytest.raises(RunError, match="cannot make"):
            new_run_dir(tmp_path, exist_ok=True)


def test_latest_run_goes_by_the_checkpoint(tmp_path: Path) -> None:
    for name, when in (("exp", 300), ("exp2", 100), ("exp3", None), ("sub/exp", 200)):
        folder = tmp_path / name
        (folder / "weights").mkdir(parents=True)
        if when is not None:
            (folder / LAST_CHECKPOINT).write_text("")
            os.utime(folder / LAST_CHECKPOINT, (when, when))
    assert latest_run(tmp_path) == tmp_path / "exp"
    os.utime(tmp_path / "sub" / "exp" / LAST_CHECKPOINT, (400, 400))
    assert latest_run(tmp_path) == tmp_path / "sub" / "exp"


def test_nothing_to_resume_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="--resume PATH"):
        latest_run(tmp_path)
    with pytest.raises(RunError, match="--resume PATH"):
        latest_run(tmp_path / "missing")
