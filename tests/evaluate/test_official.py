"""From label files to the official numbers: layouts of the three toolkits, names, errors, one step."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from evaluate.arrays import EvaluationError
from evaluate.official import OfficialSplit
from evaluate.official_layout import original_image, read_results, tinyperson_ids
from scripts.data_convert import main
from utils.datasets.tinyperson import ANNOTATIONS
from utils.datasets.uavdt import FRAMES, TRUTH
from utils.datasets.visdrone import CLASS_NAMES

HW = (100, 200)
BOX = (40.0, 20.0, 20.0, 30.0)
"""Left, top, width, height of the only object of every image."""
LINE = "0.25 0.35 0.1 0.3"


def picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    _, data = cv2.imencode(path.suffix, np.full((*HW, 3), 80, dtype=np.uint8))
    path.write_bytes(bytes(data))
    return path


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.fixture
def visdrone(tmp_path: Path) -> Path:
    """Two images, one of them listed as its greyed copy; and label files of a perfect detector."""
    root, part = tmp_path / "VisDrone", "VisDrone2019-DET-test-dev"
    for name in ("a.jpg", "b.jpg", "b_masked.jpg"):
        picture(root / part / "images" / name)
    for name in "ab":
        write(root / part / "annotations" / f"{name}.txt", "40,20,20,30,1,4,0,0\n150,50,40,40,0,0,0,0\n")
    write(root / "split" / "test-dev.txt", f"./{part}/images/a.jpg\n./{part}/images/b_masked.jpg\n")
    write(tmp_path / "labels" / "a.txt", f"3 0.9 0.9 0.1 0.1 0.125\n3 {LINE} 0.5\n")
    write(tmp_path / "labels" / "b_masked.txt", f"3 {LINE} 0.25\n")
    return root


def test_visdrone(visdrone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "numbers.json"
    main(["--dataset", "visdrone", "--root", str(visdrone), "--pred", str(tmp_path / "labels"), "--evaluate",
          "--json", str(out)])  # fmt: skip
    folder = tmp_path / "official" / "DET_results-test-dev"
    assert {path.name for path in folder.iterdir()} == {"a.txt", "b.txt"}
    assert (folder / "a.txt").read_text() == (
        "40.000,20.000,20.000,30.000,0.500000,4,-1,-1\n170.000,85.000,20.000,10.000,0.125000,4,-1,-1\n"
    )
    assert json.loads(out.read_text())["metrics"]["AP"] == pytest.approx(100)
    assert "VisDrone-DET, official protocol: 2 images" in capsys.readouterr().out


def test_uavdt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, labels = tmp_path / "UAVDT", tmp_path / "labels"
    listed = []
    for sequence, frames in (("M0203", 2), ("M0205", 1)):
        for frame in range(1, frames + 1):
            picture(root / FRAMES / sequence / f"img{frame:06d}.jpg")
            listed.append(f"./{FRAMES}/{sequence}/img{frame:06d}.jpg\n")
            empty = (sequence, frame) == ("M0203", 2)
            write(labels / sequence / f"img{frame:06d}.txt", "" if empty else f"2 {LINE} 0.5\n")
        rows = [f"{frame},1,40,20,20,30,1,1,3\n" for frame in range(1, frames + 1)]
        write(root / TRUTH / f"{sequence}_gt_whole.txt", "".join(rows))
    write(root / "split" / "test.txt", "".join(listed))
    out = tmp_path / "numbers.json"
    main(["--dataset", "UAVDT", "--root", str(root), "--pred", str(labels), "--evaluate", "--json", str(out),
          "--name", "mine", "--output", str(tmp_path / "out")])  # fmt: skip
    folder = tmp_path / "out" / "RES_DET" / "mine"
    assert (folder / "M0203.txt").read_text() == "1,-1,40.000,20.000,20.000,30.000,0.500000,1,3\n"
    overall = json.loads(out.read_text())["overall"]
    assert (overall["num_gt"], overall["max_recall"]) == (3, pytest.approx(2 / 3))
    assert "not the whole official test set" in capsys.readouterr().out


def test_tinyperson(tmp_path: Path) -> None:
    root = tmp_path / "TinyPerson"
    image = picture(root / "erase_with_uncertain_dataset" / "test" / "labeled_images" / "a.jpg")
    content = {
        "images": [{"id": 7, "file_name": "labeled_images/a.jpg", "height": HW[0], "width": HW[1]}],
        "categories": [{"id": 1, "name": "person"}],
        "annotations": [
            {"id": 5, "image_id": 7, "category_id": 1, "bbox": list(BOX), "area": 600, "iscrowd": 0}
        ],
    }
    write(root / ANNOTATIONS["test"], json.dumps(content))
    write(root / "split" / "test.txt", f"./{image.relative_to(root).as_posix()}\n")
    write(tmp_path / "labels" / "a.txt", f"0 {LINE} 0.5\n")
    out = tmp_path / "numbers.json"
    main(["--dataset", "TinyPerson", "--root", str(root), "--pred", str(tmp_path / "labels"), "--evaluate",
          "--json", str(out)])  # fmt: skip
    results = json.loads((tmp_path / "official" / "TinyPerson_results.json").read_text())
    assert results == [{"image_id": 7, "category_id": 1, "bbox": list(BOX), "score": 0.5}]
    assert json.loads(out.read_text())["AP50_small"] == pytest.approx(1)


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("a.txt", f"3 {LINE}\n", r"a.txt:1: no score; run test.py with --save-conf"),
        ("a.txt", f"3 {LINE} nan\n", r"a.txt:1: expected class cx cy w h score"),
        ("a.txt", f"\n3 {LINE} high\n", r"a.txt:2: not numbers"),
        ("c.txt", "", r"1 files belong to no image of the split, among them c.txt"),
    ],
)
def test_files_that_cannot_be_converted(
    visdrone: Path, tmp_path: Path, name: str, text: str, message: str
) -> None:
    write(tmp_path / "labels" / name, text)
    with pytest.raises(EvaluationError, match=message):
        main(["--dataset", "VisDrone", "--root", str(visdrone), "--pred", str(tmp_path / "labels")])


def test_missing_results_and_ground_truth(visdrone: Path, tmp_path: Path) -> None:
    (tmp_path / "labels" / "a.txt").unlink()
    arguments = ["--dataset", "VisDrone", "--root", str(visdrone), "--pred"]
    with pytest.raises(EvaluationError, match="no results for 1 of 2 images, among them .*a.jpg"):
        main([*arguments, str(tmp_path / "labels")])
    with pytest.raises(EvaluationError, match="no label files in it"):
        main([*arguments, str(tmp_path / "empty")])
    with pytest.raises(EvaluationError, match=r"val.txt: no such list"):
        main([*arguments, str(tmp_path / "labels"), "--split", "val"])
    with pytest.raises(EvaluationError, match="ground truth of VisDrone test-challenge is not there"):
        OfficialSplit("VisDrone", visdrone, "test-challenge", []).check()
    with pytest.raises(EvaluationError, match="no official protocol for this dataset"):
        OfficialSplit.of_images("", visdrone, [])


def test_the_split_of_images_is_known_by_their_folder(visdrone: Path) -> None:
    images = [visdrone / "VisDrone2019-DET-test-dev" / "images" / name for name in ("a.jpg", "b_masked.jpg")]
    assert OfficialSplit.of_images("VisDrone", visdrone, images).split == "test-dev"
    with pytest.raises(EvaluationError, match="several parts of VisDrone"):
        OfficialSplit.of_images("VisDrone", visdrone, [*images, visdrone / "x" / "images" / "a.jpg"])


def test_what_cannot_be_scored_is_refused_before_anything_is_computed(visdrone: Path, tmp_path: Path) -> None:
    folder = visdrone / "VisDrone2019-DET-test-dev" / "images"
    images = [folder / "a.jpg", folder / "b.jpg"]
    for names in (["object"], ["people", "pedestrian", *CLASS_NAMES[2:]], CLASS_NAMES[:9]):
        with pytest.raises(EvaluationError, match="scores its ten classes, pedestrian, people"):
            OfficialSplit.of_images("VisDrone", visdrone, images, names)
    OfficialSplit.of_images("VisDrone", visdrone, images, [name.title() for name in CLASS_NAMES])
    with pytest.raises(
        EvaluationError, match="annotated here, 2; 1 of them are not in the list, and 0 .*among them b"
    ):
        OfficialSplit.of_images("VisDrone", visdrone, images[:1])
    with pytest.raises(
        EvaluationError, match="0 of them are not in the list, and 1 of the list .*among them c"
    ):
        OfficialSplit.of_images("VisDrone", visdrone, [*images, folder / "c.jpg"])


def test_uavdt_needs_all_frames_of_test_sequences(tmp_path: Path) -> None:
    (tmp_path / TRUTH).mkdir(parents=True)

    def frames(sequence: str, numbers: tuple[int, ...]) -> list[Path]:
        return [tmp_path / FRAMES / sequence / f"img{number:06d}.jpg" for number in numbers]

    with pytest.raises(EvaluationError, match="M0101: expected some of the test sequences"):
        OfficialSplit.of_images("UAVDT", tmp_path, frames("M0101", (1, 2)))
    with pytest.raises(
        EvaluationError, match="M0203: the official protocol scores every frame; 3 of 21 are in the list"
    ):
        OfficialSplit.of_images("UAVDT", tmp_path, frames("M0203", (1, 11, 21)))
    whole = frames("M0203", (1, 2, 3))
    (note,) = OfficialSplit.of_images("UAVDT", tmp_path, whole).notes()
    assert "not the whole official test set" in note
    picture(whole[0])
    copy = picture(whole[0].with_stem("img000001_masked"))
    assert "were greyed" in OfficialSplit.of_images("UAVDT", tmp_path, [copy, *whole[1:]]).notes()[1]


def test_tinyperson_images_of_one_name(tmp_path: Path) -> None:
    def annotations(*names: str) -> Path:
        images = [{"id": number, "file_name": name} for number, name in enumerate(names)]
        return write(tmp_path / ANNOTATIONS["test"], json.dumps({"images": images}))

    images = [tmp_path / "test" / folder / "a.jpg" for folder in ("labeled_images", "pure_bg_images")]
    both = annotations("labeled_images/a.jpg", "pure_bg_images/a.jpg")
    assert tinyperson_ids(images[::-1], both) == {images[0]: 0, images[1]: 1}
    assert tinyperson_ids(images[:1], annotations("a.jpg")) == {images[0]: 0}
    both = annotations("x/a.jpg", "y/a.jpg")
    with pytest.raises(EvaluationError, match="has 2 images of that name"):
        tinyperson_ids(images[:1], both)
    with pytest.raises(EvaluationError, match="b.jpg: not an image of"):
        OfficialSplit.of_images("TinyPerson", tmp_path, [tmp_path / "train" / "b.jpg"])


def test_copies_stand_for_their_originals(visdrone: Path, tmp_path: Path) -> None:
    folder = visdrone / "VisDrone2019-DET-test-dev" / "images"
    assert original_image(folder / "b_masked.jpg") == folder / "b.jpg"
    alone = picture(tmp_path / "c_masked.jpg")
    assert original_image(alone) == alone
    bracket = picture(tmp_path / "x[1].jpg")
    assert original_image(picture(tmp_path / "x[1]_masked.jpg")) == bracket
    found = read_results(tmp_path / "labels", [folder / "a.jpg", folder / "b_masked.jpg"])
    assert [result.image.name for result in found] == ["a.jpg", "b.jpg"]
    np.testing.assert_allclose(found[1].xywh, [BOX])
    assert found[0].score.tolist() == [0.5, 0.125]
