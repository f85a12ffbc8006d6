"""What a source names, in which order, and what happens to what cannot be read."""

from __future__ import annotations

import logging
import time
from contextlib import closing
from pathlib import Path

import cv2
import numpy as np
import pytest

from utils.decoding import VideoError, read_picture, read_video, to_uint8
from utils.images import ImageError
from utils.sources import AHEAD_PER_WORKER, Frame, SourceError, open_source

RED_RGB, BLUE_RGB = (200, 30, 10), (10, 30, 200)


def write_picture(path: Path, rgb: tuple[int, int, int] = RED_RGB, hw: tuple[int, int] = (8, 12)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = np.full((*hw, 3), rgb[::-1], dtype=np.uint8)
    success, data = cv2.imencode(path.suffix.lower(), picture)
    assert success
    path.write_bytes(data.tobytes())
    return path


def write_video(path: Path, frames: int = 6, fps: float = 12.0, hw: tuple[int, int] = (48, 64)) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), fps, (hw[1], hw[0]))
    assert writer.isOpened()
    for number in range(frames):
        writer.write(np.full((*hw, 3), (250, 20 * number, 10), dtype=np.uint8))
    writer.release()
    return path


def names(spec: Path | str) -> list[str]:
    return [frame.path.name for frame in open_source(str(spec))]


# ---------------------------------------------------------------------------------------- what is found


@pytest.mark.parametrize("suffix", [".jpg", ".JPEG", ".png", ".bmp", ".tif", ".TIFF", ".webp"])
def test_every_picture_format_reads_as_rgb(tmp_path: Path, suffix: str) -> None:
    (frame,) = open_source(str(write_picture(tmp_path / f"a{suffix}")))
    assert frame.image.dtype == np.uint8 and frame.image.shape == (8, 12, 3)
    assert np.abs(frame.image[4, 6].astype(int) - RED_RGB).max() <= 12  # JPEG and WebP lose a little
    assert (frame.index, frame.frame_number, frame.total, frame.video) == (0, None, 1, None)


def test_non_ascii_path(tmp_path: Path) -> None:
    assert names(write_picture(tmp_path / "höhe 無人機" / "übung ✈.png")) == ["übung ✈.png"]


def test_folder_is_recursive_sorted_and_leaves_out_hidden_and_other_files(tmp_path: Path) -> None:
    for name in ("b.jpg", "a.png", "sub/c.jpg", "sub/deep/A.JPG", ".hidden/x.jpg", "._b.jpg"):
        write_picture(tmp_path / name)
    (tmp_path / "notes.txt").write_text("not a list here")
    source = open_source(str(tmp_path))
    assert [source.relative(frame.path).as_posix() for frame in source] == [
        "a.png",
        "b.jpg",
        "sub/c.jpg",
        "sub/deep/A.JPG",
    ]
    assert source.skipped == 0 and len(source) == 4


def test_folder_reached_by_links_with_a_loop(tmp_path: Path) -> None:
    write_picture(tmp_path / "real" / "a.jpg")
    (tmp_path / "real" / "again").symlink_to(tmp_path / "real", target_is_directory=True)
    (tmp_path / "link").symlink_to(tmp_path / "real", target_is_directory=True)
    assert names(tmp_path / "link") == ["a.jpg"]


def test_masked_twins_are_left_out_only_where_the_original_is_there(tmp_path: Path) -> None:
    for name in ("x.jpg", "x_masked.jpg", "y_masked.jpg", "other/x_masked.jpg", "z.png", "z_masked.jpg"):
        write_picture(tmp_path / name)
    assert names(tmp_path) == ["x_masked.jpg", "x.jpg", "y_masked.jpg", "z.png"]  # the first is other/'s
    assert names(tmp_path / "*.jpg") == ["x.jpg", "y_masked.jpg", "z_masked.jpg"]
    assert names(tmp_path / "x_masked.jpg") == ["x_masked.jpg"]


def test_glob(tmp_path: Path) -> None:
    for name in ("a.jpg", "sub/b.jpg", "sub/deep/c.jpg", "sub/d.png"):
        write_picture(tmp_path / name)
    (tmp_path / "sub" / "b.txt").write_text("0 0.5 0.5 0.1 0.1")
    assert names(tmp_path / "**" / "*.jpg") == ["a.jpg", "b.jpg", "c.jpg"]
    assert names(tmp_path / "sub" / "*") == ["b.jpg", "d.png"]


def test_brackets_in_a_real_name_are_no_pattern(tmp_path: Path) -> None:
    assert names(write_picture(tmp_path / "a[1].jpg")) == ["a[1].jpg"]


def test_list_prefers_working_directory_then_its_own_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    here, lists = tmp_path / "here", tmp_path / "lists"
    write_picture(here / "both.png", RED_RGB)
    write_picture(lists / "both.png", BLUE_RGB)
    write_picture(lists / "only.png", BLUE_RGB)
    absolute = write_picture(tmp_path / "far_masked.png", RED_RGB)
    write_picture(tmp_path / "far.png", RED_RGB)
    (lists / "l.txt").write_text(
        f"\ufeffboth.png\r\n\r\n./only.png\r\nmissing.png\r\n{absolute}\r\nboth.png\r\nl.txt\r\n",
        encoding="utf-8",
    )
    monkeypatch.chdir(here)
    with caplog.at_level(logging.WARNING):
        source = open_source(str(lists / "l.txt"))
        frames = list(source)
    assert [frame.path.name for frame in frames] == ["both.png", "only.png", "far_masked.png"]
    assert [tuple(frame.image[0, 0]) for frame in frames] == [RED_RGB, BLUE_RGB, RED_RGB]
    assert [frame.index for frame in frames] == [0, 1, 2] and frames[0].total == 3
    assert source.skipped == 2
    assert "l.txt:4" in caplog.text and "missing.png" in caplog.text and "l.txt:7" in caplog.text


# -------------------------------------------------------------------------------------------- videos


def test_video(tmp_path: Path) -> None:
    source = open_source(str(write_video(tmp_path / "v.avi")))
    frames = list(source)
    assert [frame.frame_number for frame in frames] == list(range(6))
    assert all(frame.index == 0 and frame.total == 1 for frame in frames)
    video = frames[0].video
    assert video is not None
    assert video.fps == pytest.approx(12.0) and video.frame_count == 6 and video.hw == (48, 64)
    red, _, blue = frames[0].image[20, 20].astype(int)  # written blue: channels are in the right order
    assert blue > 200 and red < 60
    assert source.skipped == 0 and source.problems == []


def test_folder_may_mix_videos_and_pictures(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.png")
    write_video(tmp_path / "b.avi", frames=3)
    write_picture(tmp_path / "c.png")
    frames = list(open_source(str(tmp_path)))
    assert [(f.path.name, f.index, f.frame_number) for f in frames] == [
        ("a.png", 0, None),
        ("b.avi", 1, 0),
        ("b.avi", 1, 1),
        ("b.avi", 1, 2),
        ("c.png", 2, None),
    ]


def test_text_called_video_is_skipped(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_text("no video")
    write_picture(tmp_path / "b.png")
    source = open_source(str(tmp_path))
    assert [frame.path.name for frame in source] == ["b.png"]
    assert source.skipped == 1 and "a.mp4" in source.problems[0]
    with pytest.raises(VideoError, match=r"a\.mp4"):
        next(read_video(tmp_path / "a.mp4"))


def test_cut_video_is_reported(tmp_path: Path) -> None:
    whole = write_video(tmp_path / "v.avi", frames=60)
    data = whole.read_bytes()
    whole.write_bytes(data[: len(data) // 2])
    source = open_source(str(whole))
    count = len(list(source))
    assert 0 < count < 50
    assert source.skipped == 0  # it gave pictures
    assert len(source.problems) == 1 and "v.avi" in source.problems[0]


# ------------------------------------------------------------------------------- what cannot be read


def test_unreadable_pictures_are_counted_and_the_rest_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.png").write_text("hello")
    whole = write_picture(tmp_path / "cut.jpg", hw=(200, 300))
    whole.write_bytes(whole.read_bytes()[:-40])
    write_picture(tmp_path / "good.png")
    source = open_source(str(tmp_path))
    for _ in range(2):  # iterating again does not count twice
        caplog.clear()
        assert [frame.path.name for frame in source] == ["good.png"]
        assert source.skipped == 3 and len(source.problems) == 3
    for name in ("empty.jpg", "text.png", "cut.jpg"):
        assert name in caplog.text


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"gone\.jpg"):
        read_picture(tmp_path / "gone.jpg")


@pytest.mark.parametrize(
    "spec, expected",
    [
        ("ftp://user:secret@10.0.0.1/live", "ftp://.* cannot be read"),
        (
            "https://user:secret@example.org/a.jpg?key=secret",
            r"https://example.org/a.jpg is a file.*download",
        ),
        ("http://example.org/a.mp4", "not a live stream"),
        ("", "empty"),
        ("nowhere/at/all.jpg", "does not exist"),
        ("nowhere/*.jpg", "matches nothing"),
    ],
)
def test_refused_kinds_say_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: str, expected: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceError, match=expected) as caught:
        open_source(spec)
    assert "secret" not in str(caught.value)


def test_empty_folder_list_and_unknown_file(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="holds no picture"):
        open_source(str(tmp_path))
    (tmp_path / "empty.txt").write_text("\n\n")
    with pytest.raises(SourceError, match="no lines"):
        open_source(str(tmp_path / "empty.txt"))
    (tmp_path / "wrong.txt").write_text("a.jpg\nb.jpg\n")
    with pytest.raises(SourceError, match=r"2 lines, the first: .*wrong\.txt:1"):
        open_source(str(tmp_path / "wrong.txt"))
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(SourceError, match="UTF-8"):
        open_source(str(tmp_path / "binary.txt"))
    (tmp_path / "a.pdf").write_text("x")
    with pytest.raises(SourceError, match=r"a\.pdf"):
        open_source(str(tmp_path / "a.pdf"))
    with pytest.raises(SourceError, match="only"):
        open_source(str(tmp_path / "*"))


# ---------------------------------------------------------------------------------------- read ahead


def mixed_source(folder: Path) -> Path:
    """Pictures, good and bad, videos, whole, cut and none at all, in an order of their own."""
    for number in range(6):
        write_picture(folder / f"{number}.png", (40 * number, 0, 0))
    (folder / "1b.jpg").touch()
    (folder / "2b.mp4").write_text("no video")
    write_video(folder / "2c.avi", frames=5)
    cut = write_video(folder / "3b.avi", frames=60)
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    (folder / "9.png").write_text("hello")
    return folder


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_frames_and_problems_come_in_the_same_order_with_threads(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, workers: int
) -> None:
    source = open_source(str(mixed_source(tmp_path)))
    plain = [(frame.path.name, frame.frame_number, frame.image.tobytes()) for frame in source]
    problems, skipped = source.problems, source.skipped
    assert skipped == 3 and len(problems) == 4
    caplog.clear()
    known: list[tuple[str, int]] = []
    ahead = []
    for frame, brightness in source.read_ahead(lambda frame: int(frame.image.sum()), workers):
        ahead.append((frame.path.name, frame.frame_number, frame.image.tobytes()))
        assert brightness == frame.image.sum(dtype=np.int64)
        known.append((frame.path.name, len(caplog.records)))
    assert ahead == plain
    assert source.problems == problems and source.skipped == skipped
    # A problem is told at its place: after all frames before it were handed out.
    told = dict(known)
    assert [told[name] for name in ("0.png", "1.png", "2.png", "2c.avi", "3.png", "4.png")] == [
        0,
        0,
        1,
        2,
        2,
        3,
    ]


def test_an_error_of_what_is_prepared_is_not_taken_for_an_unreadable_file(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.png")

    def fail(frame: Frame) -> None:
        raise RuntimeError("out of memory")

    source = open_source(str(tmp_path))
    for workers in (0, 2):
        with pytest.raises(RuntimeError, match="memory"):
            next(source.read_ahead(fail, workers))
        assert source.skipped == 0


def test_only_so_many_pictures_are_decoded_in_advance(tmp_path: Path) -> None:
    write_video(tmp_path / "v.avi", frames=40)
    seen: list[int] = []
    with closing(open_source(str(tmp_path)).read_ahead(lambda frame: seen.append(1), 2)) as frames:
        for used in range(1, 9):
            next(frames)
            time.sleep(0.01)
            assert len(seen) <= used + 2 * AHEAD_PER_WORKER


# --------------------------------------------------------------------------------- names of outputs


def test_relative_keeps_only_the_folders_that_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_picture(tmp_path / "set" / "train" / "images" / "a.jpg")
    write_picture(tmp_path / "set" / "val" / "images" / "a.jpg")
    monkeypatch.chdir(tmp_path / "set" / "train")
    Path("l.txt").write_text("images/a.jpg\n../val/images/a.jpg\n")
    source = open_source("l.txt")
    assert [source.relative(path).as_posix() for path in source.paths] == [
        "train/images/a.jpg",
        "val/images/a.jpg",
    ]
    one = open_source("images/a.jpg")
    assert one.relative(one.paths[0]) == Path("a.jpg")


# ----------------------------------------------------------------------------------- odd pixel types


def test_grey_becomes_three_channels(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "g.png"), np.full((4, 5), 77, np.uint8))
    assert np.array_equal(read_picture(tmp_path / "g.png"), np.full((4, 5, 3), 77, np.uint8))


def test_16_bit_colour_keeps_order_and_scale(tmp_path: Path) -> None:
    bgr = np.zeros((4, 5, 3), np.uint16)
    bgr[...] = (65535, 32768, 0)
    cv2.imwrite(str(tmp_path / "d.tif"), bgr)
    assert read_picture(tmp_path / "d.tif")[0, 0].tolist() == [0, 128, 255]


def test_alpha_is_laid_over_grey(tmp_path: Path) -> None:
    bgra = np.zeros((1, 3, 4), np.uint8)
    bgra[0, 0] = (10, 20, 30, 255)
    bgra[0, 1] = (10, 20, 30, 0)
    bgra[0, 2] = (214, 14, 114, 128)
    cv2.imwrite(str(tmp_path / "a.png"), bgra)
    pixels = read_picture(tmp_path / "a.png")[0]
    assert pixels[0].tolist() == [30, 20, 10]
    assert pixels[1].tolist() == [114, 114, 114]
    assert pixels[2].tolist() == [114, 64, 164]


def test_exif_orientation_turns_the_picture_upright(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    picture = image.new("RGB", (12, 8), RED_RGB)
    exif = picture.getexif()
    exif[0x0112] = 6  # the camera was turned by 90°
    picture.save(tmp_path / "e.jpg", exif=exif)
    assert read_picture(tmp_path / "e.jpg").shape == (12, 8, 3)


@pytest.mark.parametrize(
    "values, expected",
    [
        (np.array([0, 128, 255], np.uint8), [0, 128, 255]),
        (np.array([0, 200], np.uint16), [0, 200]),  # 8 bits in a 16-bit file
        (np.array([0, 2048, 4095], np.uint16), [0, 128, 255]),  # 12 bits, unscaled
        (np.array([0, 32768, 65535], np.uint16), [0, 128, 255]),
        (np.array([-5, 16383], np.int16), [0, 255]),
        (np.array([0, 131070], np.int32), [0, 255]),
        (np.array([-0.5, 0.0, 0.5, 1.0, np.nan], np.float32), [0, 0, 128, 255, 0]),
        (np.array([0.0, 100.0, 255.0], np.float64), [0, 100, 255]),
        (np.array([], np.uint16), []),
    ],
)
def test_to_uint8(values: np.ndarray, expected: list[int]) -> None:
    result = to_uint8(values)
    assert result.dtype == np.uint8 and result.tolist() == expected
