"""Where and how a result was made: versions, hardware, commit, command. For reports; nothing depends on them."""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import torch

_ROOT = Path(__file__).resolve().parent.parent
_GIT_TIMEOUT_S = 10


def measurement_head(script: str, words: Sequence[str], device: torch.device) -> dict[str, object]:
    """What every measurement's file says of how it was made: ``command``, ``device``, ``load``, ``environment``.

    Args:
        script: path from the project's root, "scripts/benchmark.py".
        words: of the command line, behind the script.
        device: on which was measured.
    """
    return {
        "command": shlex.join(["python", script, *words]),
        "device": device_name(device),
        "load": load_average(),
        "environment": environment_report(),
    }


def environment_report() -> dict[str, str | int | bool | None]:
    """Plain data for a report or checkpoint; what cannot be found out is None.

    Keys: ``platform``, ``python``, ``torch``, ``torchvision``, ``numpy``, ``opencv``, ``cpu``, ``cpu_count``,
    ``threads`` (of PyTorch), ``gpu``, ``gpu_count``, ``cuda``, ``git_commit``, ``git_dirty``.
    """
    has_gpu = torch.cuda.is_available()
    return {
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "torchvision": _version("torchvision"),
        "numpy": _version("numpy"),
        "opencv": _version("opencv-python", "opencv-python-headless", "opencv-contrib-python"),
        "cpu": cpu_name(),
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if has_gpu else None,
        "gpu_count": torch.cuda.device_count() if has_gpu else 0,
        "cuda": torch.version.cuda if has_gpu else None,
        "git_commit": _git("rev-parse", "HEAD"),
        "git_dirty": _git_dirty(),
    }


def device_name(device: torch.device) -> str:
    """The GPU's name, or the processor's with the number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{cpu_name()}, {torch.get_num_threads()} threads"


def load_average() -> float | None:
    """Processes that ran or waited in the last minute, on average; above what one measures, others ran too."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def cpu_name() -> str:
    """Model name of the processor, as well as the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.lower().startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()


def _version(*packages: str) -> str | None:
    for package in packages:
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return None


def _git_dirty() -> bool | None:
    """Whether tracked files differ from the commit."""
    status = _git("status", "--porcelain", "--untracked-files=no")
    return None if status is None else bool(status)


def _git(*arguments: str) -> str | None:
    """Output of a git command on this repository; None without git or outside of a repository."""
    git = shutil.which("git")
    if git is None or not (_ROOT / ".git").exists():
        return None
    try:
        done = subprocess.run(
            [git, "-C", str(_ROOT), *arguments],
            capture_output=True,
            text=True,
            timeout=_GIT_TIMEOUT_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
