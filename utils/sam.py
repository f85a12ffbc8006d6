"""Masks of labelled objects from Segment Anything (SAM): its weights file, and its answers to boxes.

What the masks are good for, and which are, is in utils/mask_heatmap.py. The package `segment-anything` is needed
only here and imported only when a weights file is loaded.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from utils.checkpoint import CheckpointError, match_state_dict, sha256_of
from utils.images import ByteImage
from utils.mask_heatmap import BoolArray, ObjectMask, crop_mask
from utils.sam_tiles import FloatBoxes, objects_by_window
from utils.torch_archive import open_archive

if TYPE_CHECKING:
    from segment_anything import SamPredictor

SamType = Literal["vit_b", "vit_l", "vit_h"]
Builders = Mapping[str, Callable[[], Any]]
"""Type name → what makes that network, with any weights."""

PUBLISHED_FILES: Mapping[str, str] = {
    "vit_b": "sam_vit_b_01ec64.pth",
    "vit_l": "sam_vit_l_0b3195.pth",
    "vit_h": "sam_vit_h_4b8939.pth",
}
PUBLISHED_AT = "https://github.com/facebookresearch/segment-anything#model-checkpoints"
MASK_CELL = 4
"""Encoder pixels per cell of the masks that SAM predicts (1024 → 256); it makes them larger by interpolation."""
MASK_PIXELS_AT_ONCE = 16 * 1024**2
"""Pixels of all masks in memory together: 16 masks of a tile of 1024 px, which cost less memory than encoding it."""

_METHOD_VERSION = 1  # of prompts, tiles and what masks are refused; higher: masks are made anew
_TYPE_OF_WIDTH: Mapping[int | None, str] = {768: "vit_b", 1024: "vit_l", 1280: "vit_h"}
_WITHOUT = "`--heatmap gaussian` needs neither SAM nor its weights."


class SamError(ValueError):
    """SAM or its weights file cannot be used; the message says why and what to do."""


class SamMasker:
    """Segment Anything, ready to be asked for the masks of objects whose boxes are known."""

    def __init__(
        self, predictor: SamPredictor, encoder_side: int, mask_pixels_at_once: int = MASK_PIXELS_AT_ONCE
    ) -> None:
        """Most callers want `load_sam`.

        Args:
            predictor: of the package `segment-anything`, its network in evaluation mode on its device.
            encoder_side: pixels per side of what the image encoder sees; larger images are looked at in tiles.
            mask_pixels_at_once: limits the boxes per call of the network; at least one.
        """
        self._predictor = predictor
        self._side = encoder_side
        self._pixels_at_once = mask_pixels_at_once

    @torch.inference_mode()
    def object_masks(self, image_rgb: ByteImage, boxes_xyxy_orig: npt.ArrayLike) -> list[ObjectMask | None]:
        """The mask of every object, as SAM sees it: nothing is judged here (see `fall_back_reason`).

        SAM is asked with the box alone, for a single mask: a box around one whole object leaves nothing
        ambiguous, and for such prompts the package recommends its single-mask output. Its best of three, meant for
        single points, is often a part of the object.

        Args:
            image_rgb: uint8 [H, W, 3].
            boxes_xyxy_orig: [N, 4] corners, pixels of that image.

        Returns:
            N; None where the shorter side of a box, in the encoder's pixels, is less than a cell of SAM's mask
            (4, `MASK_CELL`), so that a mask could not have its shape.

        Raises:
            ValueError: the image or the boxes are not as described, or a box is not finite.
        """
        boxes = _checked(image_rgb, boxes_xyxy_orig)
        masks: list[ObjectMask | None] = [None] * len(boxes)
        try:
            for window, objects in objects_by_window(boxes, image_rgb.shape[:2], self._side):
                left, top, right, bottom = window.tolist()
                scale = self._side / max(right - left, bottom - top)
                sides = boxes[objects, 2:] - boxes[objects, :2]
                large = objects[sides.min(axis=1) * scale >= MASK_CELL]
                if not len(large):
                    continue
                self._predictor.set_image(np.ascontiguousarray(image_rgb[top:bottom, left:right]))
                in_window = boxes[large] - (left, top, left, top)
                for index, bitmap in zip(large.tolist(), self._bitmaps(in_window), strict=True):
                    masks[index] = crop_mask(bitmap, (left, top), boxes[index])
        finally:
            self._predictor.reset_image()  # the last embedding would stay in memory
        return masks

    def _bitmaps(self, boxes: FloatBoxes) -> Iterator[BoolArray]:
        """Masks over the window that the predictor has been shown, bool [h, w], for boxes [n, 4] in it."""
        predictor = self._predictor
        height, width = predictor.original_size
        at_once = max(1, self._pixels_at_once // max(height * width, self._side**2))
        for some in torch.as_tensor(boxes, dtype=torch.float32, device=predictor.device).split(at_once):
            # SAM's coordinates are indices of pixels: it adds half a pixel to reach their centres. Ours are places.
            prompts = predictor.transform.apply_boxes_torch(some, (height, width)) - 0.5
            bitmaps, _, _ = predictor.predict_torch(None, None, boxes=prompts, multimask_output=False)
            yield from bitmaps[:, 0].cpu().numpy()


def _checked(image_rgb: ByteImage, boxes_xyxy_orig: npt.ArrayLike) -> FloatBoxes:
    boxes = np.asarray(boxes_xyxy_orig, dtype=np.float64).reshape(-1, 4)
    if image_rgb.dtype != np.uint8 or image_rgb.ndim != 3 or image_rgb.shape[2] != 3 or not image_rgb.size:
        raise ValueError(f"expected an uint8 [H, W, 3] image, found {image_rgb.dtype} {image_rgb.shape}")
    if not np.isfinite(boxes).all():
        raise ValueError(f"box {np.flatnonzero(~np.isfinite(boxes).all(axis=1))[0]} is not finite")
    return boxes


def load_sam(
    weights: Path, sam_type: SamType, device: torch.device, builders: Builders | None = None
) -> SamMasker:
    """Segment Anything from a weights file. Nothing in the file is executed (``weights_only=True``).

    Args:
        weights: one of `PUBLISHED_FILES`, or any state dict of the same network saved by ``torch.save``.
        sam_type: size of the image encoder.
        device: where the network shall run.
        builders: networks by type; by default the package's own registry.

    Raises:
        SamError: the package is missing; unknown type; the file is missing, damaged, no SAM or another type's.
    """
    check_sam(weights, sam_type)
    predictor_class, registry = _package()
    state = _read_state_dict(weights, sam_type)
    _check_type(state, weights, sam_type)  # before the network is built, which takes a while
    model = (registry if builders is None else builders)[sam_type]()
    _fill(model, state, weights, sam_type)
    model.eval().requires_grad_(False).to(device)
    return SamMasker(predictor_class(model), int(model.image_encoder.img_size))


def check_sam(weights: Path, sam_type: SamType) -> None:
    """What can be known at once, before hours of other work: package, type and file exist.

    Raises SamError where they do not.
    """
    if sam_type not in PUBLISHED_FILES:
        raise SamError(f"unknown type of SAM {sam_type!r}; known: {', '.join(PUBLISHED_FILES)}.")
    _package()
    if not weights.is_file():
        found = "is no file" if weights.exists() else "no such file"
        raise SamError(f"{weights}: {found}. {_where_to_get(sam_type)} {_WITHOUT}")


def sam_fingerprint(weights: Path, sam_type: SamType) -> str:
    """SHA-256 (hex) of the content of a weights file, the type and this method; loads nothing.

    Reads the whole file (0.4–2.6 GB): once per run. Raises SamError when it cannot be read.
    """
    try:
        content = sha256_of(weights)
    except CheckpointError as error:
        raise SamError(f"{error} {_where_to_get(sam_type)} {_WITHOUT}") from error
    return hashlib.sha256(json.dumps([content, sam_type, _METHOD_VERSION]).encode()).hexdigest()


def _package() -> tuple[Any, Builders]:
    try:
        from segment_anything import SamPredictor, sam_model_registry
    except ImportError as error:
        raise SamError(
            f"the package segment-anything cannot be imported ({error}): `pip install segment-anything`. {_WITHOUT}"
        ) from error
    return SamPredictor, sam_model_registry


def _where_to_get(sam_type: str) -> str:
    return f"The published file for {sam_type} is {PUBLISHED_FILES[sam_type]}, linked at {PUBLISHED_AT}."


def _read_state_dict(weights: Path, sam_type: SamType) -> dict[str, Tensor]:
    """The tensors of a weights file by name, on the CPU, every checksum verified."""
    advice = f"{_where_to_get(sam_type)} {_WITHOUT}"
    try:
        with open_archive(weights) as archive:
            archive.verify()
        content = torch.load(weights, map_location="cpu", weights_only=True, mmap=True)
    except CheckpointError as error:
        raise SamError(f"{error} {advice}") from error
    except Exception as error:  # torch does not say which; a refused name is an error class of pickle's own
        raise SamError(
            f"{weights}: holds more than tensors or is damaged, and is not read "
            f"({type(error).__name__}: {str(error)[:300]}). {advice}"
        ) from error
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise SamError(f"{weights}: not a plain state dict, so not SAM's weights. {advice}")
    return content


def _check_type(state: Mapping[str, Tensor], weights: Path, sam_type: SamType) -> None:
    """SamError where the width of the image encoder is that of another published type."""
    position = state.get("image_encoder.pos_embed")
    width = None if position is None or not position.ndim else position.shape[-1]
    likely = _TYPE_OF_WIDTH.get(width)
    if likely not in (None, sam_type):
        raise SamError(
            f"{weights}: the weights of {likely}, not of {sam_type}. Ask for {likely}, or give another file. "
            f"{_where_to_get(sam_type)} {_WITHOUT}"
        )


def _fill(model: torch.nn.Module, state: dict[str, Tensor], weights: Path, sam_type: SamType) -> None:
    """Load a state dict whose names and shapes are just the model's; SamError otherwise."""
    try:
        report = match_state_dict(state, model.state_dict())
    except CheckpointError as error:
        raise SamError(f"{weights}: {error} {_where_to_get(sam_type)}") from error
    wrong = [*report.missing, *report.unexpected, *(name for name, *_ in report.shape_mismatch)]
    if wrong:
        raise SamError(
            f"{weights}: not the weights of {sam_type} ({len(report.matched)} tensors fit, {len(wrong)} do not, "
            f"among them {wrong[0]!r}). {_where_to_get(sam_type)} {_WITHOUT}"
        )
    model.load_state_dict(state)
