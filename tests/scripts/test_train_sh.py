"""scripts/train.sh in a repository of its own: which command it makes of which variables, and its errors."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")

VARIABLES = shlex.split(
    "DATASET MODEL GPUS BATCH_SIZE IMAGE_SIZE EPOCHS WEIGHTS SLICER HEAD HYP WORKERS NAME DRY_RUN ESOD_VENV "
    "NNODES NODE_RANK MASTER_ADDR MASTER_PORT"
)


@pytest.fixture
def repository(tmp_path: Path, root: Path) -> Path:
    """A folder with the script and the names it looks for; a space in its path must do no harm."""
    folder = tmp_path / "my repository"
    for name in ("visdrone", "uavdt", "tinyperson", "sample", "custom"):
        file = folder / "data" / f"{name}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("")
    for name in ("yolov5m", "yolov5n"):
        file = folder / "models" / "cfg" / f"{name}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("")
    (folder / "weights" / "pretrained").mkdir(parents=True)
    (folder / "weights" / "pretrained" / "yolov5m.pt").write_text("")
    (folder / "scripts").mkdir()
    shutil.copy(root / "scripts" / "train.sh", folder / "scripts" / "train.sh")
    (folder / "torch.py").write_text("")  # the script looks for PyTorch, which these tests do not need
    (folder / "train.py").write_text("import os, sys; print('RAN', os.getcwd(), *sys.argv[1:], sep='|')\n")
    return folder


def run(
    repository: Path, variables: str = "", *arguments: str, cwd: Path | None = None
) -> tuple[int, str, str]:
    """Exit status, output and errors of the script with variables such as "GPUS=0 EPOCHS=3"."""
    environment = {key: value for key, value in os.environ.items() if key not in VARIABLES}
    given = dict(text.split("=", 1) for text in shlex.split(variables))
    done = subprocess.run(
        ["bash", str(repository / "scripts" / "train.sh"), *arguments],
        env={**environment, "DRY_RUN": "1", **given},
        cwd=cwd or repository,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stdout, done.stderr


def command(repository: Path, variables: str = "", *arguments: str, cwd: Path | None = None) -> list[str]:
    """The words of the command after the interpreter."""
    status, out, err = run(repository, variables, *arguments, cwd=cwd)
    assert (status, err) == (0, "")
    return shlex.split(out)[1:]


def option(words: list[str], name: str) -> str:
    assert words.count(name) == 1, f"{name} in {words}"
    return words[words.index(name) + 1]


def test_defaults_are_the_documented_command(repository: Path) -> None:
    expected = shlex.split(
        "train.py --data data/visdrone.yaml --cfg models/cfg/yolov5m.yaml "
        "--weights weights/pretrained/yolov5m.pt --hyp data/hyps/default.yaml "
        "--batch-size 8 --img-size 1536 --epochs 50 --device 0"
    )
    assert command(repository) == expected
    documented = "DATASET=visdrone MODEL=yolov5m GPUS=0 BATCH_SIZE=8 IMAGE_SIZE=1536 EPOCHS=50"
    assert command(repository, documented) == expected


@pytest.mark.parametrize(
    ("dataset", "size"),
    [("visdrone", "1536"), ("uavdt", "1280"), ("tinyperson", "2048"), ("sample", "960"), ("custom", "1536")],
)
def test_each_dataset_has_its_size(dataset: str, size: str, repository: Path) -> None:
    words = command(repository, f"DATASET={dataset}")
    assert option(words, "--data") == f"data/{dataset}.yaml"
    assert option(words, "--img-size") == size
    assert option(command(repository, f"DATASET={dataset} IMAGE_SIZE=864x1536"), "--img-size") == "864x1536"


def test_every_variable_reaches_its_option(repository: Path) -> None:
    words = command(
        repository,
        "MODEL=yolov5n WEIGHTS=none GPUS=cpu BATCH_SIZE=3 EPOCHS=7 SLICER=none "
        "HEAD=sparse HYP=h.yaml WORKERS=0 NAME=a",
        "--cache",
        "--name=with space",
    )
    given = {
        "--cfg": "models/cfg/yolov5n.yaml",
        "--weights": "none",
        "--device": "cpu",
        "--batch-size": "3",
        "--epochs": "7",
        "--slicer": "none",
        "--head": "sparse",
        "--hyp": "h.yaml",
        "--workers": "0",
        "--name": "a",
    }
    assert {name: option(words, name) for name in given} == given
    assert words[0] == "train.py"
    assert words[-2:] == ["--cache", "--name=with space"]


TORCHRUN = "-m torch.distributed.run"


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ("GPUS=3", ""),
        ("GPUS=0,1,2,3", f"{TORCHRUN} --standalone --nproc_per_node 4"),
        ("GPUS=2,3 MASTER_PORT=1234", f"{TORCHRUN} --nproc_per_node 2 --master_port 1234"),
        (
            "GPUS=0,1 NNODES=2 NODE_RANK=1 MASTER_ADDR=10.0.0.1",
            f"{TORCHRUN} --nnodes 2 --node_rank 1 --nproc_per_node 2 --master_addr 10.0.0.1 --master_port 29500",
        ),
        (
            "GPUS=0 NNODES=2 NODE_RANK=0 MASTER_ADDR=a MASTER_PORT=77",
            f"{TORCHRUN} --nnodes 2 --node_rank 0 --nproc_per_node 1 --master_addr a --master_port 77",
        ),
    ],
)
def test_processes(variables: str, expected: str, repository: Path) -> None:
    launcher = shlex.split(expected)
    words = command(repository, variables)
    assert words[: len(launcher) + 1] == [*launcher, "train.py"]
    assert option(words, "--device") == variables.split()[0].removeprefix("GPUS=")
    assert option(words, "--batch-size") == "8"  # the total, whatever the number of processes


@pytest.mark.parametrize(
    ("variables", "messages"),
    [
        ("DATASET=visdron", ["data/visdron.yaml", "custom, sample, tinyperson, uavdt, visdrone"]),
        ("MODEL=yolov9", ["models/cfg/yolov9.yaml", "yolov5m, yolov5n"]),
        ("GPUS=gpu0", ["GPUS=gpu0", "cpu", "0,1,2,3"]),
        ("GPUS=0,1,2", ["BATCH_SIZE=8", "multiple of 3"]),
        ("NNODES=2 NODE_RANK=0 MASTER_ADDR=a GPUS=0,1,2,3 BATCH_SIZE=12", ["BATCH_SIZE=12", "multiple of 8"]),
        ("BATCH_SIZE=0", ["BATCH_SIZE=0"]),
        ("EPOCHS=ten", ["EPOCHS=ten"]),
        ("NNODES=2 NODE_RANK=0", ["MASTER_ADDR"]),
        ("NNODES=2 MASTER_ADDR=a", ["NODE_RANK", "0 to 1"]),
        ("NNODES=2 NODE_RANK=2 MASTER_ADDR=a", ["NODE_RANK", "0 to 1"]),
        ("ESOD_VENV=missing", ["ESOD_VENV=missing"]),
        (
            "MODEL=yolov5n",
            [
                "no initial weights at weights/pretrained/yolov5n.pt",
                "scripts/model_convert.py --weights DOWNLOADED_FILE --output weights/pretrained/yolov5n.pt",
                "WEIGHTS=none",
            ],
        ),
        ("WEIGHTS=my.pt", ["no initial weights at my.pt"]),
    ],
)
def test_errors_say_what_to_do(variables: str, messages: list[str], repository: Path) -> None:
    status, out, err = run(repository, variables)
    assert (status, out) == (2, "")
    assert err.startswith("train.sh: ")
    assert all(message in err for message in messages), err


def test_a_variant_begins_with_the_weights_of_its_model(repository: Path) -> None:
    (repository / "models" / "cfg" / "yolov5m-p2.yaml").write_text("")
    base, own = (f"weights/pretrained/{name}.pt" for name in ("yolov5m", "yolov5m-p2"))
    assert option(command(repository, "MODEL=yolov5m-p2"), "--weights") == base
    (repository / own).write_text("")
    assert option(command(repository, "MODEL=yolov5m-p2"), "--weights") == own


def test_files_may_be_given_relative_to_the_caller(repository: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "mine.pt").write_text("")
    (elsewhere / "mine.yaml").write_text("")
    words = command(repository, "WEIGHTS=mine.pt HYP=mine.yaml", cwd=elsewhere)
    assert option(words, "--weights") == str(elsewhere / "mine.pt")
    assert option(words, "--hyp") == str(elsewhere / "mine.yaml")
    assert option(command(repository, cwd=elsewhere), "--weights") == "weights/pretrained/yolov5m.pt"


@pytest.mark.parametrize("arguments", [("--resume",), ("--resume", "last.pt"), ("--resume=last.pt",)])
def test_a_resumed_run_needs_its_checkpoint_only(arguments: tuple[str, ...], repository: Path) -> None:
    words = command(repository, "MODEL=yolov5n GPUS=0,1,2", *arguments)
    assert words[-len(arguments) - 3 :] == ["train.py", "--device", "0,1,2", *arguments]


def test_the_virtual_environment_is_used(repository: Path, tmp_path: Path) -> None:
    for folder in (repository / ".venv" / "bin", tmp_path / "other" / "bin"):
        folder.mkdir(parents=True)
        (folder / "python").symlink_to(sys.executable)
    assert shlex.split(run(repository)[1])[0] == str(repository / ".venv" / "bin" / "python")
    other = tmp_path / "other"
    assert shlex.split(run(repository, f"ESOD_VENV={other}")[1])[0] == str(other / "bin" / "python")
    assert shlex.split(run(repository, "ESOD_VENV=other", cwd=tmp_path)[1])[0] == str(
        other / "bin" / "python"
    )


def test_it_runs_in_the_repository_with_the_arguments_whole(repository: Path, tmp_path: Path) -> None:
    status, out, err = run(repository, "DRY_RUN=0 GPUS=cpu", "--name", "two words", cwd=tmp_path)
    assert (status, err) == (0, "")
    ran = out.splitlines()[-1].split("|")
    assert ran[:2] == ["RAN", str(repository)]
    assert ran[-2:] == ["--name", "two words"]


def test_a_python_without_pytorch_is_named(repository: Path) -> None:
    (repository / "torch.py").unlink()
    empty = repository / "empty" / "bin"
    empty.mkdir(parents=True)
    python = empty / "python"
    python.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -S -E "$@"\n')  # without site-packages
    python.chmod(0o755)
    status, _, err = run(repository, "DRY_RUN=0 ESOD_VENV=empty")
    assert status == 2
    assert "no PyTorch" in err
    assert "setup_env.sh" in err


def test_the_exit_status_is_that_of_training(repository: Path) -> None:
    (repository / "train.py").write_text("raise SystemExit(7)\n")
    assert run(repository, "DRY_RUN=0")[0] == 7


def test_help_lists_every_variable(repository: Path) -> None:
    status, out, _ = run(repository, "DATASET=unknown", "--help")
    assert status == 0
    assert all(name in out for name in VARIABLES)


def test_every_model_of_the_repository_is_known(root: Path) -> None:
    for path in sorted((root / "models" / "cfg").glob("*.yaml")):
        words = command(root, f"DATASET=visdrone MODEL={path.stem} WEIGHTS=none GPUS=cpu")
        assert option(words, "--cfg") == f"models/cfg/{path.name}"
