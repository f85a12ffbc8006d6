"""Decoding and suppression in NumPy find what those on tensors find."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from deploy.decoding import LevelArray, box_shape, decode, suppress
from deploy.slicing import PatchTable
from models.build import build_coder
from models.decode import decode as decode_tensors
from models.esod import ESODOutput
from models.levels import STRIDES, LevelOutput, all_positions
from models.slicer import Patches
from utils.boxes import cxcywh_to_xyxy, non_max_suppression
from utils.config import HeadConfig, ModelConfig
from utils.typed_data import config_to_dict

CORNERS = torch.tensor([[0, 0, 12, 8], [4, 8, 16, 16], [0, 4, 12, 12]])


def outputs(kind: str, patches: int) -> tuple[list[LevelArray], PatchTable, ESODOutput, ModelConfig]:
    """Random predictions of a head, for both."""
    config = ModelConfig(head=HeadConfig(kind=kind), num_classes=4)  # type: ignore[arg-type]
    boxes, values = box_shape(config_to_dict(config))
    image, corners = torch.tensor([0, 1, 1])[:patches], CORNERS[:patches]
    arrays, levels = [], []
    for number, stride in enumerate(STRIDES):
        rows, columns = 64 // stride, 96 // stride
        raw = 3 * torch.randn(patches, rows * columns, boxes, values)
        arrays.append(LevelArray(raw.numpy(), stride, (rows, columns), number))
        position = all_positions(patches, (rows, columns), torch.device("cpu"))
        levels.append(LevelOutput(raw.flatten(0, 1), position, stride, (rows, columns)))
    output = ESODOutput(None, levels, Patches(image, corners, (8, 12)))
    return arrays, PatchTable(image.numpy(), corners.numpy(), (8, 12)), output, config


@pytest.mark.parametrize("kind", ["decoupled", "single", "dfl", "center"])
@pytest.mark.parametrize("patches", [0, 1, 3])
def test_boxes_and_scores(kind: str, patches: int) -> None:
    arrays, table, output, config = outputs(kind, patches)
    expected = decode_tensors(output, build_coder(config))
    found = decode(arrays, table, config_to_dict(config), -1.0)
    assert np.array_equal(found.image_index, expected.image_index.numpy())
    assert found.xyxy_px == pytest.approx(cxcywh_to_xyxy(expected.cxcywh_px).numpy(), abs=1e-3, rel=1e-5)
    scores = (expected.objectness[:, None] * expected.class_prob).numpy()
    assert found.scores == pytest.approx(scores, abs=1e-6)
    few = decode(arrays, table, config_to_dict(config), 0.5)
    above = found.scores.max(axis=1, initial=0) > 0.5
    assert len(few.scores) < max(len(found.scores), 1), "hopeless ones are left out"
    assert np.array_equal(few.xyxy_px[few.scores.max(axis=1, initial=0) > 0.5], found.xyxy_px[above])


@pytest.mark.parametrize("count", [0, 1, 300])
@pytest.mark.parametrize("max_det", [5, 500])
def test_suppression(count: int, max_det: int) -> None:
    corner, size = torch.rand(count, 2) * 60, 5 + 20 * torch.rand(count, 2)
    xyxy, scores = torch.cat((corner, corner + size), dim=1), torch.rand(count, 3)
    expected = non_max_suppression(
        xyxy, scores, conf_thres=0.3, iou_thres=0.45, max_det=max_det, multi_label=False
    )
    found = suppress(xyxy.numpy(), scores.numpy(), 0.3, 0.45, max_det)
    for a, b in zip(expected, found, strict=True):
        assert np.array_equal(a.numpy(), b)
    assert count < 300 or 0 < len(found[0]) < 300
