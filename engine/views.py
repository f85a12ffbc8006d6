"""Test-time augmentation: the same images seen in several sizes and mirrored, boxes merged."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from models.decode import DecodedBoxes, decode
from models.esod import Network
from utils.boxes import letterbox_shape

OTHER_VIEWS = ((0.83, True), (0.67, False))
"""(scale, mirrored left-right) of the views beside the image itself."""


def decode_views(model: Network, images: Tensor, first: DecodedBoxes, conf_thres: float) -> DecodedBoxes:
    """Boxes of the plain view and of all `OTHER_VIEWS` in the frame of the plain one.

    Args:
        model: in evaluation mode.
        images: [B, 3, H, W] in 0–1, the model's type.
        first: decoded boxes of the plain view.
        conf_thres: positions that cannot reach this score are left out.
    """
    parts = [first]
    height, width = images.shape[2:]
    for scale, mirrored in OTHER_VIEWS:
        view_hw = letterbox_shape((height, width), (round(height * scale), round(width * scale)))
        view = F.interpolate(images.float(), view_hw, mode="bilinear", align_corners=False)
        view = (view.flip(3) if mirrored else view).to(images.dtype)
        decoded = decode(model(view), model.coder, conf_thres)
        boxes = decoded.cxcywh_px * decoded.cxcywh_px.new_tensor(
            [width / view_hw[1], height / view_hw[0]] * 2
        )
        if mirrored:
            boxes[:, 0] = width - boxes[:, 0]
        parts.append(replace(decoded, cxcywh_px=boxes))
    return DecodedBoxes(
        torch.cat([part.image_index for part in parts]),
        torch.cat([part.cxcywh_px for part in parts]),
        torch.cat([part.objectness for part in parts]),
        torch.cat([part.class_prob for part in parts]),
    )
