"""scripts/data_prepare.py on small drawn datasets, and on a few real images where they are at hand."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from scripts.data_prepare import from_repository, main
from utils.heatmap import heatmap_path, load_heatmap, render_heatmap
from utils.images import read_image
from utils.labels import label_path, load_labels

VAL, TRAIN = "VisDrone2019-DET-val", "VisDrone2019-DET-train"
HW = (96, 160)
PLAIN = "10,20,30,40,1,4,0,0\n100,50,8,8,1,1,0,0\n"
WITH_REGION = PLAIN + "60,0,40,30,0,0,0,0\n120,60,20,20,0,11,0,0\n95,20,12,12,1,2,0,0\n"

IMAGES_TO_KILL = 120
"""So many that the run is not over before it is killed."""

Snapshot = dict[str, tuple[bytes, int]]


def add_image(root: Path, split: str, name: str, text: str | None = PLAIN) -> Path:
    image = root / split / "images" / name
    image.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(len(name)).integers(0, 255, (*HW, 3), dtype=np.uint8)
    _, data = cv2.imencode(image.suffix, cv2.GaussianBlur(noise, (9, 9), 0))
    image.write_bytes(bytes(data))
    if text is not None:
        annotation = root / split / "annotations" / f"{image.stem}.txt"
        annotation.parent.mkdir(parents=True, exist_ok=True)
        annotation.write_text(text)
    return image


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Two splits: plain, with ignored regions, without objects; in a folder whose name is not plain."""
    root = tmp_path / "Luft bilder é"
    add_image(root, VAL, "b.jpg")
    add_image(root, VAL, "ignoré 1.jpg", WITH_REGION)
    add_image(root, VAL, "c.png", WITH_REGION)
    add_image(root, VAL, "empty.jpg", "")
    add_image(root, TRAIN, "a.jpg")
    return root


@pytest.fixture
def prepare(tmp_path: Path) -> Callable[..., int]:
    def run(root: Path, *more: str) -> int:
        fixed = ["--dataset", "VisDrone", "--workers", "1", "--detect-list", str(tmp_path / "list.txt")]
        return main([*fixed, "--root", str(root), *more])

    return run


def snapshot(root: Path) -> Snapshot:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def test_everything_is_made(dataset: Path, prepare: Callable[..., int], tmp_path: Path) -> None:
    assert prepare(dataset) == 0
    listed = [
        f"./{VAL}/images/{name}" for name in ("b.jpg", "c_masked.jpg", "empty.jpg", "ignoré 1_masked.jpg")
    ]
    assert lines(dataset / "split" / "val.txt") == listed
    assert lines(dataset / "split" / "train.txt") == [f"./{TRAIN}/images/a.jpg"]
    assert not (dataset / "split" / "test-dev.txt").exists()
    for line in listed:
        image = dataset / line
        rows = [line.split() for line in lines(label_path(image))]
        boxes = np.array(rows, dtype=np.float64).reshape(-1, 5)
        strict = (
            dataset / VAL / "labels" / f"{image.stem}.txt"
        )  # what tools look for that know no masked twins
        assert strict.read_text() == label_path(image).read_text()
        assert len(boxes) == {"b": 2, "empty": 0}.get(image.stem, 3)
        heatmap = load_heatmap(heatmap_path(image))
        assert (heatmap.mode, heatmap.tau, heatmap.image_hw) == ("gaussian", 0.5, HW)
        expected = render_heatmap(boxes[:, 1:] * (HW[1], HW[0], HW[1], HW[0]), HW, stride=4)
        np.testing.assert_allclose(heatmap.values / 255, expected, atol=1 / 255 + 1e-3)
    assert lines(dataset / VAL / "labels" / "b.txt")[0] == "3 0.156250 0.416667 0.187500 0.416667"
    chosen = [Path(line) for line in lines(tmp_path / "list.txt")]
    assert chosen == [dataset / line for line in listed]


def test_ignored_regions_are_grey_except_for_objects(dataset: Path, prepare: Callable[..., int]) -> None:
    original = (dataset / VAL / "images" / "c.png").read_bytes()
    prepare(dataset)
    before = read_image(dataset / VAL / "images" / "c.png").astype(int)
    after = read_image(dataset / VAL / "images" / "c_masked.jpg").astype(int)
    assert abs(after[:16, 64:88] - 114).max() <= 6  # the ignored region
    assert abs(after[64:76, 124:136] - 114).max() <= 6  # others
    # An object reaches into the region: its pixels stay; and so do those outside.
    assert abs(after[20:30, 95:100] - before[20:30, 95:100]).mean() < 12
    assert abs(after[40:, :60] - before[40:, :60]).mean() < 6
    assert (dataset / VAL / "images" / "c.png").read_bytes() == original


def test_the_data_loader_finds_all_of_it(dataset: Path, prepare: Callable[..., int]) -> None:
    prepare(dataset)
    images = [dataset / line for line in lines(dataset / "split" / "val.txt")]
    report = load_labels(images, num_classes=10, progress=False).report
    assert (report.images, report.objects, report.background, report.unlabelled) == (4, 8, 1, 0)
    assert report.problems == []


def test_the_second_run_changes_nothing_and_takes_no_copy_for_an_image(
    dataset: Path, prepare: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(dataset)
    before = snapshot(dataset)
    capsys.readouterr()
    assert prepare(dataset) == 0
    assert "nothing was changed" in capsys.readouterr().out
    assert snapshot(dataset) == before
    assert json.loads((dataset / "report.json").read_text())["splits"]["val"]["images"] == 4


DAMAGES: dict[str, Callable[[Path], object]] = {
    "gone": Path.unlink,
    "cut off": lambda path: path.write_bytes(path.read_bytes()[:-30]),
    "changed inside": lambda path: path.write_bytes(path.read_bytes().replace(b"0", b"1", 1)[:-1] + b"!"),
    "empty": lambda path: path.write_bytes(b""),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize(
    "artefact",
    [
        f"{VAL}/labels/ignoré 1.txt",
        f"{VAL}/labels/ignoré 1_masked.txt",
        f"{VAL}/images/ignoré 1_masked.jpg",
        f"{VAL}/heatmaps/ignoré 1.npz",
        "split/val.txt",
    ],
)
def test_a_damaged_file_is_made_anew(
    dataset: Path, prepare: Callable[..., int], artefact: str, damage: Callable[[Path], object]
) -> None:
    prepare(dataset)
    before = snapshot(dataset)
    damage(dataset / artefact)
    assert prepare(dataset) == 0
    after = snapshot(dataset)
    reports = {"report.json", "report.png"}
    assert {name: data for name, (data, _) in after.items() if name not in reports} == {
        name: data for name, (data, _) in before.items() if name not in reports
    }
    rewritten = {name for name in after if after[name] != before[name]} - reports
    assert artefact in rewritten
    assert rewritten <= {artefact, f"{VAL}/heatmaps/ignoré 1.npz"}


def test_changed_annotations_images_and_settings_are_noticed(
    dataset: Path, prepare: Callable[..., int]
) -> None:
    prepare(dataset)
    heatmap, label = dataset / VAL / "heatmaps" / "b.npz", dataset / VAL / "labels" / "b.txt"
    first = heatmap.read_bytes()
    (dataset / VAL / "annotations" / "b.txt").write_text("1,1,20,20,1,10,0,0")
    prepare(dataset)
    assert label.read_text().startswith("9 ")
    second = heatmap.read_bytes()
    assert second != first
    add_image(dataset, VAL, "b.jpg", None).write_bytes(
        (dataset / TRAIN / "images" / "a.jpg").read_bytes() + b"\0"
    )
    prepare(dataset)
    assert heatmap.read_bytes() != second


def test_pixels_left_alone_on_request(dataset: Path, prepare: Callable[..., int]) -> None:
    assert prepare(dataset, "--no-mask-ignored") == 0
    names = ("b.jpg", "c.png", "empty.jpg", "ignoré 1.jpg")
    assert lines(dataset / "split" / "val.txt") == [f"./{VAL}/images/{name}" for name in names]
    assert not list(dataset.rglob("*_masked*"))
    assert prepare(dataset) == 0
    assert "c_masked.jpg" in (dataset / "split" / "val.txt").read_text()
    assert prepare(dataset, "--no-mask-ignored") == 0
    assert lines(dataset / "split" / "val.txt") == [f"./{VAL}/images/{name}" for name in names]


def test_force_writes_everything_again(dataset: Path, prepare: Callable[..., int]) -> None:
    prepare(dataset)
    before = snapshot(dataset)
    assert prepare(dataset, "--force") == 0
    after = snapshot(dataset)
    assert before.keys() == after.keys()
    for name in after:
        if Path(name).parent.name in ("labels", "heatmaps") or "_masked" in name:
            assert after[name][1] > before[name][1]
            assert after[name][0] == before[name][0]


def test_a_symbolic_link_as_root_stays_one(
    dataset: Path, prepare: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    (work / "VisDrone").symlink_to(dataset, target_is_directory=True)
    monkeypatch.chdir(work)
    monkeypatch.setattr("scripts.data_prepare.REPOSITORY", work)
    fixed = ["--dataset", "VisDrone", "--workers", "1", "--detect-list", "list.txt"]
    assert main(fixed) == 0
    assert lines(work / "list.txt")[0] == f"VisDrone/{VAL}/images/b.jpg"
    assert lines(work / "VisDrone" / "split" / "val.txt")[0] == f"./{VAL}/images/b.jpg"
    assert (work / "VisDrone").is_symlink()


def test_paths_for_use_in_the_repository(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    assert from_repository(Path("VisDrone/x.jpg")) == "VisDrone/x.jpg"
    assert from_repository(tmp_path / "x.jpg") == (tmp_path / "x.jpg").as_posix()


def test_what_is_bad_is_named_and_the_rest_is_ready(
    dataset: Path, prepare: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    add_image(dataset, VAL, "alone.jpg", None)
    (dataset / VAL / "annotations" / "gone.txt").write_text(PLAIN)
    add_image(dataset, VAL, "broken.jpg").write_bytes(b"\xff\xd8\xff broken")
    add_image(
        dataset, TRAIN, "odd.jpg", PLAIN + "1,2,3\n5,5,-1,4,1,4,0,0\n190,5,9,9,1,4,0,0\n-4,5,9,9,1,4,0,0\n"
    )
    assert prepare(dataset) == 1
    told = capsys.readouterr().err
    for name in (
        "alone.jpg: no annotation file",
        "gone.txt: no image",
        "broken.jpg: ",
        "odd.txt:3: malformed line",
    ):
        assert name in told
    assert "NOT COMPLETE" in told
    assert len(lines(dataset / "split" / "val.txt")) == 4
    report = json.loads((dataset / "report.json").read_text())
    assert len(report["problems"]) == 3
    assert report["splits"]["val"]["images_left_out"] == 1
    assert report["splits"]["train"]["dropped"] == {
        "malformed line": 1,
        "outside the image": 1,
        "zero or negative size": 1,
    }
    assert report["splits"]["train"]["boxes_clipped"] == 1


def test_the_report_counts(
    dataset: Path, prepare: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(dataset)
    val = json.loads((dataset / "report.json").read_text())["splits"]["val"]
    assert (val["images"], val["images_masked"], val["objects"], val["objects_per_image"]) == (4, 2, 8, 2.0)
    assert val["boxes_per_class"]["car"] == 3
    assert val["boxes_per_class"]["people"] == 2
    assert val["dropped"] == {"ignored region": 2, "others": 2}
    # Cells are 20×12 px. The car reaches into 2 × 4 of them, the pedestrian into 1, the people into 2 × 2.
    assert val["empty_grid_share"] == pytest.approx((55 + 51 + 51 + 64) / 4 / 64, abs=1e-4)
    table = capsys.readouterr().out
    assert "objects per image" in table
    assert "no label: ignored region" in table


def test_a_test_set_without_annotations_is_only_listed(dataset: Path, prepare: Callable[..., int]) -> None:
    add_image(dataset, "VisDrone2019-DET-test-challenge", "t.jpg", None)
    assert prepare(dataset) == 0
    assert lines(dataset / "split" / "test-challenge.txt") == [
        "./VisDrone2019-DET-test-challenge/images/t.jpg"
    ]
    assert not (dataset / "VisDrone2019-DET-test-challenge" / "labels").exists()


def run_script(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command as a user types it, from the repository's folder."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, "scripts/data_prepare.py", "--dataset", "VisDrone", *arguments]
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=120)


def test_a_wrong_folder_is_told_in_one_line(root: Path, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    done = run_script(root, "--root", str(tmp_path), "--detect-list", str(tmp_path / "list.txt"))
    assert done.returncode == 1
    assert "not a VisDrone folder" in done.stderr
    assert "found images" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_killed_run_leaves_no_process_and_is_completed(
    root: Path, tmp_path: Path, prepare: Callable[..., int]
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    image = add_image(whole, VAL, "0.jpg", WITH_REGION)
    for i in range(1, IMAGES_TO_KILL):
        shutil.copy(image, image.with_name(f"{i}.jpg"))
        (whole / VAL / "annotations" / f"{i}.txt").write_text(WITH_REGION)
    shutil.copytree(whole, killed)
    fixed = ["--dataset", "VisDrone", "--workers", "2", "--detect-list", str(tmp_path / "list.txt")]
    command = [sys.executable, "scripts/data_prepare.py", *fixed, "--root", str(killed)]
    process = subprocess.Popen(command, cwd=root, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        wait_until(lambda: any(killed.glob(f"{VAL}/heatmaps/*.npz")), 60)
        workers = children(process.pid)
    finally:
        process.kill()
        process.wait()
    made = len(list(killed.glob(f"{VAL}/heatmaps/*.npz")))
    assert 0 < made < IMAGES_TO_KILL, "the run was not killed in its middle"
    assert workers
    wait_until(lambda: not any(Path(f"/proc/{worker}/exe").exists() for worker in workers), 20)
    (killed / VAL / "labels" / ".1.txt.99-1.tmp").write_text("half")
    assert prepare(killed) == 0
    assert prepare(whole) == 0
    assert {name: data for name, (data, _) in snapshot(killed).items() if "report." not in name} == {
        name: data for name, (data, _) in snapshot(whole).items() if "report." not in name
    }


def wait_until(condition: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def children(pid: int) -> list[int]:
    """The processes started by one (Linux); skips the test elsewhere."""
    path = Path(f"/proc/{pid}/task/{pid}/children")
    if not path.exists():
        pytest.skip("needs /proc to see the worker processes")
    return [int(child) for child in path.read_text().split()]


def test_two_runs_at_once_are_refused(dataset: Path, prepare: Callable[..., int]) -> None:
    fcntl = pytest.importorskip("fcntl")
    handle = os.open(dataset, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="another run is preparing this folder"):
            prepare(dataset)
    finally:
        os.close(handle)
    assert prepare(dataset) == 0


def test_real_images(root: Path, shared_dir: Path, tmp_path: Path) -> None:
    source = shared_dir / "data" / "VisDrone" / VAL
    if not source.is_dir():
        pytest.skip(f"no VisDrone images at {source}")
    names = sorted(path.stem for path in (source / "images").iterdir())[::40][:3]
    for folder, suffix in (("images", ".jpg"), ("annotations", ".txt")):
        (tmp_path / VAL / folder).mkdir(parents=True)
        for name in names:
            shutil.copyfile(source / folder / f"{name}{suffix}", tmp_path / VAL / folder / f"{name}{suffix}")
    done = run_script(root, "--root", str(tmp_path), "--detect-list", str(tmp_path / "list.txt"))
    assert done.returncode == 0, done.stderr
    listed = lines(tmp_path / "split" / "val.txt")
    assert [Path(line).stem.removesuffix("_masked") for line in listed] == names
    for name, line in zip(names, listed, strict=True):
        height, width = read_image(tmp_path / line).shape[:2]
        raw = np.loadtxt(source / "annotations" / f"{name}.txt", delimiter=",", usecols=range(8), ndmin=2)
        counted = raw[(raw[:, 4] != 0) & (raw[:, 5] >= 1) & (raw[:, 5] <= 10)]
        found = np.loadtxt(tmp_path / VAL / "labels" / f"{name}.txt", ndmin=2)
        corner = (found[:, 1:3] - found[:, 3:] / 2) * (width, height)
        again = np.hstack([corner, found[:, 3:] * (width, height)])
        np.testing.assert_allclose(again, counted[:, :4], atol=0.01)
        np.testing.assert_array_equal(found[:, 0], counted[:, 5] - 1)
        assert line.endswith("_masked.jpg") == (len(counted) < len(raw))
        assert (tmp_path / VAL / "heatmaps" / f"{name}.npz").stat().st_size < 60_000
