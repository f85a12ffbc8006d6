"""scripts/data_prepare.py on every kind of dataset, from its published layout to what training reads."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from scripts import anchors as anchors_script
from scripts.data_prepare import main
from utils.config import DatasetConfig
from utils.datasets.base import PrepareError
from utils.datasets.uavdt import FRAMES, TRUTH
from utils.images import read_image
from utils.labels import label_path, load_labels
from utils.splits import resolve_split
from utils.typed_data import ConfigError, load_config

HW = (54, 102)
Snapshot = dict[str, tuple[bytes, int]]


def noise(path: Path, seed: int, hw: tuple[int, int] = HW) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (*hw, 3), dtype=np.uint8)
    _, data = cv2.imencode(path.suffix, cv2.GaussianBlur(pixels, (9, 9), 0))
    path.write_bytes(bytes(data))
    return path


def snapshot(root: Path) -> Snapshot:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


@pytest.fixture
def prepare(tmp_path: Path) -> Callable[..., int]:
    def run(*arguments: object) -> int:
        fixed = ["--workers", "1", "--detect-list", str(tmp_path / "list.txt")]
        return main([*fixed, *map(str, arguments)])

    return run


@pytest.fixture
def uavdt(tmp_path: Path) -> Path:
    root = tmp_path / "UAVDT"
    for sequence in ("M0101", "M0201", "M0203"):
        rows = [f"{frame},1,{10 + frame},20,12,8,1,1,{1 + frame % 3}" for frame in range(1, 23)]
        (root / TRUTH).mkdir(parents=True, exist_ok=True)
        (root / TRUTH / f"{sequence}_gt_whole.txt").write_text("\n".join(rows))
        (root / TRUTH / f"{sequence}_gt_ignore.txt").write_text("3,1,60,10,30,30,1,-1,-1\n")
        for frame in range(1, 23):
            noise(root / FRAMES / sequence / f"img{frame:06d}.jpg", frame)
    return root


def test_uavdt(uavdt: Path, prepare: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert prepare("--dataset", "uavdt", "--root", uavdt) == 0
    told = capsys.readouterr().out
    assert "anchors of data/uavdt.yaml at 1280 pixels: best possible recall" in told
    assert {path.name for path in (uavdt / "split").iterdir()} == {
        f"{split}{thin}.txt" for split in ("train", "valid", "test") for thin in ("", "_ds")
    }
    assert [len(lines(uavdt / "split" / f"test{thin}.txt")) for thin in ("", "_ds")] == [22, 3]
    thinned = [Path(line).name for line in lines(uavdt / "split" / "test_ds.txt")]
    assert thinned == ["img000001.jpg", "img000011.jpg", "img000021.jpg"]
    third = uavdt / lines(uavdt / "split" / "test.txt")[2]
    assert third.name == "img000003_masked.jpg"
    assert abs(read_image(third)[12:38, 62:88].astype(int) - 114).max() <= 8
    dataset = load_config(DatasetConfig, Path("data") / "uavdt.yaml")
    images = resolve_split(
        DatasetConfig(path=str(uavdt), train="split/train.txt", nc=3, names=dataset.names),
        uavdt / "x.yaml",
        "train",
    )
    found = load_labels(images, 3, progress=False)
    assert (found.report.images, found.report.objects, found.report.problems) == (22, 22, [])
    assert set(found.report.per_class) == {0, 1, 2}
    before = snapshot(uavdt)
    assert prepare("--dataset", "UAVDT", "--root", uavdt) == 0
    assert {k: v for k, v in snapshot(uavdt).items() if ".cache." not in k} == {
        k: v for k, v in before.items() if ".cache." not in k
    }


def test_uavdt_with_one_class(uavdt: Path, prepare: Callable[..., int]) -> None:
    assert prepare("--dataset", "UAVDT", "--root", uavdt, "--single-class") == 0
    texts = [label_path(uavdt / line).read_text() for line in lines(uavdt / "split" / "train.txt")]
    assert {text[0] for text in texts} == {"0"}
    assert load_config(DatasetConfig, Path("data") / "uavdt_single.yaml").names == ["vehicle"]
    assert json.loads((uavdt / "report.json").read_text())["classes"] == ["vehicle"]


def test_tinyperson(tmp_path: Path, prepare: Callable[..., int]) -> None:
    root = tmp_path / "TinyPerson"
    for split, name in (("train", "tiny_set_train_all_erase"), ("test", "tiny_set_test_all")):
        noise(root / "erase_with_uncertain_dataset" / split / "labeled_images" / "a.jpg", len(split))
        noise(root / "erase_with_uncertain_dataset" / split / "pure_bg_images" / "b.jpg", 9 + len(split))
        content = {
            "images": [
                {"id": 0, "file_name": "labeled_images/a.jpg", "height": HW[0], "width": HW[1]},
                {"id": 1, "file_name": "pure_bg_images/b.jpg", "height": HW[0], "width": HW[1]},
            ],
            "annotations": [
                {
                    "id": 0,
                    "image_id": 0,
                    "category_id": 1,
                    "bbox": [51, 27, 10.2, 5.4],
                    "area": 55,
                    "ignore": False,
                },
                {
                    "id": 1,
                    "image_id": 0,
                    "category_id": 1,
                    "bbox": [5, 5, 30, 30],
                    "area": 900,
                    "ignore": True,
                },
            ],
            "categories": [{"id": 1, "name": "person"}],
        }
        path = root / "mini_annotations" / f"{name}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content))
    assert prepare("--dataset", "TinyPerson", "--root", root) == 0
    listed = [root / line for line in lines(root / "split" / "train.txt")]
    assert [path.name for path in listed] == ["a.jpg", "b.jpg"]
    assert label_path(listed[0]).read_text() == "0 0.550000 0.550000 0.100000 0.100000\n"
    assert label_path(listed[1]).read_text() == ""
    assert len(lines(root / "split" / "test.txt")) == 2
    assert not list(root.rglob("*_masked*"))


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    root = tmp_path / "Meine Fotos é"
    for number in range(10):
        noise(root / "images" / f"{number}.jpg", number)
    images = [{"id": n, "file_name": f"{n}.jpg", "height": HW[0], "width": HW[1]} for n in range(10)]
    rows = [{"id": n, "image_id": n, "category_id": 5, "bbox": [2 * n, 10, 10, 9]} for n in range(10)]
    categories = [{"id": 5, "name": "boat"}]
    (root / "a.json").write_text(
        json.dumps({"images": images, "annotations": rows, "categories": categories})
    )
    return root


def test_own_images_with_coco_annotations(coco: Path, prepare: Callable[..., int]) -> None:
    arguments = ("--dataset", "coco", "--images", coco / "images", "--annotations", coco / "a.json")
    assert prepare(*arguments) == 0
    yaml_path = coco / "dataset.yaml"
    dataset = load_config(DatasetConfig, yaml_path)
    assert (dataset.nc, dataset.names) == (1, ["boat"])
    assert [len(resolve_split(dataset, yaml_path, split)) for split in ("train", "val")] == [8, 2]
    assert len(list((coco / "labels").glob("*.txt"))) == len(list((coco / "heatmaps").glob("*.npz"))) == 10
    yaml_path.write_text(yaml_path.read_text() + "note: mine\n")
    before = snapshot(coco)
    assert prepare(*arguments) == 0
    assert snapshot(coco) == before
    yaml_path.write_text(yaml_path.read_text().replace("boat", "ship"))
    with pytest.raises(PrepareError, match=r"names the classes ship, the annotations boat.*--force"):
        prepare(*arguments)
    assert prepare(*arguments, "--force") == 0
    assert "note: mine" not in yaml_path.read_text()


def test_own_images_with_darknet_labels_stay_as_they_are(coco: Path, prepare: Callable[..., int]) -> None:
    for number in range(10):
        label = coco / "labels" / f"{number}.txt"
        label.parent.mkdir(exist_ok=True)
        label.write_text("1 0.5 0.5 0.1 .25\r\n")
    labels = snapshot(coco / "labels")
    assert prepare("--dataset", "yolo", "--images", coco / "images", "--names", "car", "boat") == 0
    assert snapshot(coco / "labels") == labels
    assert load_config(DatasetConfig, coco / "dataset.yaml").names == ["car", "boat"]
    assert json.loads((coco / "report.json").read_text())["splits"]["train"]["boxes_per_class"] == {
        "car": 0,
        "boat": 8,
    }
    (coco / "labels" / "3.txt").unlink()
    assert prepare("--dataset", "yolo", "--images", coco / "images", "--names", "car", "boat") == 1


def test_the_report_has_a_picture_and_tells_duplicates(
    coco: Path, prepare: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--dataset", "coco", "--images", coco / "images", "--annotations", coco / "a.json")
    assert prepare(*arguments) == 0
    in_train, in_val = (coco / lines(coco / "split" / f"{split}.txt")[0] for split in ("train", "val"))
    in_val.write_bytes(in_train.read_bytes())
    capsys.readouterr()
    assert prepare(*arguments) == 0
    told = capsys.readouterr().err
    assert "the same file as" in told
    assert "one is in train and one in val" in told
    picture = read_image(coco / "report.png")
    assert min(picture.shape[:2]) > 1000
    train = json.loads((coco / "report.json").read_text())["splits"]["train"]
    assert train["boxes_per_size"]["8–16 px"] == train["objects"] == 8
    assert train["boxes_per_class_and_size"]["boat"]["8–16 px"] == 8


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            ["--dataset", "VisDrone", "--single-class"],
            "--single-class is an option of UAVDT, not of VisDrone",
        ),
        (
            ["--dataset", "yolo", "--images", ".", "--annotations", "a.json"],
            "--annotations is an option of coco",
        ),
        (["--dataset", "coco", "--images", "."], "needs --annotations"),
        (["--dataset", "yolo"], "needs --images"),
        (["--dataset", "UAVDT", "--heatmap", "sam"], "--heatmap sam needs --sam-weights"),
        (["--dataset", "UAVDT", "--heatmap", "gaussian", "--sam-weights", "x.pth"], "leave one of them out"),
    ],
)
def test_options_that_contradict_each_other(arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        main(arguments)


def test_a_folder_that_cannot_be_written(coco: Path, prepare: Callable[..., int]) -> None:
    if os.geteuid() == 0:
        (coco / "split").write_text("a file in the place of a folder")  # the administrator may write anywhere
    else:
        coco.chmod(0o555)
    with pytest.raises(PrepareError, match="cannot write .*what has been prepared is kept"):
        prepare("--dataset", "coco", "--images", coco / "images", "--annotations", coco / "a.json")


def test_anchors_are_printed_and_nothing_changes(
    coco: Path, prepare: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(10):
        label = coco / "labels" / f"{number}.txt"
        label.parent.mkdir(exist_ok=True)
        label.write_text(f"0 0.5 0.5 {0.02 * (number + 1)} 0.1\n")
    prepare("--dataset", "yolo", "--images", coco / "images")
    before = (coco / "dataset.yaml").read_bytes()
    capsys.readouterr()
    anchors_script.main(["--data", str(coco / "dataset.yaml"), "--img-size", "640", "--num", "6"])
    printed = capsys.readouterr().out
    assert printed.startswith("anchors:\n")
    assert "now: best possible recall" in printed
    assert "  640:\n    - [[" in printed
    assert (coco / "dataset.yaml").read_bytes() == before
