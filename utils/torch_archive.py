"""The outer shell of a ``torch.save`` file: a zip archive of one pickle and one entry per storage.

Opens, checks and reads the bytes. It interprets nothing: no pickle is executed here and no tensor is built
(see ``utils.pickle_reader`` for foreign files and ``utils.checkpoint`` for our own).
"""

from __future__ import annotations

import contextlib
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

MAX_ARCHIVE_BYTES = 4 * 1024**3
"""No detector of this kind comes near 4 GiB; more is a mistake or an attack on the memory."""
MAX_PICKLE_BYTES = 16 * 1024**2
"""Real ones are 0.1–2 MB: the pickle names tensors but does not hold their values."""

MALFORMED_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
    zipfile.BadZipFile,
    zipfile.LargeZipFile,
    zlib.error,
)
"""What the standard library and torch raise on damaged bytes; each becomes a ``CheckpointError``."""

_ZIP_START = b"PK\x03\x04"
LEGACY_START = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"  # torch.save before 1.6
_ENCRYPTED_FLAG = 0x1


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be used; the message says which file, what was found and what to do."""


@dataclass(frozen=True)
class TorchArchive:
    """An open, structurally checked archive: sizes add up, nothing is compressed, no name occurs twice."""

    path: Path
    root: str
    """The folder inside the archive, without a slash; ``torch.save`` names it after the file."""
    archive: zipfile.ZipFile
    sizes: dict[str, int]
    """Bytes of each entry, by its name relative to ``root``."""

    def read(self, name: str) -> bytes:
        """The bytes of an entry (name relative to ``root``), its checksum verified.

        Raises:
            CheckpointError: no such entry, wrong length or wrong checksum.
        """
        if name not in self.sizes:
            raise CheckpointError(
                f"{self.path}: the archive has no entry {name!r}; download or save it again."
            )
        try:
            data = self.archive.read(f"{self.root}/{name}")
        except MALFORMED_ERRORS as error:
            raise damaged(self.path, f"entry {name!r}: {error}") from error
        if len(data) != self.sizes[name]:
            raise damaged(self.path, f"entry {name!r} has {len(data)} of {self.sizes[name]} bytes")
        return data

    def read_pickle(self) -> bytes:
        """The bytes of ``data.pkl``, uninterpreted; ``CheckpointError`` when it is too large."""
        size = self.sizes["data.pkl"]
        if size > MAX_PICKLE_BYTES:
            raise CheckpointError(
                f"{self.path}: its pickle has {size} bytes, more than {MAX_PICKLE_BYTES}; no detector needs that."
            )
        return self.read("data.pkl")

    def verify(self) -> None:
        """Read every entry once and compare its checksum; ``CheckpointError`` names the first bad entry."""
        try:
            bad_entry = self.archive.testzip()
        except MALFORMED_ERRORS as error:
            raise damaged(self.path, str(error)) from error
        if bad_entry is not None:
            raise damaged(self.path, f"the checksum of entry {bad_entry!r} is wrong")


def damaged(path: Path, detail: str) -> CheckpointError:
    """The error for a file that began well and is broken further on."""
    return CheckpointError(
        f"{path}: truncated or damaged checkpoint ({detail[:300]}). Download or save it again."
    )


@contextlib.contextmanager
def open_archive(path: str | Path) -> Iterator[TorchArchive]:
    """Open a ``torch.save`` archive and check its structure.

    Raises:
        CheckpointError: missing, not a regular file, not such an archive (the message says what it is
            instead), truncated, compressed, larger than ``MAX_ARCHIVE_BYTES``.
    """
    path = Path(path)
    with contextlib.ExitStack() as stack:
        try:
            stream = stack.enter_context(open_regular_file(path))
            file_size = os.fstat(stream.fileno()).st_size
            start = stream.read(512)
            if not start.startswith(_ZIP_START):
                raise CheckpointError(f"{path}: {_describe_other_format(start)}")
            archive = stack.enter_context(zipfile.ZipFile(stream))
            opened = _check_structure(path, archive, file_size)
        except CheckpointError:
            raise
        except MALFORMED_ERRORS as error:
            raise damaged(path, str(error)) from error
        yield opened


def open_regular_file(path: Path) -> BinaryIO:
    """Open for reading what is, after following links, an ordinary file (a pipe would block for ever)."""
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            kind = "a folder" if stat.S_ISDIR(mode) else "not an ordinary file"
            raise CheckpointError(f"{path}: {kind}; give the path of a .pt file.")
        return path.open("rb")
    except FileNotFoundError as error:
        target = f" (a link to {str(path.readlink())!r}, which is gone)" if path.is_symlink() else ""
        raise CheckpointError(
            f"{path}: no such file{target}; give the path of an existing .pt file."
        ) from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be opened ({error}).") from error


def _describe_other_format(start: bytes) -> str:
    """What a file that is no zip archive is, from its first bytes, and what to do about it."""
    text_start = start.lstrip().lower()
    if not start:
        return "the file is empty. Download or save it again."
    if start.startswith(LEGACY_START):
        return (
            "written by torch.save of PyTorch before 1.6 (no zip archive), as checkpoints of this project never are. "
            "Convert it with `python scripts/model_convert.py` first."
        )
    if start.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the weights themselves. Fetch them with `git lfs pull`."
    if text_start.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page, not a checkpoint: the download went wrong. Download it again."
    if start[0] == 0x80:
        return "a bare pickle, not a torch.save archive; such files are not read. Save it with torch.save."
    if start[8:9] == b"{":
        return "looks like a safetensors file; give a .pt file."
    if all(byte >= 0x20 or byte in b"\t\n\r" for byte in start):
        return "a text file, not a checkpoint. Give a .pt file written by torch.save."
    return f"not a torch.save archive (it starts with {start[:4].hex(' ')}). Give a .pt file."


def _check_structure(path: Path, archive: zipfile.ZipFile, file_size: int) -> TorchArchive:
    """Names, sizes and storage method of all entries; nothing is read yet."""
    entries = archive.infolist()
    for entry in entries:
        if entry.flag_bits & _ENCRYPTED_FLAG or entry.compress_type != zipfile.ZIP_STORED:
            raise CheckpointError(
                f"{path}: entry {entry.filename[:80]!r} is compressed or encrypted, which torch.save never does. "
                "Use the file as it was written."
            )
        if entry.file_size != entry.compress_size:
            raise damaged(path, f"entry {entry.filename[:80]!r} has contradicting sizes")
    total = sum(entry.file_size for entry in entries)
    if total > min(MAX_ARCHIVE_BYTES, file_size):
        raise CheckpointError(
            f"{path}: its entries add up to {total} bytes (the file has {file_size}, the limit is "
            f"{MAX_ARCHIVE_BYTES}); not a genuine checkpoint."
        )
    names = [entry.filename for entry in entries]
    if len(set(names)) != len(names):
        raise damaged(path, "an entry name occurs twice")
    pickles = [name for name in names if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(pickles) != 1:
        raise CheckpointError(
            f"{path}: a zip archive, but not one of torch.save (it has no single data.pkl)."
        )
    root = pickles[0].split("/")[0]
    if f"{root}/constants.pkl" in names:
        raise CheckpointError(f"{path}: a TorchScript export; give the checkpoint it was exported from.")
    prefix = f"{root}/"
    sizes = {
        entry.filename.removeprefix(prefix): entry.file_size
        for entry in entries
        if entry.filename.startswith(prefix)
    }
    return TorchArchive(path, root, archive, sizes)
