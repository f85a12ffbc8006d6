"""From pictures of any kind to predictions, for everything that runs a network: `Predictor.predict`.

What is done with one picture is said here in terms of two steps that each kind of network has its own of:
`prepare` (a picture to a network input) and `detect` (inputs of one size to predictions).
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast, overload

from torch import Tensor

from engine.prediction import Prediction
from models.decode import PostprocessConfig
from utils.boxes import Letterbox
from utils.images import ByteImage
from utils.picture_input import ChannelOrder, PictureInput, PictureInputError, is_single_picture, to_picture


@dataclass(frozen=True, eq=False)
class NetworkInput:
    """An image as the network takes it, made by `Detector.prepare`.

    Attributes:
        pixels: uint8 [3, H, W] RGB on the CPU, in page-locked memory when the network is on a GPU.
        letterbox: how the image was placed in them.
    """

    pixels: Tensor
    letterbox: Letterbox


class Predictor(ABC):
    """Something that detects objects in pictures; `engine.inference.Detector` is one.

    Attributes:
        names: class names by class index.
    """

    names: list[str]

    @abstractmethod
    def prepare(self, image: ByteImage, img_size: int | tuple[int, int] = 1536) -> NetworkInput:
        """Resize a picture, uint8 RGB [H, W, 3], once, into a network input of its own; by any thread."""

    @abstractmethod
    def detect(
        self, inputs: Sequence[NetworkInput], config: PostprocessConfig, augment: bool = False
    ) -> list[Prediction]:
        """Detect objects in inputs of one size, as one batch; one `Prediction` each, in order; by any thread."""

    @overload
    def predict(  # type: ignore[overload-overlap]  # a str is a Sequence of str, too: it is one path
        self,
        images: PictureInput,
        img_size: int | tuple[int, int] = ...,
        conf_thres: float = ...,
        iou_thres: float = ...,
        max_det: int = ...,
        classes: Sequence[int] | None = ...,
        agnostic: bool = ...,
        augment: bool = ...,
        *,
        channel_order: ChannelOrder = ...,
        batch_size: int = ...,
    ) -> Prediction: ...

    @overload
    def predict(
        self,
        images: Sequence[PictureInput],
        img_size: int | tuple[int, int] = ...,
        conf_thres: float = ...,
        iou_thres: float = ...,
        max_det: int = ...,
        classes: Sequence[int] | None = ...,
        agnostic: bool = ...,
        augment: bool = ...,
        *,
        channel_order: ChannelOrder = ...,
        batch_size: int = ...,
    ) -> list[Prediction]: ...

    def predict(
        self,
        images: PictureInput | Sequence[PictureInput],
        img_size: int | tuple[int, int] = 1536,
        conf_thres: float = 0.25,
        iou_thres: float = 0.45,
        max_det: int = 500,
        classes: Sequence[int] | None = None,
        agnostic: bool = False,
        augment: bool = False,
        *,
        channel_order: ChannelOrder = "rgb",
        batch_size: int = 8,
    ) -> Prediction | list[Prediction]:
        """Detect objects in one picture, or in each of a list of any sizes. Any number of threads may call it.

        What is found in a picture does not depend on the others (up to rounding): pictures run together
        only where their network inputs have the same size, and none is padded for another's sake.

        Args:
            images: one picture or a list or tuple of them, of any kinds; see `utils.picture_input.to_picture`.
            img_size: longer side of the network input, or (height, width) to fit into; rounded up to
                multiples of 32.
            conf_thres, iou_thres, max_det, classes, agnostic: see `utils.boxes.non_max_suppression`.
            augment: test-time augmentation: three views (sizes, mirrored), merged.
            channel_order: of arrays and tensors: "rgb", or "bgr" as OpenCV reads them.
            batch_size: at most so many pictures run together; files are read as they are needed.

        Returns:
            A `Prediction` for one picture; for a list a list of them, in order. Also where nothing was found.

        Raises:
            ImageError: a file that cannot be read, or what is no picture; in a list, with its place.

        >>> import numpy as np
        >>> from engine import load_model
        >>> model = load_model("weights/sample_yolov5n.pt", device="cpu")
        >>> result = model.predict(np.zeros((480, 640, 3), np.uint8), img_size=320)
        >>> len(result.xyxy), result.names[:2], result.letterbox.input_hw
        (0, ['pedestrian', 'people'], (256, 320))
        >>> results = model.predict([np.zeros((480, 640), np.uint8), np.zeros((64, 32), np.uint8)], img_size=320)
        >>> [one.letterbox.input_hw for one in results]
        [(256, 320), (320, 160)]
        """
        chosen = None if classes is None else tuple(classes)
        config = PostprocessConfig(conf_thres, iou_thres, max_det, agnostic=agnostic, classes=chosen)
        single = is_single_picture(images)
        given = [cast(PictureInput, images)] if single else list(cast(Sequence[PictureInput], images))
        pictures: list[ByteImage | None] = []
        placing_ms: list[float] = []

        def prepared() -> Iterator[NetworkInput]:
            for number, image in enumerate(given):
                picture = (
                    to_picture(image, channel_order) if single else _listed(number, image, channel_order)
                )
                begin = time.perf_counter()
                made = self.prepare(picture, img_size)
                placing_ms.append((time.perf_counter() - begin) * 1e3)
                pictures.append(None if isinstance(image, (str, Path)) else picture)
                yield made

        predictions = self.detect_mixed(prepared(), config, augment, batch_size)
        for prediction, image, picture, spent in zip(predictions, given, pictures, placing_ms, strict=True):
            prediction.times_ms["preprocess"] = prediction.times_ms.get("preprocess", 0.0) + spent
            prediction.picture = picture
            prediction.path = Path(image) if isinstance(image, (str, Path)) else None
        return predictions[0] if single else predictions

    def detect_mixed(
        self,
        inputs: Iterable[NetworkInput],
        config: PostprocessConfig,
        augment: bool = False,
        batch_size: int = 8,
    ) -> list[Prediction]:
        """Detect objects in inputs of any sizes: those of one size together, at most batch_size; results in order.

        Inputs are taken from their source as they are needed, so that few of them exist at a time.

        Raises:
            ValueError: batch_size is below 1.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; expected at least 1")
        found: dict[int, Prediction] = {}
        waiting: dict[tuple[int, int], list[tuple[int, NetworkInput]]] = {}

        def run(group: list[tuple[int, NetworkInput]]) -> None:
            predictions = self.detect([one for _, one in group], config, augment)
            found.update(zip((number for number, _ in group), predictions, strict=True))
            group.clear()

        for number, one in enumerate(inputs):
            group = waiting.setdefault(one.letterbox.input_hw, [])
            group.append((number, one))
            if len(group) == batch_size:
                run(group)
        for group in waiting.values():
            if group:
                run(group)
        return [found[number] for number in range(len(found))]


def _listed(number: int, image: PictureInput, channel_order: ChannelOrder) -> ByteImage:
    """The number-th picture of a list; errors say which it is."""
    try:
        return to_picture(image, channel_order)
    except PictureInputError as error:
        raise PictureInputError(f"images[{number}]: {error}") from error
