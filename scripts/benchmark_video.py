"""How long writing a frame of a video takes with each codec of `detect.py --video-codec`, beside the network's own time.

    python scripts/benchmark_video.py [--height 1080 --width 1920] [--frames 20] [--weights W.pt --img-size 1536] [--device cpu]

The frames are cut out of a drawn picture, a few pixels further each time, as from a drone that flies over it. One after
the other writes all of them.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from engine.inference import load_model
from utils.cli import Parser, image_size, positive_int, run_main
from utils.decoding import read_picture
from utils.environment import environment_report
from utils.images import ByteImage
from utils.writers import VIDEO_CODECS, VideoWriter

EXAMPLES = ("python scripts/benchmark_video.py --height 1080 --width 1920 --frames 20",)
PICTURE = Path(__file__).resolve().parent.parent / "data" / "images" / "sample_1.jpg"
STEP_PX = 3


def panned(picture: ByteImage, hw: tuple[int, int], frames: int) -> list[ByteImage]:
    """Frames [H, W, 3] cut out of a picture, which is enlarged to hold all of them."""
    height, width = hw
    large = cv2.resize(picture, (width + STEP_PX * frames, height + STEP_PX * frames))
    begins = range(0, STEP_PX * frames, STEP_PX)
    return [np.asarray(large[at : at + height, at : at + width], np.uint8) for at in begins]


def build_parser() -> Parser:
    """The command line."""
    parser = Parser("Measure how long writing videos takes.", examples=EXAMPLES)
    parser.add_argument("--height", type=positive_int, default=1080, metavar="PIXELS", help="of a frame")
    parser.add_argument("--width", type=positive_int, default=1920, metavar="PIXELS", help="of a frame")
    parser.add_argument("--frames", type=positive_int, default=20, metavar="N", help="so many are written")
    parser.add_argument(
        "--weights", default="weights/sample_yolov5n.pt", metavar="PATH", help="of the network"
    )
    parser.add_argument("--img-size", type=image_size, default=1536, metavar="SIZE", help="see detect.py")
    parser.add_argument("--device", default="", help="of the network, see detect.py")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    options = build_parser().parse_args(arguments)
    hw = (options.height, options.width)
    frames = panned(read_picture(PICTURE), hw, options.frames)
    where = environment_report()
    print(
        f"{hw[0]}×{hw[1]}, {options.frames} frames; {where['cpu']}, OpenCV {where['opencv']}, {where['git_commit']}"
    )
    with tempfile.TemporaryDirectory() as folder:
        for codec in VIDEO_CODECS:
            print(f"{codec:8s} {writing_ms(Path(folder, codec), frames, codec):8.1f} ms a frame", flush=True)
    detector = load_model(options.weights, options.device)
    started = time.perf_counter()
    for frame in frames:
        detector.predict([frame], img_size=options.img_size)
    print(f"{'network':8s} {(time.perf_counter() - started) * 1e3 / len(frames):8.1f} ms a frame")
    return 0


def writing_ms(path: Path, frames: Sequence[ByteImage], codec: str) -> float:
    """Milliseconds a frame of writing a video, its end included: encoders look ahead and do most of the work late."""
    started = time.perf_counter()
    with VideoWriter(path, 25.0, codec) as writer:
        for frame in frames:
            writer.write(frame)
    return (time.perf_counter() - started) * 1e3 / len(frames)


if __name__ == "__main__":
    sys.exit(run_main(main))
