"""A local page to try a detector on: drop an image, move sliders, see boxes, heatmap, patches and cost.

python scripts/demo.py
python scripts/demo.py --weights runs/train/exp/weights/best.pt --img-size 1536 --port 7861
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from engine.demo import Demo, default_weights
from engine.demo_page import build_page, is_loopback, load_gradio, serve
from engine.inference import load_model
from utils.cli import (
    Parser,
    add_image_size_argument,
    add_model_arguments,
    model_overrides,
    positive_int,
    run_main,
)
from utils.logger import get_logger

EXAMPLES = (
    "python scripts/demo.py",
    "python scripts/demo.py --weights runs/train/exp/weights/best.pt --img-size 1536 --port 7861",
)
"""Shown at the end of ``--help``."""


def build_parser() -> Parser:
    """The command line."""
    parser = Parser(
        "Serve a page on this machine: drop an image, move sliders, see boxes, heatmap, patches and cost. "
        "Works offline; needs the package gradio.",
        prog="demo.py",
        examples=EXAMPLES,
    )
    parser.add_argument(
        "--weights", metavar="PT", help="checkpoint (default: weights/sample_yolov5n.pt, for drawn pictures)"
    )
    add_image_size_argument(parser, default=960)
    parser.add_argument(
        "--device",
        default="",
        metavar="DEVICE",
        help="cpu or a GPU number (default: a GPU when there is one)",
    )
    add_model_arguments(parser)
    group = parser.add_argument_group("serving")
    group.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="address to listen on")
    group.add_argument("--port", type=positive_int, default=7860, metavar="N", help="port to listen on")
    group.add_argument(
        "--allow-network",
        action="store_true",
        help="allow a --host that other machines reach: anyone who does can use the page",
    )
    group.add_argument(
        "--upload-mb", type=positive_int, default=25, metavar="N", help="largest file that may be dropped, MB"
    )
    group.add_argument("--open", action="store_true", help="open the page in the default browser")
    return parser


def parse_options(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options of a command line (default: this process's); contradictions end it with status 2."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    if not is_loopback(options.host) and not options.allow_network:
        parser.error(
            f"--host {options.host} can be reached from other machines: use 127.0.0.1, or say so with --allow-network"
        )
    return options


def main() -> None:
    """Load the detector and serve the page until Ctrl-C."""
    args = parse_options()
    load_gradio()
    weights = Path(args.weights) if args.weights else default_weights()
    detector = load_model(weights, args.device, model_overrides(args))
    names = ", ".join(detector.names[:12]) + (" …" if len(detector.names) > 12 else "")
    page = build_page(Demo(detector, args.img_size), f"{weights.name} on {detector.device}: {names}")
    log = get_logger()
    log.info(f"http://{args.host}:{args.port} (Ctrl-C ends it)")
    serve(page, args.host, args.port, args.upload_mb, browser=args.open)


if __name__ == "__main__":
    sys.exit(run_main(main))
