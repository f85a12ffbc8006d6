"""Our own checkpoints: whole or not at all, plain data only, and every failure said in a sentence."""

from __future__ import annotations

import hashlib
import os
import random
import stat
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from utils import checkpoint as checkpoint_module
from utils.checkpoint import (
    CheckpointError,
    is_own_format,
    load_checkpoint,
    match_state_dict,
    pack_rng_state,
    restore_rng_state,
    save_checkpoint,
    sha256_of,
    strip_checkpoint,
)

FULL_FUZZ = bool(os.environ.get("ESOD_FULL_FUZZ"))


def assert_same(found: Any, expected: Any) -> None:
    """Equal in type, shape and value, all the way down."""
    assert type(found) is type(expected)
    if isinstance(expected, torch.Tensor):
        torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
    elif isinstance(expected, dict):
        assert list(found) == list(expected)
        for key in expected:
            assert_same(found[key], expected[key])
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    else:
        assert found == expected


def small_network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


def training_data() -> dict[str, Any]:
    """What a training run saves."""
    network = small_network()
    optimizer = torch.optim.AdamW(network.parameters())
    network(torch.rand(2, 3, 8, 8)).sum().backward()
    optimizer.step()
    return {
        "model": network.state_dict(),
        "ema": {"model": {name: value + 1 for name, value in network.state_dict().items()}, "updates": 3},
        "optimizer": optimizer.state_dict(),
        "config": {"nc": 2, "anchors": [[[10, 13]]], "seeker": None, "sparse": False, "width": 0.5},
        "names": ["car", "bus"],
        "provenance": {"commit": "abc"},
        "epoch": 3,
        "rng": pack_rng_state(),
    }


# --- saving and loading ---------------------------------------------------------------------------------------


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "last.pt"
    data = training_data()
    save_checkpoint(path, data)
    loaded = load_checkpoint(path)
    expected = {**data, "model": dict(data["model"])}
    assert_same(loaded, expected)
    assert is_own_format(path)
    save_checkpoint(path, loaded)  # over the file that the tensors are mapped from
    assert_same(load_checkpoint(path), expected)


def test_plain_torch_reads_the_file(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "file.pt", {"epoch": 3})
    content = torch.load(tmp_path / "file.pt", weights_only=True)
    assert content == {"format": "esod", "version": 1, "epoch": 3}


@pytest.mark.parametrize(
    "value",
    [
        float("inf"),
        -(2**40),
        "",
        "ümlaut",
        (1, (2.5, None)),
        {3: {"a": []}},
        torch.zeros(0, 3),
        torch.tensor(True),
    ],
)
def test_plain_values(tmp_path: Path, value: Any) -> None:
    save_checkpoint(tmp_path / "file.pt", {"value": value})
    assert_same(load_checkpoint(tmp_path / "file.pt")["value"], value)


def test_tensors_are_saved_bare(tmp_path: Path) -> None:
    large = torch.rand(1000, 1000)
    data = {"view": large[:2, :2], "weight": nn.Parameter(torch.ones(2)), "turned": torch.rand(2, 3).t()}
    save_checkpoint(tmp_path / "file.pt", data)
    assert (tmp_path / "file.pt").stat().st_size < 10_000
    loaded = load_checkpoint(tmp_path / "file.pt")
    assert torch.equal(loaded["view"], large[:2, :2]) and torch.equal(loaded["turned"], data["turned"])
    assert type(loaded["weight"]) is torch.Tensor and not loaded["weight"].requires_grad


@pytest.mark.parametrize(
    "data,message",
    [
        ({"optimizer": {"state": {0: {"step": np.float64(1)}}}}, r"optimizer\.state\[0\]\.step is a numpy\.float64.*item"),
        ({"names": ["a", Path("b")]}, r"names\[1\] is a pathlib"),
        ({"array": np.zeros(2)}, r"array is a numpy\.ndarray"),
        ({"model": nn.Conv2d(1, 1, 1)}, r"model is a torch\.nn\.modules\.conv\.Conv2d"),
        ({"seen": {1, 2}}, r"seen is a builtins\.set"),
        ({"call": print}, r"call is a builtins\.builtin_function"),
        ({"table": {1.5: 2}}, r"table: key 1\.5 is a float"),
        ({"table": {(1, 2): 2}}, r"table: key \(1, 2\) is a tuple"),
        ({"dtype": torch.float32}, r"dtype is a torch\.dtype"),
        ({"text": np.str_("a")}, r"text is a numpy\.str_"),
        ({"weight": torch.zeros(2, 2).to_sparse()}, r"weight: a torch\.sparse_coo tensor"),
        ({"weight": torch.zeros(2, device="meta")}, "weight: a torch.strided tensor on meta"),
    ],
)  # fmt: skip
def test_what_is_not_plain_is_named(tmp_path: Path, data: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        save_checkpoint(tmp_path / "file.pt", data)
    assert not list(tmp_path.iterdir())


def test_the_markers_are_reserved_and_loops_are_found(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\['version'\] mark the file format"):
        save_checkpoint(tmp_path / "file.pt", {"version": 2})
    loop: dict[str, Any] = {}
    loop["again"] = loop
    with pytest.raises(ValueError, match="contains itself"):
        save_checkpoint(tmp_path / "file.pt", {"loop": loop})


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.mark.parametrize("moment", ["writing", "flushing", "replacing"])
def test_a_death_while_saving_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"epoch": 1, "weight": torch.ones(100)})
    before = path.read_bytes()

    def die(*_: Any, **__: Any) -> None:
        raise Killed

    def write_half(_: Any, stream: Any) -> None:
        stream.write(b"PK\x03\x04 half a file")
        raise Killed

    with monkeypatch.context() as patch:
        if moment == "writing":
            patch.setattr(torch, "save", write_half)
        elif moment == "flushing":
            patch.setattr(checkpoint_module.os, "fsync", die)
        else:
            patch.setattr(Path, "replace", die)
        with pytest.raises(Killed):
            save_checkpoint(path, {"epoch": 2})
    assert path.read_bytes() == before and load_checkpoint(path)["epoch"] == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["last.pt"]


def test_file_and_folder_are_flushed_before_and_after_the_renaming(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def note_fsync(descriptor: int) -> None:
        events.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    def note_replace(source: Path, target: Path) -> Path:
        events.append("replace" if source.parent == target.parent else "replace across folders")
        return replace(source, target)

    monkeypatch.setattr(checkpoint_module.os, "fsync", note_fsync)
    monkeypatch.setattr(Path, "replace", note_replace)
    save_checkpoint(tmp_path / "file.pt", {"epoch": 1})
    assert events == ["file", "replace", "folder"]


def test_the_file_has_ordinary_permissions(tmp_path: Path) -> None:
    (tmp_path / "ordinary").touch()
    save_checkpoint(tmp_path / "file.pt", {"epoch": 1})
    assert (tmp_path / "file.pt").stat().st_mode == (tmp_path / "ordinary").stat().st_mode


# --- files that cannot be loaded ------------------------------------------------------------------------------


def test_a_foreign_file_is_told_apart_and_not_run(tmp_path: Path) -> None:
    marker, path = tmp_path / "ran", tmp_path / "released.pt"

    class Malicious:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {marker}",)

    for content in ({"epoch": 1, "model": Malicious()}, {"format": "other", "version": 1}, [1], Malicious()):
        torch.save(content, path)
        assert not is_own_format(path)
        with pytest.raises(CheckpointError, match=r"scripts/model_convert\.py"):
            load_checkpoint(path)
    torch.save({"format": "esod", "version": 1, "model": Malicious()}, path)
    assert is_own_format(path)
    with pytest.raises(CheckpointError, match=r"released\.pt: truncated or damaged.*UnpicklingError"):
        load_checkpoint(path)
    assert not marker.exists()


def test_released_files_are_told_apart(shared_dir: Path) -> None:
    path = shared_dir / "golden/checkpoints/yolov5_visdrone/checkpoint.pt"
    assert not is_own_format(path)
    with pytest.raises(CheckpointError, match=r"convert it with `python scripts/model_convert\.py`"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    "version,message",
    [(2, "reads up to 1. Update"), (0, "format version 0"), (True, "format version"), ("1", "'1'")],
)
def test_versions(tmp_path: Path, version: Any, message: str) -> None:
    torch.save({"format": "esod", "version": version}, tmp_path / "file.pt")
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path / "file.pt")


def test_missing_and_other_files(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        load_checkpoint(tmp_path / "missing.pt")
    (tmp_path / "text.pt").write_text("hello")
    for function in (load_checkpoint, is_own_format):
        with pytest.raises(CheckpointError, match="a text file"):
            function(tmp_path / "text.pt")


def test_damage_is_always_found(tmp_path: Path) -> None:
    """Bytes changed at random: the same contents (the byte was padding), or a CheckpointError."""
    path = tmp_path / "file.pt"
    data = {"model": {f"weight{index}": torch.rand(50) for index in range(5)}, "config": {"names": ["a"]}}
    save_checkpoint(path, data)
    whole = path.read_bytes()
    generator = random.Random(3)
    refused = 0
    rounds = 2000 if FULL_FUZZ else 200
    for _ in range(rounds):
        changed = bytearray(whole)
        for _ in range(generator.randrange(1, 4)):
            changed[generator.randrange(len(changed))] ^= 1 << generator.randrange(8)
        if generator.random() < 0.2:
            del changed[generator.randrange(len(changed)) :]
        path.write_bytes(changed)
        try:
            loaded = load_checkpoint(path)
        except CheckpointError:
            refused += 1
        else:
            assert_same(loaded, data)
    assert refused > rounds // 3


# --- stripping, digests ---------------------------------------------------------------------------------------


def test_stripping_keeps_what_inference_needs(tmp_path: Path) -> None:
    data = training_data()
    stripped = strip_checkpoint(data)
    assert list(stripped) == ["model", "config", "names", "provenance"]
    assert list(stripped["model"]) == list(data["model"])
    for name, averaged in data["ema"]["model"].items():
        expected = averaged.half() if averaged.is_floating_point() else averaged
        assert_same(stripped["model"][name], expected)
    flat = strip_checkpoint({"ema": data["ema"]["model"], "model": data["model"]})
    assert_same(flat["model"], stripped["model"])
    save_checkpoint(tmp_path / "full.pt", data)
    save_checkpoint(tmp_path / "small.pt", stripped)
    assert_same(load_checkpoint(tmp_path / "small.pt"), stripped)
    assert (tmp_path / "small.pt").stat().st_size < (tmp_path / "full.pt").stat().st_size / 2


def test_stripping_without_averaged_weights_and_beyond_half_precision() -> None:
    weights = {"a": torch.tensor([1e6]), "b": torch.tensor([2.0]), "n": torch.tensor(7)}
    stripped = strip_checkpoint({"model": weights, "ema": None})["model"]
    assert_same(stripped, {"a": torch.tensor([1e6]), "b": torch.tensor([2.0]).half(), "n": torch.tensor(7)})
    stripped["n"] += 1
    assert weights["n"] == 7


@pytest.mark.parametrize(
    "data,message",
    [
        ({"epoch": 1}, r"no weights under 'ema' or 'model'; it has \['epoch'\]"),
        ({"model": {}}, "no weights"),
        ({"model": {"a": 1.0}}, "weight 'a' is a float"),
        ({"model": {"a": torch.tensor([float("inf")])}}, r"1 of 1 weights hold NaN or infinity \(a\)"),
    ],
)
def test_nothing_to_strip(data: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        strip_checkpoint(data)


def test_sha256(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256_of(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    (tmp_path / "long").write_bytes(bytes(range(256)) * 10_000)
    assert sha256_of(tmp_path / "long") == hashlib.sha256(bytes(range(256)) * 10_000).hexdigest()
    with pytest.raises(CheckpointError, match="cannot be read"):
        sha256_of(tmp_path / "missing")


# --- random state --------------------------------------------------------------------------------------------


def draw() -> list[float]:
    """From each generator, the odd number of normal values that leaves one of a pair waiting."""
    legacy = np.random.normal(size=3)  # noqa: NPY002 (the global generator is what is saved)
    python = [random.gauss(0, 1) for _ in range(3)]
    return [*python, *legacy.tolist(), *torch.randn(3).tolist()]


def test_random_state_survives_a_file(tmp_path: Path) -> None:
    draw()
    save_checkpoint(tmp_path / "file.pt", {"rng": pack_rng_state()})
    expected = draw()
    assert draw() != expected
    restore_rng_state(load_checkpoint(tmp_path / "file.pt")["rng"])
    assert draw() == expected


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_random_state_of_gpus(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "file.pt", {"rng": pack_rng_state()})
    expected = torch.rand(5, device="cuda")
    restore_rng_state(load_checkpoint(tmp_path / "file.pt")["rng"])
    assert torch.equal(torch.rand(5, device="cuda"), expected)


def test_random_state_of_fewer_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    restored: list[tuple[int, int]] = []
    state = {**pack_rng_state(), "cuda": [torch.tensor([index], dtype=torch.uint8) for index in range(4)]}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(
        torch.cuda, "set_rng_state", lambda value, device: restored.append((int(value), device))
    )
    restore_rng_state(state)
    assert restored == [(0, 0), (1, 1)]


@pytest.mark.parametrize(
    "key,value", [("python", None), ("numpy", {}), ("torch", torch.zeros(3)), ("torch", None)]
)
def test_a_random_state_that_is_none(key: str, value: Any) -> None:
    state = {**pack_rng_state(), key: value}
    with pytest.raises(CheckpointError, match="resume without it"):
        restore_rng_state(state)


# --- matching --------------------------------------------------------------------------------------------------


def test_matching() -> None:
    source = {"a": torch.zeros(2), "b": torch.zeros(3, 4), "old": torch.zeros(1), "n": torch.tensor(1)}
    target = {"a": torch.zeros(2), "b": torch.zeros(3, 5), "new": torch.zeros(1), "n": torch.tensor(0)}
    report = match_state_dict(source, target)
    assert (report.matched, report.missing, report.unexpected) == (["a", "n"], ["new"], ["old"])
    assert report.shape_mismatch == [("b", (3, 4), (3, 5))] and not report.complete
    assert report.summary() == (
        "2 of 4 tensors matched\n"
        "  1 not in the source: new\n"
        "  1 of another shape (source → target): b [3, 4] → [3, 5]\n"
        "  1 only in the source, not used: old"
    )


def test_matching_everything_and_nothing() -> None:
    weights = OrderedDict(small_network().state_dict())
    report = match_state_dict(weights, weights)
    assert report.complete and report.summary() == f"{len(weights)} of {len(weights)} tensors matched"
    nothing = match_state_dict({}, {f"weight{index}": torch.zeros(1) for index in range(20)})
    assert not nothing.complete and "0 of 20" in nothing.summary() and "and 12 more" in nothing.summary()


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_broken_weights_are_refused(value: float) -> None:
    source = {"fine": torch.zeros(2), "broken": torch.tensor([0.0, value])}
    with pytest.raises(CheckpointError, match=r"1 of 2 weights hold NaN or infinity \(broken\)"):
        match_state_dict(source, source)
