"""Export a detector to ONNX and OpenVINO, and compare the files with torch.

python export.py --weights W.pt --include onnx openvino
python export.py --weights W.pt --include onnx --max-patches 24 --img-size 864x1536
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from engine.export.pair import export_pair, prepare
from engine.export.verify import compare
from engine.export.write import as_formats, require_packages
from engine.inference import load_model
from models.decode import PostprocessConfig
from models.esod import ESOD
from utils.cli import run_main
from utils.config import ModelOverrides
from utils.export_cli import parse_export_options
from utils.images import read_image
from utils.logger import get_logger


def main() -> None:
    """Parse the command line, write the files, compare them."""
    export(parse_export_options())


def export(options: argparse.Namespace) -> None:
    """Write all files that were asked for; the first that differs from torch is an error."""
    require_packages(options.include)
    image = read_image(options.image)
    overrides = ModelOverrides(slicer=options.slicer, head="dense", heatmap_thres=options.heatmap_thres)
    reference = load_model(options.weights, "cpu", overrides)
    assert isinstance(reference.model, ESOD)
    source = prepare(reference.model, reference.names)
    weights = Path(options.weights)
    folder = weights.parent if options.output is None else options.output
    log = get_logger()
    for files in as_formats(export_pair(source, folder, weights.stem), options.include):
        log.info("written: %s", " and ".join(str(file) for file in files))
        log.info("  %s", compare(reference, files[0], image, PostprocessConfig(), options.img_size).line())


if __name__ == "__main__":
    sys.exit(run_main(main))
