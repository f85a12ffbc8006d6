"""Opened files, whatever thread frees them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

FREED_BY_ANOTHER_THREAD = """
import faulthandler, gc, signal, subprocess, sys, threading
from pathlib import Path
import numpy, openvino
from openvino import opset13 as operators
from deploy.sessions import open_session

faulthandler.enable()  # handlers of signals run on the alternate stack
signal.signal(signal.SIGCHLD, lambda *_: None)
values = operators.parameter([1, 3], numpy.float32, name="values")
openvino.save_model(openvino.Model([operators.relu(values)], [values]), sys.argv[1])
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


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGCHLD")
def test_freed_by_another_thread(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    done = subprocess.run(
        [sys.executable, "-c", FREED_BY_ANOTHER_THREAD, str(tmp_path / "relu.xml")],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"exit status {done.returncode}: {done.stderr}"
    assert done.stdout.strip() == "still here"
