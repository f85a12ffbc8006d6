"""Which files a detection run leaves for pictures and videos, with a detector that is made up."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from utils.boxes import Letterbox
from utils.decoding import read_picture
from utils.detection_output import DetectionOutput, DetectionSummary, OutputOptions, count_classes
from utils.results import Detections
from utils.sources import open_source

NAMES = ["car", "van"]
EVERYTHING = OutputOptions(view_cluster=True, save_txt=True, save_conf=True, save_crop=True)


@dataclass
class FakePrediction:
    detections: Detections
    heatmap: np.ndarray | None
    patches_orig: np.ndarray
    letterbox: Letterbox
    times_ms: dict[str, float] = field(default_factory=lambda: {"stem": 2.0, "deep": 3.0})


class FakeDetector:
    """Finds one car and one van in every image, or nothing; with a heatmap and a patch, or dense."""

    names = NAMES

    def __init__(self, finds: bool = True, dense: bool = False) -> None:
        self.finds, self.dense = finds, dense

    def predict(self, images: list[np.ndarray]) -> list[FakePrediction]:
        return [self._one(image) for image in images]

    def _one(self, image: np.ndarray) -> FakePrediction:
        height, width = image.shape[:2]
        boxes = torch.tensor([[2.0, 3.0, 12.0, 13.0], [20.0, 8.0, 30.0, 28.0]])
        found = Detections(boxes, torch.tensor([0.9, 0.5]), torch.tensor([1, 0]))
        patches = np.array([[0, 0, width if self.dense else 24, height if self.dense else 24]], np.float32)
        return FakePrediction(
            found if self.finds else Detections.empty(),
            None if self.dense else np.zeros((8, 8), np.float32),
            patches if self.finds or self.dense else np.zeros((0, 4), np.float32),
            Letterbox.fit((height, width), (64, 64)),
        )


def write_picture(path: Path, hw: tuple[int, int] = (40, 48)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((*hw, 3), 120, np.uint8))
    return path


def write_video(path: Path, frames: int = 3) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 8.0, (48, 40))
    for number in range(frames):
        writer.write(np.full((40, 48, 3), 40 * number, np.uint8))
    writer.release()
    return path


def run(
    spec: Path, folder: Path, detector: FakeDetector, options: OutputOptions = EVERYTHING, workers: int = 0
) -> list[str]:
    """Detect over a source; the files written, sorted."""
    source = open_source(str(spec))
    with DetectionOutput(folder, detector.names, options, source.relative, workers) as output:
        for frame in source:
            (prediction,) = detector.predict([frame.image])
            output.write(frame, prediction)
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_all_files_of_one_picture(tmp_path: Path) -> None:
    write_picture(tmp_path / "in" / "images" / "a.png")
    (tmp_path / "in" / "labels").mkdir()
    (tmp_path / "in" / "labels" / "a.txt").write_text("1 0.15 0.2 0.2 0.25\n")
    files = run(tmp_path / "in" / "images" / "a.png", tmp_path / "out", FakeDetector())
    assert files == ["a.png", "a_cluster.jpg", "crops/car/a_1.jpg", "crops/van/a_0.jpg", "labels/a.txt"]
    lines = (tmp_path / "out" / "labels" / "a.txt").read_text().splitlines()
    assert lines[0] == "1 0.145833 0.200000 0.208333 0.250000 0.900000"
    drawn = read_picture(tmp_path / "out" / "a.png")
    assert drawn.shape == (40, 48, 3) and (drawn != 120).any()
    cluster = read_picture(tmp_path / "out" / "a_cluster.jpg")
    assert cluster.shape[0] > 2 * 400  # two rows of panels: the labels were found
    # The crop is of the picture, not of the drawing.
    assert np.abs(read_picture(tmp_path / "out" / "crops" / "van" / "a_0.jpg").astype(int) - 120).max() < 4


def test_only_what_is_asked_for(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.jpg")
    assert run(tmp_path / "a.jpg", tmp_path / "1", FakeDetector(), OutputOptions()) == ["a.jpg"]
    nothing = OutputOptions(save_pictures=False)
    assert run(tmp_path / "a.jpg", tmp_path / "2", FakeDetector(), nothing) == []
    labels = OutputOptions(save_pictures=False, save_txt=True)
    assert run(tmp_path / "a.jpg", tmp_path / "3", FakeDetector(finds=False), labels) == ["labels/a.txt"]


@pytest.mark.parametrize("detector", [FakeDetector(finds=False), FakeDetector(dense=True), FakeDetector()])
def test_cluster_picture_of_every_kind_of_model(tmp_path: Path, detector: FakeDetector) -> None:
    write_picture(tmp_path / "a.png")  # outside of images/
    files = run(tmp_path / "a.png", tmp_path / "out", detector, OutputOptions(view_cluster=True))
    assert files == ["a.png", "a_cluster.jpg"]


def test_equal_names_do_not_overwrite_each_other(tmp_path: Path) -> None:
    source = tmp_path / "in"
    for name in ("x/a.jpg", "y/a.jpg", "y/a.png", "y/a_cluster.jpg", "labels/a.jpg", "crops/car/x/a_1.png"):
        write_picture(source / name)
    files = run(source, tmp_path / "out", FakeDetector())
    pictures = [name for name in files if not name.startswith(("labels/", "crops/"))]
    assert pictures == [
        "x/a.jpg",
        "x/a_cluster.jpg",
        "y/a.jpg",
        "y/a_2.png",
        "y/a_2_cluster.jpg",
        "y/a_cluster.jpg",
        "y/a_cluster_2.jpg",
        "y/a_cluster_2_cluster.jpg",
    ]
    assert "labels/x/a.txt" in files and "labels/y/a_2.txt" in files and "labels/labels/a.txt" in files
    # 6 pictures, each with a drawing, a cluster picture, a label file and two crops.
    assert len(files) == 6 * 5


def test_two_folders_in_a_list(tmp_path: Path) -> None:
    first, second = (
        write_picture(tmp_path / "s" / "1" / "a.jpg"),
        write_picture(tmp_path / "s" / "2" / "a.jpg"),
    )
    (tmp_path / "l.txt").write_text(f"{first}\n{second}\n")
    assert run(tmp_path / "l.txt", tmp_path / "out", FakeDetector(), OutputOptions()) == [
        "1/a.jpg",
        "2/a.jpg",
    ]


def test_videos_and_pictures_mixed(tmp_path: Path) -> None:
    source = tmp_path / "images"
    write_video(source / "v.avi", frames=3)
    write_video(source / "w.avi", frames=2)
    write_picture(source / "v_000001.png")  # as if it had been cut out of the video
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "v.txt").write_text("0 0.5 0.5 0.5 0.5\n")  # not the video's
    files = run(source, tmp_path / "out", FakeDetector())
    videos = [Path(name) for name in files if Path(name).suffix in (".webm", ".mp4")]
    assert [path.stem for path in videos] == ["v", "v_cluster", "w", "w_cluster"]
    assert [len(list(open_source(str(tmp_path / "out" / path)))) for path in videos] == [3, 3, 2, 2]
    labels = [name for name in files if name.startswith("labels/")]
    assert labels == [
        "labels/v_000000.txt",
        "labels/v_000001.txt",
        "labels/v_000001_2.txt",
        "labels/v_000002.txt",
        "labels/w_000000.txt",
        "labels/w_000001.txt",
    ]
    assert len([name for name in files if name.startswith("crops/van/")]) == 6
    frame = next(iter(open_source(str(tmp_path / "out" / videos[1]))))
    assert frame.video is not None and frame.video.fps == pytest.approx(8.0, rel=0.01)
    assert frame.image.shape[0] < frame.image.shape[1] / 2  # one row of panels: no labels


@pytest.mark.parametrize("workers", [0, 2])
def test_interrupt_leaves_finished_results_whole(tmp_path: Path, workers: int) -> None:
    write_video(tmp_path / "in" / "v.avi", frames=5)
    source = open_source(str(tmp_path / "in"))
    detector = FakeDetector()

    def interrupted() -> None:
        with DetectionOutput(
            tmp_path / "out", NAMES, OutputOptions(save_txt=True), source.relative, workers
        ) as output:
            for frame in source:
                if frame.frame_number == 3:
                    raise KeyboardInterrupt
                output.write(frame, detector.predict([frame.image])[0])

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    (video,) = [path for path in (tmp_path / "out").iterdir() if path.is_file()]
    assert len(list(open_source(str(video)))) == 3
    assert len(list((tmp_path / "out" / "labels").iterdir())) == 3


def test_counts_of_classes() -> None:
    labels = torch.tensor([1, 0, 1, 5])
    found = Detections(torch.zeros(4, 4), torch.zeros(4), labels)
    assert count_classes(found, NAMES) == "2 van, 1 car, 1 5"
    assert count_classes(Detections.empty(), NAMES) == "nothing"


def test_summary_says_counts_times_and_what_was_skipped(tmp_path: Path) -> None:
    summary = DetectionSummary()
    detector, image = FakeDetector(), np.zeros((40, 48, 3), np.uint8)
    for read in (90.0, 4.0, 6.0):
        (prediction,) = detector.predict([image])
        summary.add(prediction, {"read": read, **prediction.times_ms})
    summary.elapsed_s = 0.02
    assert summary.lines(tmp_path, [f"{number}.jpg: bad" for number in range(7)]) == [
        "3 images, 6 detections, 3 patches",
        "ms per image (median): read 6.0, stem 2.0, deep 3.0; together 11.0",
        "images per second: 150.00 in all, 200.00 the model alone, ratio 0.75",
        "7 not read or not whole:",
        "  0.jpg: bad",
        "  1.jpg: bad",
        "  2.jpg: bad",
        "  3.jpg: bad",
        "  4.jpg: bad",
        "  and 2 more",
        f"results in {tmp_path}",
    ]
    assert DetectionSummary().lines(tmp_path) == [
        "0 images, 0 detections, 0 patches",
        f"results in {tmp_path}",
    ]


# ------------------------------------------------------------------------------- written in threads


def contents(folder: Path) -> dict[str, bytes]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_threads_leave_the_same_files(tmp_path: Path) -> None:
    """Names and pixels do not depend on who writes first; pictures of one name and videos included."""
    source = tmp_path / "in"
    for name in ("x/a.jpg", "y/a.jpg", "y/a.png", "y/a_cluster.jpg", "crops/car/x/a_1.png"):
        write_picture(source / name)
    write_video(source / "v.avi", frames=7)
    write_video(source / "w.avi", frames=2)
    run(source, tmp_path / "0", FakeDetector())
    run(source, tmp_path / "3", FakeDetector(), workers=3)
    alone, threaded = contents(tmp_path / "0"), contents(tmp_path / "3")
    assert list(threaded) == list(alone)
    videos = {name for name in alone if name.endswith((".webm", ".mp4"))}
    assert len(videos) == 4
    assert all(threaded[name] == alone[name] for name in alone.keys() - videos)
    for name in videos:
        frames = [list(open_source(str(tmp_path / count / name))) for count in "03"]
        assert len(frames[0]) == len(frames[1])
        assert all(np.array_equal(a.image, b.image) for a, b in zip(*frames, strict=True))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_while_writing_ends_the_run(tmp_path: Path, workers: int) -> None:
    for number in range(30):
        write_picture(tmp_path / "in" / f"{number:02d}.jpg")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "labels").touch()  # a file where the folder has to be
    options = OutputOptions(save_pictures=False, save_txt=True)
    with pytest.raises(OSError, match="labels"):
        run(tmp_path / "in", tmp_path / "out", FakeDetector(), options, workers)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_while_writing_the_last_picture_is_told_too(tmp_path: Path, workers: int) -> None:
    write_picture(tmp_path / "a.jpg")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "labels").touch()
    with pytest.raises(OSError, match="labels"):
        run(tmp_path / "a.jpg", tmp_path / "out", FakeDetector(), EVERYTHING, workers)
