"""Our own checkpoints: plain data written atomically, read without executing anything.

A file holds tensors, numbers, text, lists, tuples and dicts only, so ``torch.load(weights_only=True)`` reads it
everywhere. It never holds a class: what the network is stands in the configuration saved beside its weights.
Files of others (a whole pickled model) are ``utils.pickle_reader``'s matter.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickletools
import random
import tempfile
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from utils.torch_archive import CheckpointError, damaged, open_archive

__all__ = [
    "CheckpointError",
    "MatchReport",
    "is_own_format",
    "load_checkpoint",
    "match_state_dict",
    "pack_rng_state",
    "restore_rng_state",
    "save_checkpoint",
    "sha256_of",
    "strip_checkpoint",
]

FORMAT = "esod"
VERSION = 1
INFERENCE_KEYS = ("config", "names", "provenance")
"""What a stripped checkpoint keeps besides the weights."""
MAX_DEPTH = 100
_MARKERS = {"format": FORMAT, "version": VERSION}
_ALGORITHM = "MT19937"


def save_checkpoint(path: str | Path, data: dict[str, Any]) -> None:
    """Write a checkpoint atomically: after a crash at any moment ``path`` is the old file or the new one, whole.

    Args:
        path: File to write; its folder is created.
        data: Plain data: tensors (any device; saved on the CPU, without gradient), numbers, text, ``bool``,
            ``None``, and lists, tuples and dicts of them with text or integer keys.

    Raises:
        TypeError: anything else; the message names where in ``data`` it is.
        ValueError: ``data`` uses the keys ``format`` or ``version``, which mark the file, or contains itself.
    """
    reserved = sorted(set(data) & set(_MARKERS))
    if reserved:
        raise ValueError(f"the checkpoint keys {reserved} mark the file format; use other names.")
    content = {**_MARKERS, **{key: _plain(value, _step("", key), 0) for key, value in data.items()}}
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _replacing(path) as stream:
        torch.save(content, stream)


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read one of our own checkpoints; the inverse of ``save_checkpoint`` (without the format markers).

    Tensors are on the CPU; where the system can, they are mapped from the file and read on first use, so do
    not overwrite the file in place while they live (``save_checkpoint`` does not).

    Raises:
        CheckpointError: missing, damaged (every checksum is verified), not our format (a released ``.pt`` file
            has to be converted first) or written by a newer version.
    """
    path = Path(path)
    if not is_own_format(path):
        raise CheckpointError(
            f"{path}: not a checkpoint of this project. If it is a released ESOD or YOLO file, convert it with "
            f"`python scripts/model_convert.py` first and give the converted file."
        )
    with open_archive(path) as archive:
        archive.verify()
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch does not say which; a refused name is an error class of pickle's own
        raise damaged(path, f"{type(error).__name__}: {error}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise damaged(path, "its format marker is gone")
    version = content.get("version")
    if type(version) is not int or version < 1:
        raise damaged(path, f"format version {version!r:.40}")
    if version > VERSION:
        raise CheckpointError(
            f"{path}: format version {version}, this code reads up to {VERSION}. Update the code, or save it again."
        )
    return {key: value for key, value in content.items() if key not in _MARKERS}


def is_own_format(path: str | Path) -> bool:
    """Whether ``save_checkpoint`` wrote this file, judged by its first bytes; nothing in it is executed or built.

    Raises:
        CheckpointError: missing, or no ``torch.save`` archive at all.
    """
    expected = ["format", FORMAT, "version"]
    with open_archive(path) as archive:
        data = archive.read_pickle()
        found: list[Any] = []
        try:
            for operation, argument, _ in pickletools.genops(data):
                if operation.name in ("PROTO", "EMPTY_DICT", "MARK", "BINPUT"):
                    continue
                if operation.name != "BINUNICODE":
                    break
                found.append(argument)
                if len(found) == len(expected):
                    break
        except ValueError:
            return False
    return found == expected


def strip_checkpoint(data: dict[str, Any]) -> dict[str, Any]:
    """What inference needs: ``model`` (the ``ema`` weights where there are any) in fp16, and ``INFERENCE_KEYS``.

    Args:
        data: A training checkpoint with a flat state dict under ``model`` and, optionally, under ``ema``
            (there also as ``{"model": state dict, …}``, as the averaging keeps it).

    Returns:
        A new dict. Float tensors are fp16, except one with values that fp16 cannot hold (stays fp32).

    Raises:
        CheckpointError: there is no flat state dict, or a weight is NaN or infinite.
    """
    weights = _weights(data)
    if weights is None:
        raise CheckpointError(
            f"the checkpoint has no weights under 'ema' or 'model'; it has {sorted(map(str, data))}."
        )
    for key, tensor in weights.items():
        if not isinstance(key, str) or not isinstance(tensor, Tensor):
            raise CheckpointError(f"weight {key!r:.80} is a {type(tensor).__name__}, expected a tensor.")
    _check_finite(weights)
    stripped: dict[str, Any] = {"model": {key: _to_half(tensor) for key, tensor in weights.items()}}
    stripped.update({key: data[key] for key in INFERENCE_KEYS if key in data})
    return stripped


def sha256_of(path: str | Path) -> str:
    """SHA-256 of a file, 64 lower-case hexadecimal digits; ``CheckpointError`` when it cannot be read."""
    digest = hashlib.sha256()
    try:
        with Path(path).open("rb") as stream:
            for block in iter(lambda: stream.read(2**20), b""):
                digest.update(block)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error}).") from error
    return digest.hexdigest()


@dataclass(frozen=True)
class MatchReport:
    """Which tensors of a source fit a target, by name and shape."""

    matched: list[str]
    missing: list[str]
    """In the target, not in the source."""
    unexpected: list[str]
    """In the source, not in the target."""
    shape_mismatch: list[tuple[str, tuple[int, ...], tuple[int, ...]]]
    """Name, shape in the source, shape in the target."""
    carried: list[str] = field(default_factory=list)
    """Tensors of class layers of the target that took the rows of some classes."""
    classes: list[str] = field(default_factory=list)
    """Which."""

    @property
    def complete(self) -> bool:
        """Whether every tensor of the target gets a value."""
        return not self.missing and not self.shape_mismatch

    def summary(self) -> str:
        """How many of the target's tensors matched and, line by line, which did not and why."""
        total = len(self.matched) + len(self.missing) + len(self.shape_mismatch)
        lines = [f"{len(self.matched)} of {total} tensors matched"]
        if self.missing:
            lines.append(f"  {len(self.missing)} not in the source: {_shortened(self.missing)}")
        shapes = [
            f"{name} {list(source)} → {list(target)}"
            for name, source, target in self.shape_mismatch
            if name not in self.carried
        ]
        if shapes:
            lines.append(f"  {len(shapes)} of another shape (source → target): {_shortened(shapes)}")
        if self.classes:
            layers = {name.rpartition(".")[0] for name in self.carried}
            lines.append(f"  {len(layers)} class layers know of the source: {_shortened(self.classes)}")
        if self.unexpected:
            lines.append(
                f"  {len(self.unexpected)} only in the source, not used: {_shortened(self.unexpected)}"
            )
        return "\n".join(lines)


def match_state_dict(source: dict[str, Tensor], target: dict[str, Tensor]) -> MatchReport:
    """Compare two state dicts by name and shape; loads nothing.

    Raises:
        CheckpointError: a tensor of the source holds NaN or infinity.
    """
    _check_finite(source)
    matched, mismatched = [], []
    for name, tensor in target.items():
        if name not in source:
            continue
        if source[name].shape == tensor.shape:
            matched.append(name)
        else:
            mismatched.append((name, tuple(source[name].shape), tuple(tensor.shape)))
    missing = [name for name in target if name not in source]
    unexpected = [name for name in source if name not in target]
    return MatchReport(matched, missing, unexpected, mismatched)


def pack_rng_state() -> dict[str, Any]:
    """State of the random generators (Python, numpy's global one, torch on CPU and every GPU) as plain data."""
    version, words, gauss = random.getstate()
    algorithm, keys, position, has_gauss, cached = np.random.get_state(legacy=True)  # noqa: NPY002 (the state to keep)
    if algorithm != _ALGORITHM:
        raise CheckpointError(f"numpy's global generator is {algorithm}; only {_ALGORITHM} can be saved.")
    return {
        "python": {"version": version, "words": list(words), "gauss": gauss},
        "numpy": {
            "keys": torch.tensor([int(key) for key in keys], dtype=torch.int64),
            "position": int(position),
            "has_gauss": int(has_gauss),
            "cached_gaussian": float(cached),
        },
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_rng_state(state: dict[str, Any]) -> None:
    """Set the random generators as ``pack_rng_state`` found them; GPUs as far as both sides have them.

    Raises:
        CheckpointError: not such a state. Generators may then be set in part.
    """
    try:
        python, legacy = state["python"], state["numpy"]
        random.setstate((python["version"], tuple(python["words"]), python["gauss"]))
        keys = legacy["keys"].numpy().astype(np.uint32)
        np.random.set_state(  # noqa: NPY002 (augmentations use the global generator)
            (_ALGORITHM, keys, legacy["position"], legacy["has_gauss"], legacy["cached_gaussian"])
        )
        torch.set_rng_state(state["torch"])
        if torch.cuda.is_available():
            for device, device_state in zip(range(torch.cuda.device_count()), state["cuda"], strict=False):
                torch.cuda.set_rng_state(device_state, device)
    except (AttributeError, LookupError, OverflowError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"the saved random state cannot be restored ({type(error).__name__}: {error}); resume without it."
        ) from error


def _step(place: str, key: Any) -> str:
    """Where in the data one is: ``optimizer.state[3].exp_avg``."""
    if isinstance(key, str):
        return f"{place}.{key}" if place else key
    return f"{place}[{key!r}]"


def _plain(value: Any, place: str, depth: int) -> Any:
    """A copy of plain data that ``weights_only`` loading accepts; exact types, so no numpy number slips in."""
    if depth > MAX_DEPTH:
        raise ValueError(f"{place[:200]}: nested deeper than {MAX_DEPTH} levels, or it contains itself.")
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, Tensor):
        return _plain_tensor(value, place)
    if type(value) in (list, tuple):
        items = [_plain(item, _step(place, index), depth + 1) for index, item in enumerate(value)]
        return items if type(value) is list else tuple(items)
    if type(value) in (dict, OrderedDict):
        for key in value:
            if type(key) not in (str, int):
                raise TypeError(
                    f"{place}: key {key!r:.80} is a {type(key).__name__}; use text or an integer."
                )
        return {key: _plain(item, _step(place, key), depth + 1) for key, item in value.items()}
    hint = " (call .item())" if isinstance(value, np.generic) else ""
    raise TypeError(
        f"{place} is a {type(value).__module__}.{type(value).__qualname__}; a checkpoint holds only tensors, "
        f"numbers, text, None, lists, tuples and dicts{hint}."
    )


def _plain_tensor(tensor: Tensor, place: str) -> Tensor:
    """On the CPU, without gradient, and without the rest of a larger storage it may be a view of."""
    if tensor.layout != torch.strided or tensor.device.type == "meta" or tensor.is_quantized:
        raise TypeError(
            f"{place}: a {tensor.layout} tensor on {tensor.device}; only ordinary tensors are saved."
        )
    plain = tensor.detach().cpu()
    if type(plain) is not Tensor:
        plain = plain.as_subclass(Tensor)
    if plain.untyped_storage().nbytes() != plain.numel() * plain.itemsize:
        plain = plain.clone(memory_format=torch.contiguous_format)
    return plain


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """A stream to a temporary file beside ``path`` that takes its place when everything is on the disk."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.chmod(0o666 & ~_umask())  # mkstemp makes it private
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    """Make the renaming itself survive a power cut, where folders can be opened (not on Windows)."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _weights(data: dict[str, Any]) -> dict[Any, Any] | None:
    for key in ("ema", "model"):
        weights = data.get(key)
        if isinstance(weights, dict) and isinstance(weights.get("model"), dict):
            weights = weights["model"]
        if isinstance(weights, dict) and weights:
            return weights
    return None


def _check_finite(weights: dict[str, Tensor]) -> None:
    broken = [
        name
        for name, tensor in weights.items()
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all())
    ]
    if broken:
        raise CheckpointError(
            f"{len(broken)} of {len(weights)} weights hold NaN or infinity ({_shortened(broken)}); "
            "the training behind them diverged, use an earlier checkpoint."
        )


def _to_half(tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point():
        return tensor.detach().clone()
    half = tensor.detach().to(torch.float16, copy=True)
    return half if bool(torch.isfinite(half).all()) else tensor.detach().to(torch.float32, copy=True)


def _shortened(names: list[str], limit: int = 8) -> str:
    rest = len(names) - limit
    return ", ".join(names[:limit]) + (f" … and {rest} more" if rest > 0 else "")
