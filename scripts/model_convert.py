"""Turn a checkpoint of other software into this project's format, without executing it.

    python scripts/model_convert.py --weights yolov5s.pt --output weights/pretrained/yolov5s.pt
    python scripts/model_convert.py --weights yolov8s.pt --output yolov8s_coco.pt --keep-head
    python scripts/model_convert.py --model retinanet

A released ESOD checkpoint becomes a complete detector. A plain YOLOv5 or YOLOv8 checkpoint becomes an initialisation
for ESOD (what is new is left to training) or, with --keep-head, the dense COCO detector that it is. Files of torchvision
(ResNet-50, RetinaNet), OpenMMLab (CSPNeXt, RTMDet) and GPViT become initialisations of body and, where there is one,
neck. With --model alone the published file is looked for in weights/pretrained/ under its own name, and the result is
written there as MODEL.pt. The file written says where it comes from: name, sha256 and licence of the source.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from operator import attrgetter
from pathlib import Path

from models.weights import expected_tensors, read_weights
from utils.checkpoint import CheckpointError, match_state_dict, save_checkpoint, strip_checkpoint
from utils.cli import Parser, probability, run_main
from utils.config import HeadConfig, ModelConfig, SeekerConfig, SlicerConfig
from utils.published import PRETRAINED, published_file
from utils.typed_data import ConfigError, config_to_dict, load_config

SHOWN_KEYS = 8
SIZE_FIELDS = {"yolov5": ("body", "width"), "gpvit": ("gpvit.channels",)}
"""What the models of a family differ in; of the others it is the width."""
ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Parse the command line and convert."""
    parser = build_parser()
    args = parser.parse_args()
    if args.model is None and (args.weights is None or args.output is None):
        parser.error("give --weights and --output, or --model for the paths in weights/pretrained/")
    weights, output = paths(args.model, args.weights, args.output)
    source = read_weights(weights)
    print(f"{weights}: {describe(source.config)}")
    check_model(args.model, source.config)
    config = esod_config(source.config) if is_plain(source.config) and not args.keep_head else source.config
    report = match_state_dict(source.state_dict, expected_tensors(config))
    if config != source.config:
        print(f"becomes an initialisation of {describe(config)}")
    print(report.summary())
    if source.left_over:
        shown = ", ".join(source.left_over[:SHOWN_KEYS]) + (
            " …" if len(source.left_over) > SHOWN_KEYS else ""
        )
        print(f"  {len(source.left_over)} keys of the source have no place here: {shown}")
    taken = sum(source.state_dict[name].numel() for name in report.matched)
    whole = sum(tensor.numel() for tensor in source.state_dict.values()) + source.left_over_values
    share = taken / max(whole, 1)
    print(f"{share:.1%} of the source's numbers are used")
    if share < args.min_match:
        raise CheckpointError(
            f"{weights}: only {share:.1%} matched, less than --min-match {args.min_match:.0%}; nothing was written"
        )
    content = {
        "config": config_to_dict(config),
        "names": config.names,
        "model": {name: source.state_dict[name] for name in report.matched},
        "provenance": source.provenance,
    }
    save_checkpoint(output, strip_checkpoint(content))
    print(f"licence of the source: {source.provenance.get('license', 'unknown')}")
    print(f"written: {output}")


def paths(model: str | None, weights: Path | None, output: Path | None) -> tuple[Path, Path]:
    """File to read and file to write; those that are not given follow from the model.

    Raises:
        CheckpointError: there is no published file of the model where it is looked for, or it would be overwritten.
    """
    if weights is None:
        weights = published_file(str(model), PRETRAINED)
    if output is None:
        output = PRETRAINED / f"{model}.pt"
    if output.exists() and weights.exists() and output.samefile(weights):
        raise CheckpointError(f"{output} is the file to read: give another --output, the source is kept")
    return weights, output


def check_model(model: str | None, config: ModelConfig) -> None:
    """Refuse a file that is not of the family, or not of the model of models/cfg, that it is said to be.

    Raises:
        CheckpointError: with what it is.
        ConfigError: there is no such model.
    """
    if model is None or model == config.family:
        return
    path = ROOT / "models" / "cfg" / f"{model}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in path.parent.glob("*.yaml")))
        raise ConfigError(f"--model {model}: the file is of the family {config.family}; models are {known}")
    wanted = load_config(ModelConfig, path)
    for name in ("family", *SIZE_FIELDS.get(wanted.family, ("width",))):
        value, found = attrgetter(name)(wanted), attrgetter(name)(config)
        if value != found:
            raise CheckpointError(
                f"--model {model} has {name} {value}, the file {found}: it is another model's"
            )


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


EXAMPLES = (
    "python scripts/model_convert.py --weights yolov5s.pt --output weights/pretrained/yolov5s.pt",
    "python scripts/model_convert.py --weights yolov8s.pt --output yolov8s_coco.pt --keep-head",
    "python scripts/model_convert.py --model retinanet",
)
"""Shown at the end of ``--help``."""


def build_parser() -> Parser:
    """The parser of this script."""
    parser = Parser(
        "Convert a checkpoint of other software into this project's format; nothing in it is executed.",
        examples=EXAMPLES,
    )
    parser.add_argument(
        "--model",
        metavar="MODEL",
        help="family (yolov5, retinanet, …) or model of models/cfg that the file must be of; also sets the paths that are not given: the published file in "
        "weights/pretrained/, written beside it as MODEL.pt, where train.py looks for it",
    )
    parser.add_argument(
        "--weights",
        type=Path,
        metavar="PT",
        help="checkpoint: of ESOD, YOLOv5, YOLOv8, torchvision, OpenMMLab or GPViT",
    )
    parser.add_argument("--output", type=Path, metavar="PT", help="file to write")
    parser.add_argument(
        "--keep-head",
        action="store_true",
        help="plain YOLOv5 or YOLOv8: keep its own head and classes, as a dense detector (test it with --slicer none)",
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
