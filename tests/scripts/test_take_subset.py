"""scripts/take_subset.py: named images of VisDrone as a dataset of their own."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.conftest import ROOT, RunCommand

SCRIPT = "scripts/take_subset.py"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Five images in VisDrone's layout, in two splits."""
    for split, names in (("train", "ab"), ("val", "cde")):
        folder = tmp_path / "VisDrone" / f"VisDrone2019-DET-{split}"
        for kind in ("images", "annotations"):
            (folder / kind).mkdir(parents=True)
        for number, name in enumerate(names):
            cv2.imwrite(str(folder / "images" / f"{name}.jpg"), np.full((64, 96, 3), 40 * number, np.uint8))
            (folder / "annotations" / f"{name}.txt").write_text(f"10,10,{8 + number},8,1,4,0,0\n")
    return tmp_path / "VisDrone"


@pytest.fixture
def line(source: Path, tmp_path: Path) -> list[object]:
    """Arguments: d and a are trained on, c is tested on."""
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "train.txt").write_text("d\na\n")
    (tmp_path / "lists" / "val.txt").write_text("c\n\n")
    return ["--source", source, "--output", tmp_path / "subset", "--lists", tmp_path / "lists"]


def files_of(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("links", [True, False], ids=["hard links", "copies"])
def test_named_images_of_any_split(
    line: list[object],
    source: Path,
    tmp_path: Path,
    run_command: RunCommand,
    monkeypatch: pytest.MonkeyPatch,
    links: bool,
) -> None:
    if not links:

        def refuse(*_: object) -> None:
            raise OSError("no links here")

        monkeypatch.setattr(os, "link", refuse)
    result = run_command(SCRIPT, *line)
    assert result.status == 0, result.err
    taken, given = files_of(tmp_path / "subset"), files_of(source)
    wanted = {"train": {"d": "val", "a": "train"}, "val": {"c": "val"}}
    assert taken == {
        f"VisDrone2019-DET-{split}/{kind}/{name}{suffix}": given[
            f"VisDrone2019-DET-{old}/{kind}/{name}{suffix}"
        ]
        for split, names in wanted.items()
        for name, old in names.items()
        for kind, suffix in (("images", ".jpg"), ("annotations", ".txt"))
    }
    assert "2 images, 2 of them new" in result.out

    (tmp_path / "subset" / "VisDrone2019-DET-val" / "annotations" / "c.txt").unlink()
    again = run_command(SCRIPT, *line)
    assert (
        again.status == 0
        and "2 images, 0 of them new" in again.out
        and "1 images, 1 of them new" in again.out
    )
    assert files_of(tmp_path / "subset") == taken
    assert files_of(source) == given

    root = tmp_path / "subset"
    prepared = run_command(
        "scripts/data_prepare.py", "--dataset", "VisDrone", "--root", root, "--detect-list", root / "list.txt"
    )
    assert prepared.status == 0, prepared.err
    assert [Path(row).stem for row in (root / "split" / "train.txt").read_text().split()] == ["a", "d"]


@pytest.mark.parametrize(
    ("names", "told"),
    [
        ("a\nx\ny\n", "2 of the named images are not there, such as x, y"),
        ("", "no names in it"),
        ("a\na\n", "a name twice"),
    ],
)
def test_lists_that_cannot_be_followed(
    line: list[object], tmp_path: Path, run_command: RunCommand, names: str, told: str
) -> None:
    (tmp_path / "lists" / "train.txt").write_text(names)
    result = run_command(SCRIPT, *line)
    assert result.status == 1 and told in result.err, result.err
    assert not (tmp_path / "subset").exists()


def test_a_missing_list(line: list[object], tmp_path: Path, run_command: RunCommand) -> None:
    (tmp_path / "lists" / "val.txt").unlink()
    result = run_command(SCRIPT, *line)
    assert result.status == 1 and "val.txt: cannot be read" in result.err


def test_the_lists_of_the_experiments() -> None:
    train, val = (
        (ROOT / "data" / "subsets" / "visdrone" / f"{split}.txt").read_text().split()
        for split in ("train", "val")
    )
    assert (len(set(train)), len(set(val))) == (379, 118)
    assert not set(train) & set(val)
