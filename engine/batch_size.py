"""``--batch-size -1``: how many images of a training step fit into the memory of the device.

Two steps on random images, with one and with two images, tell what an image costs; the rest is a straight line. Every
patch is computed in them, the most that a batch can need: a training on selected patches never runs out of memory.
"""

from __future__ import annotations

import gc
from collections.abc import Callable

import torch
from torch import Tensor

from models.build import build_model
from models.loss import DetectionLoss
from models.slicer import STRIDE, Patches, fixed_grid, whole_map
from utils.config import HypConfig, ModelConfig, TrainConfig
from utils.dist import broadcast_object, is_main
from utils.logger import get_logger
from utils.memory import measure_memory
from utils.pixel_store import available_memory
from utils.typed_data import ConfigError

FIND_BATCH = -1
"""Value of ``batch_size`` that asks for what fits."""
GPU_SHARE = 0.85
CPU_SHARE = 0.5
"""Shares of the free memory that a batch may take: the rest is the optimiser's, the loader's and other programs'."""
STATE_COPIES = 3
"""Numbers per weight besides the network: two of the optimiser and the moving average."""
OBJECTS = 100
"""Per random image."""
LARGEST_SCALE = 1.5
"""Of --multi-scale."""


def find_batch_size(
    model: ModelConfig,
    config: TrainConfig,
    hyp: HypConfig,
    device: torch.device,
    amp_dtype: torch.dtype | None,
    processes: int,
) -> int:
    """Images per batch, over all processes, of a training step that fits; at most ``hyp.nominal_batch``.

    The main process measures on its device, the others take its answer: they are assumed to have equal ones.

    Raises:
        ConfigError: not even one image fits.
    """
    found = 0
    if is_main():
        step = TrainingStep(model, config, hyp, device, amp_dtype)
        fits = largest_fitting(step.bytes_needed, free_memory(device) - step.state_bytes)
        found = min(fits, max(hyp.nominal_batch // processes, 1))
        del step
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    found = broadcast_object(found)
    if found < 1:
        raise ConfigError(
            f"--batch-size -1: not even one image of {config.img_size} pixels fits into the memory of {device}: use a "
            "smaller --img-size or --cfg, --checkpoint-activations, or --amp on a GPU"
        )
    get_logger().info(
        f"--batch-size -1: {found * processes} images fit ({found} in each of {processes} processes)"
    )
    return found * processes


def largest_fitting(bytes_needed: Callable[[int], int], free: float) -> int:
    """Largest batch whose step fits into free bytes, from steps of one and two images; 0: none.

    A step that runs out of memory (torch.OutOfMemoryError) does not fit.
    """
    needed = []
    for images in (1, 2):
        try:
            needed.append(bytes_needed(images))
        except torch.OutOfMemoryError:
            break
    if not needed or needed[0] > free:
        return 0
    if len(needed) == 1 or needed[1] > free:
        return 1
    # Noise of a CPU's measurement must not make images free of charge.
    per_image = max(needed[1] - needed[0], needed[0] // 4, 1)
    return 1 + int((free - needed[0]) // per_image)


def free_memory(device: torch.device) -> float:
    """Bytes that a training may take on a device, `GPU_SHARE` or `CPU_SHARE` of what is free.

    Raises:
        ConfigError: this system does not tell how much memory is free.
    """
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(device)[0] * GPU_SHARE
    available = available_memory()
    if available is None:
        raise ConfigError("--batch-size -1: this system does not tell how much memory is free; give a number")
    return available * CPU_SHARE


class TrainingStep:
    """Forward, losses and backward of a network on random images, to see how much memory they take."""

    def __init__(
        self,
        model: ModelConfig,
        config: TrainConfig,
        hyp: HypConfig,
        device: torch.device,
        amp_dtype: torch.dtype | None,
    ) -> None:
        self._model = build_model(model).train()
        self._model.recompute = config.checkpoint_activations
        self._model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._criterion = DetectionLoss(model, hyp).to(device)
        self._device = device
        self._amp_dtype = amp_dtype
        self._hw = input_hw(config)
        weights = sum(p.numel() * p.element_size() for p in self._model.parameters())
        self.state_bytes = weights * STATE_COPIES

    def bytes_needed(self, images: int) -> int:
        """Most memory that a step takes on top of the network."""
        self._model.zero_grad(set_to_none=True)
        return measure_memory(lambda: self._run(images), self._device).growth

    def _run(self, images: int) -> None:
        batch = torch.rand(images, 3, *self._hw, device=self._device)
        batch = batch.contiguous(memory_format=torch.channels_last)
        count = images * OBJECTS
        where = torch.arange(images).repeat_interleave(OBJECTS)[:, None]
        label = torch.randint(self._model.config.num_classes, (count, 1))
        boxes = torch.cat([torch.rand(count, 2) * 0.9 + 0.05, torch.full((count, 2), 0.02)], dim=1)
        targets = torch.cat([where, label, boxes], dim=1).to(self._device)
        heatmaps = torch.rand(images, 1, self._hw[0] // STRIDE, self._hw[1] // STRIDE, device=self._device)
        dtype = self._amp_dtype or torch.bfloat16
        with torch.autocast(self._device.type, dtype, enabled=self._amp_dtype is not None):
            output = self._model(batch, self._everything)
            loss = self._criterion(output, targets, heatmaps)["total"]
        loss.backward()

    def _everything(self, logits: Tensor) -> Patches:
        map_hw = (logits.shape[2], logits.shape[3])
        slicer = self._model.config.slicer
        if slicer.algorithm == "none":
            return whole_map(len(logits), map_hw, logits.device)
        return fixed_grid(len(logits), map_hw, slicer.patches_per_side, logits.device)


def input_hw(config: TrainConfig) -> tuple[int, int]:
    """Height and width of the largest input that a training makes: multiples of 32."""
    size = config.size()
    sides = (size, size) if isinstance(size, int) else size
    scale = LARGEST_SCALE if config.multi_scale else 1.0
    height, width = (round(side * scale / 32) * 32 for side in sides)
    return height, width
