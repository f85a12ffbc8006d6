"""Foreign checkpoints: read completely, and without running anything that is in them."""

from __future__ import annotations

import json
import os
import random
import struct
import subprocess
import sys
import types
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from utils.pickle_reader import (
    CheckpointError,
    PickledObject,
    extract_network,
    plain_value,
    read_pickled_checkpoint,
    read_pickled_network,
)

FULL_FUZZ = bool(os.environ.get("ESOD_FULL_FUZZ"))
START = b"\x80\x02"
NAMES = ["car", "bus"]

# --- building files ----------------------------------------------------------------------------------------------


def text(value: str) -> bytes:
    """A pickled text."""
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def named(module: str, name: str) -> bytes:
    """A pickled global name."""
    return f"c{module}\n{name}\n".encode()


def storage(kind: str = "FloatStorage", key: str = "0", count: int = 4) -> bytes:
    """A pickled reference to an archive entry."""
    reference = (
        text("storage") + named("torch", kind) + text(key) + text("cpu") + b"J" + struct.pack("<i", count)
    )
    return b"(" + reference + b"tQ"


def integers(*values: int) -> bytes:
    """A pickled tuple of integers."""
    return b"(" + b"".join(b"\x8a\x08" + struct.pack("<q", value) for value in values) + b"t"


def tensor(size: bytes, stride: bytes, offset: int = 0, source: bytes | None = None) -> bytes:
    """A pickled tensor."""
    arguments = (storage() if source is None else source) + b"J" + struct.pack("<i", offset) + size + stride
    return named("torch._utils", "_rebuild_tensor_v2") + b"(" + arguments + b"\x89" + b"}" + b"tR"


def under(key: str, value: bytes) -> bytes:
    """A whole pickle: ``{key: value}``."""
    return START + b"}" + text(key) + value + b"s."


def write_archive(path: Path, pickled: bytes, **entries: bytes) -> Path:
    """An archive as torch.save lays it out, with one storage of four floats."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/data/0", struct.pack("<4f", 1, 2, 3, 4))
        for name, data in entries.items():
            archive.writestr(f"archive/{name}", data)
    return path


class Conv(nn.Module):
    """Convolution, normalisation, activation."""

    def __init__(self, inputs: int, outputs: int, eps: float = 1e-3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=eps)
        self.act = nn.SiLU()


class Detect(nn.Module):
    """Detection layer with the attributes that released files have."""

    def __init__(self) -> None:
        super().__init__()
        self.nc, self.na, self.f = 2, 3, [0, 1]
        self.stride = torch.tensor([8.0, 16.0])
        self.grid = [torch.zeros(1)] * 2
        self.register_buffer("anchors", torch.arange(12.0).reshape(2, 3, 2))
        self.register_buffer("passing", torch.zeros(1), persistent=False)
        self.m = nn.ModuleList([nn.Conv2d(4, 21, 1)])


class Model(nn.Module):
    """A miniature of what released files pickle."""

    def __init__(self, *, eps: tuple[float, float] = (1e-3, 1e-3)) -> None:
        super().__init__()
        self.yaml: Any = {"nc": 2, "backbone": [[-1, 1, "Conv", [4, 3]]], "width": np.float64(0.5)}
        self.names: Any = list(NAMES)
        self.model = nn.Sequential(Conv(3, 4, eps[0]), Conv(4, 4, eps[1]), Detect())


@pytest.fixture
def saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Save with class paths of a released file; the classes are gone afterwards."""

    def save(checkpoint: Any, name: str = "released.pt") -> Path:
        places = {Conv: "models.common", Detect: "models.yolo", Model: "models.yolo"}
        with monkeypatch.context() as patch:
            for kind, place in places.items():
                module = sys.modules.get(place) or types.ModuleType(place)
                patch.setitem(sys.modules, place, module)
                patch.setattr(module, kind.__name__, kind, raising=False)
                patch.setattr(kind, "__module__", place)
            torch.save(checkpoint, tmp_path / name)
        return tmp_path / name

    return save


def make_checkpoint(model: Model | None = None) -> dict[str, Any]:
    """The keys of a released file."""
    model = Model() if model is None else model
    return {
        "epoch": -1,
        "best_fitness": np.array([0.5]),
        "model": model.half(),
        "ema": None,
        "optimizer": None,
    }


# --- the watch: did anything run? -----------------------------------------------------------------------------------

RUNNING = {
    "os.system",
    "os.exec",
    "os.fork",
    "os.posix_spawn",
    "os.spawn",
    "subprocess.Popen",
    "pickle.find_class",
}
_watch: dict[str, Any] = {"installed": False, "active": False, "seen": []}


def _hook(event: str, _: tuple[Any, ...]) -> None:
    if _watch["active"] and event in RUNNING:
        _watch["seen"].append(event)


@pytest.fixture
def seen_running() -> Iterator[list[str]]:
    """Names of events (audit hooks of Python) that mean that foreign code or a pickle was run."""
    if not _watch["installed"]:
        sys.addaudithook(_hook)
        _watch["installed"] = True
    _watch.update(active=True, seen=[])
    yield _watch["seen"]
    _watch["active"] = False


def test_the_watch_sees_what_runs(seen_running: list[str]) -> None:
    os.system("true")
    assert seen_running == ["os.system"]


# --- what is read ------------------------------------------------------------------------------------------------------


def test_reads_a_released_file(saved: Callable[..., Path], seen_running: list[str]) -> None:
    model = Model()
    expected = {key: value.clone() for key, value in model.half().state_dict().items()}
    path = saved(make_checkpoint(model))
    checkpoint = read_pickled_checkpoint(path)
    network = extract_network(checkpoint)

    assert not seen_running
    assert checkpoint["epoch"] == -1 and checkpoint["ema"] is None
    assert plain_value(checkpoint["best_fitness"]) == [0.5]
    assert (
        isinstance(checkpoint["model"], PickledObject)
        and checkpoint["model"].class_name == "models.yolo.Model"
    )
    assert list(network.state_dict) == list(expected)
    assert "model.2.passing" not in network.state_dict
    for key, value in expected.items():
        dtype = torch.float32 if value.is_floating_point() else torch.int64
        assert network.state_dict[key].dtype == dtype
        torch.testing.assert_close(network.state_dict[key], value.to(dtype), rtol=0, atol=0)
    assert network.num_parameters == sum(parameter.numel() for parameter in model.parameters())
    assert network.yaml == {"nc": 2, "backbone": [[-1, 1, "Conv", [4, 3]]], "width": 0.5}
    assert network.names == NAMES and network.bn_eps == 1e-3 and network.strides == [8.0, 16.0]
    assert network.activation == "SiLU" and network.activations == {"SiLU": 2}
    assert network.extra["na"] == 3 and network.extra["f"] == [0, 1] and "grid" not in network.extra
    torch.testing.assert_close(network.extra["anchors"], torch.arange(12.0).reshape(2, 3, 2))


def test_prefers_the_averaged_model(saved: Callable[..., Path]) -> None:
    averaged = Model()
    checkpoint = {**make_checkpoint(), "ema": averaged}
    network = read_pickled_network(saved(checkpoint))
    torch.testing.assert_close(
        network.state_dict["model.0.conv.weight"], averaged.model[0].conv.weight.detach()
    )


def test_names_may_be_numbered(saved: Callable[..., Path]) -> None:
    model = Model()
    model.names = {1: "bus", 0: "car"}
    assert read_pickled_network(saved(make_checkpoint(model))).names == NAMES


def test_expanded_tensors_and_ordinary_state_dicts_are_read(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    weights = OrderedDict(
        weight=torch.ones(2, 1).expand(2, 3), half=torch.ones(2).bfloat16(), no=torch.zeros(0, 3)
    )
    torch.save(
        {"state": nn.Linear(2, 2).state_dict(), "weights": weights, "mask": torch.tensor([True, False])}, path
    )
    checkpoint = read_pickled_checkpoint(path)
    assert set(checkpoint["state"]) == {"weight", "bias"}
    assert torch.equal(checkpoint["weights"]["weight"], torch.ones(2, 3))
    assert (
        checkpoint["weights"]["no"].shape == (0, 3) and checkpoint["weights"]["half"].dtype == torch.bfloat16
    )
    assert checkpoint["mask"].tolist() == [True, False]
    with pytest.raises(CheckpointError, match="no whole pickled model"):
        extract_network(checkpoint)


def test_plain_value_decodes_what_is_data_at_heart(tmp_path: Path) -> None:
    values = {
        "scalar": np.float32(1.5),
        "array": np.asfortranarray(np.arange(6).reshape(2, 3)),
        "big_endian": np.array([1, 2], dtype=">i4"),
        "path": Path("runs") / "exp",
        "device": torch.device("cuda", 1),
        "size": torch.Size([2, 3]),
        "bytes": {1: None, "set": [True, "text", 2.5]},
    }
    torch.save(values, tmp_path / "values.pt")
    assert plain_value(read_pickled_checkpoint(tmp_path / "values.pt")) == {
        **values, "scalar": 1.5, "array": [[0, 1, 2], [3, 4, 5]], "big_endian": [1, 2], "path": "runs/exp",
        "device": "cuda:1", "size": (2, 3),
    }  # fmt: skip


@pytest.mark.parametrize("value", [np.array(["text"]), torch.zeros(1), {1}, np.array([None])])
def test_plain_value_refuses_the_rest(tmp_path: Path, value: Any) -> None:
    torch.save({"value": value}, tmp_path / "value.pt")
    with pytest.raises(CheckpointError, match=r"plain data|unsupported type|damaged"):
        plain_value(read_pickled_checkpoint(tmp_path / "value.pt"))


GOLDEN = [
    # path, tensors, parameters, eps, activation, classes, keys as in
    ("golden/checkpoints/yolov5_visdrone/checkpoint.pt", 437, 870360, 1e-5, "SiLU", 10, "esod_visdrone_yolov5s"),
    ("golden/checkpoints/vanilla_yolov5_visdrone/checkpoint.pt", 429, 864855, 1e-5, "SiLU", 10, "vanilla_visdrone_yolov5s"),
    ("golden/checkpoints/rtmdet_visdrone/checkpoint.pt", 493, 888328, 1e-5, "SiLU", 10, None),
    ("golden/checkpoints/retinanet_visdrone/checkpoint.pt", 413, 490736, 1e-5, "ReLU", 10, "esod_visdrone_retinanet"),
    ("weights/yolov5s_v5.0_coco.pt", 362, 7276605, 1e-3, "SiLU", 80, None),
    ("weights/yolov5n_v6.1_coco.pt", 349, 1872157, 1e-3, "SiLU", 80, None),
    ("weights/yolov8n_coco.pt", 355, 3157200, 1e-3, "SiLU", 80, None),
    ("weights/yolov8s_coco.pt", 355, 11166560, 1e-3, "SiLU", 80, None),
]  # fmt: skip


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: str(case[0]))
def test_real_files(shared_dir: Path, seen_running: list[str], case: tuple[Any, ...]) -> None:
    name, tensors, parameters, eps, activation, classes, keys = case
    network = read_pickled_network(shared_dir / name)
    assert not seen_running
    assert (len(network.state_dict), network.num_parameters) == (tensors, parameters)
    assert (network.bn_eps, network.activation, len(network.names)) == (eps, activation, classes)
    assert network.strides == [8, 16, 32] and network.yaml["nc"] == network.extra["nc"] == classes
    if keys is not None:
        listing = json.loads((shared_dir / f"golden/checkpoints/keys/{keys}.json").read_text())
        assert set(network.state_dict) == set(listing["state_dict"])
    info = (shared_dir / name).with_name("info.json")
    if info.exists():
        assert network.num_parameters == json.loads(info.read_text())["parameters"]


# --- what is refused ---------------------------------------------------------------------------------------------------


class Reduced:
    """Pickles as a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def command(marker: Path) -> str:
    """Leaves a trace."""
    return f"touch {marker}"


def malicious(marker: Path) -> dict[str, Any]:
    """Objects that run something when unpickled without care, by the name that the pickle has for it."""
    write = f"open({str(marker)!r}, 'w').close()"
    return {
        "posix.system": Reduced(os.system, command(marker)),
        "builtin__.eval": Reduced(eval, write),
        "builtin__.exec": Reduced(exec, write),
        "builtin__.getattr": Reduced(getattr, "text", "upper"),
        "torch.hub.load": Reduced(torch.hub.load, "someone/repository", "model"),
        "torch.serialization.load": Reduced(torch.load, str(marker)),
        "commands.Popen": Reduced(subprocess.Popen, ["touch", str(marker)]),
        "nested posix.system": [
            {"deep": (1, Reduced(OrderedDict, [("a", Reduced(os.system, command(marker)))]))}
        ],
    }


@pytest.mark.parametrize("name", sorted(malicious(Path("unused"))))
def test_a_call_of_something_foreign_is_refused_by_name(
    tmp_path: Path, seen_running: list[str], name: str
) -> None:
    marker = tmp_path / "ran"
    path = tmp_path / "malicious.pt"
    torch.save({"epoch": 1, "model": malicious(marker)[name]}, path)
    with pytest.raises(CheckpointError, match=name.split()[-1].replace(".", r"\.")) as caught:
        read_pickled_checkpoint(path)
    assert str(path) in str(caught.value) and "Nothing in it was run" in str(caught.value)
    assert not marker.exists() and not seen_running


@pytest.mark.parametrize(
    "module,name",
    [
        ("os", "system"), ("builtins", "eval"), ("__builtin__", "eval"), ("builtins", "object"), ("nt", "system"),
        ("torch.nn.modules.os", "system"), ("torch.nn.modules.os", "System"), ("torch.nn.modules.utils", "Any"),
        ("torch.nn.modules.container", "os.system"), ("torch.nn.modules.module", "torch"), ("models", "yolo.Model"),
        ("models.common", "os.system"), ("models..common", "Conv"), ("models.common ", "Conv"), ("modelsx.a", "B"),
        ("models.common", "__class__.__base__"), ("utils", ""), ("numpy", "load"), ("numpy.f2py", "run"),
        ("torch", "load"), ("torch._utils", "_rebuild_tensor"), ("torch.storage", "_load_from_bytes"), ("\x1b[2J", "x"),
        ("collections", "Counter"), ("pathlib", "os.system"), ("functools", "partial"), ("copyreg", "_reconstructor"),
    ],
)  # fmt: skip
def test_names_beside_the_allow_list(tmp_path: Path, seen_running: list[str], module: str, name: str) -> None:
    path = write_archive(tmp_path / "file.pt", under("model", named(module, name) + b")R"))
    with pytest.raises(CheckpointError, match="refused, because it names") as caught:
        read_pickled_checkpoint(path)
    assert "\x1b" not in str(caught.value) and not seen_running


def test_all_refused_names_are_listed_before_anything_is_built(tmp_path: Path) -> None:
    broken_first = storage(count=999) + named("os", "system") + named("builtins", "eval")
    path = write_archive(tmp_path / "file.pt", under("model", broken_first))
    with pytest.raises(CheckpointError, match=r"'builtins\.eval', 'os\.system'"):
        read_pickled_checkpoint(path)


def test_a_call_hidden_in_a_layer_state_is_refused(tmp_path: Path, saved: Callable[..., Path]) -> None:
    marker = tmp_path / "ran"
    model = Model()
    model.payload = Reduced(os.system, command(marker))
    with pytest.raises(CheckpointError, match=r"posix\.system|nt\.system"):
        read_pickled_checkpoint(saved(make_checkpoint(model)))
    assert not marker.exists()


def test_functions_of_the_old_project_are_inert(tmp_path: Path, seen_running: list[str]) -> None:
    call = named("utils.google_utils", "attempt_download") + b"(" + text("weights.pt") + b"tR"
    value = read_pickled_checkpoint(write_archive(tmp_path / "file.pt", under("model", call)))["model"]
    assert isinstance(value, PickledObject) and value.arguments == ("weights.pt",)
    assert not callable(value) and not seen_running


def test_a_state_reaches_only_the_record(tmp_path: Path) -> None:
    state = b"}(" + text("__class__") + b"K\x01" + text("attributes") + b"K\x02" + b"u"
    pickled = under("model", named("models.yolo", "Model") + b")\x81" + state + b"b")
    value = read_pickled_checkpoint(write_archive(tmp_path / "file.pt", pickled))["model"]
    assert type(value) is PickledObject
    assert value.attributes() == {"__class__": 1, "attributes": 2}


ONE = integers(1)
BROKEN = {
    "a state on a tensor": tensor(integers(4), ONE) + b"}b",
    "a state on a name": named("models.yolo", "Model") + b"}b",
    "a state on a list": b"]}b",
    "a second state": named("models.yolo", "Model") + b")\x81}b}b",
    "a storage called": named("torch", "FloatStorage") + b")R",
    "an item set on a record": named("models.yolo", "Model") + b")\x81" + text("a") + b"Ns",
    "an item appended to a dict": b"}Na",
    "a tuple as a key": b"})Ns",
    "a float as a key": b"}G" + struct.pack(">d", 1.0) + b"Ns",
    "a set of unhashable things": named("__builtin__", "set") + b"(]]atR",
    "bytes of another codec": named("_codecs", "encode") + b"(" + text("a") + text("rot13") + b"tR",
    "a memo entry that is not there": b"h\x07",
    "a call without arguments": named("models.yolo", "Model") + b"R",
    "popping": b"N0",
    "an enormous integer": b"\x8a\x20" + b"\x7f" * 32,
    "a size beyond the storage": tensor(integers(5), ONE),
    "a size of terabytes": tensor(integers(2**40), integers(1)),
    "a repeated storage of terabytes": tensor(integers(2**20, 2**20), integers(0, 0)),
    "a stride beyond the storage": tensor(integers(2), integers(4)),
    "an offset beyond the storage": tensor(integers(2), ONE, offset=3),
    "a negative offset": tensor(ONE, ONE, offset=-1),
    "a negative size": tensor(integers(-1), ONE),
    "a negative stride": tensor(integers(2), integers(-1), offset=2),
    "sizes without strides": tensor(integers(2, 2), ONE),
    "too many dimensions": tensor(integers(*[1] * 30), integers(*[1] * 30)),
    "a size that is a list": tensor(b"]", ONE),
    "a tensor of a text": tensor(ONE, ONE, source=text("storage")),
    "a parameter of a text": named("torch._utils", "_rebuild_parameter") + b"(" + text("a") + b"\x89}tR",
    "a tensor with too few arguments": named("torch._utils", "_rebuild_tensor_v2") + b")R",
    "more elements than the entry has": storage(count=5),
    "fewer elements than the entry has": storage(count=3),
    "a negative number of elements": storage(count=-4),
    "a storage of another width": storage(kind="DoubleStorage"),
    "a storage described in two ways": storage() + storage(kind="IntStorage") + b"\x86",
    "a missing storage": storage(key="7"),
    "a storage outside the folder": storage(key="../data.pkl"),
    "another external reference": b"(" + text("file") + text("/etc/passwd") + b"tQ",
    "an external reference by text": text("/etc/passwd") + b"Q",
    "protocol 4 names": text("os") + text("system") + b"\x93)R",
    "protocol 0 instances": b"(i__main__\nA\n",
    "a registered extension": b"\x82\x01",
    "an unfinished tuple": b"(K\x01K\x02",
}  # fmt: skip


@pytest.mark.parametrize("what", sorted(BROKEN))
def test_broken_contents(tmp_path: Path, seen_running: list[str], what: str) -> None:
    path = write_archive(tmp_path / "file.pt", under("model", BROKEN[what]))
    message = r"damaged|Nothing in it was run"
    if "beyond the storage" in what or "terabytes" in what:
        message = "reaches beyond its storage"
    elif "elements" in what:
        message = "storage 0 should have"
    with pytest.raises(CheckpointError, match=message):
        read_pickled_checkpoint(path)
    assert not seen_running


def test_the_helpers_write_what_is_readable(tmp_path: Path) -> None:
    path = write_archive(tmp_path / "file.pt", under("model", tensor(integers(2, 2), integers(2, 1))))
    assert read_pickled_checkpoint(path)["model"].tolist() == [[1, 2], [3, 4]]


def test_deep_and_long_pickles_neither_crash_nor_fill_the_memory(tmp_path: Path) -> None:
    deep = write_archive(tmp_path / "deep.pt", under("model", b")" + b"\x85" * 100_000))
    with pytest.raises(CheckpointError, match="absurdly deep"):
        plain_value(read_pickled_checkpoint(deep)["model"])
    memo = write_archive(tmp_path / "memo.pt", START + b"}r\xff\xff\xff\xff.")
    assert read_pickled_checkpoint(memo) == {}
    floods = write_archive(tmp_path / "floods.pt", START + b"}" * 2_100_000 + b".")
    with pytest.raises(CheckpointError, match="operations"):
        read_pickled_checkpoint(floods)


# --- networks that make no sense -----------------------------------------------------------------------------------------


def doubled(levels: int) -> list[Any]:
    """A small object that spells out to 2 ** levels."""
    value: list[Any] = [1]
    for _ in range(levels):
        value = [value, value]
    return value


def contains_itself(model: Model) -> None:
    model.model[0]._modules["again"] = model.model


def spoil_weight(model: Model) -> None:
    model.model[0].conv.weight.data[0] = float("nan")


def fold(model: Model) -> None:
    model.model[0].bn = model.model[1].bn = nn.Identity()


NONSENSE: dict[str, tuple[Callable[[Model], Any], str]] = {
    "contains itself": (contains_itself, "contains itself"),
    "billions of values": (lambda model: model.yaml.update(more=doubled(60)), "absurdly"),
    "billions of values in an attribute": (
        lambda model: setattr(model.model[2], "more", doubled(60)),
        "absurdly",
    ),
    "NaN": (spoil_weight, r"model\.0\.conv\.weight holds NaN"),
    "folded": (fold, "folded"),
    "no architecture": (lambda model: setattr(model, "yaml", None), "no architecture"),
    "a tensor in the architecture": (lambda model: model.yaml.update(more=torch.zeros(1)), "plain data"),
    "a layer in the architecture": (lambda model: model.yaml.update(more=nn.SiLU()), "plain data"),
    "names with gaps": (lambda model: setattr(model, "names", {0: "a", 2: "b"}), "without gaps"),
    "names that are numbers": (lambda model: setattr(model, "names", [1, 2]), "list of text"),
    "no names": (lambda model: delattr(model, "names"), "list of text"),
    "no strides": (lambda model: delattr(model.model[2], "stride"), "strides"),
    "strides of zero": (lambda model: model.model[2].stride.zero_(), "strides"),
    "eps of text": (lambda model: setattr(model.model[0].bn, "eps", "0.001"), "small number"),
    "no activation": (lambda model: [delattr(model.model[i], "act") for i in (0, 1)], "no activation"),
    "no layers": (lambda model: setattr(model, "model", nn.SiLU()), "normalisation|numbered layers"),
    "a layer that is text": (lambda model: model._modules.update(more="text"), "not a module"),
    "a weight that is text": (lambda model: model.model[0]._parameters.update(more="text"), "not a tensor"),
    "a dotted name": (lambda model: model._buffers.update({"a.b": torch.zeros(1)}), "no name of a layer"),
    "one name twice": (
        lambda model: model.model[0].conv._buffers.update(weight=torch.zeros(1)),
        "occurs twice",
    ),
}


@pytest.mark.parametrize("what", sorted(NONSENSE))
def test_networks_that_make_no_sense(saved: Callable[..., Path], what: str) -> None:
    spoil, message = NONSENSE[what]
    checkpoint = make_checkpoint()
    spoil(checkpoint["model"])
    path = saved(checkpoint)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_pickled_network(path)
    assert str(path) in str(caught.value)


def test_mixed_eps_is_an_error_that_names_both(saved: Callable[..., Path]) -> None:
    with pytest.raises(CheckpointError, match=r"1e-05, 0\.001"):
        read_pickled_network(saved(make_checkpoint(Model(eps=(1e-3, 1e-5)))))


@pytest.mark.parametrize("content", [[1, 2], torch.zeros(2), "text"])
def test_a_file_without_a_dict(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "file.pt")
    with pytest.raises(CheckpointError, match="not a dict"):
        read_pickled_checkpoint(tmp_path / "file.pt")


# --- damage at random ------------------------------------------------------------------------------------------------------


def mutated(data: bytes, generator: random.Random) -> bytes:
    """One to eight bytes changed, a piece cut out or doubled, or the end cut off."""
    result = bytearray(data)
    kind = generator.randrange(6)
    if kind == 0:
        return bytes(result[: generator.randrange(len(result))])
    start = generator.randrange(len(result))
    length = generator.randrange(1, 40)
    if kind == 1:
        del result[start : start + length]
    elif kind == 2:
        result[start:start] = result[start : start + length]
    else:
        for _ in range(generator.randrange(1, 9)):
            result[generator.randrange(len(result))] = generator.randrange(256)
    return bytes(result)


@pytest.mark.parametrize("inside", [False, True], ids=["bytes of the file", "pickle with right checksums"])
def test_damage_gives_one_kind_of_error_and_runs_nothing(
    tmp_path: Path, saved: Callable[..., Path], seen_running: list[str], inside: bool
) -> None:
    source = saved(make_checkpoint())
    with zipfile.ZipFile(source) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    pickle_name = next(name for name in entries if name.endswith("/data.pkl"))
    whole = source.read_bytes()
    generator = random.Random(7)
    path = tmp_path / "damaged.pt"
    refused = 0
    rounds = 2000 if FULL_FUZZ else 150
    for _ in range(rounds):
        if inside:
            with zipfile.ZipFile(path, "w") as archive:
                for name, data in entries.items():
                    archive.writestr(name, mutated(data, generator) if name == pickle_name else data)
        else:
            path.write_bytes(mutated(whole, generator))
        try:
            read_pickled_network(path)
        except CheckpointError:
            refused += 1
    assert not seen_running
    assert refused > rounds // 3  # the mutations do reach the reader
