"""utils/heatmap.py: eq. 3, files, warping."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.heatmap import (
    HeatmapError,
    HeatmapFile,
    block_maximum,
    gaussian_heatmap_file,
    heatmap_fingerprint,
    heatmap_path,
    load_heatmap,
    load_heatmap_header,
    render_heatmap,
    save_heatmap,
    to_bytes,
    warp_heatmap,
)

Array = npt.NDArray[Any]


def per_pixel(boxes: Array, hw: tuple[int, int], tau: float, stride: int) -> Array:
    """Eq. 3 as it is written, pixel by pixel."""
    height, width = hw
    rows, columns = math.ceil(height / stride), math.ceil(width / stride)
    full = np.zeros((rows * stride, columns * stride))
    y, x = np.arange(height)[:, None] + 0.5, np.arange(width)[None] + 0.5
    for cx, cy, w, h in boxes:
        inside = (np.abs(x - cx) <= w / 2) & (np.abs(y - cy) <= h / 2)
        squares = (x - cx) ** 2 / (w / 2) ** 2 + (y - cy) ** 2 / (h / 2) ** 2
        value = np.exp(0.5 * squares * np.log(tau)) * inside
        if not inside.any() and 0 <= cx < width and 0 <= cy < height:
            value[int(cy), int(cx)] = 1
        full[:height, :width] = np.maximum(full[:height, :width], value)
    return full.reshape(rows, stride, columns, stride).max(axis=(1, 3))


def random_boxes(count: int, hw: tuple[int, int], largest: float, seed: int) -> Array:
    rng = np.random.default_rng(seed)
    size = np.exp(rng.uniform(np.log(0.3), np.log(largest), (count, 2)))
    return np.concatenate([rng.uniform(0, (hw[1], hw[0]), (count, 2)), size], axis=1)


def test_centre_edge_corner_by_hand() -> None:
    box = [[8.5, 8.5, 8.0, 16.0]]  # borders at pixel centres: x 4.5 and 12.5, y 0.5 and 16.5
    pixels = render_heatmap(box, (24, 24), tau=0.5, stride=1)
    assert pixels[8, 8] == 1
    assert pixels[8, 4] == pytest.approx(math.sqrt(0.5))  # middle of the left side
    assert pixels[0, 8] == pytest.approx(math.sqrt(0.5))  # middle of the upper side
    assert pixels[0, 4] == pytest.approx(0.5)  # corner
    assert pixels[8, 6] == pytest.approx(0.5 ** (0.5 * 0.25))  # half way to the left
    assert pixels[8, 3] == 0 and pixels[17, 8] == 0  # outside
    assert np.array_equal(render_heatmap(box, (24, 24)), block_maximum(pixels, 8))


@pytest.mark.parametrize("tau", [0.1, 0.5, 0.9])
def test_corner_has_tau(tau: float) -> None:
    pixels = render_heatmap([[8.5, 8.5, 8.0, 8.0]], (24, 24), tau, stride=1)
    assert pixels[4, 4] == pytest.approx(tau) and pixels[4, 4] >= np.float32(tau)


@pytest.mark.parametrize("tau", [0.0, 1.0, -1.0])
def test_tau_out_of_range(tau: float) -> None:
    with pytest.raises(ValueError, match="tau must be between 0 and 1"):
        render_heatmap([[8, 8, 4, 4]], (16, 16), tau)


@pytest.mark.parametrize("stride", [1, 4, 8])
@pytest.mark.parametrize("hw", [(64, 96), (61, 94), (7, 5)])
def test_against_every_pixel(hw: tuple[int, int], stride: int) -> None:
    for seed in range(15):
        boxes = random_boxes(seed, hw, 80, seed)
        assert np.abs(render_heatmap(boxes, hw, 0.5, stride) - per_pixel(boxes, hw, 0.5, stride)).max() < 1e-5


def test_boxes_with_borders_on_pixel_centres_and_cells() -> None:
    grid = np.arange(0, 17, 0.5)
    for size in (0.5, 1, 1.5, 2, 3, 8):
        boxes = np.array([[x, 8.0, size, size] for x in grid])
        for box in boxes:
            expected = per_pixel(box[None], (16, 17), 0.5, 8)
            assert np.allclose(render_heatmap(box[None], (16, 17)), expected, atol=1e-6), box


@pytest.mark.parametrize("kind", ["tiny", "small", "thin", "clipped"])
def test_every_box_has_a_cell_over_the_threshold(kind: str) -> None:
    rng = np.random.default_rng(3)
    hw = (320, 480)
    centre = rng.uniform(0, (480, 320), (1200, 2))
    size = {
        "tiny": rng.uniform(0.5, 3, (1200, 2)),
        "small": rng.uniform(3, 20, (1200, 2)),
        "thin": rng.uniform((0.2, 10), (1.2, 60), (1200, 2)),
        "clipped": rng.uniform(2, 40, (1200, 2)),
    }[kind]
    if kind == "clipped":
        low, high = np.maximum(centre - size / 2, 0), np.minimum(centre + size / 2, (480, 320))
        centre, size = (low + high) / 2, high - low
    for box in np.concatenate([centre, size], axis=1):
        heatmap = render_heatmap(box[None], hw)
        rows, columns = np.nonzero(heatmap >= 0.5)
        assert len(rows), box
        # and it is at the box, not elsewhere
        assert (np.abs((columns + 0.5) * 8 - box[0]) <= box[2] / 2 + 8).all()
        assert (np.abs((rows + 0.5) * 8 - box[1]) <= box[3] / 2 + 8).all()
        assert to_bytes(heatmap).max() / 255 >= 0.5


def test_overlap_is_the_maximum_and_order_does_not_matter() -> None:
    boxes = random_boxes(40, (128, 128), 60, 5)
    single = [render_heatmap(box[None], (128, 128)) for box in boxes]
    assert np.array_equal(render_heatmap(boxes, (128, 128)), np.maximum.reduce(single))
    assert np.array_equal(render_heatmap(boxes[::-1], (128, 128)), render_heatmap(boxes, (128, 128)))


def test_no_boxes_and_boxes_elsewhere() -> None:
    assert render_heatmap(np.zeros((0, 4)), (64, 96)).shape == (8, 12)
    assert not render_heatmap([[-50, 10, 20, 20], [500, 10, 0.2, 0.2]], (64, 96)).any()


def test_many_large_boxes_in_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    boxes = random_boxes(60, (128, 128), 120, 6)
    whole = render_heatmap(boxes, (128, 128))
    monkeypatch.setattr("utils.heatmap._CELLS_AT_ONCE", 300)
    assert np.array_equal(render_heatmap(boxes, (128, 128)), whole)


def fastest(function: Any, times: int = 15) -> float:
    """Least CPU seconds: other processes may be busy too."""
    seconds = []
    for _ in range(times):
        start = time.process_time()
        function()
        seconds.append(time.process_time() - start)
    return min(seconds)


def test_rendering_takes_under_5_ms() -> None:
    boxes = random_boxes(300, (1536, 1536), 100, 7)
    assert fastest(lambda: render_heatmap(boxes, (1536, 1536))) < 0.005


# --- files


def a_file(**changes: Any) -> HeatmapFile:
    values = np.random.default_rng(0).integers(0, 256, (3, 5), dtype=np.uint8)
    settings: dict[str, Any] = {
        "values": values,
        "mode": "hybrid",
        "tau": 0.25,
        "image_hw": (10, 18),
        "fingerprint": "ab12",
        **changes,
    }
    return HeatmapFile(**settings)


def test_file_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "heatmaps" / "ein Bild ü.npz"
    saved = a_file()
    save_heatmap(path, saved)
    loaded = load_heatmap(path)
    assert np.array_equal(loaded.values, saved.values) and loaded.values.dtype == np.uint8
    assert (loaded.mode, loaded.tau, loaded.image_hw) == ("hybrid", 0.25, (10, 18))
    assert (loaded.fingerprint, loaded.stride) == ("ab12", 4)
    assert load_heatmap_header(path)["mode"] == "hybrid"
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]  # no temporary file left


def test_bytes_are_rounded_up_but_exact_ones_stay() -> None:
    assert to_bytes(np.array([0.0, 0.5, 0.501, 1.0, 1.1, -0.1])).tolist() == [0, 128, 128, 255, 255, 0]
    exact = np.arange(256, dtype=np.uint8)
    assert np.array_equal(to_bytes(exact.astype(np.float32) / np.float32(255)), exact)


def test_same_content_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_heatmap(tmp_path / name, a_file())
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_size_and_time_of_a_1080p_file(tmp_path: Path) -> None:
    sizes = []
    for seed in range(5):
        boxes = random_boxes(120, (1080, 1920), 100, seed)
        save_heatmap(tmp_path / f"{seed}.npz", gaussian_heatmap_file(boxes, (1080, 1920), 0.5, "x" * 64))
        sizes.append((tmp_path / f"{seed}.npz").stat().st_size)
    assert np.mean(sizes) < 60_000
    assert fastest(lambda: load_heatmap(tmp_path / "0.npz")) < 0.010


@pytest.mark.parametrize("keep", [0, 1, 30, 200, -30, -1])
def test_truncated_file_is_named(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "x.npz"
    save_heatmap(path, a_file())
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(HeatmapError, match=r"x\.npz: not a usable heatmap file"):
        load_heatmap(path)


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 255))
def test_a_changed_byte_never_crashes(
    tmp_path_factory: pytest.TempPathFactory, place: int, flip: int
) -> None:
    path = tmp_path_factory.mktemp("damage") / "x.npz"
    save_heatmap(path, a_file())
    data = bytearray(path.read_bytes())
    data[place % len(data)] ^= flip
    path.write_bytes(data)
    try:
        loaded = load_heatmap(path)
    except HeatmapError:
        return
    assert loaded.values.shape == (3, 5)


def test_pickled_and_foreign_files_are_refused(tmp_path: Path) -> None:
    objects = tmp_path / "objects.npz"
    np.savez(objects, header=np.array([{"version": 1}], dtype=object), values=np.zeros((3, 5), np.uint8))
    foreign = tmp_path / "foreign.npz"
    np.savez(foreign, something=np.zeros(3))
    for path in (objects, foreign, tmp_path / "missing.npz", tmp_path):
        with pytest.raises(HeatmapError, match=path.name):
            load_heatmap(path)


def test_contradicting_content_is_refused() -> None:
    with pytest.raises(HeatmapError, match=r"must be uint8 \(5, 3\)"):
        a_file(image_hw=(18, 10))
    with pytest.raises(HeatmapError, match=r"must be uint8 \(3, 5\)"):
        a_file(values=np.zeros((3, 5), np.float32))
    with pytest.raises(HeatmapError, match="unknown heatmap mode 'blur'"):
        a_file(mode="blur")


@pytest.mark.parametrize(
    "image, expected",
    [
        ("data/images/a.jpg", "data/heatmaps/a.npz"),
        ("/d/images/images/train/a.b.png", "/d/images/heatmaps/train/a.b.npz"),
        ("images/a.jpg", "heatmaps/a.npz"),
        ("pictures/a.jpg", "pictures/a.npz"),
        ("images/a_masked.jpg", "heatmaps/a.npz"),
    ],
)
def test_path(image: str, expected: str) -> None:
    assert heatmap_path(Path(image)) == Path(expected)


def test_path_of_a_masked_image_prefers_its_own(tmp_path: Path) -> None:
    image = tmp_path / "images" / "a_masked.jpg"
    own = tmp_path / "heatmaps" / "a_masked.npz"
    own.parent.mkdir()
    own.touch()
    assert heatmap_path(image) == own


def test_fingerprint_depends_on_everything() -> None:
    base = (b"image", [[0, 0.5, 0.5, 0.1, 0.1]], {"tau": 0.5, "mode": "gaussian"})
    prints = {
        heatmap_fingerprint(*base),
        heatmap_fingerprint(b"imagf", *base[1:]),
        heatmap_fingerprint(base[0], [[1, 0.5, 0.5, 0.1, 0.1]], base[2]),
        heatmap_fingerprint(base[0], np.zeros((0, 5)), base[2]),
        heatmap_fingerprint(*base[:2], {"tau": 0.4, "mode": "gaussian"}),
    }
    assert len(prints) == 5
    assert heatmap_fingerprint(*base[:2], {"mode": "gaussian", "tau": 0.5}) in prints  # order is no matter


# --- warping


def test_block_maximum_against_numpy() -> None:
    values = np.random.default_rng(1).integers(0, 255, (13, 22), dtype=np.uint8)
    padded = np.zeros((16, 24), np.uint8)
    padded[:13, :22] = values
    assert np.array_equal(block_maximum(values, 8), padded.reshape(2, 8, 3, 8).max(axis=(1, 3)))
    assert np.array_equal(block_maximum(values, 1), values)


def test_warp_of_nothing_changed_is_the_block_maximum() -> None:
    boxes = random_boxes(12, (96, 160), 50, 2)
    file = gaussian_heatmap_file(boxes, (96, 160), 0.5, "")
    warped = warp_heatmap(file, np.eye(3)[:2], (96, 160))
    assert warped.dtype == np.float32
    assert np.allclose(warped, block_maximum(file.values, 2) / 255)
    assert np.abs(warped - render_heatmap(boxes, (96, 160))).max() < 1 / 255


@pytest.mark.parametrize("scale", [0.1, 0.23, 0.5, 0.8, 1.3, 3.0])
@pytest.mark.parametrize("degrees", [0, 17, 45, 90, 180])
def test_no_file_cell_is_lost(scale: float, degrees: float) -> None:
    rng = np.random.default_rng(4)
    angle = math.radians(degrees)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]) * scale
    for _ in range(25):
        values = np.zeros((60, 80), np.uint8)
        row, column = int(rng.integers(60)), int(rng.integers(80))
        values[row, column] = 255
        centre = np.array([column * 4 + 2.0, row * 4 + 2.0])
        target = rng.uniform(24, 104, 2)
        matrix = np.column_stack([turn, target - turn @ centre])
        file = HeatmapFile(values, "sam", 0.5, (240, 320), "")
        warped = warp_heatmap(file, matrix, (128, 128))
        rows, columns = np.nonzero(warped == 1)
        assert len(rows), (scale, degrees, target)
        reach = 8 + 4 * scale * 1.5 + 4  # a cell of the output, one of the file, one of the reduced file
        assert np.abs((columns + 0.5) * 8 - target[0]).max() <= reach
        assert np.abs((rows + 0.5) * 8 - target[1]).max() <= reach


def test_warp_agrees_with_moved_boxes() -> None:
    boxes = np.array([[200.0, 150.0, 60.0, 40.0], [400.0, 90.0, 30.0, 50.0]])
    file = gaussian_heatmap_file(boxes, (300, 500), 0.5, "")
    flip_and_shrink = np.array([[-0.7, 0.0, 360.0], [0.0, 0.7, 8.0]])
    moved = np.column_stack([boxes[:, 0] * -0.7 + 360, boxes[:, 1] * 0.7 + 8, boxes[:, 2:] * 0.7])
    warped, exact = warp_heatmap(file, flip_and_shrink, (224, 384)), render_heatmap(moved, (224, 384))
    assert warped.shape == exact.shape == (28, 48)
    both = (warped > 0) & (exact > 0)
    assert np.abs(warped - exact)[both].max() < 0.2  # neighbouring cells of the file differ by that much
    assert both.sum() / ((warped > 0) | (exact > 0)).sum() > 0.7


def test_outside_the_image_is_zero_and_a_flat_matrix_is_refused() -> None:
    file = HeatmapFile(np.full((10, 10), 255, np.uint8), "sam", 0.5, (40, 40), "")
    warped = warp_heatmap(file, [[1, 0, 16], [0, 1, 24]], (64, 96))
    assert warped[3:8, 2:7].min() == 1 and warped.sum() == 25
    with pytest.raises(ValueError, match="onto a line or point"):
        warp_heatmap(file, [[1, 1, 0], [1, 1, 0]], (64, 64))
