"""Files that detection writes: their exact content, their names, and that none is half or overwritten."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from utils import writers
from utils.decoding import read_picture
from utils.large_picture import DecodedPicture
from utils.results import Detections
from utils.sources import open_source
from utils.writers import (
    CocoJsonWriter,
    OutputNames,
    VideoWriteError,
    VideoWriter,
    crop_paths,
    save_crops,
    write_darknet,
)


def found(*rows: tuple[float, float, float, float, float, int]) -> Detections:
    """Detections of rows (x1, y1, x2, y2, score, class)."""
    table = torch.tensor(rows, dtype=torch.float32).reshape(-1, 6)
    return Detections(table[:, :4], table[:, 4], table[:, 5].long())


# ------------------------------------------------------------------------------------------ Darknet


def test_darknet_lines_by_hand(tmp_path: Path) -> None:
    # A 200×100 image: box (20, 10)–(60, 40) has its centre at (40, 25), size 40×30.
    detections = found((20, 10, 60, 40, 0.75, 3), (0, 0, 200, 100, 0.5, 0))
    path = tmp_path / "labels" / "sub" / "a.txt"
    write_darknet(path, detections, (100, 200))
    assert (
        path.read_text() == "3 0.200000 0.250000 0.200000 0.300000\n0 0.500000 0.500000 1.000000 1.000000\n"
    )
    write_darknet(path, detections, (100, 200), save_conf=True)
    assert path.read_text().splitlines()[0] == "3 0.200000 0.250000 0.200000 0.300000 0.750000"


def test_darknet_clips_to_the_image(tmp_path: Path) -> None:
    write_darknet(tmp_path / "a.txt", found((-10, -20, 100, 50, 0.9, 1)), (100, 200))
    assert (tmp_path / "a.txt").read_text() == "1 0.250000 0.250000 0.500000 0.500000\n"


def test_darknet_without_detections_is_an_empty_file(tmp_path: Path) -> None:
    write_darknet(tmp_path / "a.txt", Detections.empty(), (10, 10), save_conf=True)
    assert (tmp_path / "a.txt").read_bytes() == b""
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]  # no temporary file stays


# --------------------------------------------------------------------------------------------- names


def test_names_never_repeat() -> None:
    names = OutputNames()
    assert names.claim(Path("a")) == Path("a")
    assert names.claim(Path("A")) == Path("A_2")  # one file on systems without capitals
    assert names.claim(Path("a")) == Path("a_3")
    assert names.claim(Path("a_2")) == Path("a_2_2")
    assert names.claim(Path("b/a")) == Path("b/a")
    assert names.claim(Path("a.b")) == Path("a.b")  # dots are no suffix here
    assert names.claim(Path("a.b")) == Path("a.b_2")


def test_names_with_endings_are_all_claimed() -> None:
    names = OutputNames()
    endings = ("", "_cluster")
    assert names.claim(Path("x"), endings) == Path("x")
    assert names.claim(Path("x_cluster"), endings) == Path("x_cluster_2")
    assert names.claim(Path("y_cluster"), endings) == Path("y_cluster")
    assert names.claim(Path("y"), endings) == Path("y_2")


# --------------------------------------------------------------------------------------------- crops


def test_crops_hold_what_is_in_the_box(tmp_path: Path) -> None:
    image = np.full((40, 60, 3), 20, np.uint8)
    image[10:20, 30:50] = (220, 40, 40)
    detections = found(
        (30, 10, 50, 20, 0.9, 0), (29.6, 9.2, 50.3, 19.9, 0.8, 1), (58.5, 39.5, 80, 80, 0.7, 2)
    )
    names, stem = ["car", "a/b: c", "van"], Path("s/im.v1")
    paths = crop_paths(detections.label.tolist(), names, tmp_path, stem, OutputNames())
    save_crops(DecodedPicture(image), detections, paths)
    expected = ["car/s/im.v1_0.jpg", "a_b_ c/s/im.v1_1.jpg", "van/s/im.v1_2.jpg"]
    assert [path.relative_to(tmp_path).as_posix() for path in paths] == expected
    shapes = [read_picture(path).shape for path in paths]
    assert shapes == [(10, 20, 3), (11, 22, 3), (1, 2, 3)]  # rounded outwards, inside the image
    assert np.abs(read_picture(paths[0]).astype(int) - (220, 40, 40)).max() < 10  # RGB, not BGR


def test_crops_of_degenerate_boxes_have_a_pixel(tmp_path: Path) -> None:
    image = np.zeros((40, 60, 3), np.uint8)
    detections = found((5, 5, 5, 5, 0.9, 0), (-9, -9, -3, -3, 0.8, 0), (99, 99, 120, 120, 0.7, 0))
    paths = [tmp_path / f"{number}.jpg" for number in range(3)]
    save_crops(DecodedPicture(image), detections, paths)
    for path in paths:
        assert read_picture(path).shape == (1, 1, 3)


def test_two_crops_of_one_name_are_both_kept(tmp_path: Path) -> None:
    used, image = OutputNames(), np.zeros((9, 9, 3), np.uint8)
    for _ in range(2):
        save_crops(
            DecodedPicture(image),
            found((1, 1, 5, 5, 0.9, 0)),
            crop_paths([0], ["car"], tmp_path, Path("a"), used),
        )
    assert sorted(path.name for path in (tmp_path / "car").iterdir()) == ["a_0.jpg", "a_0_2.jpg"]


# ---------------------------------------------------------------------------------------------- COCO


def test_coco_json(tmp_path: Path) -> None:
    writer = CocoJsonWriter(tmp_path / "sub" / "d.json", category_ids=[11, 12])
    writer.add(7, found((10, 20, 30.5, 50, 0.25, 1)))
    writer.add("name", Detections.empty())
    writer.add("name", found((0, 0, 1, 2, 0.5, 0)))
    assert json.loads(writer.write().read_text()) == [
        {"image_id": 7, "category_id": 12, "bbox": [10.0, 20.0, 20.5, 30.0], "score": 0.25},
        {"image_id": "name", "category_id": 11, "bbox": [0.0, 0.0, 1.0, 2.0], "score": 0.5},
    ]


def test_coco_json_without_detections_is_an_empty_list(tmp_path: Path) -> None:
    assert CocoJsonWriter(tmp_path / "d.json").write().read_text() == "[]"


def test_interrupted_writing_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = CocoJsonWriter(tmp_path / "d.json")
    writer.add(1, found((0, 0, 1, 1, 0.5, 0)))
    writer.write()
    before = (tmp_path / "d.json").read_text()

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", interrupted)
    writer.add(2, found((0, 0, 1, 1, 0.5, 0)))
    with pytest.raises(KeyboardInterrupt):
        writer.write()
    assert (tmp_path / "d.json").read_text() == before
    assert [path.name for path in tmp_path.iterdir()] == ["d.json"]


# --------------------------------------------------------------------------------------------- video


def moving_square(number: int, hw: tuple[int, int] = (97, 131)) -> np.ndarray:
    image = np.full((*hw, 3), 40, np.uint8)
    image[30:60, 10 + 8 * number : 40 + 8 * number] = (230, 60, 20)
    return image


def test_video_keeps_rate_frames_colours_and_size(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "sub" / "v.1", fps=12.5) as writer:
        for number in range(6):
            writer.write(moving_square(number))
        assert writer.path is None and not list(
            (tmp_path / "sub").glob("v.1*")
        )  # not there before it is whole
    assert writer.path is not None and writer.path.name == f"v.1{writer.path.suffix}"
    assert list((tmp_path / "sub").iterdir()) == [writer.path]
    frames = list(open_source(str(writer.path)))
    assert len(frames) == writer.frame_count == 6
    video = frames[0].video
    assert video is not None and video.fps == pytest.approx(12.5, rel=0.01)
    assert video.hw == (98, 132)  # odd sides get one more pixel
    assert np.abs(frames[5].image[45, 65].astype(int) - (230, 60, 20)).max() < 45


@pytest.mark.parametrize("fps", [29.97, 30000 / 1001, 23.976])
def test_video_keeps_a_broken_rate(tmp_path: Path, fps: float) -> None:
    with VideoWriter(tmp_path / "v", fps) as writer:
        for number in range(4):
            writer.write(moving_square(number, (64, 96)))
    frames = list(open_source(str(writer.path)))
    assert len(frames) == 4
    assert frames[0].video is not None and frames[0].video.fps == pytest.approx(fps, abs=0.005)


@pytest.mark.parametrize("codec, written", [("vp9", "VP90"), ("vp8", "VP80"), ("mpeg4", "FMP4")])
def test_video_is_of_the_codec_that_is_asked_for_with_the_wheel_in_use(
    tmp_path: Path, codec: str, written: str
) -> None:
    with VideoWriter(tmp_path / "v", 10, codec) as writer:
        writer.write(moving_square(0))
    assert writer.path is not None
    code = int(cv2.VideoCapture(str(writer.path)).get(cv2.CAP_PROP_FOURCC))
    name = bytes((code >> shift) & 255 for shift in (0, 8, 16, 24)).decode()
    expected = {(written, ".mp4" if codec == "mpeg4" else ".webm"), ("FMP4", ".mp4"), ("mp4v", ".mp4")}
    assert (name, writer.path.suffix) in expected


def test_video_falls_back_to_mp4(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(writers.VIDEO_CODECS, "vp9", (("????", ".webm"), ("mp4v", ".mp4")))
    with VideoWriter(tmp_path / "v", 10) as writer:
        writer.write(moving_square(0))
    assert [path.name for path in tmp_path.iterdir()] == ["v.mp4"]


def test_video_that_cannot_be_written_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(writers.VIDEO_CODECS, "vp9", (("????", ".webm"),))
    with pytest.raises(VideoWriteError, match="--nosave"), VideoWriter(tmp_path / "v", 10) as writer:
        writer.write(moving_square(0))
    assert list(tmp_path.iterdir()) == []


def test_interrupted_video_is_playable(tmp_path: Path) -> None:
    writer = VideoWriter(tmp_path / "v", 10)

    def record() -> None:
        with writer:
            for number in range(4):
                writer.write(moving_square(number))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        record()
    assert len(list(open_source(str(writer.path)))) == 4
    writer.close()  # twice is harmless


def test_video_without_frames_leaves_nothing(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "v", 10) as writer:
        pass
    assert writer.path is None and list(tmp_path.iterdir()) == []


def test_video_refuses_another_size_and_no_rate(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "v", 10) as writer:
        writer.write(moving_square(0))
        with pytest.raises(ValueError, match="first one was"):
            writer.write(moving_square(0, (80, 131)))
    with pytest.raises(ValueError, match="above 0"):
        VideoWriter(tmp_path / "v", float("nan"))
