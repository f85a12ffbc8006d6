"""Suppression of fixed shapes against the one that it must equal."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from models.decode import DecodedBoxes, PostprocessConfig, suppress, suppress_at_once
from utils import fixed_suppression
from utils.boxes import Letterbox, cxcywh_to_xyxy
from utils.fixed_suppression import suppress_fixed, unpack

LETTERBOX = Letterbox.fit((300, 500), (320, 640))


def crowd(boxes: int, seed: int, images: int = 2, objects: int = 12) -> DecodedBoxes:
    """Boxes scattered around some objects, as a detector's are."""
    generator = torch.Generator().manual_seed(seed)
    middle = torch.rand(objects, 2, generator=generator) * 280
    centre = middle[torch.randint(objects, (boxes,), generator=generator)]
    centre = centre + 4 * torch.randn(boxes, 2, generator=generator)
    size = 10 + 20 * torch.rand(boxes, 2, generator=generator)
    return DecodedBoxes(
        torch.randint(images, (boxes,), generator=generator),
        torch.cat((centre, size), dim=1),
        torch.rand(boxes, generator=generator),
        torch.rand(boxes, 4, generator=generator),
    )


CONFIGS = [
    PostprocessConfig(0.25, 0.45, 50),
    PostprocessConfig(0.001, 0.6, 5, multi_label=True),
    PostprocessConfig(0.1, 0.5, 500, multi_label=True, agnostic=True),
    PostprocessConfig(0.3, 0.3, 20, classes=(1, 3)),
    PostprocessConfig(0.0, 0.6, 300, classes=()),
    PostprocessConfig(0.99, 0.6, 300),
]


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("boxes", [0, 1, 7, 400])
def test_the_same_detections(config: PostprocessConfig, boxes: int) -> None:
    for seed in range(2):
        decoded = crowd(boxes, seed)
        found = suppress_at_once(decoded, [LETTERBOX] * 2, config)
        for image, detections in enumerate(found):
            expected = suppress(decoded, image, LETTERBOX, config)
            assert torch.equal(detections.label, expected.label)
            torch.testing.assert_close(detections.score, expected.score, atol=0, rtol=0)
            torch.testing.assert_close(detections.xyxy, expected.xyxy)
            assert detections.label.dtype == torch.int64


def row(boxes: Tensor, max_det: int = 10) -> Tensor:
    scores = torch.linspace(0.9, 0.5, len(boxes)).unsqueeze(1)
    own = torch.ones(len(boxes), dtype=torch.bool)
    return suppress_fixed(
        boxes, scores, own, conf_thres=0.1, iou_thres=0.3, max_det=max_det, multi_label=False, agnostic=False,
        classes=None,
    )  # fmt: skip


def chain(links: int) -> Tensor:
    """Boxes each of which overlaps its neighbours by a half: every second one stays."""
    left = torch.arange(links) * 5.0
    return torch.stack((left, torch.zeros(links), left + 10, torch.full((links,), 10.0)), dim=1)


def test_chains_are_followed_so_far_and_longer_ones_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fixed_suppression, "ROUNDS", 6)
    found = unpack(row(chain(6)))
    assert found is not None
    assert found[0][:, 0].tolist() == [0, 10, 20]
    assert unpack(row(chain(16), max_det=16)) is None


def test_a_chain_that_is_too_long_is_done_the_slow_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fixed_suppression, "ROUNDS", 1)
    decoded, config = crowd(300, 1), PostprocessConfig(0.1, 0.3, 100)
    assert any(
        unpack(
            suppress_fixed(
                cxcywh_to_xyxy(decoded.cxcywh_px), decoded.objectness.unsqueeze(1) * decoded.class_prob,
                decoded.image_index == image, conf_thres=0.1, iou_thres=0.3,
                max_det=100, multi_label=False, agnostic=False, classes=None,
            )
        ) is None for image in range(2)
    )  # fmt: skip
    for image, detections in enumerate(suppress_at_once(decoded, [LETTERBOX] * 2, config)):
        expected = suppress(decoded, image, LETTERBOX, config)
        assert torch.equal(detections.xyxy, expected.xyxy) and torch.equal(detections.label, expected.label)


def test_more_candidates_than_are_looked_at() -> None:
    """Copies of one box fill what is looked at; a box behind them must not be lost."""
    boxes = torch.tensor([[0.0, 0, 10, 10]]).repeat(40, 1)
    assert unpack(row(torch.cat((boxes, torch.tensor([[50.0, 50, 60, 60]]))), max_det=4)) is None
    apart = chain(100)[::2]
    found = unpack(row(apart, max_det=4))
    assert found is not None, "what is behind the fourth kept one does not matter"
    assert torch.equal(found[0], apart[:4])
