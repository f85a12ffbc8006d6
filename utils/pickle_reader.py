"""Read released ESOD and YOLO ``.pt`` files, which pickle a whole model, without executing anything in them.

``read_pickled_checkpoint`` gives the file's contents with inert records for objects, ``extract_network`` the
plain parts of the network in them. What the layers compute, and which of our layers they are, is not known
here (see ``models.convert.networks``). Not for our own checkpoints: see ``utils.checkpoint``.
"""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from utils.legacy_file import is_legacy, open_legacy
from utils.pickle_interpreter import Interpreter, PickledObject, check_names, storages_of
from utils.pickle_names import NUMPY_ARRAY_NAMES, NUMPY_SCALAR_NAMES, PATH_NAMES
from utils.torch_archive import MALFORMED_ERRORS, CheckpointError, damaged, open_archive

__all__ = [
    "CheckpointError",
    "PickledNetwork",
    "PickledObject",
    "extract_network",
    "owned_copy",
    "plain_value",
    "read_pickled_checkpoint",
    "read_pickled_network",
]

MAX_MODULES = 20_000
MAX_ENTRIES = 2_000
"""Of one layer: sub-layers, tensors or attributes. The largest real networks have 1000 layers in all."""
MAX_PLAIN_VALUES = 100_000
MAX_EXTRA_ELEMENTS = 4096
"""Of a tensor among the detection layer's attributes; larger ones are left-over grids."""
_LAYER_NAME = re.compile(r"\w{1,200}", re.ASCII)
MAX_DEPTH = 100
MAX_PARAMETERS = 2**30
"""4 GiB of fp32; what a network may grow to when its tensors are copied out."""


def read_pickled_checkpoint(path: str | Path) -> dict[Any, Any]:
    """Read a foreign ``.pt`` file, today's form or that before PyTorch 1.6; objects in it come back as ``PickledObject``, tensors as CPU tensors.

    Returns:
        The file's top-level dict (``epoch``, ``model``, ``ema``, …). Tensors keep dtype and shape.

    Raises:
        CheckpointError: not such a file, damaged, or it names anything outside the allow-list. All names
            are checked before the first object is built.
    """
    path = Path(path)
    try:
        checkpoint = _read_legacy(path) if is_legacy(path) else _read_archive(path)
    except CheckpointError:
        raise
    except MALFORMED_ERRORS as error:
        raise damaged(path, f"{type(error).__name__}: {error}") from error
    if not isinstance(checkpoint, dict):
        kind = checkpoint.class_name if isinstance(checkpoint, PickledObject) else type(checkpoint).__name__
        raise CheckpointError(f"{path}: holds a {kind}, not a dict with a model in it.")
    return checkpoint


def _read_archive(path: Path) -> Any:
    with open_archive(path) as archive:
        if archive.sizes.get("byteorder") and archive.read("byteorder") != b"little":
            raise CheckpointError(f"{path}: saved on a big-endian machine, which is not supported.")
        data = archive.read_pickle()
        check_names(path, data)
        return Interpreter(storages_of(archive)).run(data)


def _read_legacy(path: Path) -> Any:
    with open_legacy(path) as legacy:
        check_names(path, legacy.pickled)
        checkpoint = Interpreter(legacy.promise).run(legacy.pickled)
        legacy.fill()
        return checkpoint


@dataclass(frozen=True)
class PickledNetwork:
    """The plain parts of a pickled network."""

    state_dict: dict[str, Tensor]
    """``model.0.conv.weight`` → tensor on the CPU, contiguous and owned; float types as fp32, integers as saved."""
    yaml: dict[str, Any]
    """The architecture (``model.yaml``) as plain data; strings in it are text, never code."""
    names: list[str]
    """Class names in class order."""
    bn_eps: float
    """The eps shared by all normalisation layers."""
    strides: list[float]
    """Input pixels per cell of each detection level."""
    extra: dict[str, Any]
    """Attributes of the last layer (``Detect``) that are plain data or single tensors (fp32), buffers included:
    ``nc``, ``na``, ``anchors``, ``anchor_grid``, ``reg_max``, ``f``, … as far as that version saved them."""
    activation: str
    """Class name of the activation most layers use (``SiLU``, ``ReLU``, …)."""
    activations: dict[str, int]
    """How many layers use which activation."""

    num_parameters: int
    """Values in parameters, as torch counts them: the buffers of normalisation and ``Detect`` are not among them."""


def extract_network(checkpoint: dict[Any, Any]) -> PickledNetwork:
    """The network of a checkpoint from ``read_pickled_checkpoint``: ``ema`` where it is a model, else ``model``.

    Raises:
        CheckpointError: no whole model inside, architecture or names missing, normalisation folded away or
            with mixed eps, a weight that is no tensor or not finite.
    """
    model = _find_model(checkpoint)
    modules = list(_walk_modules(model))
    state_dict, num_parameters = _collect_tensors(modules)
    activations = Counter(
        module.class_name.rsplit(".", 1)[1]
        for _, module in modules
        if module.class_name.startswith("torch.nn.modules.activation.")
    )
    if not activations:
        raise CheckpointError("the pickled network has no activation layer; give an unmodified checkpoint.")
    attributes = model.attributes()
    detect = _last_layer(model)
    return PickledNetwork(
        state_dict=state_dict,
        yaml=_architecture(attributes),
        names=_class_names(attributes.get("names")),
        bn_eps=_normalisation_eps(modules),
        strides=_strides(attributes, detect),
        extra=_plain_attributes(detect),
        activation=activations.most_common(1)[0][0],
        activations=dict(activations),
        num_parameters=num_parameters,
    )


def read_pickled_network(path: str | Path) -> PickledNetwork:
    """``extract_network(read_pickled_checkpoint(path))`` with the path in every error message."""
    checkpoint = read_pickled_checkpoint(path)
    try:
        return extract_network(checkpoint)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


def plain_value(value: Any) -> Any:
    """Turn a saved value into plain data: text, numbers, ``None`` and dicts, lists and tuples of them.

    Stand-ins that are data at heart are decoded: numpy scalars to numbers, numeric arrays to nested lists,
    paths and devices to text.

    Raises:
        CheckpointError: it holds anything else (a tensor, a layer), or is absurdly deep or large.
    """
    return _PlainReader().read(value)


class _NotPlainError(CheckpointError):
    """A value that is no plain data; legitimate where plain data is not required."""


class _PlainReader:
    """Converts values while counting them: shared parts can make a small file describe billions."""

    def __init__(self) -> None:
        self.remaining = MAX_PLAIN_VALUES

    def read(self, value: Any, depth: int = 0) -> Any:
        self.remaining -= 1
        if self.remaining < 0 or depth > MAX_DEPTH:
            raise CheckpointError("a saved value is absurdly deep or large; not a genuine checkpoint.")
        if isinstance(value, dict):
            return {key: self.read(item, depth + 1) for key, item in value.items()}
        if isinstance(value, list):
            return [self.read(item, depth + 1) for item in value]
        if isinstance(value, tuple):
            return tuple(self.read(item, depth + 1) for item in value)
        if isinstance(value, PickledObject):
            return _plain_object(value)
        if value is None or isinstance(value, (str, int, float)):
            return value
        raise _NotPlainError(f"found a {type(value).__name__} where plain data was expected.")


def _plain_object(value: PickledObject) -> Any:
    """Decode the stand-ins that are data at heart."""
    try:
        if value.class_name in NUMPY_SCALAR_NAMES:
            dtype, data = value.arguments
            return np.frombuffer(data, _numpy_dtype(dtype), count=1)[0].item()
        if value.class_name in NUMPY_ARRAY_NAMES:
            _, shape, dtype, fortran_order, data = value.state
            flat = np.frombuffer(data, _numpy_dtype(dtype))
            if flat.size == 0:  # its other dimensions may be anything
                return []
            return flat.reshape(shape, order="F" if fortran_order else "C").tolist()
        if value.class_name in PATH_NAMES:
            return PurePosixPath(*value.arguments).as_posix()
        if value.class_name == "torch.device":
            return ":".join(str(part) for part in value.arguments)
    except (TypeError, ValueError, IndexError) as error:
        raise CheckpointError(
            f"a damaged {value.class_name} ({error}); download or save the file again."
        ) from error
    raise _NotPlainError(f"found a {value.class_name} where plain data was expected.")


def _numpy_dtype(value: Any) -> np.dtype[Any]:
    """Numeric types only, from the stand-in ``dtype('f8', …)`` and its state ``(version, byte order, …)``."""
    if not isinstance(value, PickledObject) or value.class_name != "numpy.dtype":
        raise ValueError("an array without a type")
    code = value.arguments[0]
    if code not in ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"):
        raise ValueError(f"an array of unsupported type {str(code)[:20]!r}")
    order = value.state[1] if isinstance(value.state, tuple) else "|"
    return np.dtype(f"{order if order in ('<', '>') else '='}{code}")


def _find_model(checkpoint: dict[Any, Any]) -> PickledObject:
    for key in ("ema", "model"):
        candidate = checkpoint.get(key)
        if isinstance(candidate, PickledObject) and isinstance(candidate.attributes().get("_modules"), dict):
            return candidate
    found = ", ".join(
        f"{str(key)[:40]}: {type(value).__name__}" for key, value in list(checkpoint.items())[:20]
    )
    raise CheckpointError(
        f"no whole pickled model under 'ema' or 'model' (found {found or 'nothing'}). "
        "Give a released .pt file, a state dict, or a checkpoint of this project."
    )


def _children(module: PickledObject, kind: str) -> dict[str, Any]:
    """``_modules``, ``_parameters`` or ``_buffers`` of a module, names checked, ``None`` entries left out."""
    entries = module.attributes().get(kind, {})
    if not isinstance(entries, dict):
        raise CheckpointError(f"{module.class_name}: {kind} is a {type(entries).__name__}, not a dict.")
    if len(entries) > MAX_ENTRIES:
        raise CheckpointError(f"{module.class_name}: {len(entries)} {kind}; not a genuine checkpoint.")
    for name in entries:
        if not isinstance(name, str) or not _LAYER_NAME.fullmatch(name):
            raise CheckpointError(f"{module.class_name}: {name!r:.80} is no name of a layer or tensor.")
    return {name: entry for name, entry in entries.items() if entry is not None}


def _walk_modules(model: PickledObject) -> Iterator[tuple[str, PickledObject]]:
    """Every module with its key prefix (``model.0.``), parents first, in saved order."""
    pending = [("", model, 0)]
    visited = 0
    while pending:
        prefix, module, depth = pending.pop()
        visited += 1
        if depth > MAX_DEPTH or visited + len(pending) > MAX_MODULES:
            raise CheckpointError(
                "the pickled network contains itself or is absurdly large; not a genuine checkpoint."
            )
        yield prefix, module
        for name, child in reversed(_children(module, "_modules").items()):
            if not isinstance(child, PickledObject):
                raise CheckpointError(f"layer {prefix}{name} is a {type(child).__name__}, not a module.")
            pending.append((f"{prefix}{name}.", child, depth + 1))


def _collect_tensors(modules: list[tuple[str, PickledObject]]) -> tuple[dict[str, Tensor], int]:
    """State dict as torch would name it, and the number of trainable values in it."""
    state_dict: dict[str, Tensor] = {}
    sizes = {"_parameters": 0, "_buffers": 0}
    for prefix, module in modules:
        transient = module.attributes().get("_non_persistent_buffers_set")
        for kind in sizes:
            for name, tensor in _children(module, kind).items():
                key = prefix + name
                if kind == "_buffers" and isinstance(transient, set) and name in transient:
                    continue
                if not isinstance(tensor, Tensor) or key in state_dict:
                    raise CheckpointError(
                        f"{key} is not a tensor, or occurs twice; not a genuine checkpoint."
                    )
                sizes[kind] += tensor.numel()
                if sum(sizes.values()) > MAX_PARAMETERS:
                    raise CheckpointError(f"the pickled network has more than {MAX_PARAMETERS} values.")
                state_dict[key] = owned_copy(key, tensor)
    return state_dict, sizes["_parameters"]


def owned_copy(key: str, tensor: Tensor) -> Tensor:
    """An fp32 (or integer) copy that shares no memory; ``CheckpointError`` on NaN and infinity."""
    if not tensor.is_floating_point():
        return tensor.clone(memory_format=torch.contiguous_format)
    copy = tensor.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    if not bool(torch.isfinite(copy).all()):
        raise CheckpointError(f"{key} holds NaN or infinity; the network is broken, use another checkpoint.")
    return copy


def _architecture(attributes: dict[Any, Any]) -> dict[str, Any]:
    architecture = plain_value(attributes.get("yaml"))
    if not isinstance(architecture, dict) or any(not isinstance(key, str) for key in architecture):
        raise CheckpointError(
            "the pickled model has no architecture (model.yaml); give a released YOLO or ESOD file."
        )
    return architecture


def _class_names(names: Any) -> list[str]:
    """Names saved as a list, or (newer files) as ``{class index: name}``."""
    if isinstance(names, dict):
        if set(names) != set(range(len(names))):
            raise CheckpointError("the class names in the file are not numbered 0, 1, 2, … without gaps.")
        names = [names[index] for index in range(len(names))]
    if not isinstance(names, list) or any(not isinstance(name, str) for name in names):
        raise CheckpointError(f"class names should be a list of text, found {type(names).__name__}.")
    return list(names)


def _normalisation_eps(modules: list[tuple[str, PickledObject]]) -> float:
    found: set[float] = set()
    for prefix, module in modules:
        if module.class_name.startswith("torch.nn.modules.batchnorm."):
            eps = module.attributes().get("eps")
            if not isinstance(eps, float) or not 0 < eps < 1:
                raise CheckpointError(f"{prefix}eps should be a small number; not a genuine checkpoint.")
            found.add(eps)
    if len(found) != 1:
        what = f"different eps: {sorted(found)[:5]}" if found else "none (folded into the convolutions?)"
        raise CheckpointError(
            f"normalisation layers of the pickled network: {what}. Give an unmodified checkpoint."
        )
    return found.pop()


def _last_layer(model: PickledObject) -> PickledObject:
    """The last of the numbered layers in ``model.model``: the detection layer."""
    layers = _children(model, "_modules").get("model")
    children = list(_children(layers, "_modules").values()) if isinstance(layers, PickledObject) else []
    if not children or not isinstance(children[-1], PickledObject):
        raise CheckpointError(
            "the pickled model has no numbered layers (model.model); give a YOLO or ESOD file."
        )
    return children[-1]


def _strides(attributes: dict[Any, Any], detect: PickledObject) -> list[float]:
    """From the model or from its detection layer, whichever saved them."""
    for stride in (attributes.get("stride"), detect.attributes().get("stride")):
        if isinstance(stride, Tensor) and stride.ndim == 1 and 0 < stride.numel() <= 16:
            values = [float(value) for value in stride]
            if all(0 < value <= 4096 for value in values):
                return values
    raise CheckpointError("the pickled model says no strides; give a YOLO or ESOD detection checkpoint.")


def _plain_attributes(module: PickledObject) -> dict[str, Any]:
    """Public attributes and buffers that are small tensors or plain data; everything else is left out."""
    entries = {**module.attributes(), **_children(module, "_buffers")}
    if len(entries) > MAX_ENTRIES:
        raise CheckpointError(f"{module.class_name}: {len(entries)} attributes; not a genuine checkpoint.")
    reader = _PlainReader()
    extra: dict[str, Any] = {}
    for name, value in entries.items():
        if not isinstance(name, str) or name.startswith("_"):
            continue
        if isinstance(value, Tensor):
            if value.numel() <= MAX_EXTRA_ELEMENTS:
                extra[name] = owned_copy(name, value)
        else:
            with contextlib.suppress(_NotPlainError):
                extra[name] = reader.read(value)
    return extra
