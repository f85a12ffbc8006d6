"""Boxes: formats, clipping, the letterbox between original and input pixels, non-maximum suppression.

Pure geometry on tensors; nothing here knows a model, a dataset or a file.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import batched_nms

FIRST_CANDIDATES_PER_DETECTION = 3
"""Suppression first looks at this many times max_det candidates: enough where few of them overlap."""


def xyxy_to_cxcywh(xyxy: Tensor) -> Tensor:
    """Corners (x1, y1, x2, y2) to centre and size (cx, cy, w, h); [..., 4] to [..., 4], any frame."""
    top_left, bottom_right = xyxy[..., :2], xyxy[..., 2:]
    return torch.cat(((top_left + bottom_right) / 2, bottom_right - top_left), dim=-1)


def cxcywh_to_xyxy(cxcywh: Tensor) -> Tensor:
    """Centre and size (cx, cy, w, h) to corners (x1, y1, x2, y2); [..., 4] to [..., 4], any frame."""
    centre, half = cxcywh[..., :2], cxcywh[..., 2:] / 2
    return torch.cat((centre - half, centre + half), dim=-1)


def clip_boxes(xyxy: Tensor, hw: tuple[int, int]) -> Tensor:
    """Corners [..., 4] limited to an image of hw = (height, width) pixels; a new tensor."""
    height, width = hw
    limit = torch.tensor([width, height, width, height], dtype=xyxy.dtype, device=xyxy.device)
    return torch.minimum(xyxy.clamp(min=0), limit)


def resized_hw(original_hw: tuple[int, int], scale: float) -> tuple[int, int]:
    """(height, width) in whole pixels of an image after scaling: rounded as OpenCV does, at least one pixel."""
    height, width = (max(1, round(side * scale)) for side in original_hw)
    return height, width


@dataclass(frozen=True)
class Letterbox:
    """How an original image was placed in the network input: one scale for both axes, then a shift.

    Attributes:
        original_hw: height and width of the image file.
        input_hw: height and width of the network input.
        scale: input pixels per original pixel.
        pad_xy: input pixels left of and above the image; whole numbers when made by `fit`.
    """

    original_hw: tuple[int, int]
    input_hw: tuple[int, int]
    scale: float
    pad_xy: tuple[float, float]

    @classmethod
    def fit(cls, original_hw: tuple[int, int], input_hw: tuple[int, int], upscale: bool = True) -> Letterbox:
        """The largest image that fits into input_hw, centred; without upscale it is never enlarged."""
        ratios = (input_hw[0] / original_hw[0], input_hw[1] / original_hw[1])
        # The larger ratio also fits when rounding hides its excess. Taking it keeps the scale of an image
        # the same whether its batch is tight around it or a few pixels taller because of a neighbour.
        height, width = resized_hw(original_hw, max(ratios))
        scale = max(ratios) if height <= input_hw[0] and width <= input_hw[1] else min(ratios)
        if not upscale:
            scale = min(scale, 1.0)
        height, width = resized_hw(original_hw, scale)
        pad = (float((input_hw[1] - width) // 2), float((input_hw[0] - height) // 2))
        return cls(tuple_hw(original_hw), tuple_hw(input_hw), scale, pad)

    def to_input(self, xyxy_orig: Tensor) -> Tensor:
        """Corners [..., 4] in original pixels to input pixels."""
        return xyxy_orig * self.scale + self._shift(xyxy_orig)

    def to_original(self, xyxy_px: Tensor) -> Tensor:
        """Corners [..., 4] in input pixels to original pixels, clipped to the image."""
        return clip_boxes((xyxy_px - self._shift(xyxy_px)) / self.scale, self.original_hw)

    def _shift(self, like: Tensor) -> Tensor:
        return torch.tensor([*self.pad_xy, *self.pad_xy], dtype=like.dtype, device=like.device)


def tuple_hw(hw: tuple[int, int]) -> tuple[int, int]:
    """(height, width) as plain ints, whatever integers came in (numpy, a tensor's shape)."""
    return int(hw[0]), int(hw[1])


def letterbox_shape(
    original_hw: tuple[int, int], img_size: int | tuple[int, int], stride: int = 32
) -> tuple[int, int]:
    """(height, width) of the smallest input, in multiples of stride, that holds the resized image.

    The image is resized so that its longer side is img_size, or, when img_size is (height, width), so that
    it just fits into that.
    """
    limit = (img_size, img_size) if isinstance(img_size, int) else img_size
    scale = min(limit[0] / original_hw[0], limit[1] / original_hw[1])
    height, width = resized_hw(original_hw, scale)
    return math.ceil(height / stride) * stride, math.ceil(width / stride) * stride


def non_max_suppression(
    xyxy: Tensor,
    scores: Tensor,
    *,
    conf_thres: float,
    iou_thres: float,
    max_det: int = 500,
    max_candidates: int = 5000,
    multi_label: bool,
    agnostic: bool = False,
    classes: list[int] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Remove the boxes that overlap a better one of their class.

    Args:
        xyxy: [N, 4] corners in one frame, any pixels.
        scores: [N, C] score of every class, 0–1.
        conf_thres: candidates have a score strictly above it.
        iou_thres: a box goes when its intersection over union with a kept one exceeds this.
        max_det: at most this many are returned.
        max_candidates: only this many best-scored candidates take part; the rest is cut off, which bounds
            time and memory when a low conf_thres lets everything through.
        multi_label: a box is a candidate for each of its classes; otherwise for its best class only.
        agnostic: boxes of different classes suppress each other too.
        classes: only these labels are returned; a box whose best class is another one is left out.

    Returns:
        Boxes [M, 4], scores [M], labels [M] int64; best first, M ≤ max_det, possibly 0.
    """
    boxes, score, label = ranked_candidates(
        xyxy,
        scores,
        conf_thres=conf_thres,
        max_candidates=max_candidates,
        multi_label=multi_label,
        classes=classes,
    )
    if not len(score):
        return boxes, score, label
    # torchvision separates classes by adding an offset to the coordinates: that needs float32, and no
    # negative coordinates, or a box over the left border reaches into the class before its own.
    shifted = boxes.float() - boxes.float().min()
    group = torch.zeros_like(label) if agnostic else label
    kept = _best_kept(shifted, score.float(), group, iou_thres, max_det)
    return boxes[kept], score[kept], label[kept]


def ranked_candidates(
    xyxy: Tensor,
    scores: Tensor,
    *,
    conf_thres: float,
    max_candidates: int = 5000,
    multi_label: bool,
    classes: list[int] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The boxes that take part in a suppression, best first; arguments as of `non_max_suppression`.

    Returns:
        Boxes [K, 4], scores [K], labels [K] int64; K ≤ max_candidates, possibly 0.
    """
    candidate = _candidates(scores, conf_thres, multi_label, classes)
    score = scores.flatten().index_select(0, candidate)
    if len(score) > max_candidates:
        # Not by sorting: of what a low threshold lets through, that is most of the time.
        best = score.topk(max_candidates, sorted=False).indices.sort().values
        candidate, score = candidate[best], score[best]
    order = score.argsort(descending=True, stable=True)
    candidate, score = candidate[order], score[order]
    return xyxy[candidate // scores.shape[1]], score, candidate % scores.shape[1]


def _best_kept(boxes: Tensor, score: Tensor, group: Tensor, iou_thres: float, max_det: int) -> Tensor:
    """Which candidates, ordered by score, stay: indices [M], ascending, M ≤ max_det.

    Whether a candidate stays depends on better ones only. So the best few are tried first: when they
    already give max_det, the rest cannot matter; else what they removed is out.
    """
    first = FIRST_CANDIDATES_PER_DETECTION * max_det
    kept: Tensor = batched_nms(boxes[:first], score[:first], group[:first], iou_thres)
    if len(kept) < max_det and first < len(boxes):
        left = torch.cat((kept.sort().values, torch.arange(first, len(boxes), device=kept.device)))
        kept = left[batched_nms(boxes[left], score[left], group[left], iou_thres)]
    return kept.sort().values[:max_det]


def _candidates(scores: Tensor, conf_thres: float, multi_label: bool, classes: list[int] | None) -> Tensor:
    """Where in the flat scores [N, C] the candidates are: box · C + label, [K] int64, ascending."""
    passing = scores > conf_thres
    labels = torch.arange(scores.shape[1], device=scores.device)
    if not multi_label and passing.numel():
        passing &= labels == scores.argmax(dim=1, keepdim=True)
    if classes is not None:
        passing &= torch.isin(labels, torch.tensor(classes, dtype=torch.int64, device=scores.device))
    return passing.flatten().nonzero().squeeze(1)
