"""Cost: two counters that agree, images one by one, the largest batch that fits, the chart."""

from __future__ import annotations

import builtins
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import pytest
import torch

from engine.inference import Detector
from engine.measure import measure
from engine.throughput import MAX_BATCH, POOL_IMAGES, Pool, joint_batches, measure_throughput
from models.build import build_model
from models.decode import PostprocessConfig
from models.esod import ESOD
from utils.boxes import Letterbox
from utils.config import HeadConfig, ModelConfig, SlicerConfig
from utils.data import Batch, ImageMeta
from utils.profile import count_flops, count_modules

CPU = torch.device("cpu")


def image(index: int, hw: tuple[int, int] = (128, 160)) -> Batch:
    """One drawn image as a batch; its brightness is its index."""
    height, width = hw
    pixels = torch.randint(0, 255, (1, 3, height, width), dtype=torch.uint8)
    pixels[0, 0, 0, 0] = index
    meta = ImageMeta(Path(f"{index}.png"), index, Letterbox.fit(hw, hw))
    return Batch(pixels, torch.zeros(0, 6), torch.zeros(1, 1, height // 8, width // 8), [meta])


def model(slicer: str = "grid", sparse: bool = False, width: float = 0.125) -> ESOD:
    """An untrained network whose heatmap lights up here and there."""
    config = ModelConfig(
        width=width, num_classes=2, slicer=SlicerConfig(algorithm=slicer), head=HeadConfig(sparse=sparse)  # type: ignore[arg-type]
    )  # fmt: skip
    network = build_model(config).eval()
    assert network.seeker is not None
    torch.nn.init.normal_(network.seeker.predict.weight, std=40.0)  # type: ignore[arg-type]
    torch.nn.init.zeros_(network.seeker.predict.bias)  # type: ignore[arg-type]
    return network


def indices(batch: Batch) -> list[int]:
    return batch.images[:, 0, 0, 0].tolist()


# --- the two counters ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("slicer", ["none", "grid"])
def test_thop_and_torch_agree(slicer: str, fused: bool) -> None:
    """On the dense model, and also on patches, as long as the head runs as a module. Widths as in yolov5n."""
    network = model(slicer, width=0.25)
    if fused:
        network.fuse()
    names = set(network.state_dict())
    pixels = torch.rand(1, 3, 128, 160)
    with torch.no_grad():
        ran = count_flops(lambda: network(pixels))
    by_module = count_modules(network, pixels)
    assert by_module.flops == pytest.approx(ran.flops, rel=0.02)
    assert not fused or by_module == ran
    assert set(network.state_dict()) == names, "thop's counters are gone"


def test_thop_does_not_see_the_sparse_head() -> None:
    network = model("grid", sparse=True).fuse()
    pixels = torch.rand(1, 3, 128, 160)
    with torch.no_grad():
        ran = count_flops(lambda: network(pixels))
    assert count_modules(network, pixels).flops < ran.flops


# --- images one by one --------------------------------------------------------------------------------------------


def test_every_image_has_a_cost_of_its_own(tmp_path: Path) -> None:
    detector = Detector(model(), ["a", "b"], CPU)
    result = measure(detector, [image(i) for i in range(3)], PostprocessConfig(), larger_batch=2)
    assert [Path(one.file).name for one in result.per_image] == ["0.png", "1.png", "2.png"]
    flops = [one.gflops_2mac or 0 for one in result.per_image]
    assert result.gflops_2mac is not None and result.gflops_2mac.mean == pytest.approx(sum(flops) / 3)
    assert result.gmacs is not None and result.gmacs.most == max(flops) / 2
    assert result.dense is not None and result.dense.gflops_2mac > 0
    assert result.dense.difference is not None and abs(result.dense.difference) < 0.05
    assert list(result.stages_ms) == [
        "load", "preprocess", "stem", "seeker", "slicer", "gather", "deep", "head", "nms",
    ]  # fmt: skip
    assert [batch.batch_size for batch in result.throughput.batches] == [1, 2]
    assert (
        result.latency_ms.least <= result.latency_ms.median <= result.latency_ms.p95 <= result.latency_ms.most
    )
    assert result.peak_memory_bytes > 2**20
    assert detector.model.config.slicer.algorithm == "grid", "as it was before the dense count"
    text = result.table()
    for words in ("by torch", "by thop", "apart", "decode + NMS", "batch 2", "peak memory", "median", "p95"):
        assert words in text
    picture = cv2.imread(str(result.plot(tmp_path / "measure.png")))
    assert picture is not None and picture.shape[1] > picture.shape[0]


@pytest.mark.parametrize(
    ("config", "operations"),
    [
        (ModelConfig(family="gpvit", depth=0.25, width=12 / 216, num_classes=2), "attention"),
        (ModelConfig(width=0.125, transformer=True, num_classes=2), "attention"),
        (ModelConfig(family="yolov8", width=0.125, num_classes=2, head=HeadConfig("dfl")), "convolution"),
        (ModelConfig(family="rtmdet", width=0.125, num_classes=2), "convolution"),
        (ModelConfig(family="retinanet", width=0.125, num_classes=2), "convolution"),
    ],
    ids=["gpvit", "transformer", "yolov8", "rtmdet", "retinanet"],
)
def test_every_family_is_measured_and_the_counters_agree_but_for_attention(
    config: ModelConfig, operations: str
) -> None:
    detector = Detector(build_model(config).eval().fuse(), ["a", "b"], CPU)
    result = measure(detector, [image(0, (256, 320))], PostprocessConfig(), larger_batch=1)
    assert result.dense is not None and result.dense.difference is not None
    assert abs(result.dense.difference) < 0.02, result.dense.line()
    assert (result.dense.gflops_attention > 0) == (operations == "attention")
    assert ("attention" in result.dense.line()) == (operations == "attention")


def test_a_dense_model_occupies_everything_and_has_no_line(tmp_path: Path) -> None:
    result = measure(Detector(model("none"), ["a", "b"], CPU), [image(0), image(1)], PostprocessConfig())
    assert result.occupancy.least == result.occupancy.most == 1
    assert result.fits == {"gflops_2mac": None, "ms": None}
    assert result.plot(tmp_path / "measure.png").is_file()


def test_without_thop_the_run_goes_on_with_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    real: Callable[..., Any] = builtins.__import__

    def no_thop(name: str, *arguments: Any, **more: Any) -> Any:
        if name == "thop":
            raise ModuleNotFoundError("No module named 'thop'")
        return real(name, *arguments, **more)

    monkeypatch.setattr(builtins, "__import__", no_thop)
    result = measure(Detector(model(), ["a", "b"], CPU), [image(0), image(1)], PostprocessConfig())
    assert result.gflops_2mac is not None and result.gflops_thop is None
    assert result.dense is not None and result.dense.gflops_thop is None
    assert [note for note in result.notes if "thop" in note] == [
        "no second opinion on GFLOPs: thop does not import (No module named 'thop'): pip install thop setuptools"
    ]
    assert "no second opinion" in result.table()


def test_time_only() -> None:
    result = measure(
        Detector(model(), ["a", "b"], CPU), [image(0)], PostprocessConfig(), count_operations=False
    )
    assert result.gflops_2mac is None and result.dense is None and set(result.fits) == {"ms"}


def test_batches_and_nothing_are_refused() -> None:
    detector = Detector(model(), ["a", "b"], CPU)
    with pytest.raises(ValueError, match="image by image"):
        measure(detector, joint_batches([image(0)], 2), PostprocessConfig())
    with pytest.raises(ValueError, match="no images"):
        measure(detector, [], PostprocessConfig())


# --- throughput ---------------------------------------------------------------------------------------------------


def test_batches_go_round_the_pool() -> None:
    pool = [image(i) for i in range(3)]
    assert [indices(batch) for batch in joint_batches(pool, 2)] == [[0, 1], [2, 0]]
    (large,) = joint_batches(pool, 5)
    assert indices(large) == [0, 1, 2, 0, 1] and [meta.index for meta in large.metas] == [0, 1, 2, 0, 1]


def test_the_pool_keeps_the_commonest_shape_up_to_a_number() -> None:
    pool = Pool()
    assert pool.commonest() == []
    pool.add(image(99, (64, 64)))
    for index in range(POOL_IMAGES + 3):
        pool.add(image(index))
    assert [indices(batch) for batch in pool.commonest()] == [[i] for i in range(POOL_IMAGES)]


@pytest.fixture
def pretended_gpu(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """A CUDA device as far as the search asks: the functions that it calls do nothing."""
    for name in ("synchronize", "reset_peak_memory_stats", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda *_: 5)
    monkeypatch.setattr("engine.throughput.MIN_SECONDS", 0.0)
    return torch.device("cuda", 0)


def runs_up_to(largest: int, error: Exception) -> Callable[[Batch], object]:
    def run(batch: Batch) -> object:
        if len(batch.images) > largest:
            raise error
        return None

    return run


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "batch 16 does not fit into memory"),
        (RuntimeError("input is too large\nmore"), "batch 16 fails: input is too large"),
    ],
)
def test_the_search_doubles_until_it_does_not_fit(
    pretended_gpu: torch.device, error: Exception, message: str
) -> None:
    found = measure_throughput(runs_up_to(11, error), [image(0), image(1)], pretended_gpu, larger_batch=3)
    assert [batch.batch_size for batch in found.batches] == [1, 2, 4, 8]
    assert found.limit == message and message in found.line()
    assert all(batch.fps > 0 and batch.peak_memory_bytes == 5 for batch in found.batches)


def test_the_search_has_an_end(pretended_gpu: torch.device) -> None:
    found = measure_throughput(runs_up_to(10**6, ValueError()), [image(0, (32, 32))], pretended_gpu, 1)
    assert found.batches[-1].batch_size == MAX_BATCH and str(MAX_BATCH) in found.limit


def test_what_does_not_even_run_alone_is_an_error(pretended_gpu: torch.device) -> None:
    with pytest.raises(torch.OutOfMemoryError):
        measure_throughput(runs_up_to(0, torch.OutOfMemoryError("full")), [image(0)], pretended_gpu, 1)


@pytest.mark.parametrize(("larger", "sizes"), [(1, [1]), (6, [1, 6])])
def test_a_cpu_runs_a_fixed_set(monkeypatch: pytest.MonkeyPatch, larger: int, sizes: list[int]) -> None:
    monkeypatch.setattr("engine.throughput.MIN_SECONDS", 0.0)
    found = measure_throughput(len_of, [image(0), image(1)], CPU, larger)
    assert [batch.batch_size for batch in found.batches] == sizes
    assert found.input_hw == (128, 160) and found.images == 2 and "CPU" in found.limit


def len_of(batch: Batch) -> int:
    return len(batch.images)
