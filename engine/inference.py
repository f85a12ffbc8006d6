"""A trained detector to call on pictures: from weights file to detections in original pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from deploy.network import is_exported
from engine.exported import check_postprocessing, load_exported
from engine.modes import Mode, half_type, put_into
from engine.prediction import Prediction
from engine.predictor import NetworkInput, Predictor
from engine.views import decode_views
from models.decode import PostprocessConfig, decode, suppress_all
from models.esod import DIRECTLY, NO_TIMER, ESODOutput, Network, PartRunner
from models.slicer import STRIDE
from models.weights import model_from_weights, read_weights
from utils.boxes import Letterbox, letterbox_shape
from utils.config import ModelOverrides
from utils.dist import select_device
from utils.images import ByteImage
from utils.profile import StageTimer
from utils.transforms import letterbox_image
from utils.typed_data import ConfigError
from utils.warp import channels_first


class Detector(Predictor):
    """A network with its class names, on a device; made by `load_model`.

    `predict` does everything. Where speed matters, `prepare` can run in other threads while `detect` is busy.
    """

    def __init__(
        self, model: Network, names: list[str], device: torch.device, runner: PartRunner = DIRECTLY
    ) -> None:
        self.model = model.to(device).eval()
        self.names = names
        self.device = device
        self.runner = runner

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
        return self.place(image, Letterbox.fit(hw, self.model.input_hw or letterbox_shape(hw, img_size)))

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
        timer = StageTimer(self.device, waiting=False)
        letterboxes = [one.letterbox for one in inputs]
        with timer.frame(len(inputs)):
            with timer.stage("preprocess"):
                batch = self.batch_of(inputs)
            output = self.forward(batch, timer)
            with timer.stage("nms"):
                decoded = decode(output, self.model.coder, config.conf_thres)
                if augment:
                    decoded = decode_views(self.model, batch, decoded, config.conf_thres)
                seen = looked_at(output)
                # Waits for the device, and so also for the copies of what is seen.
                found = suppress_all(decoded, letterboxes, config)
        times = {name: stage.mean_ms / len(inputs) for name, stage in timer.summary().stages.items()}
        return [
            Prediction(detections, seen.heatmap(i), seen.patches_orig(i, box), box, dict(times), self.names)
            for i, (detections, box) in enumerate(zip(found, letterboxes, strict=True))
        ]

    def forward(self, batch: Tensor, timer: StageTimer = NO_TIMER) -> ESODOutput:
        """The network on a batch [B, 3, H, W] in 0–1 and of its type, run in its mode; see `ESOD.forward`."""
        return self.model(batch, timer=timer, runner=self.runner)  # type: ignore[no-any-return]

    def place(self, image: ByteImage, letterbox: Letterbox) -> NetworkInput:
        """An image, uint8 RGB [H, W, 3], as network input, placed as a letterbox says; by any thread."""
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

    def batch_of(self, inputs: Sequence[NetworkInput]) -> Tensor:
        """Inputs of one size as what the network takes: [B, 3, H, W] in 0–1 on the device, in the network's type."""
        # One by one, because stacking would leave page-locked memory, and with it the travelling in the background.
        # Bytes travel, a quarter of floats.
        moved = [one.pixels.to(self.device, non_blocking=True) for one in inputs]
        stacked = moved[0][None] if len(moved) == 1 else torch.stack(moved)
        return stacked.to(self.dtype).div_(255)


def load_model(
    weights: str | Path,
    device: str = "",
    overrides: ModelOverrides | None = None,
    *,
    half: bool = False,
    fuse: bool = True,
    compiled: bool = False,
    graphs: bool = False,
) -> Detector:
    """Load a detector for inference from a weights file (this project's, or a released pickle) or an exported one.

    Args:
        weights: path; nothing in the file is executed. Exported: a file of export.py, or a folder with one detector.
        device: "" (a GPU when there is one), "cpu", "0", …
        overrides: changes to how it slices and where its head runs; None: as the file says.
        half: compute in 16 bits where that is faster; see `engine.modes.half_type`.
        fuse: fold BatchNorm into the convolutions.
        compiled: compile the network; see `engine.modes.compile_parts`.
        graphs: replay the network as CUDA graphs; see `engine.graphs`.

    Raises:
        CheckpointError, ConfigError, ExportedFileError: the file cannot be used, or the options contradict the model.
    """
    if is_exported(weights):
        if graphs:
            raise ConfigError(f"{weights} is an exported file: --graphs is for .pt files, leave it out")
        network = load_exported(weights, device, overrides, half=half, compiled=compiled)
        return Detector(network, network.config.names, torch.device("cpu"))
    chosen = select_device(device)
    dtype = half_type(chosen) if half else torch.float32
    return load_in_mode(weights, Mode("given", dtype, fuse, True, compiled, graphs), chosen, overrides)


def load_in_mode(
    weights: str | Path, mode: Mode, device: torch.device, overrides: ModelOverrides | None = None
) -> Detector:
    """As `load_model` of a weights file, in any mode of `engine.modes`, also one that this device is bad at."""
    source = read_weights(weights)
    config = (overrides or ModelOverrides()).apply(source.config)
    model = put_into(mode, model_from_weights(replace(source, config=config), str(weights)), device)
    names = config.names or [str(i) for i in range(config.num_classes)]
    return Detector(model, names, device, mode.runner())


@dataclass(frozen=True)
class _Seen:
    """Heatmaps and patches of a batch, on the CPU once the device has come that far."""

    probability: Tensor | None
    image_index: Tensor
    xyxy_cell: Tensor

    def heatmap(self, image: int) -> np.ndarray | None:
        return None if self.probability is None else self.probability[image, 0].numpy()

    def patches_orig(self, image: int, letterbox: Letterbox) -> np.ndarray:
        patches = self.xyxy_cell[self.image_index == image]
        return letterbox.to_original(patches.float() * STRIDE).numpy()


def looked_at(output: ESODOutput) -> _Seen:
    """Begin to copy heatmaps and patches to the CPU; on CUDA they may be read after the next wait for the device."""
    logits, patches = output.heatmap_logits, output.patches.to(torch.device("cpu"))
    prob = None if logits is None else logits.float().sigmoid().to("cpu", non_blocking=True)
    return _Seen(prob, patches.image_index, patches.xyxy_cell)
