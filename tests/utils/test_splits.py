"""utils/splits.py: from a dataset YAML to image files."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import ROOT
from utils.config import DatasetConfig
from utils.labels import DataError
from utils.splits import dataset_fingerprint, dataset_root, dataset_yaml_of, resolve_split
from utils.typed_data import load_config


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A dataset with two images, one of them with a masked twin, and a YAML beside its folder."""
    folder = tmp_path / "set"
    touch(folder / "images" / "a.jpg", folder / "images" / "b.jpg", folder / "images" / "b_masked.jpg")
    return folder


def names(config: DatasetConfig, root: Path, split: str = "train") -> list[str]:
    return [path.name for path in resolve_split(config, root.parent / "set.yaml", split)]


def test_folder_uses_the_masked_twin(root: Path) -> None:
    assert names(DatasetConfig(path="set", train="images"), root) == ["a.jpg", "b_masked.jpg"]


@pytest.mark.parametrize("prefix", ["images/", "./images/", "../images/", "{absolute}/images/"])
def test_list_is_used_as_it_is(root: Path, prefix: str) -> None:
    prefix = prefix.format(absolute=root)
    touch(root / "split" / "train.txt")
    (root / "split" / "train.txt").write_text(f"# mine\n{prefix}b.jpg\r\n\n{prefix}a.jpg\n")
    images = resolve_split(
        DatasetConfig(path="set", train="split/train.txt"), root.parent / "x.yaml", "train"
    )
    assert [path.name for path in images] == ["b.jpg", "a.jpg"] and all(path.is_file() for path in images)


def test_list_of_both_with_repeats(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "extra.txt").write_text("images/a.jpg\nimages/b.jpg\n")
    config = DatasetConfig(path="set", val=["images", "extra.txt"])
    assert names(config, root, "val") == ["a.jpg", "b_masked.jpg", "b.jpg"]
    assert "1 images are listed twice" in capsys.readouterr().out


def test_listed_files_that_are_missing_stay_for_the_report(root: Path) -> None:
    (root / "t.txt").write_text("images/a.jpg\nimages/none.jpg\n")
    assert names(DatasetConfig(path="set", train="t.txt"), root) == ["a.jpg", "none.jpg"]


def test_path_beside_the_yaml_or_here(root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert dataset_root(DatasetConfig(path="set"), root.parent / "set.yaml") == root
    assert dataset_root(DatasetConfig(path=str(root)), "anywhere/set.yaml") == root
    monkeypatch.chdir(tmp_path)
    assert dataset_root(DatasetConfig(path="set"), "elsewhere/set.yaml") == Path("set")
    assert dataset_root(DatasetConfig(), root / "set.yaml") == root


@pytest.mark.parametrize(
    "config, message",
    [
        (DatasetConfig(path="VisDrone", train="x"), r"looked for .*VisDrone.*--dataset VisDrone$"),
        (DatasetConfig(path="nowhere", train="x"), r"looked for .*nowhere.*Check 'path'"),
        (DatasetConfig(path="set"), "no 'train' entry"),
        (DatasetConfig(path="set", train=[]), "no 'train' entry"),
        (DatasetConfig(path="set", train="split/train.txt"), r"no such list: .*split/train\.txt"),
        (DatasetConfig(path="set", train="images/a.jpg"), "neither a folder nor a .txt list"),
        (DatasetConfig(path="set", train="empty"), r"no images in .*empty \(looked for"),
        (DatasetConfig(path="set", train="blank.txt"), r"the list .*blank\.txt is empty"),
        (
            DatasetConfig(path="set", train="lost.txt"),
            r"none of the 2 images in .*lost\.txt exists, e\.g\. .*x1\.jpg",
        ),
        (DatasetConfig(path="set", train="binary.txt"), r"binary\.txt: cannot be read as a list"),
    ],
)
def test_errors_say_what_was_looked_for(
    root: Path, config: DatasetConfig, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root)  # where no dataset is, whatever lies in the working directory of the tests
    (root / "empty").mkdir()
    (root / "blank.txt").write_text("\n# nothing\n")
    (root / "lost.txt").write_text("images/x1.jpg\nimages/x2.jpg\n")
    (root / "binary.txt").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(DataError, match=message):
        names(config, root)


def test_unknown_split(root: Path) -> None:
    with pytest.raises(DataError, match="unknown split 'tets'; known: train, val, test"):
        names(DatasetConfig(path="set", train="images"), root, "tets")


def test_fingerprint_follows_content_not_place(tmp_path: Path) -> None:
    def build(
        folder: Path, label: str = "0 0.5 0.5 0.1 0.1", pixels: bytes = b"abc", name: str = "a.jpg"
    ) -> str:
        touch(folder / "images" / name, folder / "labels" / "a.txt")
        (folder / "images" / name).write_bytes(pixels)
        (folder / "labels" / "a.txt").write_text(label)
        return dataset_fingerprint([folder / "images" / name])

    first = build(tmp_path / "1")
    assert build(tmp_path / "2") == first
    assert len({first, build(tmp_path / "3", label="1 0.5 0.5 0.1 0.1"), build(tmp_path / "4", pixels=b"abcd"),
                build(tmp_path / "5", name="b.jpg")}) == 4  # fmt: skip
    assert dataset_fingerprint([tmp_path / "missing.jpg"]) != first


@pytest.mark.parametrize(
    "name, classes, size",
    [("visdrone", 10, 1536), ("uavdt", 3, 1280), ("tinyperson", 1, 2048), ("sample", 10, 960)],
)
def test_shipped_dataset_files(request: pytest.FixtureRequest, name: str, classes: int, size: int) -> None:
    config = load_config(DatasetConfig, request.config.rootpath / "data" / f"{name}.yaml")
    assert config.nc == classes and all((config.train, config.val, config.test))
    assert list(config.anchors) == [size]
    areas = [w * h for level in config.anchors_for(size) for w, h in level]
    assert len(areas) == 9 and areas == sorted(areas)
    assert bool(config.note) == (name == "sample")


@pytest.mark.parametrize(
    ("root", "usual", "file"),
    [
        ("UAVDT", "uavdt", "uavdt"),
        ("UAVDT", "uavdt_single", "uavdt_single"),
        ("./sample", "visdrone", "sample"),
        ("/elsewhere/VisDrone", "visdrone", "visdrone"),
    ],
)
def test_the_file_of_a_folder(root: str, usual: str, file: str) -> None:
    assert dataset_yaml_of(Path(root), ROOT / f"data/{usual}.yaml") == ROOT / f"data/{file}.yaml"


def test_files_that_are_no_datasets_of_these_classes_are_passed_over(tmp_path: Path) -> None:
    usual = tmp_path / "usual.yaml"
    usual.write_text("{path: pictures, nc: 2, names: [a, b]}")
    (tmp_path / "coco.yaml").write_text("{path: mine, names: {0: person}}")
    (tmp_path / "one.yaml").write_text("{path: mine, nc: 1, names: [a]}")
    assert dataset_yaml_of(Path("mine"), usual) == usual
    (tmp_path / "same.yaml").write_text("{path: mine, nc: 2, names: [a, b]}")
    assert dataset_yaml_of(Path("mine"), usual) == tmp_path / "same.yaml"
