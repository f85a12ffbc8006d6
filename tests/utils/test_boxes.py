"""utils/boxes.py: formats, the letterbox, non-maximum suppression."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.ops import batched_nms, box_iou

from utils.boxes import (
    Letterbox,
    clip_boxes,
    cxcywh_to_xyxy,
    letterbox_shape,
    non_max_suppression,
    xyxy_to_cxcywh,
)


def nms(
    boxes: list[list[float]], scores: list[list[float]], **changes: object
) -> tuple[Tensor, Tensor, Tensor]:
    settings: dict[str, object] = {"conf_thres": 0.1, "iou_thres": 0.5, "multi_label": False, **changes}
    count = max((len(row) for row in scores), default=1)
    return non_max_suppression(
        torch.tensor(boxes).reshape(-1, 4),
        torch.tensor(scores).reshape(-1, count),
        **settings,  # type: ignore[arg-type]
    )


def test_formats_by_hand() -> None:
    corners = torch.tensor([[10.0, 20.0, 30.0, 60.0]])
    centres = torch.tensor([[20.0, 40.0, 20.0, 40.0]])
    assert torch.equal(xyxy_to_cxcywh(corners), centres)
    assert torch.equal(cxcywh_to_xyxy(centres), corners)


@pytest.mark.parametrize("shape", [(0, 4), (4,), (2, 3, 4)])
def test_formats_keep_any_leading_shape(shape: tuple[int, ...]) -> None:
    boxes = torch.rand(shape)
    assert xyxy_to_cxcywh(boxes).shape == shape
    assert torch.allclose(cxcywh_to_xyxy(xyxy_to_cxcywh(boxes)), boxes, atol=1e-6)


def test_clipping_takes_height_first_and_leaves_the_input_alone() -> None:
    boxes = torch.tensor([[-5.0, -6.0, 300.0, 300.0]])
    assert clip_boxes(boxes, (100, 200)).tolist() == [[0, 0, 200, 100]]
    assert boxes[0, 0] == -5


@pytest.mark.parametrize(
    "original, size, expected",
    [
        ((1080, 1920), 1536, (864, 1536)),
        ((1920, 1080), 1536, (1536, 864)),
        ((765, 1360), 1536, (864, 1536)),
        ((540, 1024), 1280, (704, 1280)),
        ((10, 10), 640, (640, 640)),
        ((1, 5000), 640, (32, 640)),
        ((1080, 1920), (640, 640), (384, 640)),
        ((1080, 1920), (320, 1280), (320, 576)),
    ],
)
def test_smallest_shape(
    original: tuple[int, int], size: int | tuple[int, int], expected: tuple[int, int]
) -> None:
    assert letterbox_shape(original, size) == expected


def test_letterbox_by_hand() -> None:
    letterbox = Letterbox.fit((1080, 1920), (960, 960))
    assert letterbox == Letterbox((1080, 1920), (960, 960), 0.5, (0.0, 210.0))
    assert letterbox.to_input(torch.tensor([[100.0, 200.0, 300.0, 400.0]])).tolist() == [[50, 310, 150, 410]]


def test_letterbox_clips_to_the_original() -> None:
    letterbox = Letterbox.fit((1080, 1920), (960, 960))
    assert letterbox.to_original(torch.tensor([[-10.0, 0.0, 970.0, 960.0]])).tolist() == [[0, 0, 1920, 1080]]


def test_letterbox_without_upscaling() -> None:
    assert Letterbox.fit((50, 100), (320, 640), upscale=False) == Letterbox(
        (50, 100), (320, 640), 1.0, (270, 135)
    )
    assert Letterbox.fit((50, 100), (320, 640)).scale == 6.4


def test_scale_does_not_depend_on_a_few_pixels_of_room() -> None:
    # 1000 · 1536 / 1777 = 864.4 rows are rounded to 864, which is just the height of the tight input.
    tight, roomy = Letterbox.fit((1000, 1777), (864, 1536)), Letterbox.fit((1000, 1777), (896, 1536))
    assert letterbox_shape((1000, 1777), 1536) == (864, 1536)
    assert tight.scale == roomy.scale == 1536 / 1777


@settings(max_examples=150, deadline=None)
@given(
    st.tuples(st.integers(1, 4000), st.integers(1, 4000)),
    st.tuples(st.integers(1, 60), st.integers(1, 60)),
    st.booleans(),
)
def test_letterbox_fits_and_goes_back(
    original: tuple[int, int], cells: tuple[int, int], upscale: bool
) -> None:
    input_hw = (cells[0] * 32, cells[1] * 32)
    letterbox = Letterbox.fit(original, input_hw, upscale)
    height, width = original
    whole = torch.tensor([[0.0, 0.0, width, height]], dtype=torch.float64)
    placed = letterbox.to_input(whole)[0]
    assert placed.min() >= 0
    assert placed[2] <= input_hw[1] + 0.5001 or width * letterbox.scale < 1  # half a pixel is rounded away
    assert placed[3] <= input_hw[0] + 0.5001 or height * letterbox.scale < 1
    assert torch.allclose(letterbox.to_original(placed), whole, atol=1e-6 * max(original))
    if upscale:
        filled = (placed[2:] - placed[:2]) / torch.tensor([input_hw[1], input_hw[0]])
        assert filled.max() > 1 - 1 / 32


def test_one_box_in_one_box_out() -> None:
    boxes, score, label = nms([[0.0, 0.0, 10.0, 10.0]], [[0.2, 0.9]])
    assert boxes.tolist() == [[0, 0, 10, 10]]
    assert score.tolist() == pytest.approx([0.9])
    assert label.tolist() == [1]


@pytest.mark.parametrize("shape", [(0, 3), (0, 0), (4, 0)])
@pytest.mark.parametrize("multi_label", [True, False])
def test_nothing_in_nothing_out(shape: tuple[int, int], multi_label: bool) -> None:
    boxes, score, label = non_max_suppression(
        torch.zeros(shape[0], 4), torch.zeros(shape), conf_thres=0.0, iou_thres=0.5, multi_label=multi_label
    )
    assert boxes.shape == (0, 4) and score.shape == (0,) and label.shape == (0,)
    assert label.dtype == torch.int64


def test_threshold_is_strict() -> None:
    assert len(nms([[0.0, 0.0, 9.0, 9.0]], [[0.5]], conf_thres=0.5)[0]) == 0
    assert len(nms([[0.0, 0.0, 9.0, 9.0]], [[0.5]], conf_thres=0.4999)[0]) == 1


OVERLAPPING = [[0.0, 0.0, 10.0, 10.0], [1.0, 0.0, 11.0, 10.0], [50.0, 50.0, 60.0, 60.0]]


def test_overlap_within_a_class_only() -> None:
    same = [[0.8, 0.0], [0.9, 0.0], [0.7, 0.0]]
    other = [[0.8, 0.0], [0.0, 0.9], [0.7, 0.0]]
    assert nms(OVERLAPPING, same)[1].tolist() == pytest.approx([0.9, 0.7])
    assert nms(OVERLAPPING, other)[1].tolist() == pytest.approx([0.9, 0.8, 0.7])
    assert nms(OVERLAPPING, other, agnostic=True)[2].tolist() == [1, 0]


def test_classes_do_not_meet_across_the_border() -> None:
    # Separating classes by an offset of the largest coordinate would put these two onto each other.
    far, negative = [80.0, 80.0, 100.0, 100.0], [-21.0, -21.0, -1.0, -1.0]
    assert len(nms([far, negative], [[0.9, 0.0], [0.0, 0.8]])[0]) == 2


def test_wanted_classes_and_limits() -> None:
    scores = [[0.8, 0.3], [0.2, 0.9], [0.7, 0.6]]
    assert nms(OVERLAPPING, scores, classes=[0])[1].tolist() == pytest.approx([0.8, 0.7])
    assert nms(OVERLAPPING, scores, classes=[])[1].tolist() == []
    assert nms(OVERLAPPING, scores, max_det=1)[1].tolist() == pytest.approx([0.9])
    assert nms(OVERLAPPING, scores, max_candidates=2)[1].tolist() == pytest.approx([0.9, 0.8])


def test_several_labels_of_a_box() -> None:
    boxes, score, label = nms([[0.0, 0.0, 9.0, 9.0]], [[0.6, 0.05, 0.8]], multi_label=True)
    assert score.tolist() == pytest.approx([0.8, 0.6])
    assert label.tolist() == [2, 0] and len(boxes) == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_against_a_plain_loop(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    corner = torch.rand(150, 2, generator=generator) * 300
    boxes = torch.cat([corner, corner + 5 + torch.rand(150, 2, generator=generator) * 60], dim=1).to(dtype)
    scores = torch.rand(150, 3, generator=generator).to(dtype)
    best, label = scores.max(dim=1)
    kept: list[int] = []
    for i in best.argsort(descending=True, stable=True).tolist():
        rivals = [j for j in kept if label[j] == label[i]]
        if not rivals or box_iou(boxes[i : i + 1].float(), boxes[rivals].float()).max() <= 0.4:
            kept.append(i)
    found = non_max_suppression(boxes, scores, conf_thres=0.0, iou_thres=0.4, multi_label=False)
    assert torch.equal(found[0], boxes[kept]) and found[0].dtype == dtype
    assert torch.equal(found[1], best[kept]) and torch.equal(found[2], label[kept])


def sorted_out(
    boxes: torch.Tensor, scores: torch.Tensor, iou_thres: float, conf_thres: float, multi_label: bool
) -> list[tuple[float, int, int]]:
    """Suppression from its definition: (score, box, label), best first, over the best 5000 candidates."""
    best = scores.argmax(dim=1).tolist()
    every = [
        (score, box, label)
        for box, row in enumerate(scores.tolist())
        for label, score in enumerate(row)
        if score > conf_thres and (multi_label or label == best[box])
    ]
    every = sorted(every, reverse=True)[:5000]
    overlap = box_iou(boxes, boxes)
    kept: list[tuple[float, int, int]] = []
    for score, box, label in every:
        rivals = [b for _, b, other in kept if other == label]
        if not rivals or overlap[box, rivals].max() <= iou_thres:
            kept.append((score, box, label))
    return kept


@pytest.mark.parametrize("multi_label", [True, False])
@pytest.mark.parametrize(("boxes_count", "spread"), [(700, 3000), (700, 40), (30, 100)])
@pytest.mark.parametrize("max_det", [1, 20, 100, 500])
def test_many_candidates_against_the_definition(
    boxes_count: int, spread: int, multi_label: bool, max_det: int
) -> None:
    """More than 5000 candidates of 10 classes; scattered, so the best few suffice, or heaped, so they do not."""
    generator = torch.Generator().manual_seed(boxes_count + spread)
    corner = torch.rand(boxes_count, 2, generator=generator) * spread
    boxes = torch.cat([corner, corner + 20 + torch.rand(boxes_count, 2, generator=generator) * 20], dim=1)
    scores = torch.randperm(boxes_count * 10, generator=generator).view(-1, 10) / (boxes_count * 10)
    expected = sorted_out(boxes, scores, 0.5, 0.01, multi_label)[:max_det]
    found = non_max_suppression(
        boxes, scores, conf_thres=0.01, iou_thres=0.5, max_det=max_det, multi_label=multi_label
    )
    assert found[1].tolist() == [score for score, _, _ in expected]
    assert found[2].tolist() == [label for _, _, label in expected]
    assert torch.equal(found[0], boxes[[box for _, box, _ in expected]])


def test_both_ways_of_the_early_end_occur(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scattered boxes need one suppression of the best few, a heap of boxes a second one of all."""
    calls: list[int] = []

    def counted(*args: torch.Tensor) -> torch.Tensor:
        calls.append(len(args[0]))
        return batched_nms(*args)  # type: ignore[no-any-return]

    monkeypatch.setattr("utils.boxes.batched_nms", counted)
    scores = torch.linspace(0.2, 0.9, 100).unsqueeze(1).tolist()
    for step, kept, expected in ((50.0, 10, [30]), (0.001, 1, [30, 71])):
        calls.clear()
        boxes = [[i * step, 0.0, i * step + 10, 10.0] for i in range(100)]
        assert len(nms(boxes, scores, max_det=10)[0]) == kept
        assert calls == expected


@pytest.mark.parametrize("multi_label", [True, False])
def test_equal_scores_come_in_the_order_of_boxes_and_labels(multi_label: bool) -> None:
    boxes = [[20.0 * i, 0.0, 20.0 * i + 9, 9.0] for i in range(50)]
    found = nms(boxes, [[0.5, 0.5]] * 50, multi_label=multi_label)
    labels = [0, 1] if multi_label else [0]
    assert found[0][:, 0].tolist() == [b[0] for b in boxes for _ in labels]
    assert found[2].tolist() == labels * 50
