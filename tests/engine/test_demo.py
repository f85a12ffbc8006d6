"""What the demo page shows, without Gradio: dropped files, pictures, cost, and who may reach it."""

from __future__ import annotations

import asyncio
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from engine.demo import (
    MOST_PIXELS,
    SAMPLES,
    SHIPPED_WEIGHTS,
    CostComparison,
    Demo,
    RefusedError,
    Settings,
    StageCost,
    cost_html,
    default_weights,
    read_dropped,
    refusal_html,
    shrunk,
    spotlight,
    with_changes,
)
from engine.demo_page import (
    CONTENT_POLICY,
    NOT_MEASURED,
    ContentPolicy,
    Handlers,
    MissingPackageError,
    is_loopback,
    load_gradio,
)
from engine.inference import Detector, load_model
from tests.conftest import RunCommand
from utils.config import ModelOverrides
from utils.profile import count_flops


@pytest.fixture(scope="module")
def detector(weights: Path) -> Detector:
    return load_model(weights, "cpu")


@pytest.fixture(scope="module")
def demo(detector: Detector) -> Demo:
    return Demo(detector, 256)


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (160, 256, 3), dtype=np.uint8)


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(b"\0" * 100)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".bmp", ".tif"])
def test_pictures_are_read_whatever_they_are_called(tmp_path: Path, picture: np.ndarray, suffix: str) -> None:
    done, data = cv2.imencode(suffix, picture)
    assert done
    path = tmp_path / "without suffix"
    path.write_bytes(data.tobytes())
    assert read_dropped(path).shape == (160, 256, 3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"just text", "is not a picture that can be read here: give a JPEG"),
        (b"", "is not a picture"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>", "is not a picture"),
        (b"\xff\xd8\xff" + b"nothing behind it" * 20, "cannot be read as a picture"),
        (b"RIFF\x00\x00\x00\x00WAVEfmt ", "cannot be read as a picture"),
        (png_header(7000, MOST_PIXELS // 7000 + 1), "50 million that this page takes"),
        # By Pillow's limit, or by ours where another package (sahi) has lifted that for the whole process.
        (png_header(100_000, 100_000), "damaged, or too large|50 million"),
        (png_header(60, 40), "damaged"),
    ],
)  # fmt: skip
def test_everything_else_is_refused_by_name(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "holiday.jpg"
    path.write_bytes(content)
    with pytest.raises(RefusedError, match=message) as caught:
        read_dropped(path)
    assert str(caught.value).startswith("holiday.jpg"), "the name, not where the server put it"


def test_a_truncated_picture_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cut.jpg"
    path.write_bytes(SAMPLES[0].read_bytes()[:20_000])
    with pytest.raises(RefusedError, match="damaged"):
        read_dropped(path)


def test_a_refusal_is_escaped_and_announced() -> None:
    written = refusal_html(RefusedError("<img src=x onerror=alert(1)>.jpg is not a picture"))
    assert "<img" not in written and 'role="alert"' in written


def test_a_budget_changes_a_copy_only(detector: Detector, picture: np.ndarray) -> None:
    before = detector.model.config
    few = with_changes(detector, ModelOverrides(max_patches=1))
    dense = with_changes(detector, ModelOverrides(slicer="none", head="dense"))
    many, one, whole = (d.predict([picture], 256)[0] for d in (detector, few, dense))
    assert len(one.patches_orig) == 1 < len(many.patches_orig)
    assert np.allclose(whole.patches_orig, [[0, 0, 256, 160]])
    assert detector.model.config is before
    shared = zip(detector.model.parameters(), few.model.parameters(), strict=True)
    assert all(a is b for a, b in shared)


def test_three_pictures_and_a_summary(demo: Demo, picture: np.ndarray) -> None:
    seen = demo.look(picture, Settings(confidence=0.0, max_patches=2))
    for shown in (seen.boxes, seen.heatmap, seen.patches):
        assert shown.shape == picture.shape and (shown != picture).any()
    assert "2 patches" in seen.summary and "detection" in seen.summary and "image 256 × 160" in seen.summary
    nothing = demo.look(picture, Settings(confidence=1.0))
    assert "0 detections" in nothing.summary and (nothing.boxes == picture).all()


def test_exported_files_are_refused(detector: Detector) -> None:
    exported = Detector(detector.model, detector.names, detector.device)
    exported.model = torch.nn.Identity()  # type: ignore[assignment]
    with pytest.raises(RefusedError, match="give the .pt file"):
        Demo(exported, 256)


def test_a_dense_detector_has_no_heatmap(weights: Path, picture: np.ndarray) -> None:
    dense = Demo(load_model(weights, "cpu", ModelOverrides(slicer="none")), 256)
    seen = dense.look(picture, Settings())
    assert "1 patch, 100% of the image" in seen.summary


def test_class_names_are_escaped(demo: Demo, picture: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo.detector, "names", ["<script>"] * len(demo.detector.names))
    assert "<script>" not in demo.look(picture, Settings(confidence=0.0)).summary


def test_large_pictures_are_shown_smaller_and_darker_where_nobody_looked() -> None:
    small, scale = shrunk(np.full((1000, 3200, 3), 200, dtype=np.uint8))
    assert small.shape == (500, 1600, 3) and scale == 0.5
    lit = spotlight(small, np.array([[100.0, 50.0, 300.0, 250.0], [1500.0, 400.0, 1700.0, 600.0]]))
    assert lit[150, 200].tolist() == [200] * 3 and lit[450, 1550].tolist() == [200] * 3
    assert lit[400, 800].tolist() == [60] * 3
    assert (spotlight(small, np.zeros((0, 4))) == 60).all()


def test_cost_is_counted_stage_by_stage(demo: Demo, detector: Detector, picture: np.ndarray) -> None:
    cost = demo.cost(picture, Settings(max_patches=1))
    stages = {stage.name: stage for stage in cost.stages}
    assert cost.patches == 1 and cost.input_hw == (160, 256)
    assert stages["stem"].gflops == stages["stem"].dense_gflops > 0
    assert 0 < stages["body, neck"].gflops < stages["body, neck"].dense_gflops
    assert (
        stages["heatmap head"].gflops
        > 0
        == stages["heatmap head"].dense_gflops
        == stages["heatmap head"].dense_ms
    )
    assert all(stage.ms > 0 for stage in cost.stages)
    few = with_changes(detector, ModelOverrides(max_patches=1))
    pixels = few.prepare(picture, 256).pixels[None].float() / 255
    assert cost.total("gflops") == pytest.approx(count_flops(lambda: few.model(pixels)).gflops)
    assert cost.total("gflops") < cost.total("dense_gflops")


def test_the_cost_panel_names_both() -> None:
    stages = [StageCost("stem", 1.0, 1.0, 10.0, 10.0), StageCost("head", 0.5, 3.0, 5.0, 20.0)]
    written = cost_html(CostComparison(stages, 3, (160, 256), "a <cpu>"))
    for text in ("1.50", "4.00", "15.0", "30.0", "38%", "50%", "3 patches", "256 × 160", "a &lt;cpu&gt;"):
        assert text in written, text
    assert "n/a" in cost_html(CostComparison([], 0, (32, 32), "cpu"))


def test_handlers_change_what_they_have_to(demo: Demo, tmp_path: Path) -> None:
    same = object()
    handlers = Handlers(demo, same)
    path, message, *pictures, cost = handlers.pick(SAMPLES[0], 0.25, 0)
    assert path == str(SAMPLES[0]) and message == "" and cost == NOT_MEASURED and len(pictures) == 4
    (tmp_path / "notes.txt").write_text("text")
    refused = handlers.pick(str(tmp_path / "notes.txt"), 0.25, 0)
    assert "notes.txt is not a picture" in refused[1]
    assert [value is same for value in refused] == [True, False, *[True] * 5], "the last picture stays"
    assert handlers.pick(None, 0.25, 0) == (same,) * 7
    assert handlers.again(None, 0.25, 0) == (same,) * 6
    again = handlers.again(path, 0.25, 1)
    assert len(again) == 6 and "1 patch" in again[1]
    assert handlers.cost(None, 0.25, 0) == NOT_MEASURED
    assert "GFLOPs by stage" in handlers.cost(path, 0.25, 1)
    gone = str(tmp_path / "deleted.jpg")
    message, *rest = handlers.again(gone, 0.25, 1)
    assert "deleted.jpg is not here any more" in message and rest == [same] * 5
    assert "deleted.jpg is not here any more" in handlers.cost(gone, 0.25, 1)


def test_the_shipped_weights_are_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert default_weights() in SHIPPED_WEIGHTS
    monkeypatch.setattr("engine.demo.SHIPPED_WEIGHTS", (tmp_path / "gone.pt",))
    with pytest.raises(RefusedError, match="give --weights"):
        default_weights()


@pytest.mark.parametrize(
    ("host", "only_here"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("localhost", True), ("0.0.0.0", False), ("192.168.1.2", False),
     ("127.0.0.1.example.org", False), ("127.example", False), ("127.0.0.999", False), ("::", False), ("", False)],
)  # fmt: skip
def test_loopback(host: str, only_here: bool) -> None:
    assert is_loopback(host) is only_here


def test_other_machines_are_refused_unless_allowed(run_command: RunCommand) -> None:
    result = run_command("scripts/demo.py", "--host", "0.0.0.0")
    assert result.status == 2 and "--allow-network" in result.err


def test_without_gradio_it_says_how_to_get_it(
    run_command: RunCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(MissingPackageError, match="pip install gradio"):
        load_gradio()
    result = run_command("scripts/demo.py")
    assert result.status == 1 and "pip install gradio" in result.err


def test_every_answer_carries_the_policy() -> None:
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"a", b"b")]})
        await send({"type": "http.response.body", "body": b""})

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(ContentPolicy(app)({"type": "http"}, None, send))  # type: ignore[arg-type]
    assert (b"content-security-policy", CONTENT_POLICY.encode()) in sent[0]["headers"] and len(sent) == 2
    assert "http" not in CONTENT_POLICY, "no other host"
