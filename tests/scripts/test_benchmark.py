"""scripts/benchmark.py, benchmark_parts.py and benchmark_gpu.sh end to end on a tiny model, and their errors."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import pytest
import torch
import yaml

from engine.benchmark.results import BenchmarkResult
from models.build import build_model
from models.summary import dense_twin
from tests.conftest import ROOT, RunCommand
from utils.config import ModelConfig
from utils.marked_page import update_page
from utils.profile import count_parameters
from utils.typed_data import ConfigError, load_config

SCRIPT, PARTS, GPU = "scripts/benchmark.py", "scripts/benchmark_parts.py", "scripts/benchmark_gpu.sh"
CPU = "scripts/benchmark_cpu.sh"
KEPT = (0.0, 0.2, 1.0)
STEPS = ["stem", "seeker", "slicer", "gather", "deep", "head", "nms"]


def load(script: str) -> ModuleType:
    """A script as a module."""
    name = Path(script).stem + "_module"
    spec = importlib.util.spec_from_file_location(name, ROOT / script)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def tiny_yaml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A YOLOv5 + ESOD of tiny width."""
    config = yaml.safe_load((ROOT / "models" / "cfg" / "yolov5n.yaml").read_text(encoding="utf-8"))
    path = tmp_path_factory.mktemp("model") / "tiny.yaml"
    path.write_text(yaml.safe_dump(config | {"width": 0.125}), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_yaml: Path) -> Path:
    """What a run of the script leaves: r.json, r.png, page.md and what it printed, out.txt."""
    folder = tmp_path_factory.mktemp("benchmark")
    options = [
        "--cfg", tiny_yaml, "--img-size", "256x320", "--batch-sizes", 1, 2, "--kept", *KEPT, "--rounds", 3,
        "--warmup", 1, "--threads", torch.get_num_threads(), "--device", "cpu",
        "--json", folder / "r.json", "--plot", folder / "r.png", "--page", folder / "page.md",
    ]  # fmt: skip
    line = [sys.executable, str(ROOT / SCRIPT), *map(str, options)]
    done = subprocess.run(line, capture_output=True, text=True, check=False, cwd=folder)
    assert done.returncode == 0, done.stderr
    (folder / "out.txt").write_text(done.stdout, encoding="utf-8")
    return folder


@pytest.fixture
def data(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "r.json").read_text(encoding="utf-8"))
    return content


# --- what was measured ---------------------------------------------------------------------------


def test_every_case_is_there(data: dict[str, Any]) -> None:
    found = [
        (c["batch"], c["variant"], c["mode"], c["kept_asked"], c["head"], c["patches"]) for c in data["cases"]
    ]
    expected = []
    for batch in (1, 2):
        for variant in ("plain", "fast"):
            expected += [
                (batch, variant, "dense", 1.0, "dense", 1),
                (batch, variant, "esod", 0.0, "dense", 0),
            ]
            # The map of 32×40 cells has a grid of 8×5 patches.
            for kept, patches in ((0.2, 8), (1.0, 40)):
                expected += [(batch, variant, "esod", kept, head, patches) for head in ("dense", "sparse")]
    assert found == expected
    for c in data["cases"]:
        assert c["kept"] == pytest.approx(c["kept_asked"])
        assert [len(times) for times in (c["total_ms"], *c["stages_ms"].values())] == [3] * (1 + len(STEPS))
        assert min(c["total_ms"]) > 0


def test_stage_times_add_up(data: dict[str, Any]) -> None:
    for c in data["cases"]:
        assert list(c["stages_ms"]) == STEPS
        sums = [sum(times) for times in zip(*c["stages_ms"].values(), strict=True)]
        unexplained = [1 - parts / total for parts, total in zip(sums, c["total_ms"], strict=True)]
        # Something else may take the processor between two stages, but not in every round.
        assert -0.001 < min(unexplained) < 0.1


def test_operations_follow_the_share(data: dict[str, Any]) -> None:
    first = {(c["kept"], c["head"]): c for c in data["cases"] if c["mode"] == "esod" and c["batch"] == 1}
    dense = data["cases"][0]["gflops"]
    for share in (0.2, 1.0):
        # Patches of one cell at stride 32 see more padding than the whole map; nothing else may differ.
        assert first[share, "dense"]["gflops"]["deep"] == pytest.approx(share * dense["deep"], rel=0.01)
        assert first[share, "dense"]["gflops"]["head"] == pytest.approx(share * dense["head"], rel=0.01)
        assert first[share, "dense"]["positions"] == 1.0
        assert 0 < first[share, "sparse"]["positions"] < 1
        assert first[share, "sparse"]["gflops"]["head"] < first[share, "dense"]["gflops"]["head"]
        assert first[share, "sparse"]["gflops"]["stem"] == dense["stem"]


def test_the_rest_of_the_file(data: dict[str, Any], tiny_yaml: Path) -> None:
    assert data["command"].startswith("python scripts/benchmark.py --cfg") and "--rounds 3" in data["command"]
    assert data["environment"]["torch"] == torch.__version__
    assert data["settings"]["threads"] == torch.get_num_threads()
    assert data["settings"]["rounds"] == 3 and data["settings"]["fast_bf16"] in (True, False)
    config = replace(load_config(ModelConfig, tiny_yaml), num_classes=10)
    for name, model in (("esod", build_model(config)), ("dense", build_model(dense_twin(config)))):
        assert data["parameters"][name] == count_parameters(model)
    assert [(s["variant"], s["batch"]) for s in data["stems"]] == [
        ("plain", 1), ("plain", 2), ("fast", 1), ("fast", 2),
    ]  # fmt: skip
    plain, folded = data["stems"][0], data["stems"][2]
    assert plain["conv_gb"] < folded["moved_gb"] < plain["moved_gb"], "BatchNorm moves what folding saves"
    assert [speed["name"] for speed in data["machine"]] == ["copy", "matmul float32"]
    assert all(len(speed["per_round"]) == 3 and min(speed["per_round"]) > 0 for speed in data["machine"])
    assert data["failures"] == [] and data["format"] == 1


# --- what is shown -------------------------------------------------------------------------------


def test_tables_are_printed(folder: Path) -> None:
    text = (folder / "out.txt").read_text(encoding="utf-8")
    for title in (
        "Time: 256×320, batch 2", "Operations: 256×320, batch 1", "Lost between operations and time",
        "Slicing and gathering", "Sparse head", "Batches", "The stem's floor", "What is aimed at",
    ):  # fmt: skip
        assert title in text
    assert re.search(r"^plain ESOD +20\.0% +8 +sparse, \d", text, re.MULTILINE)


def test_the_picture(folder: Path) -> None:
    picture = cv2.imread(str(folder / "r.png"))
    assert picture is not None and picture.shape[1] > 1000
    for blue_green_red in ((0x39, 0x28, 0xD6), (0xC4, 0x7F, 0x1D)):
        assert (picture == blue_green_red).all(axis=2).sum() > 200, "a variant without lines"


def test_the_page_is_made_again_without_measuring(
    folder: Path, tmp_path: Path, run_command: RunCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*_: object) -> None:
        raise AssertionError("measured")

    monkeypatch.setattr("engine.benchmark.bench.measure", forbidden)
    page, plot = tmp_path / "page.md", tmp_path / "r.png"
    result = run_command(SCRIPT, "--from-json", folder / "r.json", "--page", page, "--plot", plot)
    assert result.status == 0, result.err
    assert page.read_text(encoding="utf-8") == (folder / "page.md").read_text(encoding="utf-8")
    assert plot.read_bytes() == (folder / "r.png").read_bytes()
    assert result.out == (folder / "out.txt").read_text(encoding="utf-8")
    text = page.read_text(encoding="utf-8")
    assert text.startswith("# Speed") and "![Time over the share of the map that is kept](r.png)" in text


def test_text_of_people_is_kept(folder: Path, tmp_path: Path, run_command: RunCommand) -> None:
    shutil.copy(folder / "page.md", tmp_path / "page.md")
    text = (tmp_path / "page.md").read_text(encoding="utf-8")
    (tmp_path / "page.md").write_text(
        "Mine.\n" + text.replace("plain ESOD", "OUTDATED") + "\nMine too.\n", encoding="utf-8"
    )
    options = ["--from-json", folder / "r.json", folder / "r.json", "--page", tmp_path / "page.md"]
    assert run_command(SCRIPT, *options).status == 0
    new = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert new.startswith("Mine.\n# Speed") and new.endswith("\nMine too.\n")
    assert "OUTDATED" not in new and new.count("## tiny on") == 2


def test_a_page_without_marks_is_refused(tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text("B A", encoding="utf-8")
    with pytest.raises(ConfigError, match="no place for the numbers; put these two lines into it: A B"):
        update_page(tmp_path / "page.md", "x", ("A", "B"))
    assert (tmp_path / "page.md").read_text(encoding="utf-8") == "B A"
    with pytest.raises(FileNotFoundError):
        update_page(tmp_path / "none.md", "x", ("A", "B"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "nothing to measure: give --cfg"),
        (["--from-json", "a.json", "--json", "b.json"], "leave one out"),
        (["--from-json", "a.json", "--memory"], "leave one out"),
        (["--from-json", "missing.json"], "missing.json: No such file"),
        (["--cfg", "missing.yaml"], "missing.yaml: no such file"),
        (["--cfg", "a.yaml", "--kept", "1.5"], "not a number from 0 to 1"),
        (["--cfg", "a.yaml", "--variants", "fastest"], "invalid choice: 'fastest'"),
        (["--cfg", "a.yaml", "--weights", "b.pt"], "not allowed with"),
        (
            ["--cfg", str(ROOT / "models/cfg/yolov5n.yaml"), "--memory-case", "slow/esod"],
            "--memory-case slow/esod",
        ),
    ],
)
def test_errors(run_command: RunCommand, options: list[str], message: str) -> None:
    result = run_command(SCRIPT, *options)
    assert result.status != 0 and message in result.err


# --- memory --------------------------------------------------------------------------------------


def test_memory_of_each_case_in_its_process(tiny_yaml: Path, tmp_path: Path, run_command: RunCommand) -> None:
    options = ["--cfg", tiny_yaml, "--img-size", 512, "--kept", 0, "--heads", "dense", "--variants", "plain"]
    options += ["--rounds", 1, "--warmup", 0, "--memory", "--device", "cpu", "--json", tmp_path / "r.json"]
    result = run_command(SCRIPT, *options)
    assert result.status == 0, result.err
    dense, esod = BenchmarkResult.read(tmp_path / "r.json").cases
    assert dense.memory is not None and esod.memory is not None
    # The first convolution alone leaves 8 channels of 256×256 numbers.
    assert esod.memory.peak_mib - esod.memory.before_mib > 2
    assert dense.memory.peak_mib > dense.memory.before_mib > 50
    assert "memory MiB" in result.out


def test_memory_that_cannot_be_measured_is_told(folder: Path, tmp_path: Path) -> None:
    from engine.benchmark.memory import MemoryCaseError, measure_in_process

    case = BenchmarkResult.read(folder / "r.json").cases[0]
    with pytest.raises(MemoryCaseError, match=r"memory of plain dense at 1: .*missing\.yaml"):
        measure_in_process(ROOT / SCRIPT, ["--cfg", str(tmp_path / "missing.yaml"), "--device", "cpu"], case)


# --- the parts alone -----------------------------------------------------------------------------


def test_parts(tiny_yaml: Path, tmp_path: Path, run_command: RunCommand) -> None:
    options = ["--cfg", tiny_yaml, "--img-size", "256x320", "--rounds", 2, "--warmup", 0, "--device", "cpu"]
    result = run_command(PARTS, *options, "--json", tmp_path / "p.json")
    assert result.status == 0, result.err
    parts = json.loads((tmp_path / "p.json").read_text(encoding="utf-8"))["parts"]
    names = [part["name"] for part in parts]
    assert names[:4] == ["slicing, grid", "slicing, greedy", "gathering", "head, dense"]
    assert [name for name in names if name.startswith("head, sparse")] == [
        f"head, sparse at {share}%" for share in (2, 5, 10, 20, 50, 100)
    ]
    assert names[-3:] == ["suppression", "JPEG to tensor", "JPEG decoding alone"]
    assert all(len(part["ms"]) == 2 and min(part["ms"]) > 0 for part in parts)
    assert all(name in result.out for name in names)


def test_the_greedy_slicer_gets_its_centres() -> None:
    from engine.benchmark.parts import chosen, scattered_peaks
    from models.slicer import local_maxima
    from utils.config import SlicerConfig

    prob = scattered_peaks((112, 192), 100, seed=0)
    assert int(local_maxima(prob, 0.5).sum()) == 100
    assert 10 < len(chosen(prob, SlicerConfig(), "greedy")) <= 100


def test_positions_have_the_wanted_share() -> None:
    from engine.benchmark.parts import random_positions

    features = torch.zeros(3, 4, 8, 10)
    found = random_positions(features, 0.25, True, seed=0)
    assert len(found.wanted) == 60 and found.around is not None and len(found.around) > 60
    assert len(found.wanted.unique(dim=0)) == 60
    assert (found.wanted.amax(dim=0) <= torch.tensor([2, 7, 9])).all()


# --- the prepared run on a CPU ---------------------------------------------------------------------


def test_every_command_for_a_cpu_is_understood() -> None:
    done = subprocess.run(
        ["bash", str(ROOT / CPU)], env={**os.environ, "DRY_RUN": "1", "PYTHON": "python", "LIMIT": "7"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    commands = [shlex.split(line) for line in done.stdout.splitlines()]
    assert [command[1] for command in commands] == [SCRIPT] * 3 + [PARTS, "scripts/int8_speed.py", SCRIPT]
    parsed = [load(command[1]).build_parser().parse_args(command[2:]) for command in commands]
    assert all(args.seconds == 7 and args.threads == 2 for args in parsed[:3])
    assert parsed[0].variants == ["plain", "fast", "fast-compile"] and parsed[1].batch_sizes == [1, 4]
    assert parsed[5].from_json == [args.json for args in parsed[:3]] and parsed[5].parts == [parsed[3].json]
    unknown = subprocess.run(
        ["bash", str(ROOT / CPU)], env={**os.environ, "DRY_RUN": "1", "STEPS": "shares all"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert unknown.returncode == 2 and "unknown step all" in unknown.stderr


# --- the prepared run on a GPU -------------------------------------------------------------------


def gpu_script(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {
        key: value
        for key, value in os.environ.items()
        if key not in ("KEPT", "VARIANTS", "ROUNDS", "MODELS", "BATCHES")
    }
    return subprocess.run(
        ["bash", str(ROOT / GPU), *arguments],
        env={**environment, "DRY_RUN": "1", **variables},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_every_command_for_a_gpu_is_understood() -> None:
    done = gpu_script(ROUNDS="7", KEPT="0.2 0.4", RESULTS="some where", PYTHON="python")
    assert done.returncode == 0, done.stderr
    commands = [shlex.split(line) for line in done.stdout.splitlines()]
    assert {command[0] for command in commands} == {"python"}
    assert [command[1] for command in commands] == [SCRIPT] * 3 + [PARTS, SCRIPT]
    parsers = {script: load(script).build_parser() for script in (SCRIPT, PARTS)}
    parsed = [parsers[command[1]].parse_args(command[2:]) for command in commands]
    assert [args.cfg.stem for args in parsed[:4]] == ["yolov5m", "yolov5m", "yolov5x", "yolov5m"]
    assert [args.img_size for args in parsed[:3]] == [[(864, 1536)], [(1088, 1920)], [(864, 1536)]]
    assert all(
        args.batch_sizes == [1, 8] and args.rounds == 7 and args.kept == [0.2, 0.4] for args in parsed[:3]
    )
    assert all((ROOT / args.cfg).is_file() for args in parsed[:4])
    assert parsed[4].from_json == [args.json for args in parsed[:3]]
    assert parsed[4].parts == [parsed[3].json]
    assert {"fast-graph", "half-graph", "half-compile-graph"} <= set(parsed[0].variants)
    assert len({args.json for args in parsed[:4]}) == 4 and parsed[0].json.parent.name == "some where"
    for args in parsed[:3]:
        load(SCRIPT).check_options(args)


@pytest.mark.slow
def test_the_script_for_a_gpu_runs_whole_on_a_cpu(tiny_yaml: Path, tmp_path: Path) -> None:
    done = gpu_script(
        DRY_RUN="0", DEVICE="cpu", MODELS=f"{tiny_yaml}:256x320", BATCHES="1 2", KEPT="0.2", VARIANTS="plain fast",
        ROUNDS="1", RESULTS=str(tmp_path), PAGE=str(tmp_path / "page.md"), PYTHON=sys.executable,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "page.md").read_text(encoding="utf-8")
    for words in ("What is aimed at", "images/s", "floor ms", "Parts alone", "benchmark_gpu.png"):
        assert words in page
    assert (tmp_path / "benchmark_gpu.png").is_file()


def test_gpu_script_refuses_arguments_and_machines_without_gpu() -> None:
    refused = gpu_script("--rounds")
    assert refused.returncode == 2 and "unknown argument --rounds" in refused.stderr
    if not torch.cuda.is_available():
        done = gpu_script(DRY_RUN="0", PYTHON=sys.executable)
        assert done.returncode == 1 and "sees no GPU" in done.stderr


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_gpu_script_is_clean() -> None:
    assert subprocess.run(["shellcheck", str(ROOT / GPU)], check=False).returncode == 0
