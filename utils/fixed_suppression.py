"""Non-maximum suppression in which no shape depends on what is found: nothing in it waits for a GPU.

It gives what `utils.boxes.non_max_suppression` gives, or says that it does not know. Meant for CUDA; on a CPU, where
nothing has to be waited for, the other one is faster.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from utils.boxes import FIRST_CANDIDATES_PER_DETECTION

ROUNDS = 12
"""Links of the longest chain (a suppresses b, which would have suppressed c, …) that is followed."""


def suppress_fixed(
    xyxy: Tensor,
    scores: Tensor,
    own: Tensor,
    *,
    conf_thres: float,
    iou_thres: float,
    max_det: int,
    multi_label: bool,
    agnostic: bool,
    classes: Sequence[int] | None,
) -> Tensor:
    """The best boxes of one image.

    Args:
        xyxy, scores: [N, 4], [N, C] of all images; see `utils.boxes.non_max_suppression`, also for the other options.
        own: [N] bool, the boxes of this image.

    Returns [1 + max_det, 6] for `unpack`, on the device of the boxes.
    """
    box, score, label = _candidates(xyxy, scores, own, conf_thres, multi_label, classes)
    best = _best(score, FIRST_CANDIDATES_PER_DETECTION * max_det)
    passing = (score > 0).sum()
    box, score, label = box[best], score[best], label[best]
    keep, settled = _greedy(box, score > 0, label, iou_thres, agnostic)
    count = keep.sum().clamp(max=max_det)
    # The rest matters only when there is one, and when the first have not filled the result.
    settled &= (passing <= len(best)) | (keep.sum() >= max_det)
    place = torch.where(keep, keep.cumsum(0), max_det + 1).clamp(max=max_det + 1)
    packed = xyxy.new_zeros((max_det + 2, 6), dtype=torch.float32)
    rows = torch.cat((box.float(), score.unsqueeze(1).float(), label.unsqueeze(1).float()), dim=1)
    packed.index_copy_(0, place, rows)  # what is not kept goes to the last row
    packed[0] = torch.stack((count, settled.to(count.dtype), *[torch.zeros_like(count)] * 4)).float()
    return packed[:-1]


def unpack(packed: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
    """Boxes [M, 4], scores [M] and labels [M] int64, best first, from what `suppress_fixed` gave, on the CPU.

    None when it does not know: chains longer than `ROUNDS`, or more candidates than it looked at were needed.
    """
    count, settled = int(packed[0, 0]), bool(packed[0, 1])
    rows = packed[1 : 1 + count]
    return (rows[:, :4], rows[:, 4], rows[:, 5].long()) if settled else None


def _candidates(
    xyxy: Tensor,
    scores: Tensor,
    own: Tensor,
    conf_thres: float,
    multi_label: bool,
    classes: Sequence[int] | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes, scores and labels of all that could be candidates; the score is 0 where they are none."""
    if multi_label:
        count = scores.shape[1]
        label = torch.arange(count, device=scores.device).repeat(len(scores))
        score, box, own = scores.flatten(), xyxy.repeat_interleave(count, dim=0), own.repeat_interleave(count)
    else:
        score, label = scores.max(dim=1)
        box = xyxy
    own = own & (score > conf_thres) & (score > 0)
    if classes is not None:
        allowed = torch.zeros_like(label, dtype=torch.bool)
        for number in classes:
            allowed |= label == number
        own = own & allowed
    return box, torch.where(own, score, 0.0), label


def _best(score: Tensor, limit: int) -> Tensor:
    """Indices of the best so many, best first, those of equal score in order."""
    if len(score) > limit:
        index = score.topk(limit, sorted=False).indices.sort().values
        return index[score[index].argsort(descending=True, stable=True)]
    return score.argsort(descending=True, stable=True)


def _greedy(
    box: Tensor, valid: Tensor, label: Tensor, iou_thres: float, agnostic: bool
) -> tuple[Tensor, Tensor]:
    """Which boxes, best first, no kept better one suppresses: bool [K]; and whether that is settled.

    The rule "kept, unless a kept one before overlaps" has one solution. Applying it to a guess makes, with every
    round, one more link of each chain right, and a guess that it does not change is the solution.
    """
    left_top = torch.maximum(box[:, None, :2], box[None, :, :2])
    right_bottom = torch.minimum(box[:, None, 2:], box[None, :, 2:])
    common = (right_bottom - left_top).clamp(min=0).prod(dim=2)
    area = (box[:, 2:] - box[:, :2]).prod(dim=1)
    overlaps = common / (area[:, None] + area[None, :] - common) > iou_thres
    if not agnostic:
        overlaps &= label[:, None] == label[None, :]
    before = overlaps.triu(diagonal=1).float()  # row: the better one
    keep, last = valid, valid
    for _ in range(ROUNDS):
        last, keep = keep, valid & ~((keep.float() @ before) > 0)
    return keep, (keep == last).all()
