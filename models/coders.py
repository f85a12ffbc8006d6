"""How a head's raw numbers become boxes and scores: one coder per kind of head, without weights.

What they share: xy and wh in network-input pixels, the patch's corner added; computed in float32.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from models.levels import LevelOutput


class LevelBoxes(NamedTuple):
    """The decoded predictions of one level, M positions with A boxes each.

    Attributes:
        cxcywh_px: [M, A, 4] in network-input pixels.
        objectness: [M, A] in 0–1; ones for heads without it.
        class_prob: [M, A, classes] in 0–1. The score of a class is objectness × class_prob.
    """

    cxcywh_px: Tensor
    objectness: Tensor
    class_prob: Tensor


class BoxCoder(nn.Module):
    """Interface of the coders below."""

    def best_logit(self, raw: Tensor) -> Tensor:
        """[M, A] logit of an upper bound of the score that needs little arithmetic, to leave out hopeless positions."""
        raise NotImplementedError

    def decode(self, number: int, level: LevelOutput, corner_px: Tensor) -> LevelBoxes:
        """Decode one level.

        Args:
            number: of the level, from 0.
            level: its raw predictions.
            corner_px: [M, 2] left and top of each position's patch in input pixels.
        """
        raise NotImplementedError


class AnchorCoder(BoxCoder):
    """YOLOv5's anchors: raw [M, A, 5 + classes] = box (x, y, w, h), objectness, classes.

    Args:
        anchors: [levels, A, 2] (w, h) in input pixels.
    """

    anchors: Tensor

    def __init__(self, anchors: Tensor) -> None:
        super().__init__()
        # Geometry from the configuration, not a weight: half precision in a file would move boxes.
        self.register_buffer("anchors", anchors.float(), persistent=False)

    def best_logit(self, raw: Tensor) -> Tensor:
        """That of the objectness."""
        return raw[..., 4].float()

    def decode(self, number: int, level: LevelOutput, corner_px: Tensor) -> LevelBoxes:
        """See `decode_anchor_boxes`."""
        raw = level.raw.float()
        # Sigmoids of contiguous numbers: on a CPU five times as fast as of a slice.
        boxes = decode_anchor_boxes(
            raw[..., :4].contiguous(), level.position, corner_px, self.anchors[number], level.stride
        )
        prob = raw.sigmoid()
        return LevelBoxes(boxes, prob[..., 4], prob[..., 5:])


class DistanceCoder(BoxCoder):
    """Anchor-free boxes as distributions over distances (YOLOv8; generalized focal loss, arXiv 2006.04388).

    raw [M, 1, 4·bins + classes]: for each of left, top, right, bottom logits of the distances 0 … bins − 1 in
    grid steps from the middle of the position, then the classes. There is no objectness.
    """

    def __init__(self, bins: int) -> None:
        super().__init__()
        self.bins = bins

    def best_logit(self, raw: Tensor) -> Tensor:
        """That of the best class."""
        return raw[..., 4 * self.bins :].amax(dim=-1).float()

    def decode(self, number: int, level: LevelOutput, corner_px: Tensor) -> LevelBoxes:
        """See `decode_distances`."""
        raw = level.raw.float()
        xyxy = decode_distances(
            raw[..., : 4 * self.bins].unflatten(-1, (4, self.bins)),
            level.position,
            corner_px,
            level.stride,
        )
        boxes = torch.cat(((xyxy[..., :2] + xyxy[..., 2:]) / 2, xyxy[..., 2:] - xyxy[..., :2]), dim=-1)
        prob = raw[..., 4 * self.bins :].sigmoid()
        return LevelBoxes(boxes, torch.ones_like(prob[..., 0]), prob)


class CentreCoder(BoxCoder):
    """Objects as points (CenterNet, arXiv 1904.07850): raw [M, 1, 4 + classes] = offset (x, y), size (w, h), classes.

    Offset of the centre from the position's left top corner and size in grid steps; a class's probability is
    that of a centre of it at this position.
    """

    def best_logit(self, raw: Tensor) -> Tensor:
        """That of the best class."""
        return raw[..., 4:].amax(dim=-1).float()

    def decode(self, number: int, level: LevelOutput, corner_px: Tensor) -> LevelBoxes:
        """Centre = (position + offset)·stride + corner, size = max(size, 0)·stride."""
        raw = level.raw.float()
        grid = level.position[:, [2, 1]].to(raw.dtype).unsqueeze(1)
        xy = (grid + raw[..., :2]) * level.stride + corner_px.to(raw.dtype).unsqueeze(1)
        wh = raw[..., 2:4].clamp(min=0) * level.stride
        prob = raw[..., 4:].sigmoid()
        return LevelBoxes(torch.cat((xy, wh), dim=-1), torch.ones_like(prob[..., 0]), prob)


def decode_anchor_boxes(
    raw_box: Tensor, position: Tensor, corner_px: Tensor, anchors_px: Tensor, stride: int
) -> Tensor:
    """YOLOv5's box decoding, with the patch corner added.

    xy = (2σ(t) − 0.5 + grid)·stride + corner, wh = (2σ(t))²·anchor.

    Args:
        raw_box: [M, A, 4] logits.
        position: [M, 3] (patch, row, column).
        corner_px: [M, 2] left and top of the position's patch in input pixels.
        anchors_px: [A, 2] or [M, A, 2].
        stride: input pixels per grid step.

    Returns cxcywh [M, A, 4] in input pixels.
    """
    t = raw_box.sigmoid() * 2
    grid = position[:, [2, 1]].to(t.dtype).unsqueeze(1)
    xy = (t[..., :2] - 0.5 + grid) * stride + corner_px.to(t.dtype).unsqueeze(1)
    wh = t[..., 2:].square() * anchors_px
    return torch.cat((xy, wh), dim=-1)


def decode_distances(logits: Tensor, position: Tensor, corner_px: Tensor, stride: int) -> Tensor:
    """Corners from distributions over the distances to the four sides.

    distance = Σ k·softmax(logits)_k grid steps from the middle of the position, (column + 0.5, row + 0.5).

    Args:
        logits: [..., 4, bins] of left, top, right, bottom; the first dimension is that of position.
        position: [M, 3] (patch, row, column).
        corner_px: [M, 2] left and top of the position's patch in input pixels.
        stride: input pixels per grid step.

    Returns xyxy [..., 4] in input pixels.
    """
    distance = expected_distances(logits) * stride
    middle = (position[:, [2, 1]].to(logits.dtype) + 0.5) * stride + corner_px.to(logits.dtype)
    middle = middle.view(len(position), *[1] * (distance.ndim - 2), 2)
    return torch.cat((middle - distance[..., :2], middle + distance[..., 2:]), dim=-1)


def expected_distances(logits: Tensor) -> Tensor:
    """Σ k·softmax(logits)_k: mean [...] of the distances 0 … bins − 1 with these logits [..., bins]."""
    steps = torch.arange(logits.shape[-1], dtype=logits.dtype, device=logits.device)
    # Not a matrix product, which autocast would round to 16 bits.
    return (logits.softmax(dim=-1) * steps).sum(dim=-1)
