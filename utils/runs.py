"""Run folders: where a command writes (``runs/<task>/exp``, ``exp2``, …) and where the latest run is.

Only names and folders; what lies in them is the business of the logger and of the checkpoints.
"""

from __future__ import annotations

import re
from pathlib import Path

LAST_CHECKPOINT = Path("weights") / "last.pt"
"""Inside a run folder: the state to resume from."""


class RunError(ValueError):
    """A run folder that cannot be made or found; the message says what to give instead."""


def new_run_dir(project: str | Path, name: str = "exp", exist_ok: bool = False) -> Path:
    """Make and return a fresh folder ``project/name``, ``name2``, ``name3``, …

    The number follows the highest one in use, so that a later run never sorts before an earlier one.
    Safe against other processes that do the same at the same time: each gets its own folder.

    Args:
        exist_ok: use ``project/name`` itself, even when it is there already.

    Raises:
        RunError: name is not a plain folder name, or the folder cannot be made.
    """
    if not name or Path(name).name != name or name in (".", ".."):
        raise RunError(f"--name {name!r} must be a plain folder name; other places are given by --project")
    parent = Path(project)
    try:
        parent.mkdir(parents=True, exist_ok=True)
        while True:
            folder = parent / (name if exist_ok else _next_name(parent, name))
            try:
                folder.mkdir(exist_ok=exist_ok)
            except FileExistsError:
                if exist_ok:
                    raise
                continue  # another process was quicker
            return folder
    except OSError as error:
        raise RunError(f"cannot make a folder {name!r} in {parent}: {error} (--project)") from error


def latest_run(project: str | Path) -> Path:
    """The run folder under a project (at any depth) whose last checkpoint was written last.

    Its checkpoint is ``latest_run(project) / LAST_CHECKPOINT``.

    Raises:
        RunError: no run there has a checkpoint.
    """
    found = [path for path in Path(project).glob(f"**/{LAST_CHECKPOINT}") if path.is_file()]
    if not found:
        raise RunError(
            f"nothing to resume: no run under {project} has a {LAST_CHECKPOINT}; "
            "give the checkpoint itself: --resume PATH"
        )
    newest = max(found, key=lambda path: (path.stat().st_mtime_ns, str(path)))
    return newest.parent.parent


def _next_name(parent: Path, name: str) -> str:
    pattern = re.compile(re.escape(name) + r"([0-9]*)")
    used = [int(match[1] or 1) for path in parent.iterdir() if (match := pattern.fullmatch(path.name))]
    return f"{name}{max(used) + 1}" if used else name
