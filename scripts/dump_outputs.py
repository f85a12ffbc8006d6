"""Write what a detector computes for one image, step by step, for comparison with other implementations.

    python scripts/dump_outputs.py --weights W.pt --image F.png --head sparse --slicer grid --output OUT.npz

The image is read as RGB in 0–1 without resizing; everything is computed in fp32 without folding BatchNorm, and all
boxes above the threshold take part in the suppression.
Arrays of the output:

  heatmap_logits  [1, 1, H/8, W/8] (absent for a model without heatmap head)
  patches         [K, 5] int64: image, x1, y1, x2, y2 in stride-8 cells
  decoded         [N, 5 + classes]: cx, cy, w, h, objectness, classes in input pixels. Level after level; in a
                  level by patch, anchor, row, column (dense head) or by patch, row, column, anchor (sparse)
  detections      [M, 6]: x1, y1, x2, y2, score, class
"""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.decode import PostprocessConfig, decode, decode_level, suppress_px
from models.esod import ESOD, ESODOutput
from models.weights import model_from_weights, read_weights
from utils.cli import Parser, add_model_arguments, model_overrides, positive_int, probability, run_main
from utils.images import read_image


def main() -> None:
    """Parse the command line, run the model once, write the file."""
    args = build_parser().parse_args()
    source = read_weights(args.weights)
    config = model_overrides(args).apply(source.config)
    model = model_from_weights(replace(source, config=config), args.weights)
    image = read_image(Path(args.image))
    batch = torch.from_numpy(image).permute(2, 0, 1).unsqueeze(0).float() / 255
    post = PostprocessConfig(args.conf_thres, args.iou_thres, args.max_det, max_candidates=sys.maxsize)
    with torch.inference_mode():
        output = model(batch)
        boxes, score, label = suppress_px(decode(output, model.head.coder), 0, post)
    arrays = {
        "patches": torch.cat((output.patches.image_index[:, None], output.patches.xyxy_cell), dim=1),
        "decoded": decoded_rows(model, output),
        "detections": torch.cat((boxes, score[:, None], label[:, None].float()), dim=1),
    }
    if output.heatmap_logits is not None:
        arrays["heatmap_logits"] = output.heatmap_logits
    plain: dict[str, Any] = {name: array.numpy() for name, array in arrays.items()}
    np.savez_compressed(args.output, **plain)
    print(
        f"{args.output}: {len(output.patches)} patches, {len(arrays['decoded'])} boxes, {len(score)} detections"
    )


EXAMPLES = (
    "python scripts/dump_outputs.py --weights weights/sample_yolov5n.pt --image data/images/sample_1.jpg --head sparse --output outputs.npz",
)
"""Shown at the end of ``--help``."""


def build_parser() -> Parser:
    """The parser of this script."""
    parser = Parser(
        "Write heatmap, patches, decoded boxes and detections of one image to an .npz file.",
        examples=EXAMPLES,
    )
    parser.add_argument(
        "--weights", required=True, metavar="PT", help="checkpoint, this project's or a released one"
    )
    parser.add_argument(
        "--image", required=True, metavar="FILE", help="image with sides that are multiples of 32"
    )
    parser.add_argument("--output", required=True, metavar="NPZ", help="file to write")
    parser.add_argument(
        "--conf-thres", type=probability, default=0.3, metavar="P", help="least score of a detection"
    )
    parser.add_argument("--iou-thres", type=probability, default=0.5, metavar="P", help="suppression overlap")
    parser.add_argument("--max-det", type=positive_int, default=1000, metavar="N", help="most detections")
    add_model_arguments(parser)
    return parser


def decoded_rows(model: ESOD, output: ESODOutput) -> Tensor:
    """All decoded boxes [N, 5 + classes] in the documented order."""
    parts = []
    for number, level in enumerate(output.levels):
        boxes = decode_level(number, level, model.head.coder, output.patches)
        rows = torch.cat((boxes.cxcywh_px, boxes.objectness[:, None], boxes.class_prob), dim=1)
        if not model.config.head.sparse:
            rows = (
                rows.view(len(output.patches), math.prod(level.grid_hw), level.raw.shape[1], rows.shape[1])
                .transpose(1, 2)
                .flatten(0, 2)
            )
        parts.append(rows)
    return torch.cat(parts)


if __name__ == "__main__":
    sys.exit(run_main(main))
