"""`utils.plots` (with `utils.draw`, `utils.mosaic`): what the pictures contain, by pixel, and what is refused."""

from __future__ import annotations

import csv
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from utils import draw, plots
from utils.plots import (
    GREEN,
    PALETTE,
    Image,
    PictureError,
    draw_boxes,
    draw_patches,
    mosaic_picture,
    overlay_heatmap,
    plot_confusion_matrix,
    plot_curves,
    plot_results,
    plot_stacked_bars,
    save_image,
    to_image,
)

NAMES = ["car", "van"]


def grey(height: int = 120, width: int = 160) -> Image:
    return np.full((height, width, 3), 90, dtype=np.uint8)


def has_colour(picture: NDArray[Any], colour: tuple[int, int, int]) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = np.all(picture == np.array(colour), axis=2)
    return found


def read(path: Path) -> NDArray[np.uint8]:
    """A picture file as RGB."""
    decoded = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR)
    assert decoded is not None, f"{path} is not a picture"
    return np.asarray(decoded[..., ::-1], dtype=np.uint8)


# ---- boxes ----


def test_box_is_drawn_in_the_colour_of_its_class_and_the_image_is_kept() -> None:
    image = grey()
    picture = draw_boxes(
        image, torch.tensor([[20.0, 30, 80, 90]]), torch.tensor([1]), hide_labels=True, line_thickness=1
    )
    line = has_colour(picture, PALETTE[1])
    rows, columns = np.nonzero(line)
    assert (columns.min(), rows.min(), columns.max(), rows.max()) == (20, 30, 80, 90)
    assert line.sum() == 2 * (61 + 61) - 4, "an outline of one pixel"
    assert (image == 90).all()
    assert (picture[~line] == 90).all()


@pytest.mark.parametrize(
    "box",
    [(50, 50, 54, 54), (50, 50, 51, 51), (50.2, 50.2, 50.4, 50.4), (0, 0, 4, 4), (156, 116, 160, 120)],
)  # fmt: skip
def test_small_box_stays_visible_and_does_not_hide_its_object(box: tuple[float, ...]) -> None:
    picture = draw_boxes(grey(), np.array([box]), np.array([0]), line_thickness=5, hide_labels=True)
    x1, y1, x2, y2 = np.round(box).astype(int)
    assert (picture[y1:y2, x1:x2] == 90).all(), "the object's own pixels"
    assert 8 <= has_colour(picture, PALETTE[0]).sum() <= 28


@pytest.mark.parametrize(
    "box",
    [
        (0, 0, 40, 40),
        (120, 0, 160, 40),
        (0, 80, 40, 120),
        (120, 80, 160, 120),
        (-500, -500, 900, 900),
        (60, 2, 75, 118),
    ],
    ids=["top left", "top right", "bottom left", "bottom right", "larger than the picture", "full height"],
)
def test_label_lies_inside_the_picture_at_every_border(box: tuple[float, ...]) -> None:
    arguments = (grey(), np.array([box]), np.array([0]), np.array([0.87]), NAMES)
    added = has_colour(draw_boxes(*arguments), PALETTE[0])
    added &= ~has_colour(draw_boxes(*arguments, hide_labels=True), PALETTE[0])
    rows, columns = np.nonzero(added)
    (text_w, text_h), _ = cv2.getTextSize("car 0.87", draw.FONT, 0.4, 1)
    assert rows.size > 0, "no label was drawn"
    # The whole filled background is there: it was not cut off at a border.
    assert columns.max() - columns.min() + 1 >= text_w
    assert rows.max() - rows.min() + 1 >= text_h


def test_label_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    original = cv2.putText

    def put_text(picture: Any, text: str, *rest: Any) -> Any:
        written.append(text)
        return original(picture, text, *rest)

    monkeypatch.setattr(draw.cv2, "putText", put_text)
    boxes, label, score = (
        np.array([[20, 30, 60, 90], [90, 30, 140, 90.0]]),
        np.array([1, 7]),
        np.array([0.5, 0.876]),
    )
    draw_boxes(grey(), boxes, label, score, NAMES)
    draw_boxes(grey(), boxes, label, score, NAMES, hide_conf=True)
    draw_boxes(grey(), boxes, label, None, None)
    draw_boxes(grey(), boxes, label, score, NAMES, hide_labels=True)
    # Best score first; class 7 has no name; the last call writes nothing.
    assert written == ["7 0.88", "van 0.50", "7", "van", "1", "7"]


def test_best_box_is_on_top() -> None:
    boxes = np.array([[20, 20, 100, 100], [20, 20, 100, 100.0]])
    picture = draw_boxes(grey(), boxes, np.array([0, 1]), np.array([0.9, 0.2]), hide_labels=True)
    assert has_colour(picture, PALETTE[0]).any() and not has_colour(picture, PALETTE[1]).any()


def test_hundreds_of_boxes_leave_the_objects_visible() -> None:
    rng = np.random.default_rng(0)
    corner = rng.uniform([0, 0], [780, 580], (400, 2))
    boxes = np.concatenate([corner, corner + 16], axis=1)
    score = rng.random(400)
    image = rng.integers(0, 60, (600, 800, 3)).astype(np.uint8)
    few = draw_boxes(image, boxes[:5], np.zeros(5), score[:5], ["pedestrian"])
    assert (few != draw_boxes(image, boxes[:5], np.zeros(5), score[:5], hide_labels=True)).any()
    lines = draw_boxes(image, boxes, np.zeros(400), score, ["pedestrian"], hide_labels=True)
    labelled = draw_boxes(image, boxes, np.zeros(400), score, ["pedestrian"])
    covered = (lines != labelled).any(axis=2)
    assert 0 < covered.mean() < 0.35
    inner = np.zeros((600, 800), dtype=bool)
    for x1, y1, x2, y2 in boxes.round().astype(int):
        inner[y1 + 1 : y2 - 1, x1 + 1 : x2 - 1] = True
    assert covered[inner].mean() < 0.05, "labels must not lie on the objects"


@pytest.mark.parametrize(
    "boxes", [np.zeros((0, 4)), torch.zeros(0, 4), np.array([[-50, 10, -5, 60.0]]), np.array([[10, 300, 50, 400.0]])],
    ids=["none", "no tensor rows", "left of the picture", "below the picture"],
)  # fmt: skip
def test_nothing_to_draw_gives_the_same_picture(boxes: Any) -> None:
    np.testing.assert_array_equal(
        draw_boxes(grey(), boxes, np.zeros(len(boxes)), np.ones(len(boxes)), NAMES), grey()
    )


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((grey(), np.zeros((2, 4)), np.zeros(1)), "2 boxes with 1 labels"),
        ((grey(), np.zeros((1, 4)), np.zeros(1), np.zeros(3)), "3 scores"),
        ((grey(), np.zeros((1, 5)), np.zeros(1)), r"expected \[N, 4\]"),
        ((grey(), np.full((1, 4), np.nan), np.zeros(1)), "not finite"),
        ((grey().astype(np.float32), np.zeros((0, 4)), np.zeros(0)), "expected uint8 RGB"),
        ((grey()[..., 0], np.zeros((0, 4)), np.zeros(0)), "expected uint8 RGB"),
    ],
)
def test_what_cannot_be_drawn_is_named(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(PictureError, match=message):
        draw_boxes(*arguments)


# ---- patches and heatmaps ----


def test_patch_frame_lies_inside_the_patch_and_the_picture() -> None:
    picture = draw_patches(grey(), torch.tensor([[0, 0, 40, 24], [120, 96, 160, 120]]), line_thickness=2)
    green = has_colour(picture, GREEN)
    expected = np.zeros((120, 160), dtype=bool)
    expected[0:24, 0:40] = expected[96:120, 120:160] = True
    expected[2:22, 2:38] = expected[98:118, 122:158] = False
    np.testing.assert_array_equal(green, expected)
    np.testing.assert_array_equal(draw_patches(grey(), torch.zeros(0, 4)), grey())


def test_heatmap_glows_where_it_is_hot_and_leaves_the_rest() -> None:
    heatmap = torch.zeros(1, 15, 20)
    heatmap[0, 5, 10] = 1.0
    picture = overlay_heatmap(grey(), heatmap, alpha=1.0, smooth=False)
    hot = (picture != 90).any(axis=2)
    expected = np.zeros((120, 160), dtype=bool)
    expected[40:48, 80:88] = True
    np.testing.assert_array_equal(hot, expected)
    assert len(np.unique(picture[40:48, 80:88].reshape(-1, 3), axis=0)) == 1
    smooth = overlay_heatmap(grey(), heatmap)
    assert (smooth != 90).any(axis=2).sum() > hot.sum()
    np.testing.assert_array_equal(overlay_heatmap(grey(), np.zeros((3, 3))), grey())


@pytest.mark.parametrize("heatmap", [np.zeros((2, 3, 4)), np.zeros((0, 4)), np.full((3, 3), np.nan)])
def test_wrong_heatmap_is_named(heatmap: NDArray[Any]) -> None:
    with pytest.raises(PictureError, match="heatmap has"):
        overlay_heatmap(grey(), heatmap)


# ---- many images ----


@pytest.mark.parametrize("count, grid", [(1, (1, 1)), (2, (1, 2)), (5, (2, 3)), (16, (4, 4)), (30, (4, 4))])
def test_mosaic_has_a_cell_per_image(count: int, grid: tuple[int, int]) -> None:
    images = [torch.full((3, 120, 160), (n + 1) / 40) for n in range(count)]
    picture = mosaic_picture(images)
    rows, columns = grid
    assert picture.shape == (rows * 124 + 4, columns * 164 + 4, 3)
    for number in range(min(count, 16)):
        row, column = divmod(number, columns)
        assert (picture[row * 124 + 64, column * 164 + 84] == round((number + 1) / 40 * 255)).all()


def test_mosaic_fits_and_scales_boxes_with_their_image() -> None:
    images = [grey(800, 1000), grey(400, 500)]
    boxes = [torch.tensor([[100.0, 200, 500, 600]]), torch.tensor([[50.0, 100, 250, 300]])]
    picture = mosaic_picture(images, boxes, [torch.zeros(1), torch.zeros(1)], names=None, max_size=512)
    assert max(picture.shape) <= 512
    _, columns = np.nonzero(has_colour(picture, PALETTE[0]))
    left, right = columns[columns < picture.shape[1] // 2], columns[columns >= picture.shape[1] // 2]
    # Both images show the same box once they have the size of their cell.
    assert abs((left.max() - left.min()) - (right.max() - right.min())) <= 1
    assert left.max() - left.min() == pytest.approx(0.4 * 250, abs=3)


def test_mosaic_shows_heatmaps_titles_and_a_legend_of_the_classes() -> None:
    boxes, labels = [torch.zeros(0, 4), torch.tensor([[10.0, 10, 60, 60]])], [torch.zeros(0), torch.ones(1)]
    plain = mosaic_picture([grey(), grey()], boxes, labels)
    full = mosaic_picture(
        [grey(), grey()], boxes, labels, [torch.ones(15, 20), None], NAMES, titles=["first.jpg", "second.jpg"]
    )
    assert (full[10:60, 10:100] != plain[10:60, 10:100]).any(), "heatmap"
    assert full.shape[0] == plain.shape[0] + 24, "legend"
    legend = full[plain.shape[0] :]
    assert has_colour(legend, PALETTE[1]).any() and not has_colour(legend, PALETTE[0]).any()
    assert (full[100:124, 4:40] != plain[100:124, 4:40]).any(), "title"


@pytest.mark.parametrize(
    "arguments, message",
    [(([],), "no images"), (([grey()], [np.zeros((0, 4))] * 2, [np.zeros(0)]), "2 boxes for 1 images")],
)
def test_wrong_mosaic_is_named(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(PictureError, match=message):
        mosaic_picture(*arguments)


def test_to_image_takes_tensors_and_pictures() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (6, 8, 3)).astype(np.uint8)
    tensor = torch.from_numpy(picture).permute(2, 0, 1)
    for image in (picture, tensor, tensor.float() / 255):
        np.testing.assert_array_equal(to_image(image), picture)


# ---- files ----


@pytest.mark.parametrize(
    "name", ["a.png", "b.jpg", "folder with spaces/图像 é.png", "C.JPEG", "d.webp", "e.bmp"]
)
def test_saved_picture_is_read_back(tmp_path: Path, name: str) -> None:
    image = grey()
    image[:, :80] = (200, 30, 60)
    path = save_image(tmp_path / name, image)
    assert np.abs(read(path).astype(int)[60, [20, 140]] - image[60, [20, 140]]).max() <= 6, "RGB order kept"
    assert [file.name for file in path.parent.iterdir()] == [path.name], "no temporary file is left"


def test_saving_fails_with_a_reason_and_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save_image(tmp_path / "a.png", grey())
    before = path.read_bytes()
    with pytest.raises(PictureError, match=r"suffix '.gif2' is not one of"):
        save_image(tmp_path / "a.gif2", grey())

    def interrupted(self: Path, target: Path) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(OSError, match="disk full"):
        save_image(path, np.zeros_like(grey()))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


# ---- charts ----


@pytest.fixture
def quick_charts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer pixels: what is drawn is the same, the suite is quicker."""
    monkeypatch.setattr(plots, "DPI", 40)


def curves(classes: int, rows: float = 0.5) -> SimpleNamespace:
    """Curves of which the first class has labels and the others have none."""
    confidence, levels = np.linspace(0, 1, 1001), np.linspace(0, 1, 101)
    table = np.full((classes, 1001), np.nan)
    table[0] = rows * (1 - confidence)
    at_recall = np.full((classes, 101), np.nan)
    at_recall[0] = rows
    return SimpleNamespace(
        confidence=confidence, precision=table, recall=table, f1=table,
        mean_precision=table[0], mean_recall=table[0], mean_f1=table[0],
        recall_levels=levels, precision_at_recall=at_recall, mean_precision_at_recall=at_recall[0],
    )  # fmt: skip


@pytest.mark.usefixtures("quick_charts")
@pytest.mark.parametrize("classes", [2, 80])
def test_curves_are_drawn(tmp_path: Path, classes: int) -> None:
    files = plot_curves(curves(classes), [f"class {n}" for n in range(classes)], tmp_path / "new")
    assert [file.name for file in files] == ["P_curve.png", "R_curve.png", "F1_curve.png", "PR_curve.png"]
    for file in files:
        picture = read(file)
        assert picture.shape[1] > 200 and (picture < 128).any()


def test_curve_and_name_are_in_the_picture(tmp_path: Path) -> None:
    figures = [
        plots._curve_figure(
            np.linspace(0, 1, 3), np.array([[0.5, value, 0]]), np.full(3, 0.2), ["car"], ["note"], ""
        )
        for value in (0.4, 0.1)
    ]
    first, second = (read(plots.save_figure(figure, tmp_path / "a.png")) for figure in figures)
    assert first.shape == second.shape and (first != second).any()
    texts = [text.get_text() for text in figures[0].axes[0].get_legend().get_texts()]
    assert texts == ["car  note", "all classes  "]


@pytest.mark.usefixtures("quick_charts")
def test_curves_without_any_label_are_drawn_empty(tmp_path: Path) -> None:
    empty = curves(2, rows=np.nan)
    for file in plot_curves(empty, NAMES, tmp_path):
        assert read(file).size > 0


@pytest.mark.usefixtures("quick_charts")
def test_confusion_matrix_is_drawn(tmp_path: Path) -> None:
    matrix = np.array([[8, 1, 2], [0, 0, 0], [2, 0, 0]])
    first = read(plot_confusion_matrix(matrix, NAMES, tmp_path / "a.png"))
    second = read(plot_confusion_matrix(matrix.T, NAMES, tmp_path / "b.png"))
    assert first.shape == second.shape and (first != second).any()
    assert read(plot_confusion_matrix(np.zeros((3, 3)), NAMES, tmp_path / "none.png")).size > 0
    big = plot_confusion_matrix(np.eye(81), [str(n) for n in range(80)], tmp_path / "big.png")
    assert max(read(big).shape) < 4000
    with pytest.raises(PictureError, match=r"shape \(2, 2\); expected \(3, 3\) for 2 names"):
        plot_confusion_matrix(np.eye(2), NAMES, tmp_path / "c.png")


def results_file(path: Path, rows: list[list[object]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return path


@pytest.mark.usefixtures("quick_charts")
@pytest.mark.parametrize(
    "rows",
    [
        pytest.param([["epoch", "train/box", "AP"], [0, 1.5, 0.1]], id="one epoch"),
        pytest.param([["epoch", "loss"], *([n, 1 / (n + 1)] for n in range(50))], id="many epochs"),
        pytest.param(
            [["  epoch ", " loss", " AP "], [" 0", " 1.0 ", " "], [" 1", " nan", "0.2 "]],
            id="spaces and gaps",
        ),
        pytest.param([["epoch", "loss", "AP"], [0, 1.0, 0.1], [1, 0.9]], id="last line cut short"),
        pytest.param(
            [["epoch", "loss", "note"], [0, 1.0, "warm-up"], [], [1, 0.9, ""]], id="words and an empty line"
        ),
        pytest.param(
            [["epoch", *(f"c{n}" for n in range(7))], [0, *range(7)], [1, *range(7)]], id="many columns"
        ),
        pytest.param([["epoch", "loss"], [0, "inf"], [1, 2.0]], id="infinite loss"),
    ],
)
def test_training_curves_are_drawn(tmp_path: Path, rows: list[list[object]]) -> None:
    path = plot_results(results_file(tmp_path / "results.csv", rows), tmp_path / "results.png")
    assert (read(path) < 200).any()


@pytest.mark.parametrize(
    "rows", [[], [["epoch", "loss"]], [["epoch"], [0]], [["epoch", "loss"], ["a", "b"]]],
    ids=["empty", "names only", "no column", "no numbers"],
)  # fmt: skip
def test_results_without_numbers_are_named(tmp_path: Path, rows: list[list[object]]) -> None:
    source = results_file(tmp_path / "results.csv", rows)
    with pytest.raises(PictureError, match="no rows of numbers"):
        plot_results(source, tmp_path / "results.png")
    with pytest.raises(PictureError, match="does not exist"):
        plot_results(tmp_path / "other.csv", tmp_path / "results.png")
    assert not (tmp_path / "results.png").exists()


def test_columns_are_read_without_spaces_and_gaps_stay_gaps(tmp_path: Path) -> None:
    rows: list[list[object]] = [
        ["  epoch ", " AP ", "note"],
        [" 0", " 0.5 ", "x"],
        [1, " "],
        ["", 3],
        [2, "0.75"],
    ]
    names, values = plots._read_columns(results_file(tmp_path / "results.csv", rows))
    assert names == ["epoch", "AP"]
    np.testing.assert_array_equal(values, [[0, 0.5], [1, np.nan], [2, 0.75]])


def test_real_image_with_its_labels(shared_dir: Path, tmp_path: Path) -> None:
    folder = shared_dir / "data" / "VisDrone" / "VisDrone2019-DET-val"
    source = sorted((folder / "images").glob("*.jpg"))[0]
    rows = np.loadtxt(folder / "annotations" / f"{source.stem}.txt", delimiter=",", usecols=range(8), ndmin=2)
    rows = rows[rows[:, 4] == 1]
    boxes = np.concatenate([rows[:, :2], rows[:, :2] + rows[:, 2:4]], axis=1)
    image = read(source)
    picture = draw_boxes(image, boxes, rows[:, 5] - 1)
    assert picture.shape == image.shape and (picture != image).any()
    save_image(tmp_path / "picture.jpg", picture)


# ---- stacked bars ----


def rgb(colour: str) -> tuple[int, int, int]:
    """#rrggbb as numbers."""
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def test_stacked_bars_are_as_high_as_their_shares(tmp_path: Path) -> None:
    parts = {"lost": [30, 0, 0], "wrong": [30, 10, 0]}
    axes = {"title": "Missed", "x_name": "size", "y_name": "share"}
    picture = read(
        plot_stacked_bars(["all", "small", "none"], [100, 100, 0], parts, tmp_path / "b.png", **axes)
    )
    lost, wrong = (has_colour(picture, rgb(plots.LINE_COLOURS[number])) for number in (0, 1))
    heights = []
    for flags in (lost, wrong):
        columns = flags.sum(axis=0)
        bars = columns[columns > 25]  # what is narrower is the legend
        heights.append(sorted(set(bars.tolist())))
    assert len(heights[0]) == 1 and len(heights[1]) == 2
    assert abs(heights[0][0] - heights[1][1]) <= 3, "equal parts"
    assert heights[1][1] / heights[1][0] == pytest.approx(3, rel=0.1)


def test_stacked_bars_without_any_object(tmp_path: Path) -> None:
    path = plot_stacked_bars(["all"], [0], {"lost": [0]}, tmp_path / "b.png", title="", x_name="", y_name="")
    assert read(path).size
