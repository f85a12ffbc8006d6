"""Export a detector to ONNX and OpenVINO, and compare the files with torch.

python export.py --weights W.pt --include onnx openvino
python export.py --weights W.pt --include onnx --max-patches 24 --img-size 864x1536
python export.py --weights W.pt --include onnx --int8 data/visdrone.yaml --img-size 1536
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from deploy.metadata import SingleSettings
from engine.export.pair import Exportable, export_pair, prepare
from engine.export.quantise import calibration_pictures, quantise_pair
from engine.export.single import MAX_CANDIDATES, export_single
from engine.export.verify import Comparison, compare, difference
from engine.export.write import as_formats, require_packages
from engine.inference import Detector, load_model
from models.decode import PostprocessConfig
from models.esod import ESOD
from utils.cli import run_main
from utils.config import ModelOverrides
from utils.export_cli import parse_export_options
from utils.images import ByteImage, read_image
from utils.logger import get_logger


def main() -> None:
    """Parse the command line, write the files, compare them."""
    export(parse_export_options())


def export(options: argparse.Namespace) -> None:
    """Write all files that were asked for; the first that differs from torch is an error."""
    require_packages(options.include)
    pictures = [] if options.int8 is None else calibration_pictures(options.int8)
    image = read_image(options.image)
    overrides = ModelOverrides(
        slicer=options.slicer, head="dense", heatmap_thres=options.heatmap_thres, borders=options.borders
    )
    reference = load_model(options.weights, "cpu", overrides)
    assert isinstance(reference.model, ESOD)
    source = prepare(reference.model, reference.names)
    weights = Path(options.weights)
    folder = weights.parent if options.output is None else options.output
    # A budget of patches is the single file's alone; the pair keeps the checkpoint's.
    pair = export_pair(source, folder, weights.stem)
    quantised = quantise_pair(pair[0], reference, pictures, options.img_size) if pictures else None
    _report(as_formats(pair, options.include), reference, image, PostprocessConfig(), options.img_size)
    if quantised is not None:  # 8 bits differ, and how much is no error: what it costs says test.py
        files = as_formats(quantised, options.include)
        _report(files, reference, image, PostprocessConfig(), options.img_size, difference)
    if options.max_patches is not None:
        _export_single(options, source, reference, folder, image)


def _export_single(
    options: argparse.Namespace, source: Exportable, reference: Detector, folder: Path, image: ByteImage
) -> None:
    size = options.img_size
    height, width = (size, size) if isinstance(size, int) else size
    settings = SingleSettings(
        options.batch_size, height, width, options.max_patches, options.conf_thres, options.iou_thres,
        options.max_det, options.multi_label, MAX_CANDIDATES,
    )  # fmt: skip
    file = export_single(source, settings, folder, Path(options.weights).stem)
    model = reference.model
    if model.config.slicer.algorithm != "none":
        slicer = replace(model.config.slicer, max_patches=settings.max_patches)
        model.config = replace(model.config, slicer=slicer)
    post = PostprocessConfig(
        settings.conf_thres, settings.iou_thres, settings.max_det, multi_label=settings.multi_label
    )
    _report(as_formats([file], options.include), reference, image, post, (height, width))


def _report(
    written: list[list[Path]], reference: Detector, image: ByteImage, post: PostprocessConfig,
    size: int | tuple[int, int], judge: Callable[..., Comparison] = compare,
) -> None:  # fmt: skip
    """Compare what was written with torch, and say so."""
    log = get_logger()
    for files in written:
        log.info("written: %s", " and ".join(str(file) for file in files))
        log.info("  %s", judge(reference, files[0], image, post, size).line())


if __name__ == "__main__":
    sys.exit(run_main(main))
