"""A trained detector to call on pictures: from weights file to detections in original pixels."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from deploy.network import is_exported
from engine.exported import check_postprocessing, load_exported
from engine.outputs import image_heatmap, image_patches
from engine.prediction import Prediction
from engine.predictor import NetworkInput, Predictor
from engine.views import decode_views
from models.decode import PostprocessConfig, decode, suppress
from models.esod import ESOD, ESODOutput, Network
from models.slicer import STRIDE
from models.weights import model_from_weights, read_weights
from utils.boxes import Letterbox, letterbox_shape
from utils.config import ModelOverrides
from utils.dist import select_device
from utils.images import ByteImage
from utils.profile import StageTimer
from utils.transforms import letterbox_image
from utils.warp import channels_first


class Detector(Predictor):
    """A network with its class names, on a device; made by `load_model`.

    `predict` does everything. Where speed matters, `prepare` can run in other threads while `detect` is busy.
    """

    def __init__(self, model: Network, names: list[str], device: torch.device) -> None:
        self.model = model.to(device).eval()
        self.names = names
        self.device = device

    @property
    def dtype(self) -> torch.dtype:
        """The type the network computes in."""
        return self.model.dtype

    def prepare(self, image: ByteImage, img_size: int | tuple[int, int] = 1536) -> NetworkInput:
        """Resize an image, once, into a network input of its own; by any thread, the network is not used.

        Args:
            image: uint8 RGB [H, W, 3].
            img_size: see `predict`.
        """
        hw = (image.shape[0], image.shape[1])
        # A network of one size takes every image in it.
        return self._place(image, Letterbox.fit(hw, self.model.input_hw or letterbox_shape(hw, img_size)))

    @torch.inference_mode()
    def detect(
        self, inputs: Sequence[NetworkInput], config: PostprocessConfig, augment: bool = False
    ) -> list[Prediction]:
        """Detect objects in inputs of one size, as one batch; one `Prediction` each, in order.

        Raises:
            ValueError: no inputs, or of different sizes.
        """
        shapes = {tuple(one.pixels.shape) for one in inputs}
        if len(shapes) != 1:
            raise ValueError(
                f"{len(inputs)} inputs of {len(shapes)} shapes; expected at least one, of one shape"
            )
        check_postprocessing(self.model, config)
        timer = StageTimer(self.device)
        letterboxes = [one.letterbox for one in inputs]
        with timer.frame(len(inputs)):
            with timer.stage("preprocess"):
                batch = self._to_batch([one.pixels for one in inputs])
            output = self.model(batch, timer=timer)
            with timer.stage("nms"):
                decoded = decode(output, self.model.coder, config.conf_thres)
                if augment:
                    decoded = decode_views(self.model, batch, decoded, config.conf_thres)
                found = [suppress(decoded, i, box, config).to("cpu") for i, box in enumerate(letterboxes)]
        times = {name: stage.mean_ms / len(inputs) for name, stage in timer.summary().stages.items()}
        return [
            Prediction(
                detections,
                _numpy(image_heatmap(output, i)),
                _patches_orig(output, i, box),
                box,
                dict(times),
                self.names,
            )
            for i, (detections, box) in enumerate(zip(found, letterboxes, strict=True))
        ]

    def _place(self, image: ByteImage, letterbox: Letterbox) -> NetworkInput:
        placed = letterbox_image(image, letterbox)
        shape = (3, *letterbox.input_hw)
        if self.device.type == "cuda":
            with torch.cuda.device(
                self.device
            ):  # a thread begins on the first GPU, whatever the network's is
                pixels = torch.empty(shape, dtype=torch.uint8, pin_memory=True)
        else:
            pixels = torch.empty(shape, dtype=torch.uint8)
        channels_first(placed, pixels.numpy())
        return NetworkInput(pixels, letterbox)

    def _to_batch(self, pixels: Sequence[Tensor]) -> Tensor:
        """[B, 3, H, W] in 0–1 on the device, in the network's type; bytes travel, a quarter of floats."""
        stacked = pixels[0][None] if len(pixels) == 1 else torch.stack(list(pixels))
        return stacked.to(self.device, non_blocking=True).to(self.dtype).div_(255)


def load_model(
    weights: str | Path,
    device: str = "",
    overrides: ModelOverrides | None = None,
    *,
    half: bool = False,
    fuse: bool = True,
    compiled: bool = False,
) -> Detector:
    """Load a detector for inference from a weights file (this project's, or a released pickle) or an exported one.

    Args:
        weights: path; nothing in the file is executed. Exported: a file of export.py, or a folder with one detector.
        device: "" (a GPU when there is one), "cpu", "0", …
        overrides: changes to how it slices and where its head runs; None: as the file says.
        half: compute in half precision (fp16 on a GPU, bf16 on a CPU).
        fuse: fold BatchNorm into the convolutions.
        compiled: compile the network; see `compile_parts`.

    Raises:
        CheckpointError, ConfigError, ExportedFileError: the file cannot be used, or the options contradict the model.
    """
    if is_exported(weights):
        network = load_exported(weights, device, overrides, half=half, compiled=compiled)
        return Detector(network, network.config.names, torch.device("cpu"))
    source = read_weights(weights)
    config = (overrides or ModelOverrides()).apply(source.config)
    model = model_from_weights(replace(source, config=config), str(weights))
    chosen = select_device(device)
    if fuse:
        model.fuse()
    if half:
        coder = deepcopy(model.head.coder)
        model.to(torch.float16 if chosen.type == "cuda" else torch.bfloat16)
        # Anchors are geometry, not weights: half precision would move boxes.
        model.head.coder = coder
    # Convolutions are faster when the channels of a pixel are neighbours in memory.
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if compiled:
        compile_parts(model)
    names = config.names or [str(i) for i in range(config.num_classes)]
    return Detector(model, names, chosen)


def compile_parts(model: ESOD, backend: str = "inductor") -> None:
    """Let torch.compile generate the code of a model's parts, at the first forward pass with each input size.

    The stem and the heatmap head see one shape per input size; what runs on patches is compiled for any number of
    them. Between the parts lies the slicer, whose one wait for the device would break a graph.
    """
    for part in (model.stem, model.seeker):
        if part is not None:
            part.compile(backend=backend)
    for part in (model.deep, model.neck, model.head):
        part.compile(backend=backend, dynamic=True)


def _patches_orig(output: ESODOutput, image: int, letterbox: Letterbox) -> np.ndarray:
    patches = image_patches(output, image).float() * STRIDE
    return letterbox.to_original(patches).numpy()


def _numpy(heatmap: Tensor | None) -> np.ndarray | None:
    return None if heatmap is None else heatmap.numpy()
