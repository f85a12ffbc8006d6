"""What test.py leaves behind besides numbers: label files, COCO JSON, pictures, curves."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import numpy as np

from engine.outputs import image_heatmap, image_patches, true_boxes
from engine.worst_images import WorstImages
from evaluate.detection import DetectionMetrics
from models.esod import ESODOutput
from models.slicer import STRIDE
from utils.data import Batch
from utils.dist import gather_objects, is_main
from utils.draw import draw_patches, save_image, to_image
from utils.mosaic import mosaic_picture
from utils.plots import plot_confusion_matrix, plot_curves
from utils.results import Detections
from utils.writers import CocoJsonWriter, OutputNames, write_darknet

PICTURES = 3
SHOWN_SCORE = 0.25


class TestOutputs:
    """Collects results batch by batch: give `add` to `engine.evaluation.evaluate`, call `finish` at the end.

    Of several processes each writes the label files of its own images; the main one draws its first batches
    and writes all detections of all processes into one file, in the order of the images.
    """

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
        save_worst: bool = False,
    ) -> None:
        """Args: the run's folder, class names, all images of the split, and what to write.

        Where images of several folders share a name, as the frames of videos do, files and ids carry the folder.
        """
        self.folder = folder
        self.names = names
        self.save_txt = save_txt
        self.save_conf = save_conf
        self.save_json = save_json
        self.worst = WorstImages(names) if save_worst else None
        self.found: list[tuple[int, int | str, Detections]] = []
        self.with_folder = len({image.stem for image in images}) < len({*images})
        # Names are given out here, over all images, so that processes cannot take the same one.
        used = OutputNames()
        labels = folder / "labels"
        self.label_files = {
            image: used.claim(labels / self._name(image), (".txt",)) for image in dict.fromkeys(images)
        }
        self.batches = 0

    def add(self, batch: Batch, output: ESODOutput, found: list[Detections]) -> None:
        """Write or collect what belongs to one batch."""
        for detections, meta in zip(found, batch.metas, strict=True):
            if self.save_txt:
                file = Path(f"{self.label_files[meta.path]}.txt")
                write_darknet(file, detections, meta.letterbox.original_hw, self.save_conf)
            if self.save_json:
                name = self._name(meta.path)
                image_id: int | str = int(name) if name.isdecimal() else name
                self.found.append((meta.index, image_id, detections.to("cpu")))
        if self.worst is not None:
            self.worst.add(batch, found)
        if self.batches < PICTURES and is_main():
            self._draw(batch, output, found)
        self.batches += 1

    def finish(self) -> None:
        """Write what was collected; every process has to call it."""
        if self.worst is not None:
            self.worst.gather()
        if not self.save_json:
            return
        shares = gather_objects(self.found)
        if is_main():
            writer = CocoJsonWriter(self.folder / "predictions.json")
            for _, image_id, detections in sorted(chain(*shares), key=lambda entry: entry[0]):
                writer.add(image_id, detections)
            writer.write()

    def finish_worst(self, confidence: float | None) -> None:
        """Draw the images with most missed objects at a confidence (main process; see `WorstImages.save`)."""
        if self.worst is not None:
            self.worst.save(self.folder, confidence)

    def _name(self, image: Path) -> str:
        """What the files of an image are called, and its id in the COCO results."""
        return f"{image.parent.name}/{image.stem}" if self.with_folder else image.stem

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
