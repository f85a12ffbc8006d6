"""Opened files, whatever threads use and free them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

RELU = """
import numpy, openvino
from openvino import opset13 as operators

values = operators.parameter([1, 3], numpy.float32, name="values")
openvino.save_model(openvino.Model([operators.relu(values)], [values]), "relu.xml")
"""
FREED_BY_ANOTHER_THREAD = """
import faulthandler, gc, signal, subprocess, sys, threading
from pathlib import Path
import numpy
from deploy.sessions import open_session

faulthandler.enable()  # handlers of signals run on the alternate stack
signal.signal(signal.SIGCHLD, lambda *_: None)
sessions = [open_session(Path(sys.argv[1]))]
(result,) = sessions[0].run({"values": numpy.array([[-1, 0, 2]], dtype=numpy.float32)}).values()
assert result.tolist() == [[0, 0, 2]]
thread = threading.Thread(target=sessions.clear)
thread.start()
thread.join()
gc.collect()
subprocess.run([sys.executable, "-S", "-c", ""], check=True)
print("still here")
"""


FIRST_USED_BY_MANY_THREADS = """
import sys, threading
from pathlib import Path
import numpy
from deploy.sessions import open_session

session, barrier, found = open_session(Path(sys.argv[1]), 1), threading.Barrier(6), []

def work():
    barrier.wait()
    found.extend(session.run({"values": numpy.zeros((1, 3), numpy.float32)}))

threads = [threading.Thread(target=work, daemon=True) for _ in range(6)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join(30)
assert len(found) == 6, f"{len(found)} of 6 threads are done"
print("still here")
"""


@pytest.fixture(scope="module")
def relu(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small OpenVINO file, written by another process, which leaves nothing behind."""
    pytest.importorskip("openvino")
    folder = tmp_path_factory.mktemp("relu")
    subprocess.run([sys.executable, "-c", RELU], cwd=folder, check=True)
    return folder / "relu.xml"


def run(code: str, path: Path) -> None:
    """In a new process, whose end must not take others with it."""
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"exit status {done.returncode}: {done.stderr}"
    assert done.stdout.strip() == "still here"


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGCHLD")
def test_freed_by_another_thread(relu: Path) -> None:
    run(FREED_BY_ANOTHER_THREAD, relu)


@pytest.mark.parametrize("attempt", range(3))
def test_first_used_by_many_threads(relu: Path, attempt: int) -> None:
    """They once waited for each other for ever, in one of two or three attempts."""
    run(FIRST_USED_BY_MANY_THREADS, relu)
