"""Turn a checkpoint of other software into this project's format, without executing it.

    python scripts/model_convert.py --weights yolov5s.pt --output weights/pretrained/yolov5s.pt
    python scripts/model_convert.py --weights yolov5s.pt --output yolov5s_coco.pt --keep-head
    python scripts/model_convert.py --weights rtmdet_s_8xb32-300e_coco.pth --output weights/pretrained/rtmdet_s.pt

A released ESOD checkpoint becomes a complete detector. A plain YOLOv5 checkpoint becomes an initialisation
for ESOD (body and neck; head and heatmap head are left to training) or, with --keep-head, the dense COCO
detector that it is. Files of OpenMMLab (RTMDet, CSPNeXt) and torchvision (ResNet-50, RetinaNet) become
initialisations too: of body and, where there is one, neck.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from models.weights import Weights, expected_tensors, read_weights
from utils.checkpoint import CheckpointError, match_state_dict, save_checkpoint, sha256_of, strip_checkpoint
from utils.cli import Parser, probability, run_main
from utils.config import HeadConfig, ModelConfig, SeekerConfig, SlicerConfig, config_to_dict


def main() -> None:
    """Parse the command line and convert."""
    args = build_parser().parse_args()
    source = read_weights(args.weights)
    config = esod_config(source.config) if is_plain(source.config) and not args.keep_head else source.config
    weights = Weights(config, source.state_dict, source.left_over)
    report = match_state_dict(weights.state_dict, expected_tensors(config))
    print(describe(config))
    print(report.summary())
    if source.left_over:
        print(f"  keys of the source with no place here: {', '.join(source.left_over)}")
    taken = sum(weights.state_dict[name].numel() for name in report.matched)
    share = taken / max(sum(tensor.numel() for tensor in weights.state_dict.values()), 1)
    print(f"{share:.1%} of the source's numbers are used")
    if share < args.min_match:
        raise CheckpointError(
            f"{args.weights}: only {share:.1%} matched, less than --min-match {args.min_match:.0%}"
        )
    content = {
        "config": config_to_dict(config),
        "names": config.names,
        "model": {name: weights.state_dict[name] for name in report.matched},
        "provenance": {
            "source": Path(args.weights).name,
            "sha256": sha256_of(args.weights),
            "license": "as the source's: weights keep the licence of the file they come from",
        },
    }
    save_checkpoint(args.output, strip_checkpoint(content))
    print(f"written: {args.output}")


def is_plain(source: ModelConfig) -> bool:
    """Whether it is a detector of other software, without heatmap head and with a head of its own."""
    return source.seeker.kind == "none" and source.head.kind in ("single", "dfl")


def esod_config(source: ModelConfig) -> ModelConfig:
    """ESOD of the same body as a plain detector: with a heatmap head, the source's BatchNorm epsilon, and in place
    of YOLOv5's single convolutions the decoupled head."""
    head = HeadConfig() if source.head.kind == "single" else source.head
    spp_kernels = ModelConfig().spp_kernels
    return replace(source, seeker=SeekerConfig(), slicer=SlicerConfig(), head=head, spp_kernels=spp_kernels)


def describe(config: ModelConfig) -> str:
    """One line about what the file becomes."""
    seeker = "no heatmap head" if config.seeker.kind == "none" else f"{config.seeker.kind} heatmap head"
    return (
        f"{config.family}, depth {config.depth:g}, width {config.width:g}, {config.num_classes} classes, "
        f"{config.head.kind} head, {seeker}, BatchNorm epsilon {config.bn_eps:g}"
    )


def build_parser() -> Parser:
    """The parser of this script."""
    parser = Parser("Convert a checkpoint of other software into this project's format; nothing in it is executed.")
    parser.add_argument("--weights", required=True, metavar="PT", help="released checkpoint, or OpenMMLab's or torchvision's file")
    parser.add_argument("--output", required=True, metavar="PT", help="file to write")
    parser.add_argument(
        "--keep-head",
        action="store_true",
        help="plain YOLOv5 only: keep its own head and classes, as a dense detector (test it with --slicer none)",
    )
    parser.add_argument(
        "--min-match",
        type=probability,
        default=0.5,
        metavar="P",
        help="fail when less of the source is used (0-1)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(run_main(main))
