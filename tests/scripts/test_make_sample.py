"""The sample dataset: layout, determinism, boxes that fit, and folders that are left alone."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path

import cv2
import numpy as np
import pytest

from scripts.make_sample import MANIFEST, SampleError, Settings, main, make_sample
from utils.synthetic import draw_picture
from utils.synthetic.camera import Camera, Sun
from utils.synthetic.ground import Material
from utils.synthetic.movers import BICYCLE, CAR, OTHERS, PEDESTRIAN, VAN
from utils.synthetic.scene import IGNORED_REGION, Annotation, Look, Picture, Scene
from utils.synthetic.shapes import Model, rectangle

TRAIN, VAL, WIDTH, HEIGHT = 12, 4, 352, 208
COUNTED = (PEDESTRIAN, BICYCLE, CAR, VAN)


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small sample, drawn once by the command."""
    folder = tmp_path_factory.mktemp("drawn") / "sample"
    arguments = ["--output", folder, "--train", TRAIN, "--val", VAL, "--width", WIDTH, "--height", HEIGHT]
    assert main([*map(str, arguments), "--workers", "1"]) == 0
    return folder


def read_rows(path: Path) -> list[tuple[int, ...]]:
    """The rows of an annotation file."""
    return [tuple(int(value) for value in line.split(",")) for line in path.read_text().splitlines()]


def all_rows(sample: Path) -> list[tuple[int, ...]]:
    """The rows of all annotation files."""
    return [row for path in sorted(sample.rglob("annotations/*.txt")) for row in read_rows(path)]


def state(folder: Path) -> dict[str, tuple[str, int]]:
    """Hash and modification time of every file."""
    return {
        str(path.relative_to(folder)): (
            hashlib.sha256(path.read_bytes()).hexdigest(),
            path.stat().st_mtime_ns,
        )
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def hashes(folder: Path) -> dict[str, str]:
    """Hash of every file."""
    return {path: value for path, (value, _) in state(folder).items()}


# --- the files


def test_layout(sample: Path) -> None:
    assert {path.name for path in sample.iterdir()} == {
        "VisDrone2019-DET-train",
        "VisDrone2019-DET-val",
        MANIFEST,
    }
    for split, count in (("train", TRAIN), ("val", VAL)):
        folder = sample / f"VisDrone2019-DET-{split}"
        images = sorted((folder / "images").iterdir())
        annotations = sorted((folder / "annotations").iterdir())
        assert [path.suffix for path in images] == [".jpg"] * count
        assert [path.stem for path in annotations] == [path.stem for path in images]
        for image in images:
            assert cv2.imread(str(image)).shape == (HEIGHT, WIDTH, 3)


def test_rows_follow_visdrone(sample: Path) -> None:
    rows = all_rows(sample)
    assert len(rows) > 100
    for x, y, w, h, score, category, truncation, occlusion in rows:
        assert 0 <= x < x + w <= WIDTH
        assert 0 <= y < y + h <= HEIGHT
        assert category in (IGNORED_REGION, OTHERS, *COUNTED)
        assert score == (1 if category in COUNTED else 0)
        assert truncation in (0, 1)
        assert occlusion in (0, 1, 2)
        if category in COUNTED:
            assert min(w, h) >= 3
            assert max(w, h) <= 50


def test_every_kind_of_object_and_flag_occurs(sample: Path) -> None:
    rows = all_rows(sample)
    assert {row[5] for row in rows} >= set(COUNTED)
    assert {row[6] for row in rows} == {0, 1}
    assert {row[7] for row in rows} >= {0, 1}


def test_ignored_regions_and_others_occur() -> None:
    categories = {
        annotation.category
        for index in (1, 9)
        for seed in range(3)
        for annotation in draw_picture(480, 272, seed, 0, index).annotations
    }
    assert {IGNORED_REGION, OTHERS} <= categories


def test_a_twelfth_of_the_images_is_empty(sample: Path) -> None:
    empty = {path.stem for path in sample.rglob("annotations/*.txt") if path.read_bytes() == b""}
    assert empty == {"sample_train_00003", "sample_val_00003"}


def test_images_differ_and_hold_detail(sample: Path) -> None:
    images = [cv2.imread(str(path)) for path in sorted(sample.rglob("images/*.jpg"))]
    assert len({image.tobytes() for image in images}) == TRAIN + VAL
    for image in images:
        assert image.std() > 12
        assert 40 < image.mean() < 200


# --- the same every time


def test_workers_do_not_change_a_byte(tmp_path: Path) -> None:
    settings = Settings(train=3, val=2, width=128, height=96, seed=5)
    assert make_sample(tmp_path / "one", settings, workers=1) == 10
    assert make_sample(tmp_path / "two", settings, workers=2) == 10
    assert hashes(tmp_path / "one") == hashes(tmp_path / "two")


def test_pictures_depend_on_seed_split_and_index_only() -> None:
    first = draw_picture(96, 64, 1, 0, 0)
    draw_picture(96, 64, 1, 0, 1)
    again = draw_picture(96, 64, 1, 0, 0)
    assert np.array_equal(first.image, again.image)
    assert first.annotations == again.annotations
    for seed, split, index in ((2, 0, 0), (1, 1, 0), (1, 0, 12)):
        assert not np.array_equal(first.image, draw_picture(96, 64, seed, split, index).image)


def test_second_run_changes_nothing(sample: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = state(sample)
    test_size = ["--train", str(TRAIN), "--val", str(VAL), "--width", str(WIDTH), "--height", str(HEIGHT)]
    assert main(["--output", str(sample), *test_size, "--workers", "1"]) == 0
    assert state(sample) == before
    assert "nothing was changed" in capsys.readouterr().out


def test_damaged_and_missing_files_are_restored(tmp_path: Path) -> None:
    settings = Settings(train=2, val=1, width=96, height=64, seed=0)
    make_sample(tmp_path, settings, workers=1)
    before = hashes(tmp_path)
    folder = tmp_path / "VisDrone2019-DET-train"
    (folder / "images" / "sample_train_00000.jpg").write_bytes(b"half a pict")
    (folder / "annotations" / "sample_train_00001.txt").unlink()
    assert make_sample(tmp_path, settings, workers=1) == 2
    assert hashes(tmp_path) == before


def test_interrupted_run_is_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(train=2, val=1, width=96, height=64, seed=0)
    make_sample(tmp_path / "whole", settings, workers=1)

    def interrupted(*arguments: int) -> Picture:
        if arguments[-1] == 1:
            raise KeyboardInterrupt
        return draw_picture(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr("scripts.make_sample.draw_picture", interrupted)
        with pytest.raises(KeyboardInterrupt):
            make_sample(tmp_path / "cut", settings, workers=1)
    assert len(hashes(tmp_path / "cut")) == 3
    assert make_sample(tmp_path / "cut", settings, workers=1) == 4
    assert hashes(tmp_path / "cut") == hashes(tmp_path / "whole")


def test_what_preparation_adds_is_accepted(tmp_path: Path) -> None:
    settings = Settings(train=1, val=1, width=96, height=64, seed=0)
    make_sample(tmp_path, settings, workers=1)
    folder = tmp_path / "VisDrone2019-DET-train"
    (folder / "images" / "sample_train_00000_masked.jpg").write_bytes(b"grey")
    (folder / "labels").mkdir()
    assert make_sample(tmp_path, settings, workers=1) == 0


# --- what is refused


def test_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    image = tmp_path / "VisDrone2019-DET-train" / "images" / "0000001_00000_d_0000001.jpg"
    image.parent.mkdir(parents=True)
    image.write_bytes(b"a photograph")
    before = state(tmp_path)
    with pytest.raises(SampleError, match="holds VisDrone2019-DET-train and no sample.json"):
        main(["--output", str(tmp_path)])
    assert state(tmp_path) == before


def test_foreign_image_among_ours_is_refused(tmp_path: Path) -> None:
    settings = Settings(train=1, val=1, width=96, height=64, seed=0)
    make_sample(tmp_path, settings, workers=1)
    (tmp_path / "VisDrone2019-DET-val" / "images" / "holiday.jpg").write_bytes(b"a photograph")
    with pytest.raises(SampleError, match=r"holiday.jpg is not part of this sample"):
        make_sample(tmp_path, settings, workers=1)


@pytest.mark.parametrize("change", [{"seed": 1}, {"train": 2}, {"width": 128}])
def test_other_settings_are_refused(tmp_path: Path, change: dict[str, int]) -> None:
    settings = {"train": 1, "val": 1, "width": 96, "height": 64, "seed": 0}
    make_sample(tmp_path, Settings(**settings), workers=1)
    before = state(tmp_path)
    (name, value), *_ = change.items()
    with pytest.raises(SampleError, match=f"{name} {settings[name]} there, {value} here"):
        make_sample(tmp_path, Settings(**(settings | change)), workers=1)
    assert state(tmp_path) == before


@pytest.mark.parametrize("text", ["", "[]", json.dumps({"drawn": 1, "sha256": {}}), "\x00"])
def test_damaged_manifest_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(SampleError, match=f"{MANIFEST} cannot be read"):
        make_sample(tmp_path, Settings(1, 1, 96, 64, 0), workers=1)


def test_output_that_is_a_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    with pytest.raises(SampleError, match="is a file"):
        main(["--output", str(path)])


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--train", "0", "not a whole number of at least 1"),
        ("--val", "-3", "not a whole number of at least 1"),
        ("--width", "63", "not a whole number of pixels from 64 to 4096"),
        ("--height", "5000", "not a whole number of pixels from 64 to 4096"),
        ("--height", "tall", "not a whole number of pixels from 64 to 4096"),
        ("--seed", "-1", "not a whole number of at least 0"),
        ("--workers", "0", "not a whole number of at least 1"),
    ],
)
def test_bad_values(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, value: str, message: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--output", str(tmp_path / "sample"), option, value])
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert option in error
    assert message in error
    assert not (tmp_path / "sample").exists()


def test_help_has_an_example_of_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for option in ("--output", "--train", "--val", "--width", "--height", "--seed", "--workers"):
        assert f"e.g. {option} " in text


def test_too_small_a_picture() -> None:
    with pytest.raises(ValueError, match="too small to draw"):
        draw_picture(64, 63, 0, 0, 0)


# --- boxes against pixels

PLAIN = Material((100.0, 120.0, 110.0), 0, 0, 0)
PLAIN_LOOK = Look(exposure=1, warmth=0, contrast=1, haze=0, blur_px=0.2, noise=0)


def plain_scene(shadows: float = 0.0, pitch: float = 55.0, seed: int = 0) -> Scene:
    """An empty scene of 200×160 px on ground without texture; 5 px per metre in the middle."""
    camera = Camera(200, 160, 400.0, 80.0, math.radians(pitch))
    sun = Sun(math.pi, math.radians(40), shadows)
    return Scene(np.random.default_rng(seed), camera, sun, PLAIN_LOOK, PLAIN)


def changed_box(picture: Picture, empty: Picture, least: int = 12) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of the pixels in which two pictures differ by more than ``least``."""
    difference = np.abs(picture.image.astype(int) - empty.image.astype(int)).max(axis=2) > least
    rows, columns = np.flatnonzero(difference.any(axis=1)), np.flatnonzero(difference.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def corners(annotation: Annotation) -> tuple[int, int, int, int]:
    """Left, top, right, bottom."""
    return annotation.x, annotation.y, annotation.x + annotation.w, annotation.y + annotation.h


@pytest.mark.parametrize("category", COUNTED)
@pytest.mark.parametrize("pitch", [44.0, 74.0])
def test_box_is_that_of_the_pixels(category: int, pitch: float) -> None:
    empty = plain_scene(pitch=pitch).finish()
    deviations = []
    for turn in range(12):
        scene = plain_scene(pitch=pitch, seed=turn)
        assert scene.add_object(category, 0.37 * turn - 3, 2.0 - 0.41 * turn, turn * math.pi / 6)
        picture = scene.finish()
        (annotation,) = picture.annotations
        assert (annotation.score, annotation.category, annotation.truncation, annotation.occlusion) == (
            1,
            category,
            0,
            0,
        )
        deviations.append(np.subtract(corners(annotation), changed_box(picture, empty)))
    assert np.abs(deviations).max() <= 1
    assert np.abs(np.mean(deviations, axis=0)).max() <= 0.7


def test_shadow_is_drawn_and_not_in_the_box() -> None:
    empty = plain_scene(shadows=0.8).finish()
    scene = plain_scene(shadows=0.8)
    scene.add_object(VAN, 0.0, 0.0, 0.3)
    picture = scene.finish()
    _, top, right, bottom = corners(picture.annotations[0])
    seen = changed_box(picture, empty)
    # The sun stands on the left: the shadow falls to the right.
    assert seen[2] > right + 5
    difference = (
        picture.image[top:bottom, right + 1 : seen[2]].astype(int)
        - empty.image[top:bottom, right + 1 : seen[2]]
    )
    assert difference.min() < -20


@pytest.mark.parametrize("pixel", [(4.0, 80.0), (196.0, 80.0), (100.0, 6.0), (100.0, 157.0)])
def test_object_at_the_border_is_clipped_and_flagged(pixel: tuple[float, float]) -> None:
    empty = plain_scene().finish()
    scene = plain_scene()
    x, y = scene.camera.ground_at(np.array([pixel]))[0].tolist()
    assert scene.add_object(CAR, x, y, math.pi / 2 if pixel[0] == 100 else 0.0)
    picture = scene.finish()
    (annotation,) = picture.annotations
    assert annotation.truncation == 1
    left, top, right, bottom = corners(annotation)
    assert left == 0 or top == 0 or right == 200 or bottom == 160
    assert np.abs(np.subtract(changed_box(picture, empty), corners(annotation))).max() <= 1


def test_object_mostly_outside_is_left_out() -> None:
    scene = plain_scene()
    assert not scene.add_object(CAR, 21.5, 0.0, 0.0)
    assert not scene.add_object(CAR, 60.0, 0.0, 0.0)
    assert scene.finish().annotations == []


def wall(x: float, y: float, length: float, height: float) -> Model:
    """A thin wall along x."""
    model = Model(x, y)
    base = rectangle(-length / 2, length / 2, 0.4)
    model.prism(base, 0.0, base, height, [(20.0, 20.0, 200.0)], (20.0, 20.0, 200.0))
    return model


@pytest.mark.parametrize(("x", "occlusion"), [(30.0, 0), (3.0, 1), (2.3, 2)])
def test_occlusion_by_something_nearer(x: float, occlusion: int) -> None:
    scene = plain_scene()
    assert scene.add_object(CAR, 0.0, 0.0, 0.0)
    free = corners(scene.finish().annotations[0])
    scene.add_fixture(wall(x, -1.6, 5.0, 6.0))
    (annotation,) = scene.finish().annotations
    assert annotation.occlusion == occlusion
    assert corners(annotation) == free, "the box is that of the whole object"


def test_hidden_object_is_taken_out() -> None:
    scene = plain_scene()
    assert scene.add_object(CAR, 0.0, 0.0, 0.0)
    scene.add_fixture(wall(0.0, -1.6, 8.0, 6.0))
    assert scene.finish().annotations == []


def test_something_farther_away_hides_nothing() -> None:
    scene = plain_scene()
    assert scene.add_object(CAR, 0.0, 0.0, 0.0)
    scene.add_fixture(wall(0.0, 3.0, 8.0, 6.0))
    (annotation,) = scene.finish().annotations
    assert annotation.occlusion == 0


def test_objects_do_not_stand_in_each_other() -> None:
    scene = plain_scene()
    assert scene.add_object(CAR, 0.0, 0.0, 0.0)
    assert not scene.add_object(VAN, 0.5, 0.3, 0.2)
    assert scene.add_object(VAN, 0.0, 8.0, 0.0)


def add_crowd(scene: Scene) -> None:
    """Ten people who count as one ignored region."""
    crowd = [(PEDESTRIAN, x, y, 0.0) for x in np.arange(-6.0, 7.0, 3.0) for y in (8.0, 10.0)]
    scene.add_ignored_region(np.array([[-7.0, 7.0], [7.0, 7.0], [7.0, 11.0], [-7.0, 11.0]]), crowd)


def test_ignored_region_covers_its_crowd() -> None:
    empty = plain_scene().finish()
    scene = plain_scene()
    add_crowd(scene)
    picture = scene.finish()
    (annotation,) = picture.annotations
    assert (annotation.category, annotation.score) == (IGNORED_REGION, 0)
    left, top, right, bottom = corners(annotation)
    seen = changed_box(picture, empty, least=3)
    assert left - 1 <= seen[0] and top - 1 <= seen[1] and seen[2] <= right + 1 and seen[3] <= bottom + 1


def test_no_object_touches_an_ignored_region() -> None:
    tops = []
    for pixel in range(45, 75):
        scene = plain_scene()
        add_crowd(scene)
        x, y = scene.camera.ground_at(np.array([[100.0, pixel]]))[0].tolist()
        scene.add_object(CAR, x, y, 0.0)
        region, *cars = scene.finish().annotations
        tops += [car.y - (region.y + region.h) for car in cars]
    assert 0 < len(tops) < 30
    assert 0 <= min(tops) <= 2


def test_others_do_not_count() -> None:
    scene = plain_scene()
    assert scene.add_object(OTHERS, 0.0, 0.0, 0.0)
    (annotation,) = scene.finish().annotations
    assert (annotation.category, annotation.score) == (OTHERS, 0)
    assert annotation.row() == f"{annotation.x},{annotation.y},{annotation.w},{annotation.h},0,11,0,0"


def test_camera_projects_back_and_forth() -> None:
    camera = Camera(200, 160, 400.0, 80.0, math.radians(50))
    pixels = np.array([[0.0, 0.0], [200.0, 0.0], [100.0, 80.0], [13.0, 160.0]])
    ground = camera.ground_at(pixels)
    assert np.allclose(ground[2], 0)
    assert np.allclose(camera.project_ground(ground), pixels)
    assert camera.pixels_per_metre(0.0, 0.0) == pytest.approx(5.0)
    assert camera.pixels_per_metre(0.0, 10.0) < 5.0
    # One metre up is cos(pitch) of a metre up in the picture, by definition of the pitch (to first order).
    _, v = camera.project(np.array([[0.0, 0.0, 0.1]]))[0][0]
    assert v == pytest.approx(80 - 0.1 * 5.0 * math.cos(camera.pitch), abs=2e-3)
