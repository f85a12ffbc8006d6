"""The Python interface: one picture or a list, of any kind and size, from one thread or several; and ways out."""

from __future__ import annotations

import builtins
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from engine import Detector, Prediction, load_model
from utils.boxes import Letterbox
from utils.config import ModelOverrides
from utils.draw import PictureError
from utils.images import ImageError
from utils.picture_input import PictureInputError
from utils.results import Detections

SETTINGS: dict[str, Any] = {"img_size": 160, "conf_thres": 0.0, "max_det": 30}


@pytest.fixture(scope="module")
def detector(weights: Path) -> Detector:
    return load_model(weights, "cpu")


@pytest.fixture(scope="module")
def files(tiny_dataset: Path) -> list[Path]:
    return sorted((tiny_dataset.parent / "VisDrone2019-DET-val" / "images").glob("*.jpg"))


def picture(hw: tuple[int, int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*hw, 3), dtype=np.uint8)


MIXED = [
    picture(hw, seed) for seed, hw in enumerate([(96, 160), (160, 96), (300, 200), (96, 160), (40, 160)])
]


def assert_same(one: Prediction, other: Prediction) -> None:
    """The same but for rounding, which differs with the number of pictures in a batch."""
    assert one.letterbox == other.letterbox
    assert len(one.score) == len(other.score) > 0
    torch.testing.assert_close(one.score, other.score, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(one.xyxy, other.xyxy, rtol=1e-3, atol=0.01)
    assert torch.equal(one.label, other.label)
    assert np.array_equal(one.patches, other.patches)
    assert one.heatmap is not None and other.heatmap is not None
    np.testing.assert_allclose(one.heatmap, other.heatmap, atol=1e-4)


def assert_equal(one: Prediction, other: Prediction) -> None:
    """The same to the last bit."""
    assert len(one.score) > 0
    for a, b in ((one.xyxy, other.xyxy), (one.score, other.score), (one.label, other.label)):
        assert torch.equal(a, b)
    assert one.heatmap is not None and np.array_equal(one.heatmap, other.heatmap)  # type: ignore[arg-type]


# --- what goes in ------------------------------------------------------------------------------------------------


def test_one_picture_gives_one_result_and_a_list_a_list(detector: Detector, files: list[Path]) -> None:
    one = detector.predict(MIXED[0], **SETTINGS)
    assert isinstance(one, Prediction)
    (listed,) = detector.predict([MIXED[0]], **SETTINGS)
    assert_equal(one, listed)
    assert isinstance(detector.predict(str(files[0]), **SETTINGS), Prediction)
    assert len(detector.predict((MIXED[0], MIXED[1]), **SETTINGS)) == 2
    assert detector.predict([], **SETTINGS) == []


def test_every_kind_of_picture_gives_the_same(detector: Detector, tmp_path: Path) -> None:
    rgb = MIXED[2]
    bgr = np.ascontiguousarray(rgb[..., ::-1])
    path = tmp_path / "a.png"
    assert cv2.imwrite(str(path), bgr)
    expected = detector.predict(rgb, **SETTINGS)
    tensor = torch.from_numpy(rgb).permute(2, 0, 1)
    for given in (path, str(path), Image.fromarray(rgb), tensor, tensor / 255, rgb / np.float32(255)):
        assert_equal(detector.predict(given, **SETTINGS), expected)
    assert_equal(detector.predict(bgr, channel_order="bgr", **SETTINGS), expected)
    listed = detector.predict([path, bgr], channel_order="bgr", batch_size=1, **SETTINGS)
    for one in listed:
        assert_equal(one, expected)
    assert not np.array_equal(detector.predict(bgr, **SETTINGS).heatmap, expected.heatmap)  # type: ignore[arg-type]


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_results_do_not_depend_on_the_company(detector: Detector, batch_size: int) -> None:
    together = detector.predict(MIXED, batch_size=batch_size, **SETTINGS)
    alone = [detector.predict(image, **SETTINGS) for image in MIXED]
    assert [one.letterbox.original_hw for one in together] == [image.shape[:2] for image in MIXED]
    for one, other in zip(together, alone, strict=True):
        assert_same(one, other)


def test_at_most_a_batch_runs_together_and_files_are_read_when_needed(
    detector: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[object] = []
    prepare, detect = detector.prepare, detector.detect
    monkeypatch.setattr(detector, "prepare", lambda *a, **k: (events.append("read"), prepare(*a, **k))[1])
    monkeypatch.setattr(detector, "detect", lambda i, *a: (events.append(len(i)), detect(i, *a))[1])
    detector.predict([MIXED[0], MIXED[1], MIXED[0], MIXED[0]], batch_size=2, **SETTINGS)
    assert events == ["read", "read", "read", 2, "read", 1, 1]
    with pytest.raises(ValueError, match="batch_size is 0; expected at least 1"):
        detector.predict(MIXED, batch_size=0, **SETTINGS)


def test_what_is_wrong_in_a_list_is_named(detector: Detector, tmp_path: Path) -> None:
    with pytest.raises(PictureInputError, match=r"images\[1\]: array of shape \[3, 8, 8\]"):
        detector.predict([MIXED[0], np.zeros((3, 8, 8), np.uint8)], **SETTINGS)
    with pytest.raises(ImageError, match="missing.jpg"):
        detector.predict([tmp_path / "missing.jpg"], **SETTINGS)
    with pytest.raises(PictureInputError, match="^images is of type generator"):
        detector.predict((image for image in MIXED), **SETTINGS)  # type: ignore[call-overload]


# --- several threads ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"slicer": "grid", "head": "dense"},
        {"slicer": "greedy", "head": "sparse"},
        {"slicer": "none", "head": "dense"},
        {"slicer": "grid", "head": "dense", "borders": "neighbours"},
    ],
)
def test_threads_find_what_one_thread_finds(
    weights: Path, files: list[Path], changes: dict[str, Any]
) -> None:
    detector = load_model(weights, "cpu", ModelOverrides(**changes))
    before = {name: values.clone() for name, values in detector.model.state_dict().items()}
    buffers = dict(detector.model.named_buffers())
    inputs: list[Any] = [*MIXED[:3], *files, Image.fromarray(MIXED[0]), MIXED[:2], MIXED]
    sizes: list[Any] = [160, (64, 128)]
    tasks = [(given, size) for size in sizes for given in inputs]

    def run(task: tuple[Any, Any]) -> list[Prediction]:
        found = detector.predict(task[0], task[1], 0.0, max_det=20)
        return found if isinstance(found, list) else [found]

    alone = [run(task) for task in tasks]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(run, tasks))
    for expected, found in zip(alone, together, strict=True):
        for one, other in zip(expected, found, strict=True):
            assert one.letterbox == other.letterbox
            assert torch.equal(one.xyxy, other.xyxy) and torch.equal(one.score, other.score)
            assert np.array_equal(one.patches, other.patches)
    assert any(len(one.score) for found in together for one in found)
    after = detector.model.state_dict()
    assert after.keys() == before.keys() and dict(detector.model.named_buffers()).keys() == buffers.keys()
    assert all(torch.equal(after[name], values) for name, values in before.items())


# --- what comes out ----------------------------------------------------------------------------------------------


def two(path: Path | None = None, image: np.ndarray | None = None) -> Prediction:
    """A van and something of a class without a name in an image of 64×96; a patch over its left."""
    found = Detections(
        torch.tensor([[10.0, 20, 30.5, 50], [0, 0, 4, 8]]), torch.tensor([0.9, 0.25]), torch.tensor([1, 2])
    )
    heatmap = np.zeros((12, 12), np.float32)
    heatmap[3, 2] = 1  # input pixels 16–24, 24–32
    return Prediction(
        found, heatmap, np.array([[0, 0, 48, 64]], np.float32), Letterbox.fit((64, 96), (96, 96)),
        {"stem": 1.5, "head": 2.0}, ["car", "van"], path, image,
    )  # fmt: skip


NOTHING = Detections.empty()


def test_fields_and_line() -> None:
    result = two()
    assert result.xyxy.shape == (2, 4) and result.score.tolist() == [pytest.approx(0.9), 0.25]
    assert result.label.tolist() == [1, 2] and result.names == ["car", "van"]
    assert np.array_equal(result.patches, result.patches_orig)
    assert str(result) == "1 van, 1 2; 1 patch, 3.5 ms"
    empty = Prediction(NOTHING, None, np.zeros((0, 4), np.float32), result.letterbox)
    assert str(empty) == "nothing found; 0 patches"


def test_predicted_fields(detector: Detector, files: list[Path]) -> None:
    result = detector.predict(files[0], **SETTINGS)
    height, width = cv2.imread(str(files[0])).shape[:2]  # type: ignore[union-attr]
    assert result.path == files[0] and result.picture is None
    assert result.image.shape == (height, width, 3)
    assert result.names is detector.names and len(result.names) == 10
    assert float(result.xyxy[:, 2].max()) <= width and float(result.xyxy[:, 3].max()) <= height
    assert result.patches.shape[1] == 4 and len(result.patches) > 0
    hot = result.heatmap_orig()
    assert hot is not None and hot.shape == (height, width) and 0 <= hot.min() < hot.max() <= 1
    assert list(result.times_ms)[:2] == ["preprocess", "stem"] and sum(result.times_ms.values()) > 0
    given = detector.predict(MIXED[0], **SETTINGS)
    assert given.path is None and np.shares_memory(given.image, MIXED[0])


def test_the_heatmap_lies_on_the_image() -> None:
    hot = two().heatmap_orig()
    assert hot is not None
    # Input pixel (20, 28) is the middle of the hot cell; the image begins 16 pixels below the input's top.
    assert np.unravel_index(hot.argmax(), hot.shape) in [(y, x) for y in (11, 12) for x in (19, 20)]
    assert hot[40:].max() == 0
    dense = two(image=np.zeros((64, 96, 3), np.uint8))
    dense.heatmap = None
    assert dense.heatmap_orig() is None
    assert np.array_equal(dense.plot(heatmap=True), dense.plot())


def test_plot(tmp_path: Path) -> None:
    image = np.full((64, 96, 3), 100, np.uint8)
    result = two(image=image)
    drawn = result.plot()
    assert drawn.shape == image.shape and drawn.dtype == np.uint8 and (image == 100).all()
    assert (drawn[20, 15] != 100).any(), "the upper side of the van's box"
    assert not np.array_equal(result.plot(hide_labels=True), drawn)
    assert (result.plot(patches=True)[32, 47] == (0, 255, 72)).all(), "the right side of the patch, green"
    warm = result.plot(heatmap=True, hide_labels=True)
    assert (warm[12, 20] != 100).any() and (warm[60, 90] == 100).all()
    result.plot(save=tmp_path / "new" / "a.png")
    saved = cv2.imread(str(tmp_path / "new" / "a.png"))
    assert saved is not None and np.array_equal(saved[..., ::-1], drawn)
    assert np.array_equal(two().plot(image), drawn)
    with pytest.raises(PictureError, match="suffix"):
        result.plot(save=tmp_path / "a.xyz")
    with pytest.raises(ValueError, match="height and width .65, 96.; this prediction is for .64, 96."):
        result.plot(np.zeros((65, 96, 3), np.uint8))
    with pytest.raises(ValueError, match=r"does not know its image: give it to plot\(image\)"):
        two().plot()


def test_a_file_is_read_again_to_be_drawn_on(detector: Detector, tmp_path: Path, files: list[Path]) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(files[0].read_bytes())
    result = detector.predict(path, **SETTINGS)
    assert result.plot().shape == result.image.shape
    path.unlink()
    with pytest.raises(ImageError, match="No such file"):
        result.plot()


def test_without_slicing_one_patch_covers_the_image(weights: Path) -> None:
    dense = load_model(weights, "cpu", ModelOverrides(slicer="none"))
    result = dense.predict(MIXED[2], **SETTINGS)
    np.testing.assert_allclose(result.patches, [[0, 0, 200, 300]], atol=1e-3)
    assert result.plot(heatmap=True, patches=True).shape == (300, 200, 3)


def test_coco() -> None:
    assert two().to_coco(5) == [
        {"image_id": 5, "category_id": 1, "bbox": [10.0, 20.0, 20.5, 30.0], "score": 0.9},
        {"image_id": 5, "category_id": 2, "bbox": [0.0, 0.0, 4.0, 8.0], "score": 0.25},
    ]
    assert [row["category_id"] for row in two().to_coco("a", [10, 11, 12])] == [11, 12]
    json.dumps(two().to_coco("a"))


def test_dataframe() -> None:
    pytest.importorskip("pandas")
    table = two(Path("s/a.jpg")).to_dataframe()
    assert list(table.columns) == ["image", "frame", "class", "name", "score", "x1", "y1", "x2", "y2"]
    assert table.loc[0, ["image", "class", "name", "x1", "y2"]].tolist() == ["s/a.jpg", 1, "van", 10.0, 50.0]
    assert table["name"].tolist() == ["van", "2"]
    assert two().to_dataframe("b")["image"].tolist() == ["b", "b"]
    result = two()
    result.detections = NOTHING
    empty = result.to_dataframe()
    assert len(empty) == 0 and empty.dtypes.equals(
        table.dtypes.where(empty.dtypes == table.dtypes, empty.dtypes)
    )
    assert str(empty["score"].dtype) == "float64" and str(empty["class"].dtype) == "int64"


def test_supervision() -> None:
    supervision = pytest.importorskip("supervision")
    found = two().to_supervision()
    assert isinstance(found, supervision.Detections) and len(found) == 2
    assert found.xyxy.tolist() == [[10, 20, 30.5, 50], [0, 0, 4, 8]]
    assert found.class_id.tolist() == [1, 2] and found["class_name"].tolist() == ["van", "2"]
    assert found[found.confidence > 0.5]["class_name"].tolist() == ["van"]
    drawn = supervision.BoxAnnotator().annotate(np.zeros((64, 96, 3), np.uint8), found)
    assert drawn.any()
    result = two()
    result.detections = NOTHING
    assert len(result.to_supervision()) == 0


@pytest.mark.parametrize("package, method", [("pandas", "to_dataframe"), ("supervision", "to_supervision")])
def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, package: str, method: str) -> None:
    real = builtins.__import__

    def without(name: str, *arguments: Any) -> Any:
        if name == package:
            raise ImportError(f"No module named {name!r}")
        return real(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=f"{method} needs a package .*pip install .*{package}"):
        getattr(two(), method)()
