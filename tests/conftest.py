"""Fixtures shared by the whole suite."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread

import cv2
import numpy as np
import pytest
import torch
import yaml

from utils.cli import run_main

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository root."""
    return ROOT


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Reference data beside the checkout (real images, real checkpoints); most users do not have it."""
    folder = Path(os.environ.get("ESOD_SHARED", ROOT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no reference data at {folder} (set ESOD_SHARED to its folder)")
    return folder


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@dataclass
class CommandResult:
    """What a command line left: exit status, what it printed."""

    status: int
    out: str
    err: str


RunCommand = Callable[..., CommandResult]


@pytest.fixture
def run_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> RunCommand:
    """Runs a script of the project in this process: ``run_command("test.py", "--task", "val")``."""

    def run(script: str, *arguments: object) -> CommandResult:
        name = script.removesuffix(".py").replace("/", "_") + "_command"
        spec = importlib.util.spec_from_file_location(name, ROOT / script)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        spec.loader.exec_module(module)
        capsys.readouterr()
        try:
            status = run_main(module.main)
        except SystemExit as error:  # argparse
            status = int(error.code or 0)
        printed = capsys.readouterr()
        return CommandResult(status, printed.out, printed.err)

    return run


@pytest.fixture(scope="session")
def tiny_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The YAML of a drawn and prepared dataset of 8 + 4 images of 256×160, and a model of tiny width beside it."""
    root = tmp_path_factory.mktemp("tiny dataset")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for command in (
        [
            "scripts/make_sample.py",
            "--output",
            root,
            "--train",
            8,
            "--val",
            4,
            "--width",
            256,
            "--height",
            160,
        ],
        [
            "scripts/data_prepare.py",
            "--dataset",
            "VisDrone",
            "--root",
            root,
            "--detect-list",
            root / "list.txt",
        ],
    ):
        line = [sys.executable, *map(str, command), "--workers", "1"]
        subprocess.run(line, check=True, capture_output=True, env=environment, cwd=ROOT)
    data = yaml.safe_load((ROOT / "data" / "sample.yaml").read_text(encoding="utf-8"))
    (root / "data.yaml").write_text(yaml.safe_dump(data | {"path": str(root)}), encoding="utf-8")
    model = yaml.safe_load((ROOT / "models" / "cfg" / "yolov5n.yaml").read_text(encoding="utf-8"))
    (root / "model.yaml").write_text(yaml.safe_dump(model | {"width": 0.125}), encoding="utf-8")
    return root / "data.yaml"


@dataclass
class MjpegServer:
    """A camera that sends JPEGs over HTTP to whoever asks, on this machine only.

    Attributes:
        port: it listens on.
        per_connection: frames before it hangs up; by number of the connection, the last one for all others.
        hw: height and width, likewise.
        interval_s: between frames.
        connections: how many there were.
        closed: hangs up on everybody, and answers nobody.
    """

    port: int = 0
    per_connection: list[int] = field(default_factory=lambda: [10**9])
    hw: list[tuple[int, int]] = field(default_factory=lambda: [(48, 64)])
    interval_s: float = 0.01
    connections: int = 0
    closed: Event = field(default_factory=Event)

    def address(self, name: str = "live") -> str:
        return f"http://127.0.0.1:{self.port}/{name}"

    def send(self, handler: BaseHTTPRequestHandler) -> None:
        number, self.connections = self.connections, self.connections + 1
        if self.closed.is_set():
            handler.send_error(503)
            return
        count = self.per_connection[min(number, len(self.per_connection) - 1)]
        hw = self.hw[min(number, len(self.hw) - 1)]
        handler.send_response(200)
        handler.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        handler.end_headers()
        for brightness in range(count):
            _, jpeg = cv2.imencode(".jpg", np.full((*hw, 3), (brightness % 25) * 10, np.uint8))
            data = jpeg.tobytes()
            head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(data)}\r\n\r\n"
            try:
                handler.wfile.write(head.encode() + data + b"\r\n")
            except OSError:
                return
            if self.closed.wait(self.interval_s):
                return


@pytest.fixture
def mjpeg_server() -> Iterator[MjpegServer]:
    """A running `MjpegServer`."""
    camera = MjpegServer()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            camera.send(self)

        def log_message(self, *message: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    camera.port = server.server_port
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    yield camera
    camera.closed.set()
    server.shutdown()
    server.server_close()
    thread.join()
