"""From pixels to detections by way of `Detector.prepare` and `Detector.detect`: the same pixels, the same boxes."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from engine.inference import Detector, load_model
from models.decode import PostprocessConfig
from tests.conftest import RunCommand
from utils.decoding import read_picture


@pytest.fixture(scope="module")
def detector(weights: Path) -> Detector:
    return load_model(weights, "cpu")


def picture(hw: tuple[int, int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*hw, 3), dtype=np.uint8)


def letterboxed(image: np.ndarray, hw: tuple[int, int]) -> np.ndarray:
    """An image resized by OpenCV, below half behind means of blocks, and centred on grey; written from the description."""
    scale = min(hw[0] / image.shape[0], hw[1] / image.shape[1])
    step = max(int(1 / scale), 1)
    height, width = (round(side * scale) for side in image.shape[:2])
    if step > 1:
        image = np.pad(image, ((0, -image.shape[0] % step), (0, -image.shape[1] % step), (0, 0)), mode="edge")
        image = np.asarray(cv2.resize(image, None, fx=1 / step, fy=1 / step, interpolation=cv2.INTER_AREA))
    factor = scale * step
    small = cv2.resize(image, None, fx=factor, fy=factor) if factor != 1 else image
    small = small[:height, :width]
    top, left = (hw[0] - small.shape[0]) // 2, (hw[1] - small.shape[1]) // 2
    canvas = np.full((*hw, 3), 114, np.uint8)
    canvas[top : top + small.shape[0], left : left + small.shape[1]] = small
    return canvas


@pytest.mark.parametrize(
    "hw, size, input_hw",
    [
        ((765, 1360), 640, (384, 640)),  # smaller, padded above and below
        ((540, 960), 1536, (864, 1536)),  # larger, nothing to pad
        ((300, 200), 160, (160, 128)),  # padded left and right
        ((96, 160), 160, (96, 160)),  # as it is
        ((100, 100), (96, 160), (96, 96)),
    ],
)
def test_pixels_are_resized_once_and_not_touched_again(
    detector: Detector, hw: tuple[int, int], size: int | tuple[int, int], input_hw: tuple[int, int]
) -> None:
    image = picture(hw)
    made = detector.prepare(image, size)
    expected = letterboxed(image, input_hw)
    assert made.pixels.dtype == torch.uint8 and made.pixels.is_contiguous()
    assert np.array_equal(made.pixels.numpy(), expected.transpose(2, 0, 1))
    assert made.letterbox.original_hw == hw and made.letterbox.input_hw == input_hw
    batch = detector.batch_of([made])
    assert torch.equal(batch, torch.from_numpy(expected).permute(2, 0, 1)[None].float() / 255)
    assert made.pixels.max() > 1, "the given pixels stay as they were"


def test_preparing_and_detecting_is_predicting(detector: Detector) -> None:
    images = [picture((96, 160), 1), picture((96, 160), 2)]
    config = PostprocessConfig(0.0, 0.45, 50)
    inputs = [detector.prepare(image, 160) for image in images]
    for found, expected in zip(
        detector.detect(inputs, config), detector.predict(images, 160, 0.0, 0.45, 50), strict=True
    ):
        assert len(found.detections) > 0
        assert torch.equal(found.detections.xyxy, expected.detections.xyxy)
        assert torch.equal(found.detections.score, expected.detections.score)
        assert found.times_ms.keys() == expected.times_ms.keys()


def test_inputs_of_several_sizes_are_refused(detector: Detector) -> None:
    inputs = [detector.prepare(picture(hw), 160) for hw in ((96, 160), (160, 96))]
    for given in (inputs, []):
        with pytest.raises(ValueError, match="of one shape"):
            detector.detect(given, PostprocessConfig())


@pytest.mark.parametrize("kind", ["colour", "grey", "progressive"])
def test_jpegs_are_decoded_as_ever(tmp_path: Path, kind: str) -> None:
    """Straight into RGB: not a bit else than BGR with its channels swapped."""
    image = picture((61, 83)) if kind != "grey" else picture((61, 83))[..., 0]
    options = [cv2.IMWRITE_JPEG_PROGRESSIVE, 1] if kind == "progressive" else []
    path = tmp_path / "a.jpg"
    cv2.imwrite(str(path), image, options)
    decoded = cv2.imread(str(path), cv2.IMREAD_COLOR)
    assert decoded is not None and np.array_equal(read_picture(path), decoded[..., ::-1])


def test_the_command_finds_the_same_with_and_without_threads(
    tiny_dataset: Path, weights: Path, tmp_path: Path, run_command: RunCommand
) -> None:
    source = tmp_path / "in"
    source.mkdir()
    for path in (tiny_dataset.parent / "VisDrone2019-DET-val" / "images").iterdir():
        (source / path.name).write_bytes(path.read_bytes())
    (source / "00_damaged.jpg").write_bytes(b"\xff\xd8\xff nothing")
    line = ["detect.py", "--weights", weights, "--source", source, "--img-size", 160, "--device", "cpu",
            "--project", tmp_path, "--conf-thres", 0.0, "--save-txt", "--save-conf", "--view-cluster"]  # fmt: skip
    results = {}
    for workers in (0, 2):
        result = run_command(*line, "--name", f"w{workers}", "--workers", workers)
        assert result.status == 3, result.err  # some could not be read
        assert "1 not read or not whole" in result.out + result.err
        assert "images per second" in result.out + result.err
        folder = tmp_path / f"w{workers}"
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        results[workers] = {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
    assert len(results[0]) == 4 * 3 and results[0] == results[2]
    assert all(content for name, content in results[0].items() if name.startswith("labels/"))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_while_writing_is_the_commands_error(
    tiny_dataset: Path, weights: Path, tmp_path: Path, run_command: RunCommand, workers: int
) -> None:
    (tmp_path / "exp").mkdir()
    (tmp_path / "exp" / "labels").touch()  # a file where the folder has to be
    source = tiny_dataset.parent / "VisDrone2019-DET-val" / "images"
    result = run_command("detect.py", "--weights", weights, "--source", source, "--img-size", 160, "--device", "cpu",
                         "--project", tmp_path, "--exist-ok", "--nosave", "--save-txt", "--workers", workers)  # fmt: skip
    assert result.status == 1 and "labels" in result.err
