"""An interpreter for the part of the pickle language that ``torch.save`` writes, which executes nothing.

It imports nothing by name, calls nothing the file names and sets no attribute on anything but its own
stand-ins: objects of classes such as ``models.yolo.Model`` become inert ``PickledObject`` records. Python's
own unpickler, even with ``find_class`` restricted, still calls ``__setstate__``, sets attributes and sizes
its memo as the file says; that is why it is not used. What the records mean is ``utils.pickle_reader``'s matter.
"""

from __future__ import annotations

import math
import pickletools
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from utils.pickle_names import (
    DICT_NAMES,
    HISTORY_BUFFER,
    METHOD_NAMES,
    STORAGE_DTYPES,
    is_admitted,
    is_inert,
)
from utils.torch_archive import CheckpointError, TorchArchive

MAX_OPERATIONS = 2_000_000
"""Of a pickle; real ones have about 0.1 million per model copy."""
MAX_DIMENSIONS = 16
MAX_DIMENSION = 2**40
MAX_REPEATED_ELEMENTS = 2**24
"""Anchor grids are saved expanded (stride 0), so a tensor may be larger than its storage, up to this."""

_STORAGE_KEY = re.compile(r"[0-9]{1,20}", re.ASCII)
_INT64 = range(-(2**63), 2**64)


@dataclass(frozen=True)
class PickledName:
    """A dotted name in a pickle: a piece of text, never looked up."""

    name: str


@dataclass(eq=False)
class PickledObject:
    """Inert record of an object in a pickle: what its class is called and the data it was saved with."""

    class_name: str
    """Dotted, for example ``models.common.Conv``."""
    arguments: tuple[Any, ...] = field(default=(), repr=False)
    state: Any = field(default=None, repr=False)
    """Usually a dict of attributes."""

    def attributes(self) -> dict[Any, Any]:
        """The saved attributes; empty when the object was saved without any."""
        return self.state if isinstance(self.state, dict) else {}


def check_names(path: Path, data: bytes) -> None:
    """Refuse the whole file, before anything is built, for one name or operation that is not admitted."""
    refused: set[str] = set()
    has_log = False
    for count, (operation, argument, _) in enumerate(pickletools.genops(data)):
        if count >= MAX_OPERATIONS:
            raise CheckpointError(
                f"{path}: its pickle has more than {MAX_OPERATIONS} operations; not a checkpoint."
            )
        if operation.name == "GLOBAL":
            name = ".".join(str(argument).split(" ", 1))
            has_log |= name == HISTORY_BUFFER
            if not is_admitted(str(argument)):
                refused.add(ascii(name)[1:-1][:120])
        elif operation.name not in _OPERATIONS:
            raise CheckpointError(
                f"{path}: its pickle uses {operation.name}, which torch.save does not write (pickle protocol 2). "
                "Nothing in it was run. Save it again with plain torch.save."
            )
    if has_log:
        refused -= METHOD_NAMES
    if refused:
        names = ", ".join(f"'{name}'" for name in sorted(refused)[:10])
        raise CheckpointError(
            f"{path}: refused, because it names {names}, which no checkpoint of this kind needs. "
            "Nothing in it was run. Use a file whose origin you trust."
        )


@dataclass(frozen=True)
class _Storage:
    """Values of one archive entry, one-dimensional."""

    values: Tensor


StorageLoader = Callable[[str, torch.dtype, int], Tensor]
"""Key, type and number of elements → the values, one-dimensional; ``ValueError`` when there are not that many."""


class Interpreter:
    """Stack machine for pickle protocol 2; each method is one operation or one admitted builder."""

    def __init__(self, load_storage: StorageLoader) -> None:
        self.load_storage = load_storage
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, _Storage] = {}

    def run(self, data: bytes) -> Any:
        for operation, argument, _ in pickletools.genops(data):
            if operation.name == "STOP":
                if self.marks or len(self.stack) != 1:
                    raise ValueError("the pickle ends in the middle of an object")
                return self.stack.pop()
            _OPERATIONS[operation.name](self, argument)
        raise ValueError("the pickle does not end")

    def mark(self, _: None) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def pop_mark(self) -> list[Any]:
        items = self.stack
        self.stack = self.marks.pop()
        return items

    def fold_tuple(self) -> None:
        items = tuple(self.pop_mark())
        self.stack.append(items)

    def remember(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def integer(self, value: int) -> None:
        if value not in _INT64:
            raise ValueError("an integer of more than 64 bits")
        self.stack.append(value)

    def make_tuple(self, size: int) -> None:
        if len(self.stack) < size:
            raise ValueError("a tuple of more items than there are")
        items = tuple(self.stack[-size:])
        del self.stack[-size:]
        self.stack.append(items)

    def append(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not list:
            raise ValueError(f"an item is appended to a {type(target).__name__}")
        target.extend(items)

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not dict or len(items) % 2:
            raise ValueError(f"an item is set on a {type(target).__name__}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[_checked_key(key)] = value

    def build(self, _: None) -> None:
        """Give a stand-in its saved attributes. Attributes of an ``OrderedDict`` are dropped."""
        state = self.stack.pop()
        target = self.stack[-1]
        if type(target) is PickledObject and target.state is None:
            target.state = state
        elif type(target) is not dict:
            raise ValueError(f"a state is set on a {type(target).__name__}")

    def new_object(self, _: None) -> None:
        arguments = self.stack.pop()
        target = self.stack.pop()
        if type(target) is not PickledName or not is_inert(target.name) or type(arguments) is not tuple:
            raise ValueError("a new object of something that is not a class")
        self.stack.append(PickledObject(target.name, arguments))

    def reduce(self, _: None) -> None:
        arguments = self.stack.pop()
        target = self.stack.pop()
        if type(target) is not PickledName or type(arguments) is not tuple:
            raise ValueError("a call of something that is not a name")
        name = target.name
        if is_inert(name):
            self.stack.append(PickledObject(name, arguments))
        elif name in DICT_NAMES:
            self.stack.append(_build_dict(name, arguments))
        else:
            builder = _BUILDERS.get(name)
            if builder is None:
                raise ValueError(f"{name} is called, which only names a type")
            self.stack.append(builder(*arguments))

    def persistent(self, _: None) -> None:
        """Load a storage: ``('storage', type, key, location, number of elements)``; the location is ignored.

        Before PyTorch 1.6 there is a sixth item: of what other storage this one is a part, or None.
        """
        reference = self.stack.pop()
        if type(reference) is not tuple or len(reference) not in (5, 6) or reference[0] != "storage":
            raise ValueError("an unknown external reference")
        if len(reference) == 6 and reference[5] is not None:
            raise ValueError("a storage that is a part of another one")
        _, kind, key, location, count = reference[:5]
        if (
            type(kind) is not PickledName
            or type(key) is not str
            or type(location) is not str
            or type(count) is not int
        ):
            raise ValueError("an external reference with wrong types")
        dtype = STORAGE_DTYPES.get(kind.name)
        if dtype is None or not _STORAGE_KEY.fullmatch(key):
            raise ValueError(f"unknown storage {kind.name} {key[:40]!r}")
        if key not in self.storages:
            self.storages[key] = _Storage(self.load_storage(key, dtype, count))
        storage = self.storages[key]
        if storage.values.dtype != dtype or storage.values.numel() != count:
            raise ValueError(f"storage {key} is described in two ways")
        self.stack.append(storage)


def storages_of(archive: TorchArchive) -> StorageLoader:
    """Loads storages from the entries of an archive."""

    def load(key: str, dtype: torch.dtype, count: int) -> Tensor:
        size = archive.sizes.get(f"data/{key}")
        if count < 0 or size != count * dtype.itemsize:
            raise ValueError(f"storage {key} should have {count} elements of {dtype} and has {size} bytes")
        return values_of(archive.read(f"data/{key}"), dtype)

    return load


def values_of(data: bytes, dtype: torch.dtype) -> Tensor:
    """Saved bytes, little-endian, as a one-dimensional tensor of its own memory."""
    if not data:
        return torch.empty(0, dtype=dtype)
    if dtype is torch.bool:  # a byte other than 0 and 1 is undefined behaviour as a bool
        return torch.frombuffer(bytearray(data), dtype=torch.uint8) != 0
    return torch.frombuffer(bytearray(data), dtype=dtype)


def _checked_key(key: Any) -> Any:
    """Keys whose hash is cheap and cannot be made to collide: text and 64-bit integers."""
    if key is None or type(key) in (str, int, bool, bytes):
        return key
    raise ValueError(f"a {type(key).__name__} is used as a key")


def _build_dict(name: str, arguments: tuple[Any, ...]) -> dict[Any, Any]:
    if arguments and name != "collections.defaultdict":
        raise ValueError(f"{name} with arguments")
    return {}


def _build_set(items: Any = ()) -> set[Any]:
    if type(items) is not list and items != ():
        raise ValueError("a set of something that is not a list")
    return {_checked_key(item) for item in items}


def _build_bytes(text: Any = "", encoding: Any = "latin1") -> bytes:
    """Protocol 2 writes bytes as ``_codecs.encode(text, 'latin1')``; no other codec is admitted."""
    if type(text) is not str or encoding != "latin1":
        raise ValueError("bytes that are not written as latin1 text")
    return text.encode("latin1")


def _build_size(items: Any) -> tuple[int, ...]:
    return _checked_sizes(items)


def _build_parameter(tensor: Any, *_: Any) -> Tensor:
    if not isinstance(tensor, Tensor):
        raise ValueError("a parameter that is not a tensor")
    return tensor


def _build_method(owner: Any, name: Any) -> PickledObject:
    if type(owner) is not PickledName or owner.name != HISTORY_BUFFER or type(name) is not str:
        raise ValueError("a method of something else than a log")
    return PickledObject(f"{HISTORY_BUFFER}.{name[:80]}")


def _build_tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor:
    """A view of a storage, once it is certain that it lies inside it and is no multiple of it (beyond small grids)."""
    if not isinstance(storage, _Storage) or type(offset) is not int or offset < 0:
        raise ValueError("a tensor without storage")
    size, stride = _checked_sizes(size), _checked_sizes(stride)
    if len(size) != len(stride):
        raise ValueError("a tensor whose size and stride have different lengths")
    available = storage.values.numel()
    count = math.prod(size)
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    if count > max(available, MAX_REPEATED_ELEMENTS) or (count > 0 and last >= available):
        raise ValueError(f"a tensor of size {size} reaches beyond its storage of {available} elements")
    if count == 0:
        return torch.empty(size, dtype=storage.values.dtype)
    return storage.values.as_strided(size, stride, offset)


def _checked_sizes(items: Any) -> tuple[int, ...]:
    if type(items) is not tuple or len(items) > MAX_DIMENSIONS:
        raise ValueError("a tensor size that is not a short tuple")
    if any(type(item) is not int or not 0 <= item <= MAX_DIMENSION for item in items):
        raise ValueError("a tensor size that is not made of reasonable integers")
    return items


_BUILDERS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor_v2": _build_tensor,
    "torch._utils._rebuild_parameter": _build_parameter,
    "torch.Size": _build_size,
    "_codecs.encode": _build_bytes,
    "__builtin__.set": _build_set,
    "builtins.set": _build_set,
    "__builtin__.bytes": _build_bytes,
    "builtins.bytes": _build_bytes,
    "__builtin__.getattr": _build_method,
    "builtins.getattr": _build_method,
}

_OPERATIONS: dict[str, Callable[[Interpreter, Any], None]] = {
    "PROTO": lambda machine, _: None,
    "STOP": lambda machine, _: None,
    "MARK": Interpreter.mark,
    "NONE": lambda machine, _: machine.stack.append(None),
    "NEWTRUE": lambda machine, _: machine.stack.append(True),
    "NEWFALSE": lambda machine, _: machine.stack.append(False),
    "EMPTY_DICT": lambda machine, _: machine.stack.append({}),
    "EMPTY_LIST": lambda machine, _: machine.stack.append([]),
    "EMPTY_TUPLE": lambda machine, _: machine.stack.append(()),
    "BININT": Interpreter.integer,
    "BININT1": Interpreter.integer,
    "BININT2": Interpreter.integer,
    "LONG1": Interpreter.integer,
    "BINFLOAT": lambda machine, value: machine.stack.append(value),
    "BINUNICODE": lambda machine, text: machine.stack.append(text),
    "BINPUT": Interpreter.remember,
    "LONG_BINPUT": Interpreter.remember,
    "BINGET": lambda machine, index: machine.stack.append(machine.memo[index]),
    "LONG_BINGET": lambda machine, index: machine.stack.append(machine.memo[index]),
    "TUPLE": lambda machine, _: machine.fold_tuple(),
    "TUPLE1": lambda machine, _: machine.make_tuple(1),
    "TUPLE2": lambda machine, _: machine.make_tuple(2),
    "TUPLE3": lambda machine, _: machine.make_tuple(3),
    "APPEND": lambda machine, _: machine.append([machine.stack.pop()]),
    "APPENDS": lambda machine, _: machine.append(machine.pop_mark()),
    "SETITEM": lambda machine, _: machine.set_items([machine.stack.pop(-2), machine.stack.pop()]),
    "SETITEMS": lambda machine, _: machine.set_items(machine.pop_mark()),
    "GLOBAL": lambda machine, name: machine.stack.append(PickledName(name.replace(" ", ".", 1))),
    "REDUCE": Interpreter.reduce,
    "NEWOBJ": Interpreter.new_object,
    "BUILD": Interpreter.build,
    "BINPERSID": Interpreter.persistent,
}
