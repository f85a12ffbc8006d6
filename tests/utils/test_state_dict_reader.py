"""State dicts of other software, in today's form of torch.save and in that before 1.6; nothing in them is run."""

from __future__ import annotations

import io
import os
import pickle
import pickletools
import struct
import sys
import types
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from utils.legacy_file import is_legacy, open_legacy
from utils.pickle_reader import PickledObject, read_pickled_checkpoint
from utils.state_dict_reader import find_state_dict, read_pickled_state_dict
from utils.torch_archive import CheckpointError

FORMS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before 1.6"])


def write(path: Path, content: Any, zipped: bool = False) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return path


@pytest.fixture
def state() -> dict[str, Tensor]:
    """Of a small network, with types that real files have."""
    network = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4))
    return OrderedDict(network.state_dict())


# --- what is read --------------------------------------------------------------------------------------------


@FORMS
@pytest.mark.parametrize("place", ["state_dict", "model", None])
def test_where_programs_keep_it(
    tmp_path: Path, state: dict[str, Tensor], place: str | None, zipped: bool
) -> None:
    content = state if place is None else {"epoch": 3, place: state, "optimizer": {"lr": 0.1}}
    found = read_pickled_state_dict(write(tmp_path / "file.pth", content, zipped))
    assert list(found) == list(state)
    for name, tensor in state.items():
        assert torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype


@FORMS
def test_types_views_and_wrappers(tmp_path: Path, zipped: bool) -> None:
    shared = torch.arange(12.0)
    content = {
        "module.half": torch.tensor([1.5, -2.0], dtype=torch.float16),
        "module.brain": torch.tensor([0.5], dtype=torch.bfloat16),
        "module.double": torch.tensor([0.1], dtype=torch.float64),
        "module.count": torch.tensor(7),
        "module.flags": torch.tensor([True, False]),
        "module.empty": torch.empty(0, 3),
        "module.first": shared[:4],
        "module.second": shared.view(3, 4).T,
        "module.parameter": nn.Parameter(torch.ones(2)),
        "steps": torch.tensor(5),
    }
    found = read_pickled_state_dict(write(tmp_path / "file.pth", content, zipped))
    assert list(found) == [name.removeprefix("module.") for name in content]
    assert {k for k, v in found.items() if v.dtype == torch.float32} == set(found) - {
        "count",
        "flags",
        "steps",
    }
    assert found["half"].tolist() == [1.5, -2.0] and found["brain"].tolist() == [0.5]
    assert found["double"].tolist() == [pytest.approx(0.1)] and found["flags"].tolist() == [True, False]
    assert found["empty"].shape == (0, 3) and found["second"].tolist() == shared.view(3, 4).T.tolist()
    assert found["second"].is_contiguous() and not found["parameter"].requires_grad
    found["first"].zero_()
    assert found["second"][1, 0] == 1, "no memory is shared"


@FORMS
def test_whole_networks_are_still_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zipped: bool
) -> None:
    module = types.ModuleType("models.yolo")
    module.Model = type("Model", (), {"__module__": "models.yolo"})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "models.yolo", module)
    path = write(tmp_path / "file.pt", {"epoch": 1, "model": module.Model()}, zipped)
    checkpoint = read_pickled_checkpoint(path)
    assert isinstance(checkpoint["model"], PickledObject) and find_state_dict(checkpoint) is None
    with pytest.raises(CheckpointError, match=r"file\.pt: no state dict under .* \(it has epoch, model\)"):
        read_pickled_state_dict(path)


# --- what is refused -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content,message",
    [
        ({"state_dict": {"a": torch.zeros(1), "b": 3}}, "b in the state dict is no tensor"),
        ({"state_dict": {"a": torch.zeros(1), 5: torch.zeros(1)}}, "5 in the state dict is no name"),
        ({"state_dict": {"a b": torch.zeros(1)}}, "'a b' in the state dict is no name"),
        ({"state_dict": {"a": torch.zeros(1), "module.a": torch.zeros(1)}}, r"module\.a .* occurs twice"),
        ({"a": torch.tensor([float("nan")])}, "a holds NaN or infinity"),
        ({"epoch": 3, "state_dict": {}}, "no state dict .*it has epoch, state_dict"),
        ({}, "it has nothing"),
        ([torch.zeros(1)], "holds a list"),
    ],
)
@FORMS
def test_what_is_no_state_dict(tmp_path: Path, content: Any, message: str, zipped: bool) -> None:
    path = write(tmp_path / "file.pth", content, zipped)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_pickled_state_dict(path)
    assert str(path) in str(caught.value)


def test_absurd_sizes(monkeypatch: pytest.MonkeyPatch, state: dict[str, Tensor]) -> None:
    monkeypatch.setattr("utils.state_dict_reader.MAX_TENSORS", 5)
    with pytest.raises(CheckpointError, match="a state dict of 6 entries"):
        find_state_dict(state)
    monkeypatch.setattr("utils.state_dict_reader.MAX_TENSORS", 6)
    monkeypatch.setattr("utils.state_dict_reader.MAX_PARAMETERS", 100)
    with pytest.raises(CheckpointError, match="more than 100 values"):
        find_state_dict(state)


class Reduced:
    """Pickles as a call."""

    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> Any:
        return self.call[0], self.call[1:]


@FORMS
@pytest.mark.parametrize("where", ["meta", "state_dict"])
def test_a_call_is_refused_by_name_before_anything_is_built(tmp_path: Path, where: str, zipped: bool) -> None:
    marker = tmp_path / "ran"
    content: dict[str, Any] = {"meta": {}, "state_dict": {"a": torch.zeros(3)}}
    content[where]["x"] = Reduced(os.system, f"touch {marker}")
    path = write(tmp_path / "file.pth", content, zipped)
    with pytest.raises(CheckpointError, match=r"names '(posix|nt)\.system'") as caught:
        read_pickled_state_dict(path)
    assert "Nothing in it was run" in str(caught.value) and not marker.exists()


# --- OpenMMLab's logs ----------------------------------------------------------------------------------------


@pytest.fixture
def buffer(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The class of OpenMMLab's logs, as far as a pickle knows it."""
    name = "mmengine.logging.history_buffer"
    for part in ("mmengine", "mmengine.logging", name):
        monkeypatch.setitem(sys.modules, part, types.ModuleType(part))
    kind = type("HistoryBuffer", (), {"__module__": name, "mean": lambda self: 0})
    kind.mean.__qualname__, kind.mean.__module__ = "HistoryBuffer.mean", name  # type: ignore[attr-defined]
    sys.modules[name].HistoryBuffer = kind  # type: ignore[attr-defined]
    return kind


def test_logs_and_their_methods_are_inert(tmp_path: Path, buffer: Any) -> None:
    log = buffer()
    log.max_length, log.methods = 10, {"mean": buffer.mean}
    path = write(tmp_path / "file.pth", {"state_dict": {"a": torch.zeros(1)}, "log": log}, zipped=True)
    assert b"getattr" in path.read_bytes()
    found = read_pickled_checkpoint(path)["log"]
    assert isinstance(found, PickledObject) and found.class_name.endswith(".HistoryBuffer")
    assert found.attributes()["max_length"] == 10
    method = found.attributes()["methods"]["mean"]
    assert isinstance(method, PickledObject) and method.class_name.endswith(".HistoryBuffer.mean")


def test_other_names_of_that_package_are_refused(tmp_path: Path, buffer: Any) -> None:
    other = type("Runner", (), {"__module__": "mmengine.logging.history_buffer"})
    sys.modules["mmengine.logging.history_buffer"].Runner = other  # type: ignore[attr-defined]
    path = write(tmp_path / "file.pth", {"state_dict": {"a": torch.zeros(1)}, "x": other()}, zipped=True)
    with pytest.raises(CheckpointError, match=r"names 'mmengine\.logging\.history_buffer\.Runner'"):
        read_pickled_state_dict(path)


def test_getattr_reaches_nothing_else(tmp_path: Path, buffer: Any) -> None:
    """Of a text, in a file that holds a log; without a log the name alone is refused."""
    content = {"state_dict": {"a": torch.zeros(1)}, "x": Reduced(getattr, "text", "upper")}
    with pytest.raises(CheckpointError, match=r"names '(__builtin__|builtins)\.getattr'"):
        read_pickled_state_dict(write(tmp_path / "without.pth", content, zipped=True))
    path = write(tmp_path / "with.pth", content | {"log": buffer()}, zipped=True)
    with pytest.raises(CheckpointError, match="a method of something else than a log"):
        read_pickled_state_dict(path)


# --- the old form of torch.save ------------------------------------------------------------------------------


def test_the_form_is_recognised_by_its_first_bytes(tmp_path: Path, state: dict[str, Tensor]) -> None:
    assert is_legacy(write(tmp_path / "old.pth", state))
    assert not is_legacy(write(tmp_path / "new.pth", state, zipped=True))
    (tmp_path / "empty").write_bytes(b"")
    assert not is_legacy(tmp_path / "empty")
    with pytest.raises(CheckpointError, match="no such file"):
        is_legacy(tmp_path / "missing.pth")
    with pytest.raises(CheckpointError, match="a folder"):
        is_legacy(tmp_path)


def test_every_truncation_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.pth", {"a": torch.arange(3.0), "b": torch.arange(2)}).read_bytes()
    path = tmp_path / "cut.pth"
    for length in range(15, len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"cut\.pth"):
            read_pickled_state_dict(path)


def test_changed_bytes_give_an_error_or_a_state_dict(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.pth", {"a": torch.arange(3.0), "b": torch.arange(2)}).read_bytes()
    path = tmp_path / "changed.pth"
    refused = 0
    for position in range(len(whole)):
        for bit in (0x01, 0x80):
            data = bytearray(whole)
            data[position] ^= bit
            path.write_bytes(data)
            try:
                read_pickled_state_dict(path)
            except CheckpointError:
                refused += 1
    assert refused > len(whole)


def pickled(value: Any) -> bytes:
    stream = io.BytesIO()
    pickle.Pickler(stream, protocol=2).dump(value)
    return stream.getvalue()


def parts_of(path: Path) -> tuple[list[bytes], bytes]:
    """The five pickles of a file, and its storages."""
    data, pickles = path.read_bytes(), []
    stream = io.BytesIO(data)
    for _ in range(5):
        start = stream.tell()
        for _ in pickletools.genops(stream):
            pass
        pickles.append(data[start : stream.tell()])
    return pickles, data[stream.tell() :]


SYSTEM = {"protocol_version": 1001, "little_endian": False}


@pytest.mark.parametrize(
    "index,replacement,message",
    [
        (1, pickled(1002), "unknown version 1002"),
        (2, pickled(SYSTEM), "big-endian"),
        (2, pickled({"protocol_version": 1001}), "damaged"),
        (4, pickled([]), "not in the file"),
        (4, pickled(["1", "2"]), "not in the file"),
        (4, pickled({"1": 2}), "EMPTY_DICT in the list of storages"),
    ],
)
def test_headers_that_do_not_fit(tmp_path: Path, index: int, replacement: bytes, message: str) -> None:
    pickles, storages = parts_of(write(tmp_path / "file.pth", {"a": torch.arange(3.0)}))
    assert struct.unpack("<q3f", storages) == (3, 0, 1, 2)
    pickles[index] = replacement
    (tmp_path / "file.pth").write_bytes(b"".join(pickles) + storages)
    with pytest.raises(CheckpointError, match=message):
        read_pickled_state_dict(tmp_path / "file.pth")


def test_storages_that_do_not_fit(tmp_path: Path) -> None:
    path = write(tmp_path / "file.pth", {"a": torch.arange(3.0)})
    pickles, storages = parts_of(path)
    key = pickle.loads(pickles[4])[0]
    for keys, behind, message in (
        ([key, "77"], storages * 2, "the list of storages is not that of the contents"),
        ([key, f"{key} "[:-1]], storages * 2, "the list of storages is not that of the contents"),
        ([key], struct.pack("<q3f", 4, 0, 1, 2), "should have 3 elements and has 4"),
    ):
        path.write_bytes(b"".join(pickles[:4]) + pickled(keys) + behind)
        with pytest.raises(CheckpointError, match=message):
            read_pickled_state_dict(path)


def test_a_storage_that_is_a_part_of_another_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "file.pth", {"a": torch.arange(3.0)})
    pickles, storages = parts_of(path)
    # The sixth item of the reference is None; a text in its place.
    changed = pickles[3].replace(b"Ntq", b"X\x01\x00\x00\x00vtq", 1)
    assert changed != pickles[3]
    path.write_bytes(b"".join((*pickles[:3], changed, pickles[4])) + storages)
    with pytest.raises(CheckpointError, match="a part of another one"):
        read_pickled_state_dict(path)


def test_a_storage_larger_than_the_file_is_refused_before_memory_is_taken(tmp_path: Path) -> None:
    path = write(tmp_path / "file.pth", {"a": torch.arange(3.0)})
    pickles, storages = parts_of(path)
    changed = pickles[3].replace(b"K\x03N", b"J" + struct.pack("<i", 2**31 - 1) + b"N", 1)
    assert changed != pickles[3]
    path.write_bytes(b"".join((*pickles[:3], changed, pickles[4])) + storages)
    with pytest.raises(CheckpointError, match="2147483647 elements of torch.float32 is not in the file"):
        read_pickled_state_dict(path)


def test_a_pickle_that_is_too_long_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "file.pth", {f"name{k}": torch.zeros(1) for k in range(50)})
    monkeypatch.setattr("utils.legacy_file.MAX_PICKLE_BYTES", 1000)
    with pytest.raises(CheckpointError, match="too long for a checkpoint"), open_legacy(path):
        pass
    monkeypatch.setattr("utils.legacy_file.MAX_ARCHIVE_BYTES", 1000)
    with pytest.raises(CheckpointError, match="more than 1000"), open_legacy(path):
        pass
