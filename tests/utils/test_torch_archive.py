"""What is no torch.save archive is refused with a sentence that says what it is instead."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import pytest
import torch

from utils import torch_archive
from utils.torch_archive import CheckpointError, open_archive

LEGACY_START = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03."


@pytest.fixture
def genuine(tmp_path: Path) -> Path:
    """A file from torch.save."""
    path = tmp_path / "genuine.pt"
    torch.save({"weight": torch.arange(100.0)}, path)
    return path


def rewritten(source: Path, target: Path, compression: int = zipfile.ZIP_STORED, **extra: bytes) -> Path:
    """The same entries in a new archive."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", compression) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
        for name, data in extra.items():
            new.writestr(f"genuine/{name}", data)
    return target


def test_entries_and_sizes(genuine: Path) -> None:
    with open_archive(genuine) as archive:
        archive.verify()
        assert archive.root == "genuine"
        assert archive.sizes["data/0"] == 400 and len(archive.read("data/0")) == 400
        assert archive.read_pickle().startswith(b"\x80\x02")
        with pytest.raises(CheckpointError, match="no entry 'data/1'"):
            archive.read("data/1")


def test_a_link_to_a_file_is_followed(genuine: Path, tmp_path: Path) -> None:
    (tmp_path / "link.pt").symlink_to(genuine)
    with open_archive(str(tmp_path / "link.pt")) as archive:
        assert archive.sizes["data/0"] == 400


@pytest.mark.parametrize(
    "content,message",
    [
        (b"", "empty"),
        (b"just some words\n", "a text file"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (LEGACY_START, r"before 1\.6"),
        (b"\x80\x04}.", "a bare pickle"),
        (b"\x20\x00\x00\x00\x00\x00\x00\x00{}", "safetensors"),
        (b"\x00\x01\x02\x03\xff", "starts with 00 01 02 03"),
        (b"PK\x03\x04", "truncated or damaged"),
    ],
)
def test_other_contents(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "file.pt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as caught, open_archive(path):
        pass
    assert str(path) in str(caught.value)


def test_the_old_format_of_torch_is_recognised(tmp_path: Path) -> None:
    path = tmp_path / "old.pt"
    torch.save({"weight": torch.zeros(3)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match=r"before 1\.6"), open_archive(path):
        pass


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    (tmp_path / "link.pt").symlink_to(tmp_path / "gone.pt")
    os.mkfifo(tmp_path / "pipe.pt")
    for name, message in (
        ("missing.pt", "no such file;"),
        ("link.pt", "which is gone"),
        ("", "a folder"),
        ("pipe.pt", "not an ordinary file"),
        ("nul\0byte.pt", "cannot be opened"),
        ("x" * 5000, "cannot be opened"),
    ):
        with pytest.raises(CheckpointError, match=message), open_archive(tmp_path / name):
            pass


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_truncated(genuine: Path, share: float) -> None:
    data = genuine.read_bytes()
    genuine.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(CheckpointError, match="truncated or damaged"), open_archive(genuine):
        pass


def test_a_wrong_byte_in_a_tensor_is_found(genuine: Path) -> None:
    data = bytearray(genuine.read_bytes())
    with zipfile.ZipFile(genuine) as archive:
        values = archive.read("genuine/data/0")
    data[data.index(values) + 17] ^= 0x40
    genuine.write_bytes(data)
    with open_archive(genuine) as archive:
        with pytest.raises(CheckpointError, match="checksum"):
            archive.verify()
        with pytest.raises(CheckpointError, match="damaged"):
            archive.read("data/0")


def test_archives_that_torch_does_not_write(genuine: Path, tmp_path: Path) -> None:
    target = tmp_path / "other.pt"
    with pytest.raises(CheckpointError, match="compressed"), open_archive(rewritten(genuine, target, 8)):
        pass
    with (
        pytest.raises(CheckpointError, match="TorchScript"),
        open_archive(rewritten(genuine, target, **{"constants.pkl": b""})),
    ):
        pass
    with pytest.warns(UserWarning, match="Duplicate"):
        rewritten(genuine, target, **{"data.pkl": b""})
    with pytest.raises(CheckpointError, match="occurs twice"), open_archive(target):
        pass
    with zipfile.ZipFile(target, "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(CheckpointError, match="not one of torch.save"), open_archive(target):
        pass


def test_entries_that_claim_more_than_the_file_has(tmp_path: Path) -> None:
    """Many directory records of one piece of data: the way to make a small file unpack to terabytes."""
    path = tmp_path / "bomb.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", b"x" * 1000)
        first = archive.infolist()[0]
        for number in range(100):
            twin = zipfile.ZipInfo(f"a/data/{number}")
            twin.file_size = twin.compress_size = first.file_size
            twin.CRC, twin.header_offset = first.CRC, first.header_offset
            archive.filelist.append(twin)
    with pytest.raises(CheckpointError, match="add up to 101000 bytes"), open_archive(path):
        pass


def test_limits_on_size(genuine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch, open_archive(genuine) as archive:
        patch.setattr(torch_archive, "MAX_PICKLE_BYTES", 10)
        with pytest.raises(CheckpointError, match="its pickle has"):
            archive.read_pickle()
    monkeypatch.setattr(torch_archive, "MAX_ARCHIVE_BYTES", 100)
    with pytest.raises(CheckpointError, match="the limit is 100"), open_archive(genuine):
        pass
