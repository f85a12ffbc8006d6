"""The outer shell of a ``torch.save`` file of PyTorch before 1.6: pickles one after the other, then the storages.

Finds the parts and reads the bytes; the pickle of the contents is executed by nobody (see ``utils.pickle_interpreter``).
What is written today is a zip archive: see ``utils.torch_archive``.
"""

from __future__ import annotations

import contextlib
import os
import pickletools
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from utils.pickle_interpreter import MAX_OPERATIONS, values_of
from utils.torch_archive import (
    LEGACY_START,
    MALFORMED_ERRORS,
    MAX_ARCHIVE_BYTES,
    MAX_PICKLE_BYTES,
    CheckpointError,
    damaged,
    open_regular_file,
)

PROTOCOL_VERSION = 1001
_PUTS = {"BINPUT", "LONG_BINPUT"}
_LIST_OPERATIONS = _PUTS | {"PROTO", "EMPTY_LIST", "MARK", "BINUNICODE", "APPEND", "APPENDS", "STOP"}


def is_legacy(path: str | Path) -> bool:
    """Whether a file is of this form, by its first bytes.

    Raises:
        CheckpointError: missing, or not an ordinary file.
    """
    with open_regular_file(Path(path)) as stream:
        return stream.read(len(LEGACY_START)) == LEGACY_START


@dataclass
class LegacyFile:
    """An open file whose storages lie behind its pickle, so that tensors are made first and filled later."""

    path: Path
    stream: BinaryIO
    """At the first storage."""
    pickled: bytes
    """Of the contents, uninterpreted."""
    keys: list[str]
    """Of the storages, in the order in which they lie in the file."""
    remaining: int
    """Bytes that promised storages may still have in all."""
    promised: dict[str, Tensor] = field(default_factory=dict)

    def promise(self, key: str, dtype: torch.dtype, count: int) -> Tensor:
        """A storage's tensor, with values from `fill` on; ``ValueError`` when the file cannot hold it."""
        self.remaining -= max(count, 0) * dtype.itemsize
        if count < 0 or self.remaining < 0 or key not in self.keys:
            raise ValueError(f"storage {key} of {count} elements of {dtype} is not in the file")
        self.promised[key] = torch.empty(count, dtype=dtype)
        return self.promised[key]

    def fill(self) -> None:
        """Read the values of all promised storages; ``ValueError`` when the file holds others."""
        if len(set(self.keys)) != len(self.keys) or set(self.keys) != set(self.promised):
            raise ValueError("the list of storages is not that of the contents")
        for key in self.keys:
            values = self.promised[key]
            (count,) = struct.unpack("<q", self.stream.read(8))
            if count != values.numel():
                raise ValueError(f"storage {key} should have {values.numel()} elements and has {count}")
            data = self.stream.read(count * values.itemsize)
            if len(data) != count * values.itemsize:
                raise ValueError(f"storage {key} ends after {len(data)} of {count * values.itemsize} bytes")
            values.copy_(values_of(data, values.dtype))


@contextlib.contextmanager
def open_legacy(path: str | Path) -> Iterator[LegacyFile]:
    """Open such a file and find its parts.

    Raises:
        CheckpointError: not such a file, truncated, written on a big-endian machine, or larger than
            ``MAX_ARCHIVE_BYTES``.
    """
    path = Path(path)
    with open_regular_file(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        if size > MAX_ARCHIVE_BYTES:
            raise CheckpointError(
                f"{path}: {size} bytes, more than {MAX_ARCHIVE_BYTES}; no detector needs that."
            )
        try:
            _check_header(path, stream)
            pickled = _next_pickle(stream)
            keys = _read_keys(_next_pickle(stream))
        except MALFORMED_ERRORS as error:
            if isinstance(error, CheckpointError):
                raise
            raise damaged(path, f"{type(error).__name__}: {error}") from error
        yield LegacyFile(path, stream, pickled, keys, size)


def _check_header(path: Path, stream: BinaryIO) -> None:
    """Magic number, version of the form, and what kind of machine wrote it."""
    if not _next_pickle(stream).startswith(LEGACY_START):
        raise CheckpointError(f"{path}: not a torch.save file of PyTorch before 1.6.")
    version = [
        argument for _, argument, _ in pickletools.genops(_next_pickle(stream)) if argument is not None
    ]
    if version[-1] != PROTOCOL_VERSION:
        raise CheckpointError(f"{path}: an unknown version {version[-1]} of the old form of torch.save.")
    system = [
        (operation.name, argument)
        for operation, argument, _ in pickletools.genops(_next_pickle(stream))
        if operation.name not in _PUTS
    ]
    at = system.index(("BINUNICODE", "little_endian"))
    if system[at + 1][0] != "NEWTRUE":
        raise CheckpointError(f"{path}: saved on a big-endian machine, which is not supported.")


def _next_pickle(stream: BinaryIO) -> bytes:
    """The bytes of the pickle that begins here, its operations read but not executed."""
    start = stream.tell()
    for count, _ in enumerate(pickletools.genops(stream)):
        if count > MAX_OPERATIONS or stream.tell() - start > MAX_PICKLE_BYTES:
            raise ValueError("a pickle that is too long for a checkpoint")
    size = stream.tell() - start
    stream.seek(start)
    return stream.read(size)


def _read_keys(pickled: bytes) -> list[str]:
    """The list of texts that a pickle is."""
    keys = []
    for operation, argument, _ in pickletools.genops(pickled):
        if operation.name not in _LIST_OPERATIONS:
            raise ValueError(f"{operation.name} in the list of storages")
        if operation.name == "BINUNICODE":
            keys.append(str(argument))
    return keys
