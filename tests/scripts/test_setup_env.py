"""scripts/setup_env.sh with stand-ins for Python: what it says when something is missing, what it repairs.

The stand-in for an environment's Python answers as pip and OpenCV would, so that nothing is downloaded here. A
real installation is what run_tests.sh itself stands on.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

TOOLS = (
    "bash", "cat", "chmod", "cksum", "cp", "cut", "dirname", "find", "flock", "grep", "kill", "mkdir", "mv", "rm",
    "sed", "sha256sum", "shasum", "sleep", "touch", "tr", "env",
)  # fmt: skip

# The Python inside a made environment: each flag file beside it makes one thing go wrong.
INNER = """#!{bash}
here="$(dirname "$0")/.."
case "$*" in
    *"pip --version"*) exit 0 ;;
    *"pip install"*)
        echo "$*" >>"{log}"
        while [ "$#" -gt 0 ]; do if [ "$1" = --log ]; then pip_log="$2"; fi; shift; done
        if [ -f "{flags}/no-network" ]; then echo "ERROR: no matching distribution" >&2; exit 1; fi
        echo "Installing collected packages: torch" >"$pip_log"
        if [ -f "{flags}/killed" ]; then kill -9 "$PPID"; fi
        if [ -f "{flags}/disk-full" ]; then echo "ERROR: No space left on device" >&2; exit 1; fi
        exit 0 ;;
    *"import cv2"*)
        if [ -f "{flags}/no-libgl" ]; then
            echo "ImportError: libGL.so.1: cannot open shared object file: No such file or directory" >&2
            exit 1
        fi
        exit 0 ;;
    *"import torch"*) exit 0 ;;
esac
exec "{python}" "$@"
"""

# The Python outside: makes such an environment, and says so in the log.
OUTER = """#!{bash}
case "$*" in
    *"import ensurepip"*) if [ -f "{flags}/no-ensurepip" ]; then exit 1; fi; exit 0 ;;
    *"version_info < "*) if [ -f "{flags}/old" ]; then exit 1; fi; exit 0 ;;
    *"%d.%d"*) if [ -f "{flags}/old" ]; then echo 3.8; else echo 3.11; fi; exit 0 ;;
    "-m venv "*)
        echo "$*" >>"{log}"
        mkdir -p "$3/bin" "$3/lib"
        touch "$3/pyvenv.cfg" "$3/lib/new"
        cp "{inner}" "$3/bin/python"
        exit 0 ;;
esac
exec "{python}" "$@"
"""


@dataclass
class House:
    """A copy of the script with small requirements, and a PATH that has only stand-ins."""

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def venv(self) -> Path:
        return self.folder / "venv"

    def flag(self, name: str, on: bool = True) -> None:
        path = self.folder / "flags" / name
        if on:
            path.touch()
        else:
            path.unlink()

    def log(self) -> list[str]:
        path = self.folder / "log"
        return path.read_text().splitlines() if path.exists() else []

    def run(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", str(self.folder / "scripts" / "setup_env.sh"), *arguments],
            env={**self.environment, **variables}, cwd=self.folder,
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip


def write_program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture
def house(tmp_path: Path, root: Path) -> House:
    for name in ("bin", "scripts", "flags"):
        (tmp_path / name).mkdir()
    shutil.copy(root / "scripts" / "setup_env.sh", tmp_path / "scripts")
    (tmp_path / "requirements.txt").write_text("torch\n")
    (tmp_path / "requirements-dev.txt").write_text("-r requirements.txt\npytest\n")
    for tool in TOOLS:
        if found := shutil.which(tool):
            (tmp_path / "bin" / tool).symlink_to(found)
    values = {
        "bash": shutil.which("bash"), "python": sys.executable, "log": tmp_path / "log",
        "flags": tmp_path / "flags", "inner": tmp_path / "inner",
    }  # fmt: skip
    write_program(tmp_path / "inner", INNER.format_map(values))
    write_program(tmp_path / "bin" / "python3", OUTER.format_map(values))
    environment = {"PATH": str(tmp_path / "bin"), "ESOD_VENV": str(tmp_path / "venv"), "HOME": str(tmp_path)}
    return House(tmp_path, environment)


def test_makes_once_and_then_only_looks(house: House) -> None:
    first = house.run()
    assert first.returncode == 0, first.stderr
    assert first.stdout == f"{house.venv}/bin/python\n"
    assert len(house.log()) == 2
    assert "-m venv" in house.log()[0]
    assert house.log()[1].endswith("-r " + str(house.folder / "requirements.txt"))
    second = house.run()
    assert (second.returncode, second.stdout, second.stderr) == (0, first.stdout, "")
    assert len(house.log()) == 2


def test_dev_adds_to_runtime_and_covers_it(house: House) -> None:
    house.run()
    assert house.run("--dev").returncode == 0
    assert [line.rsplit("/", 1)[-1] for line in house.log()] == [
        "venv",
        "requirements.txt",
        "requirements-dev.txt",
    ]
    assert house.run().stderr == ""
    assert len(house.log()) == 3


def test_changed_requirements_are_installed_into_the_same_environment(house: House) -> None:
    house.run()
    (house.venv / "lib" / "kept").touch()
    (house.folder / "requirements.txt").write_text("torch\nnumpy\n")
    assert house.run().returncode == 0
    assert len(house.log()) == 3
    assert (house.venv / "lib" / "kept").exists()


def test_an_installation_cut_short_is_made_anew(house: House) -> None:
    house.flag("killed")
    assert house.run().returncode != 0
    (house.venv / "lib" / "half").touch()
    house.flag("killed", on=False)
    again = house.run()
    assert again.returncode == 0
    assert "cut short" in again.stderr
    assert not (house.venv / "lib" / "half").exists()
    assert house.run().stderr == ""


def test_a_full_disk_counts_as_cut_short_but_no_network_does_not(house: House) -> None:
    house.flag("no-network")
    refused = house.run()
    assert refused.returncode == 1
    assert "needs a network" in refused.stderr
    (house.venv / "lib" / "kept").touch()
    house.flag("no-network", on=False)
    house.flag("disk-full")
    assert house.run().returncode == 1
    assert (house.venv / "lib" / "kept").exists()
    house.flag("disk-full", on=False)
    assert house.run().returncode == 0
    assert not (house.venv / "lib" / "kept").exists()


def test_an_environment_whose_python_is_gone_is_made_anew(house: House) -> None:
    house.run()
    (house.venv / "bin" / "python").unlink()
    assert house.run().returncode == 0
    assert (house.venv / "bin" / "python").exists()


def test_missing_ensurepip_names_the_package(house: House) -> None:
    house.flag("no-ensurepip")
    result = house.run()
    assert result.returncode == 1
    assert result.stdout == ""
    assert "apt-get install -y python3-venv" in result.stderr
    assert "python3.11-venv" in result.stderr
    assert not house.venv.joinpath("bin").exists()


def test_missing_libgl_names_the_packages_and_is_looked_for_again(house: House) -> None:
    house.flag("no-libgl")
    result = house.run()
    assert result.returncode == 1
    assert "apt-get install -y libgl1 libglib2.0-0" in result.stderr
    assert "libGL.so.1" in result.stderr
    assert house.run().returncode == 1
    house.flag("no-libgl", on=False)
    assert house.run().returncode == 0
    assert sum("-m venv" in line for line in house.log()) == 1


def test_an_old_python_is_named(house: House) -> None:
    house.flag("old")
    result = house.run()
    assert result.returncode == 1
    assert "No Python ≥ 3.10 found (python3 is 3.8)" in result.stderr


def test_no_python_at_all(house: House) -> None:
    (house.folder / "bin" / "python3").unlink()
    result = house.run()
    assert result.returncode == 1
    assert "apt-get install -y python3 python3-venv" in result.stderr


def test_a_shim_that_does_not_run_is_passed_over(house: House) -> None:
    """As pyenv's shims of versions that are not installed: on PATH, and failing."""
    (house.folder / "bin" / "python3").rename(house.folder / "bin" / "python3.12")
    write_program(house.folder / "bin" / "python3", f"#!{shutil.which('bash')}\nexit 127\n")
    result = house.run()
    assert result.returncode == 0, result.stderr
    assert "bin/python3.12" in result.stderr


def test_a_folder_that_is_no_environment_is_left_alone(house: House) -> None:
    house.venv.mkdir()
    (house.venv / "thesis.tex").write_text("years of work")
    result = house.run()
    assert result.returncode == 1
    assert "not a virtual environment" in result.stderr
    assert sorted(path.name for path in house.venv.iterdir()) == ["thesis.tex"]


def test_what_a_user_put_into_the_environment_folder_survives_a_repair(house: House) -> None:
    house.flag("killed")
    house.run()
    house.flag("killed", on=False)
    (house.venv / "notes.txt").write_text("mine")
    assert house.run().returncode == 0
    assert (house.venv / "notes.txt").read_text() == "mine"


def test_none_uses_the_python_at_hand_and_names_what_it_lacks(house: House) -> None:
    result = house.run(ESOD_VENV="none", ESOD_PYTHON=sys.executable)
    assert (result.returncode, result.stdout.strip()) == (0, sys.executable), result.stderr
    bare = house.run(ESOD_VENV="none", ESOD_PYTHON="bare", PYTHONPATH="")
    assert bare.returncode == 1
    assert "ESOD_PYTHON=bare is no Python ≥ 3.10" in bare.stderr
    write_program(
        house.folder / "bin" / "empty", f'#!{shutil.which("bash")}\nexec "{sys.executable}" -I -S "$@"\n'
    )
    lacking = house.run("--dev", ESOD_VENV="none", ESOD_PYTHON="empty")
    assert lacking.returncode == 1
    assert "lacks the modules: torch torchvision numpy cv2" in lacking.stderr
    assert "requirements-dev.txt" in lacking.stderr


def test_two_at_once_install_once(house: House) -> None:
    if shutil.which("flock") is None:
        pytest.skip("flock is not installed: nothing to wait with")
    script = str(house.folder / "scripts" / "setup_env.sh")
    runs = [
        subprocess.Popen(
            ["bash", script], env=house.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for _ in range(3)
    ]
    for run in runs:
        run.communicate(timeout=60)
        assert run.returncode == 0
    assert len(house.log()) == 2


def test_key_changes_with_the_requirements(house: House) -> None:
    before = house.run("--key").stdout.strip()
    assert before.endswith("-py3.11")
    (house.folder / "requirements-dev.txt").write_text("-r requirements.txt\npytest\nruff\n")
    assert house.run("--key").stdout.strip() != before
    assert house.log() == []


def test_unknown_arguments_are_refused(house: House) -> None:
    result = house.run("--prod")
    assert result.returncode == 2
    assert "unknown argument: --prod" in result.stderr
