"""What test.py leaves behind besides numbers: label files, COCO JSON, pictures, curves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from engine.outputs import image_heatmap, image_patches, true_boxes
from evaluate.detection import DetectionMetrics
from models.esod import ESODOutput
from models.slicer import STRIDE
from utils.data import Batch
from utils.draw import draw_patches, save_image, to_image
from utils.mosaic import mosaic_picture
from utils.plots import plot_confusion_matrix, plot_curves
from utils.results import Detections
from utils.writers import CocoJsonWriter, OutputNames, write_darknet

PICTURES = 3
SHOWN_SCORE = 0.25


class TestOutputs:
    """Collects results batch by batch: give `add` to `engine.evaluation.evaluate`, call `finish` at the end."""

    __test__ = False  # not a test case, whatever pytest thinks of its name

    def __init__(
        self,
        folder: Path,
        names: list[str],
        images: Sequence[Path],
        *,
        save_txt: bool,
        save_conf: bool,
        save_json: bool,
    ) -> None:
        """Args: the run's folder, class names, all images of the split, and what to write.

        Where images of several folders share a name, as the frames of videos do, files and ids carry the folder.
        """
        self.folder = folder
        self.names = names
        self.save_txt = save_txt
        self.save_conf = save_conf
        self.json = CocoJsonWriter(folder / "predictions.json") if save_json else None
        self.used = OutputNames()
        self.with_folder = len({image.stem for image in images}) < len({*images})
        self.batches = 0

    def add(self, batch: Batch, output: ESODOutput, found: list[Detections]) -> None:
        """Write or collect what belongs to one batch."""
        for detections, meta in zip(found, batch.metas, strict=True):
            name = f"{meta.path.parent.name}/{meta.path.stem}" if self.with_folder else meta.path.stem
            if self.save_txt:
                stem = self.used.claim(self.folder / "labels" / name, (".txt",))
                write_darknet(Path(f"{stem}.txt"), detections, meta.letterbox.original_hw, self.save_conf)
            if self.json is not None:
                self.json.add(int(name) if name.isdecimal() else name, detections)
        if self.batches < PICTURES:
            self._draw(batch, output, found)
        self.batches += 1

    def finish(self) -> None:
        """Write what was collected."""
        if self.json is not None:
            self.json.write()

    def _draw(self, batch: Batch, output: ESODOutput, found: list[Detections]) -> None:
        """Two pictures of a batch: labels, and predictions with patches and heatmap."""
        count = len(batch.images)
        images = [to_image(image) for image in batch.images]
        true = [true_boxes(batch, i) for i in range(count)]
        labels = mosaic_picture(
            images, [b.numpy() for b, _ in true], [c.numpy() for _, c in true], None, self.names
        )
        save_image(self.folder / f"batch{self.batches}_labels.jpg", labels)
        shown = [d.to("cpu").select(d.score.cpu() >= SHOWN_SCORE) for d in found]
        boxes = [m.letterbox.to_input(d.xyxy).numpy() for d, m in zip(shown, batch.metas, strict=True)]
        heatmaps = [image_heatmap(output, i) for i in range(count)]
        framed = [
            draw_patches(image, (image_patches(output, i) * STRIDE).numpy()) for i, image in enumerate(images)
        ]
        predictions = mosaic_picture(
            framed,
            boxes,
            [d.label.numpy() for d in shown],
            [None if h is None else np.asarray(h) for h in heatmaps],
            self.names,
            scores=[d.score.numpy() for d in shown],
        )
        save_image(self.folder / f"batch{self.batches}_predictions.jpg", predictions)


def save_curves(folder: Path, metrics: DetectionMetrics) -> None:
    """Precision, recall, F1 and precision-recall curves, and the confusion matrix, as PNG."""
    names = [row.name for row in metrics.per_class]
    plot_curves(metrics.curves, names, folder)
    plot_confusion_matrix(metrics.confusion, names, folder / "confusion_matrix.png")
