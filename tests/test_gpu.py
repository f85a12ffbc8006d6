"""What only a GPU can show: types and devices that a CPU forgives, and agreement with the CPU."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.graphs import GraphRunner
from engine.inference import Detector, load_model
from engine.measure import measure
from engine.throughput import measure_throughput
from models.build import build_model
from models.decode import PostprocessConfig, postprocess
from models.esod import ESOD
from models.loss import DetectionLoss
from models.training_patches import training_selector
from utils.boxes import Letterbox
from utils.checkpoint import save_checkpoint
from utils.config import HeadConfig, HypConfig, ModelConfig, SlicerConfig
from utils.data import Batch, ImageMeta
from utils.optim import ModelEMA, build_optimizer
from utils.typed_data import config_to_dict

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

MODES = [
    ("grid", False),
    ("grid", True),
    ("greedy", False),
    ("greedy", True),
    ("none", False),
    ("none", True),
]


def build(slicer: str = "grid", sparse: bool = False) -> ESOD:
    torch.manual_seed(2)
    config = ModelConfig(
        width=0.25,
        num_classes=3,
        slicer=SlicerConfig(algorithm=slicer),  # type: ignore[arg-type]
        head=HeadConfig(sparse=sparse),
    )
    model = build_model(config)
    assert model.seeker is not None
    predict = model.seeker.predict
    assert isinstance(predict, torch.nn.Conv2d)
    torch.nn.init.normal_(predict.weight, std=30.0)
    torch.nn.init.zeros_(predict.bias)  # type: ignore[arg-type]
    return model.eval()


@pytest.mark.parametrize(("slicer", "sparse"), MODES)
@torch.inference_mode()
def test_the_gpu_finds_what_the_cpu_finds(slicer: str, sparse: bool) -> None:
    model = build(slicer, sparse)
    images = torch.rand(2, 3, 256, 320)
    expected = model(images)
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    found = model.cuda()(images.cuda())
    assert torch.equal(found.patches.xyxy_cell.cpu(), expected.patches.xyxy_cell)
    for a, b in zip(found.levels, expected.levels, strict=True):
        torch.testing.assert_close(a.raw.cpu(), b.raw, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("slicer", "sparse"), MODES)
@torch.inference_mode()
def test_half_precision(slicer: str, sparse: bool, dtype: torch.dtype) -> None:
    model = build(slicer, sparse).fuse().to("cuda", dtype)
    output = model(torch.rand(2, 3, 256, 320, device="cuda", dtype=dtype))
    boxes = [Letterbox.fit((256, 320), (256, 320))] * 2
    assert len(postprocess(output, model.head.coder, boxes, PostprocessConfig(conf_thres=0.0))) == 2


@torch.inference_mode()
def test_one_wait_for_the_device_per_forward() -> None:
    """After the first pass, a grid forward with a sparse head synchronises once."""
    model = build("grid", sparse=True).cuda()
    images = torch.rand(1, 3, 256, 320, device="cuda")
    model(images)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model(images)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waits = [w for w in caught if "synchroniz" in str(w.message)]
    assert len(waits) <= 1, [str(w.message) for w in waits]


@pytest.mark.parametrize("dtype", [None, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("heatmap_loss", ["bce", "focal_dice"])
def test_training_steps(dtype: torch.dtype | None, heatmap_loss: str) -> None:
    model = build().train().cuda()
    hyp = replace(HypConfig(), heatmap_loss=heatmap_loss)
    criterion = DetectionLoss(model.config, hyp, torch.tensor([5, 3, 1])).cuda()
    optimizer = build_optimizer(model, "sgd", 0.01, 0.9, 5e-4)
    scaler = torch.amp.GradScaler("cuda", enabled=dtype == torch.float16)
    ema = ModelEMA(model)
    images, label = torch.rand(2, 3, 256, 320, device="cuda"), torch.zeros(2, 1, 32, 40, device="cuda")
    label[:, :, 4:8, 5:9] = 1
    targets = torch.tensor([[0, 1, 0.2, 0.2, 0.1, 0.1], [1, 2, 0.2, 0.2, 0.05, 0.1]], device="cuda")
    for step in range(3):
        generator = torch.Generator().manual_seed(step)
        selector = training_selector(label, model.config.slicer, hyp, step / 3, 3, generator)
        with torch.autocast("cuda", dtype=dtype or torch.float16, enabled=dtype is not None):
            losses = criterion(model(images, selector), targets, label)
        scaler.scale(losses["total"]).backward()  # type: ignore[no-untyped-call]
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        ema.update(model)
        assert torch.isfinite(losses["total"])
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_cost_and_the_search_for_the_largest_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both counters agree on the dense model, every stage is timed, and running out of memory leaves none behind."""
    monkeypatch.setattr("engine.throughput.MAX_BATCH", 4)
    images = [
        Batch(
            torch.randint(0, 255, (1, 3, 256, 320), dtype=torch.uint8),
            torch.zeros(0, 6),
            torch.zeros(1, 1, 32, 40),
            [ImageMeta(Path(f"{index}.png"), index, Letterbox.fit((256, 320), (256, 320)))],
        )
        for index in range(2)
    ]
    result = measure(
        Detector(build().fuse(), ["a", "b", "c"], torch.device("cuda", 0)), images, PostprocessConfig()
    )
    assert result.dense is not None and result.dense.difference == 0
    assert len(result.stages_ms) == 9 and all(stage.median_ms > 0 for stage in result.stages_ms.values())
    assert [batch.batch_size for batch in result.throughput.batches] == [1, 2, 4]
    assert 0 < result.peak_memory_bytes <= result.throughput.batches[-1].peak_memory_bytes
    before = torch.cuda.memory_allocated()

    def greedy(batch: Batch) -> object:
        size = 2**20 if len(batch.images) < 4 else 2**45
        return torch.empty(size, dtype=torch.uint8, device="cuda")

    found = measure_throughput(greedy, images, torch.device("cuda", 0), 1)
    assert found.batches[-1].batch_size == 2 and "does not fit" in found.limit
    assert torch.cuda.memory_allocated() == before


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("slicer", "sparse"), MODES)
@torch.inference_mode()
def test_graphs_give_what_the_network_gives(slicer: str, sparse: bool, dtype: torch.dtype) -> None:
    """Over images with other numbers of patches, sizes in turn, and with results that are looked at late."""
    model = build(slicer, sparse).fuse().to("cuda", dtype)
    runner = GraphRunner()
    held = []
    for number in range(6):
        size = (256, 320) if number % 2 else (320, 256)
        images = torch.rand(1, 3, *size, device="cuda", dtype=dtype) * (0.5 + number / 10)
        held.append((model(images, runner=runner), model(images)))
    assert len(runner) >= 4
    for found, expected in held:
        assert torch.equal(found.patches.xyxy_cell, expected.patches.xyxy_cell)
        for a, b in zip(found.levels, expected.levels, strict=True):
            torch.testing.assert_close(a.raw, b.raw, atol=2e-2, rtol=2e-2)


def test_graphs_from_a_weights_file_to_detections(tmp_path: Path) -> None:
    model = build()
    path = tmp_path / "w.pt"
    content = {"config": config_to_dict(model.config), "model": model.state_dict(), "names": ["a", "b", "c"]}
    save_checkpoint(path, content)
    image = np.random.default_rng(0).integers(0, 255, (250, 300, 3), dtype=np.uint8)
    eager, graphs = load_model(path, "0"), load_model(path, "0", graphs=True)
    for _ in range(3):
        (expected,), (found,) = eager.predict([image], 320, 0.0), graphs.predict([image], 320, 0.0)
        assert len(found.detections) == len(expected.detections) > 0
        torch.testing.assert_close(found.detections.score, expected.detections.score, atol=1e-2, rtol=1e-2)


def test_an_image_waits_for_the_device_twice() -> None:
    """Once for the number of patches, once for the results; stages are timed without."""
    detector = Detector(build().fuse(), ["a", "b", "c"], torch.device("cuda", 0), GraphRunner())
    image = np.random.default_rng(0).integers(0, 255, (256, 320, 3), dtype=np.uint8)
    inputs, config = [detector.prepare(image, 320)], PostprocessConfig(0.3)
    for _ in range(3):
        detector.detect(inputs, config)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            (prediction,) = detector.detect(inputs, config)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waits = [w for w in caught if "synchroniz" in str(w.message)]
    assert len(waits) <= 2, [str(w.message) for w in waits]
    assert prediction.times_ms["deep"] > 0
