"""Pictures as callers hold them (files, arrays, PIL images, tensors), made 8-bit RGB for the network.

What cannot be told from the values is refused, not guessed: whether channels come first, whether floats end at 1
or at 255. Pictures in memory are taken as they are; only files are turned upright by their EXIF orientation.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from utils.decoding import over_grey, read_picture, to_uint8
from utils.draw import to_numpy
from utils.images import ByteImage, ImageError

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

PictureInput: TypeAlias = "str | Path | NDArray[Any] | Tensor | PILImage"
"""One picture: a file, an array [H, W, channels], a tensor [channels, H, W] or a PIL image."""
ChannelOrder: TypeAlias = Literal["rgb", "bgr"]

CHANNELS = (1, 3, 4)
"""Of a picture in memory: grey, colour, colour with opacity."""
TOLERANCE = 1e-3
"""Floats may leave 0–1 by this much, as resampling does; they are clipped."""
_EXPECTED = "give a path, an array [H, W, 3], a tensor [3, H, W], a PIL image, or a list of these"
_PIL_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV")


class PictureInputError(ImageError):
    """What was given is no picture, or one whose values cannot be understood; the message says what to give."""


def is_single_picture(images: object) -> bool:
    """Whether this is one picture, as opposed to a list or tuple of them.

    Raises:
        PictureInputError: it is neither.
    """
    if isinstance(images, (str, Path, np.ndarray, Tensor)) or _is_pil(images):
        return True
    if isinstance(images, Sequence) and not isinstance(images, (bytes, bytearray)):
        return False
    raise PictureInputError(f"images is {_kind(images)}; {_EXPECTED}")


def to_picture(image: PictureInput, channel_order: ChannelOrder = "rgb") -> ByteImage:
    """One picture of any kind as uint8 [H, W, 3] RGB.

    Args:
        image: a path; an array [H, W], [H, W, 1], [H, W, 3] or [H, W, 4]; a tensor [1, H, W], [3, H, W] or
            [4, H, W] on any device; or a PIL image. Arrays and tensors hold uint8, uint16 (scaled as
            `utils.decoding.to_uint8` says) or floats in 0–1. Grey becomes three equal channels; what is
            transparent is laid over the grey that letterboxing pads with.
        channel_order: of arrays and tensors with colour: "rgb", or "bgr" as OpenCV reads them (opacity comes
            last in both). Files and PIL images know theirs.

    Returns:
        The picture; an array or tensor that is one already is returned as it is, not copied.

    Raises:
        ImageError: a file that cannot be read.
        PictureInputError: no picture, or values that cannot be understood.

    >>> import numpy as np
    >>> blue_in_opencv = np.zeros((2, 4, 3), np.uint8)
    >>> blue_in_opencv[..., 0] = 255
    >>> to_picture(blue_in_opencv, "bgr")[0, 0].tolist()
    [0, 0, 255]
    >>> to_picture(np.full((2, 4), 0.5, np.float32)).shape
    (2, 4, 3)
    >>> to_picture(np.zeros((3, 480, 640), np.uint8))
    Traceback (most recent call last):
    utils.picture_input.PictureInputError: array of shape [3, 480, 640] has its channels first; arrays have them last: \
give array.transpose(1, 2, 0), or torch.from_numpy(array)
    """
    if channel_order not in get_args(ChannelOrder):
        raise PictureInputError(f'channel_order is {channel_order!r}; expected "rgb" or "bgr"')
    if isinstance(image, (str, Path)):
        return read_picture(image)
    if isinstance(image, np.ndarray):
        _check_array_shape(image.shape)
        return _to_rgb(image.reshape(*image.shape[:2], -1), channel_order, "array")
    if isinstance(image, Tensor):
        _check_tensor_shape(tuple(image.shape))
        return _to_rgb(to_numpy(image).transpose(1, 2, 0), channel_order, "tensor")
    if _is_pil(image):
        return _from_pil(image)
    raise PictureInputError(f"image is {_kind(image)}; {_EXPECTED}")


def _is_pil(image: object) -> bool:
    """Whether this is a PIL image; Pillow itself is not needed for the answer."""
    return any(f"{base.__module__}.{base.__name__}" == "PIL.Image.Image" for base in type(image).__mro__)


def _check_array_shape(shape: tuple[int, ...]) -> None:
    dims = list(shape)
    if len(dims) == 4:
        raise PictureInputError(f"array of shape {dims} is a batch; give list(array), a list of [H, W, 3]")
    if len(dims) not in (2, 3) or 0 in dims:
        raise PictureInputError(f"array of shape {dims} is no picture; expected [H, W, 3] or grey [H, W]")
    if len(dims) == 3 and dims[2] not in CHANNELS:
        if dims[0] in CHANNELS:
            raise PictureInputError(
                f"array of shape {dims} has its channels first; arrays have them last: give array.transpose(1, 2, 0), "
                "or torch.from_numpy(array)"
            )
        raise PictureInputError(f"array of shape {dims} has {dims[2]} channels; expected 1, 3 or 4")


def _check_tensor_shape(shape: tuple[int, ...]) -> None:
    dims = list(shape)
    if len(dims) == 4:
        raise PictureInputError(f"tensor of shape {dims} is a batch; give list(tensor), a list of [3, H, W]")
    if len(dims) != 3 or 0 in dims:
        raise PictureInputError(f"tensor of shape {dims} is no picture; expected [3, H, W] or grey [1, H, W]")
    if dims[0] not in CHANNELS:
        if dims[2] in CHANNELS:
            raise PictureInputError(
                f"tensor of shape {dims} has its channels last; tensors have them first: give tensor.permute(2, 0, 1)"
            )
        raise PictureInputError(f"tensor of shape {dims} has {dims[0]} channels; expected 1, 3 or 4")


def _to_rgb(layers: NDArray[Any], channel_order: ChannelOrder, what: str) -> ByteImage:
    """Layers [H, W, 1, 3 or 4] of any understood type as uint8 [H, W, 3] RGB."""
    _check_values(layers, what)
    colours = _to_bytes(layers[..., :3])
    if colours.shape[2] == 1:
        return np.repeat(colours, 3, axis=2)
    if channel_order == "bgr":
        colours = colours[..., ::-1]
    if layers.shape[2] == 4:
        colours = over_grey(colours, layers[..., 3:])
    return np.ascontiguousarray(colours)


def _check_values(layers: NDArray[Any], what: str) -> None:
    if layers.dtype in (np.uint8, np.uint16):
        return
    if not np.issubdtype(layers.dtype, np.floating):
        raise PictureInputError(f"{what} of {layers.dtype}; expected uint8, uint16, or floats in 0–1")
    low, high = float(layers.min()), float(layers.max())
    # Written so that NaN, which fails every comparison, is caught as well.
    if not (low >= -TOLERANCE and high <= 1 + TOLERANCE):
        advice = "; for values in 0–255 give uint8" if low >= 0 and high <= 255 else ""
        raise PictureInputError(
            f"{what} of {layers.dtype} with values {low:g} to {high:g}; expected 0–1{advice}"
        )


def _to_bytes(values: NDArray[Any]) -> ByteImage:
    """Checked values of a picture as 0–255; uint8 itself."""
    if not np.issubdtype(values.dtype, np.floating):
        return to_uint8(values)
    scaled: ByteImage = np.rint(values.astype(np.float32).clip(0, 1) * 255).astype(np.uint8)
    return scaled


def _from_pil(image: PILImage) -> ByteImage:
    """Pixels of a PIL image; its EXIF orientation is not applied, so that boxes fit the object in hand."""
    if image.mode.startswith("I;16"):
        return _to_rgb(np.asarray(image, dtype=np.uint16)[..., None], "rgb", "PIL image")
    if image.mode not in _PIL_MODES:
        raise PictureInputError(
            f"PIL image of mode {image.mode!r}; expected one of {', '.join(_PIL_MODES)} or I;16: convert it first"
        )
    if 0 in image.size:
        raise PictureInputError(f"PIL image of size {image.size} is empty")
    transparent = image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info
    pixels = np.asarray(image.convert("RGBA" if transparent else "RGB"))
    return _to_rgb(pixels, "rgb", "PIL image")


def _kind(given: object) -> str:
    return f"of type {type(given).__name__}"
