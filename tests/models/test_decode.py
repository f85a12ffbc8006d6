"""Decoding by hand, and post-processing."""

from __future__ import annotations

import math

import pytest
import torch

from models.coders import AnchorCoder, decode_anchor_boxes
from models.decode import PostprocessConfig, decode, decode_level, postprocess
from models.esod import ESODOutput
from models.levels import LevelOutput
from models.slicer import Patches
from utils.boxes import Letterbox


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def test_anchor_boxes_by_hand() -> None:
    raw = torch.tensor([[[0.0, 0.0, 0.0, 0.0], [logit(0.75), logit(0.25), logit(0.75), logit(0.25)]]])
    position = torch.tensor([[0, 2, 5]])
    boxes = decode_anchor_boxes(
        raw, position, torch.tensor([[24, 40]]), torch.tensor([[10.0, 20], [10, 20]]), 16
    )
    # sigma 0.5: xy = (0.5 + grid)·16 + corner, wh = anchor. sigma 0.75, 0.25: xy = (1, 0 + grid)…, wh = 1.5², 0.5².
    assert boxes[0, 0].tolist() == [5.5 * 16 + 24, 2.5 * 16 + 40, 10, 20]
    torch.testing.assert_close(boxes[0, 1], torch.tensor([6.0 * 16 + 24, 2.0 * 16 + 40, 22.5, 5.0]))


def one_box_output(objectness: float = 0.9, classes: tuple[float, ...] = (0.2, 0.8)) -> ESODOutput:
    raw = torch.tensor([[[0.0, 0, 0, 0, logit(objectness), *map(logit, classes)]]])
    level = LevelOutput(raw, torch.tensor([[0, 1, 2]]), 8, (4, 4))
    patches = Patches(torch.tensor([1]), torch.tensor([[3, 4, 7, 8]]), (4, 4))
    return ESODOutput(torch.zeros(2, 1, 8, 8), [level], patches)


ANCHORS = AnchorCoder(torch.tensor([[[16.0, 8.0]]]))


def test_patch_corner_moves_the_box() -> None:
    output = one_box_output()
    boxes = decode_level(0, output.levels[0], ANCHORS, output.patches)
    assert boxes.cxcywh_px.tolist() == [[2.5 * 8 + 24, 1.5 * 8 + 32, 16, 8]]
    assert boxes.image_index.tolist() == [1]


def test_one_box_in_one_box_out_and_images_keep_their_place() -> None:
    letterboxes = [Letterbox((128, 128), (64, 64), 0.5, (0.0, 0.0))] * 2
    first, second = postprocess(one_box_output(), ANCHORS, letterboxes, PostprocessConfig())
    assert len(first) == 0 and len(second) == 1
    assert second.label.tolist() == [1]
    assert math.isclose(second.score.item(), 0.72, abs_tol=1e-6)
    torch.testing.assert_close(second.xyxy, torch.tensor([[72.0, 80.0, 104.0, 96.0]]))


def test_threshold_prefilter_loses_nothing() -> None:
    raw = torch.randn(50, 3, 7)
    level = LevelOutput(raw, torch.zeros(50, 3, dtype=torch.int64), 8, (4, 4))
    output = ESODOutput(None, [level], Patches(torch.tensor([0]), torch.tensor([[0, 0, 4, 4]]), (4, 4)))
    anchors = AnchorCoder(torch.ones(1, 3, 2))
    everything, filtered = decode(output, anchors), decode(output, anchors, 0.6)
    assert (everything.objectness > 0.6).sum() == (filtered.objectness > 0.6).sum() > 0


def test_class_filter_and_agnostic_suppression() -> None:
    letterboxes = [Letterbox((64, 64), (64, 64), 1.0, (0.0, 0.0))] * 2
    none = postprocess(one_box_output(), ANCHORS, letterboxes, PostprocessConfig(classes=(0,)))
    assert len(none[1]) == 0
    both = postprocess(
        one_box_output(), ANCHORS, letterboxes, PostprocessConfig(conf_thres=0.1, multi_label=True)
    )
    assert sorted(both[1].label.tolist()) == [0, 1]
    merged = postprocess(
        one_box_output(),
        ANCHORS,
        letterboxes,
        PostprocessConfig(conf_thres=0.1, multi_label=True, agnostic=True),
    )
    assert merged[1].label.tolist() == [1]


@pytest.mark.parametrize("threshold", [0.0, 1e-6, 0.001, 0.25, 0.9999, 1.0])
def test_no_threshold_loses_a_box_to_rounding(threshold: float) -> None:
    """Logits around the threshold's own: whatever is above it as a probability is decoded."""
    middle = logit(min(max(threshold, 1e-9), 1 - 1e-7))
    raw = torch.zeros(4001, 1, 7)
    raw[:, 0, 4] = middle + torch.linspace(-2e-3, 2e-3, 4001)
    level = LevelOutput(raw, torch.zeros(4001, 3, dtype=torch.int64), 8, (4, 4))
    output = ESODOutput(None, [level], Patches(torch.tensor([0]), torch.tensor([[0, 0, 4, 4]]), (4, 4)))
    everything, filtered = decode(output, ANCHORS), decode(output, ANCHORS, threshold)
    above = everything.objectness > threshold
    assert (filtered.objectness > threshold).sum() == above.sum()
    assert above.any() == (threshold < 1)
