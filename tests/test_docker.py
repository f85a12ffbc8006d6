"""The Dockerfiles, without a daemon: their form, what they copy and install, and their steps in a new environment."""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted((ROOT / "docker").glob("Dockerfile.*"))
KNOWN = {"FROM", "RUN", "WORKDIR", "ARG", "COPY", "ENV", "USER", "ENTRYPOINT", "CMD"}

each = pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)


def instructions(path: Path) -> list[tuple[str, str]]:
    """(instruction, its text) in order; continued lines joined, comments left out."""
    lines = [
        line for line in path.read_text(encoding="utf-8").splitlines() if not line.lstrip().startswith("#")
    ]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(name, text) for name, _, text in (line.partition(" ") for line in joined.splitlines() if line)]


def texts(path: Path, name: str) -> list[str]:
    """The texts of all instructions of a name."""
    return [text for instruction, text in instructions(path) if instruction == name]


def ignored() -> list[str]:
    """Patterns of .dockerignore."""
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def test_both_are_there() -> None:
    assert [path.name for path in FILES] == ["Dockerfile.cpu", "Dockerfile.cuda"]


@each
def test_form(path: Path) -> None:
    found = instructions(path)
    assert {name for name, _ in found} <= KNOWN
    assert found[0][0] == "FROM"
    for base in texts(path, "FROM"):
        assert re.fullmatch(r"[\w./-]+:[\w.-]+", base) and not base.endswith(":latest"), "a pinned version"
    order = [name for name, _ in found]
    assert order.index("USER") < order.index("ENTRYPOINT") and texts(path, "USER") == ["1000"]
    for text in [*texts(path, "ENTRYPOINT"), *texts(path, "CMD")]:
        assert isinstance(json.loads(text), list), "as a list, so that signals reach Python"
    assert (ROOT / json.loads(texts(path, "CMD")[0])[0]).is_file()
    for text in texts(path, "RUN"):
        assert subprocess.run(["sh", "-n", "-c", text], check=False).returncode == 0, text


@each
def test_system_packages(path: Path) -> None:
    (text,) = [text for text in texts(path, "RUN") if "apt-get" in text]
    assert text.startswith("apt-get update ") and "--no-install-recommends" in text
    assert text.endswith("rm -rf /var/lib/apt/lists/*")
    told = re.search(
        r"Debian, Ubuntu:  apt-get install -y (libgl1[^\"]*)\"", (ROOT / "scripts/setup_env.sh").read_text()
    )
    assert told is not None
    assert set(told[1].split()) <= set(text.split()), "what scripts/setup_env.sh says OpenCV needs"


@each
def test_what_is_copied_is_there_and_sent(path: Path) -> None:
    for text in texts(path, "COPY"):
        *sources, _ = [word for word in text.split() if not word.startswith("--")]
        for source in sources:
            assert (ROOT / source).exists()
            assert not any(fnmatch.fnmatch(source, pattern) for pattern in ignored())
    needed = (
        "train.py",
        "requirements.txt",
        "weights/sample_yolov5n.pt",
        "data/images/sample_1.jpg",
        "models/esod.py",
    )
    assert [
        n
        for n in needed
        for pattern in ignored()
        if fnmatch.fnmatch(n, pattern) or n.startswith(f"{pattern}/")
    ] == []


def test_what_git_ignores_is_not_sent() -> None:
    git = (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    folders = {line.strip("/") for line in git if re.fullmatch(r"/?[\w.]+/?", line)} - {".DS_Store"}
    patterns = {pattern.removeprefix("**/") for pattern in ignored()}
    assert folders - patterns == set()


@pytest.mark.skipif(shutil.which("hadolint") is None, reason="hadolint is not installed")
@each
def test_hadolint(path: Path) -> None:
    done = subprocess.run(["hadolint", str(path)], capture_output=True, text=True, check=False)
    assert done.stdout == ""


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif("ESOD_FULL" not in os.environ, reason="installs PyTorch: ESOD_FULL=1 runs it")
@each
def test_installation_steps_in_a_new_environment(path: Path, tmp_path: Path) -> None:
    """Everything of RUN but apt-get and the user; then the image's own command."""
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    environment = {**os.environ, "PATH": f"{tmp_path / 'venv' / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    environment.pop("PYTHONPATH", None)
    steps = [text for text in texts(path, "RUN") if text.startswith("python ")]
    assert steps
    for text in steps:
        # The index is that of the machine, which may be a mirror.
        command = text.replace('--index-url "$TORCH_INDEX" ', "")
        subprocess.run(["sh", "-e", "-c", command], cwd=ROOT, env=environment, check=True)
    line = [*json.loads(texts(path, "ENTRYPOINT")[0]), *json.loads(texts(path, "CMD")[0])]
    done = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert "usage: detect.py" in done.stdout
