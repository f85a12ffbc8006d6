"""A detector for SAHI (sliced inference, https://github.com/obss/sahi): `pip install sahi`.

from sahi.predict import get_sliced_prediction
from engine.integrations.sahi import ESODDetectionModel

model = ESODDetectionModel(model_path="weights/sample_yolov5n.pt", device="cpu", confidence_threshold=0.25)
result = get_sliced_prediction("data/images/sample_1.jpg", model, slice_height=512, slice_width=512)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.inference import load_model
from engine.prediction import Prediction
from engine.predictor import Predictor
from models.decode import PostprocessConfig
from utils.config import ModelOverrides
from utils.optional import MissingPackageError

try:
    from sahi.models.base import DetectionModel
    from sahi.prediction import ObjectPrediction
    from sahi.utils.compatibility import fix_full_shape_list, fix_shift_amount_list
except ImportError as error:
    raise MissingPackageError("engine.integrations.sahi", "sahi", error) from error

Numbers = list[int | float]


class ESODDetectionModel(DetectionModel):
    """An ESOD detector, sliced or dense, as a detection model of SAHI.

    Pictures are RGB [H, W, 3]. Where SAHI gives several (``batch_size`` of get_sliced_prediction), they run as one
    batch.
    """

    def __init__(
        self,
        model_path: str | None = None,
        model: Predictor | None = None,
        device: str | None = None,
        confidence_threshold: float = 0.3,
        image_size: int | None = None,
        category_mapping: dict[str, str] | None = None,
        category_remapping: dict[str, int] | None = None,
        load_at_init: bool = True,
        *,
        overrides: ModelOverrides | None = None,
        post: PostprocessConfig | None = None,
    ) -> None:
        """
        Args:
            model_path: weights file; or give ``model``.
            model: what `engine.load_model` gave.
            device: "cpu", "cuda:0", …; None: a GPU when there is one. That of ``model`` stays as it is.
            confidence_threshold: least score; SAHI changes it for single calls.
            image_size: longer side of the network input, of slices and of whole images alike, in multiples of 32;
                None: pixels as they are (rounded up to multiples of 32).
            category_mapping: class index → name; None: the model's names.
            category_remapping: class index → other index, after detection.
            load_at_init: False: call load_model later.
            overrides: how the file's model slices, see `engine.load_model`; ``ModelOverrides(slicer="none")`` is
                the dense detector, for which SAHI is made.
            post: suppression inside a picture; its confidence is replaced by confidence_threshold.
        """
        self.overrides = overrides
        self.post = post or PostprocessConfig()
        super().__init__(
            model_path=model_path,
            model=model,
            device=device,
            confidence_threshold=confidence_threshold,
            category_mapping=category_mapping,
            category_remapping=category_remapping,
            load_at_init=load_at_init,
            image_size=image_size,
        )

    def load_model(self) -> None:
        """Load the weights file at model_path.

        Raises:
            ValueError: no model_path was given.
            CheckpointError: it cannot be used.
        """
        if self.model_path is None:
            raise ValueError("neither model_path nor model is given: one weights file, or one loaded model")
        device = str(self.device) if "cuda" in str(self.device) else "cpu"  # no MPS
        self.set_model(load_model(self.model_path, device, self.overrides))

    def set_model(self, model: Predictor, **kwargs: Any) -> None:
        """Take a loaded model; its names become the categories where there is no mapping yet.

        Raises:
            TypeError: it is something else.
        """
        if not isinstance(model, Predictor):
            raise TypeError(f"model is a {type(model).__name__}; give what engine.load_model returns")
        self.model = model
        if not self.category_mapping:
            self.category_mapping = {str(number): name for number, name in enumerate(model.names)}

    @property
    def num_categories(self) -> int:
        """Number of classes."""
        return len(self.category_names)

    @property
    def has_mask(self) -> bool:
        """Boxes only."""
        return False

    @property
    def category_names(self) -> list[str]:
        """Class names by class index."""
        return list(self.model.names)

    def perform_inference(self, image: NDArray[np.uint8]) -> None:
        """Detect in one picture, uint8 RGB [H, W, 3]."""
        self.perform_batch_inference([image])

    def perform_batch_inference(self, images: Sequence[NDArray[np.uint8]]) -> None:
        """Detect in several pictures, those of one size as one batch.

        Raises:
            ValueError: no model is loaded.
        """
        if self.model is None:
            raise ValueError("no model is loaded: call load_model() first")
        config = replace(self.post, conf_thres=self.confidence_threshold)
        inputs = (self.model.prepare(image, self.image_size or max(image.shape[:2])) for image in images)
        self._original_predictions = self.model.detect_mixed(inputs, config, batch_size=len(images))

    def _create_object_prediction_list_from_original_predictions(
        self,
        shift_amount_list: list[Numbers] | None = None,
        full_shape_list: list[Numbers] | None = None,
    ) -> None:
        """Make SAHI's objects of the last predictions; shifts (x, y) and (height, width) of the whole image."""
        predictions: list[Prediction] = self._original_predictions
        shifts = fix_shift_amount_list(
            [[0, 0]] * len(predictions) if shift_amount_list is None else shift_amount_list
        )
        shapes = fix_full_shape_list(full_shape_list)
        self._object_prediction_list_per_image = [
            self._objects(prediction, shifts[number], None if shapes is None else shapes[number])
            for number, prediction in enumerate(predictions)
        ]

    def _objects(
        self, prediction: Prediction, shift: Numbers, full_shape: Numbers | None
    ) -> list[ObjectPrediction]:
        """SAHI's objects of one picture; boxes without area, which SAHI refuses, are left out."""
        assert self.category_mapping is not None
        found = prediction.detections
        size = None if full_shape is None else [int(side) for side in full_shape]
        return [
            ObjectPrediction(
                bbox=box,
                category_id=label,
                category_name=self.category_mapping[str(label)],
                score=score,
                shift_amount=[int(step) for step in shift],
                full_shape=size,
            )
            for box, score, label in zip(
                found.xyxy.tolist(), found.score.tolist(), found.label.tolist(), strict=True
            )
            if box[0] < box[2] and box[1] < box[3]
        ]
