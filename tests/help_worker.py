"""What ``--help`` of commands prints, as JSON: ``python tests/help_worker.py PATH ...`` in any folder.

Loading PyTorch takes seconds and each command needs it: it is loaded once here, and every command then runs in a
fork, with nothing of the project imported and its own folder first on the import path, as ``python PATH --help`` has it.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
import tempfile
import traceback
from pathlib import Path
from typing import IO

import cv2  # noqa: F401
import matplotlib.pyplot  # noqa: F401
import torchvision  # noqa: F401
import yaml  # noqa: F401


def main() -> None:
    """Print {path: [exit status, standard output, standard error]}."""
    json.dump({path: ask(path) for path in sys.argv[1:]}, sys.stdout)


def ask(path: str) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of one command."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        child = os.fork()
        if child == 0:
            run(path, out, err)
        _, status = os.waitpid(child, 0)
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read())
    return os.waitstatus_to_exitcode(status), texts[0], texts[1]


def run(path: str, out: IO[str], err: IO[str]) -> None:
    """Be the command: its files, its words, its import path; ends this process."""
    os.dup2(out.fileno(), 1)
    os.dup2(err.fileno(), 2)
    sys.argv = [path, "--help"]
    sys.path[0] = str(Path(path).parent)
    code = 1
    try:
        runpy.run_path(path, run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001 - the status tells
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
