"""What `Detector.predict` gives for one image: what was found, where the network looked, and ways out of it.

Packages that only one way out needs (supervision, pandas) are imported there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from utils.boxes import Letterbox
from utils.cluster_picture import heatmap_on_image, plural
from utils.decoding import read_picture
from utils.draw import draw_boxes, draw_patches, overlay_heatmap, save_image
from utils.images import ByteImage
from utils.optional import MissingPackageError
from utils.records import COLUMNS, Record, class_name, coco_results, detection_rows
from utils.results import Detections

if TYPE_CHECKING:
    import pandas as pd
    import supervision as sv


@dataclass(eq=False)
class Prediction:
    """What a detector found in one image, and how it looked at it.

    Attributes:
        detections: in original pixels, best score first.
        heatmap: [h, w] float32 probabilities, one per 8×8 pixels of the letterboxed network input (padding
            included), or None for a dense model; `heatmap_orig` is the same over the image.
        patches_orig: [K, 4] float32 patch corners in original pixels (clipped to the image).
        letterbox: how the image was placed in the network input.
        times_ms: milliseconds of the batch by stage, shared equally among its images.
        names: class names by class index.
        path: the file that was read; None for a picture that was given in memory.
        picture: uint8 [H, W, 3] RGB as it was given in memory, not copied; None for a file.

    >>> import torch
    >>> found = Detections(torch.tensor([[2.0, 3.0, 12.0, 9.0]]), torch.tensor([0.75]), torch.tensor([1]))
    >>> letterbox = Letterbox.fit((64, 96), (64, 96))
    >>> patches = np.array([[0, 0, 32, 32]], np.float32)
    >>> result = Prediction(found, None, patches, letterbox, names=["car", "van"])
    >>> print(result)
    1 van; 1 patch
    >>> result.xyxy.tolist(), result.score.tolist(), result.label.tolist()
    ([[2.0, 3.0, 12.0, 9.0]], [0.75], [1])
    >>> result.to_coco(image_id=7)
    [{'image_id': 7, 'category_id': 1, 'bbox': [2.0, 3.0, 10.0, 6.0], 'score': 0.75}]
    >>> result.plot(np.zeros((64, 96, 3), np.uint8)).shape
    (64, 96, 3)
    """

    detections: Detections
    heatmap: NDArray[np.float32] | None
    patches_orig: NDArray[np.float32]
    letterbox: Letterbox
    times_ms: dict[str, float] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)
    path: Path | None = None
    picture: ByteImage | None = field(default=None, repr=False)

    def __str__(self) -> str:
        """One line: objects by class, most frequent first, number of patches, milliseconds of the network."""
        classes, counts = np.unique(self.label.numpy(), return_counts=True)
        order = np.argsort(-counts, kind="stable")
        found = [f"{counts[i]} {class_name(self.names, int(classes[i]))}" for i in order]
        parts = [", ".join(found) or "nothing found", plural(len(self.patches_orig), "patch", "patches")]
        if self.times_ms:
            parts[-1] += f", {sum(self.times_ms.values()):.1f} ms"
        return "; ".join(parts)

    @property
    def xyxy(self) -> Tensor:
        """[N, 4] float32 corners in pixels of the original image, on the CPU."""
        return self.detections.xyxy

    @property
    def score(self) -> Tensor:
        """[N] float32 in 0–1, best first."""
        return self.detections.score

    @property
    def label(self) -> Tensor:
        """[N] int64 class index; its name is ``names[label]``."""
        return self.detections.label

    @property
    def patches(self) -> NDArray[np.float32]:
        """[K, 4] corners of the patches in pixels of the original image: `patches_orig`."""
        return self.patches_orig

    @property
    def image(self) -> ByteImage:
        """The image itself, uint8 [H, W, 3] RGB; a file is read again.

        Raises:
            ValueError: it is not known (`Detector.detect` sees network inputs only).
            ImageError: the file cannot be read any more.
        """
        if self.picture is not None:
            return self.picture
        if self.path is None:
            raise ValueError("this prediction does not know its image: give it to plot(image)")
        return read_picture(self.path)

    def heatmap_orig(self) -> NDArray[np.float32] | None:
        """The heatmap over the original image: float32 [H, W] in 0–1, interpolated; None for a dense model."""
        if self.heatmap is None:
            return None
        return heatmap_on_image(self.heatmap, self.letterbox, self.letterbox.original_hw)

    def plot(
        self,
        image: ByteImage | None = None,
        *,
        save: str | Path | None = None,
        heatmap: bool = False,
        patches: bool = False,
        line_thickness: int | None = None,
        hide_labels: bool = False,
        hide_conf: bool = False,
    ) -> ByteImage:
        """The image with what was found drawn on it: a new array, uint8 [H, W, 3] RGB.

        Args:
            image: to draw on, uint8 [H, W, 3] RGB of the original size; None: the predicted one.
            save: also write it to this file; the suffix says the format.
            heatmap: glow where the heatmap is hot (nothing happens for a dense model).
            patches: frame the patches in green.
            line_thickness: of boxes, in pixels; None: by the size of the image and the number of boxes.
            hide_labels: boxes only.
            hide_conf: names without scores.

        Raises:
            ValueError: the image is not known, see `image`, or has another size.
            PictureError: it is no picture, or cannot be saved.
        """
        canvas = self.image if image is None else image
        if canvas.shape[:2] != self.letterbox.original_hw:
            given, expected = list(canvas.shape[:2]), list(self.letterbox.original_hw)
            raise ValueError(f"image has height and width {given}; this prediction is for {expected}")
        hot = self.heatmap_orig() if heatmap else None
        if hot is not None:
            canvas = overlay_heatmap(canvas, hot)
        if patches:
            canvas = draw_patches(canvas, self.patches_orig)
        drawn = draw_boxes(
            canvas, self.xyxy, self.label, self.score, self.names, line_thickness, hide_labels, hide_conf
        )
        if save is not None:
            save_image(save, drawn)
        return drawn

    def to_coco(self, image_id: int | str, category_ids: list[int] | None = None) -> list[Record]:
        """Results in COCO's form: ``{"image_id", "category_id", "bbox": [x, y, width, height], "score"}`` each.

        Args:
            image_id: of the image in the annotation file.
            category_ids: id of each class in the annotation file; None: the class index itself.
        """
        return coco_results(image_id, self.detections, category_ids)

    def to_dataframe(self, image: str | None = None) -> pd.DataFrame:
        """A table with a row per detection: image, frame (empty), class, name, score, x1, y1, x2, y2.

        Args:
            image: what the first column says; None: the path of the file, or nothing.

        Raises:
            MissingPackageError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise MissingPackageError("to_dataframe", "pandas", error) from error
        name = str(self.path or "") if image is None else image
        rows = detection_rows(name, self.detections, self.names)
        types = {"class": "int64", "score": "float64", **dict.fromkeys(("x1", "y1", "x2", "y2"), "float64")}
        return pandas.DataFrame(rows, columns=list(COLUMNS)).astype(types)

    def to_supervision(self) -> sv.Detections:
        """As ``supervision.Detections``; class names are in ``data["class_name"]``.

        Raises:
            MissingPackageError: supervision is not installed.
        """
        try:
            import supervision
        except ImportError as error:
            raise MissingPackageError("to_supervision", '"supervision<0.30"', error) from error
        labels = self.label.numpy()
        data: dict[str, Any] = {
            "class_name": np.array([class_name(self.names, int(label)) for label in labels], dtype=str)
        }
        return supervision.Detections(self.xyxy.numpy(), None, self.score.numpy(), labels, data=data)
