"""Detect in pictures with an exported file, printing a line per object: label, score, corners in pixels.

python -m deploy NAME_stem.onnx picture.jpg …
"""

from __future__ import annotations

import argparse
import sys

import cv2
import numpy as np

from deploy.detector import ExportedDetector
from deploy.metadata import ExportedFileError


def main() -> int:
    """Parse the command line, detect, print; 1 when something could not be used."""
    parser = argparse.ArgumentParser(prog="python -m deploy", description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "file", help="an exported file (of a pair, either one), or a folder with one detector"
    )
    parser.add_argument("pictures", nargs="+", help="image files")
    parser.add_argument(
        "--img-size", type=int, default=1536, help="longer side of the input in pixels (default: %(default)s)"
    )
    parser.add_argument("--conf-thres", type=float, help="lowest score, 0-1 (default: as in the file)")
    options = parser.parse_args()
    try:
        detector = ExportedDetector(options.file)
        for path in options.pictures:
            picture = cv2.imread(path)
            if picture is None:
                raise ExportedFileError(f"{path}: cannot be read as an image")
            rgb = np.ascontiguousarray(picture[..., ::-1], dtype=np.uint8)
            found = detector.detect(rgb, options.img_size, options.conf_thres)
            print(f"{path}: {len(found.score)} objects")
            for box, score, label in zip(found.xyxy, found.score, found.label, strict=True):
                corners = " ".join(f"{value:.1f}" for value in box)
                print(f"  {detector.names[label]} {score:.3f} {corners}")
    except ExportedFileError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
