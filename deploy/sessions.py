"""One file, opened by the runtime that its ending calls for: ONNX Runtime (.onnx) or OpenVINO (.xml)."""

from __future__ import annotations

import functools
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from deploy.metadata import PREFIX, ExportedFileError

Arrays = Mapping[str, npt.NDArray[Any]]
SUFFIXES = (".onnx", ".xml")


class Session(Protocol):
    """An opened file; `run` may be called by several threads."""

    properties: dict[str, str]
    """Metadata as text."""

    def run(self, inputs: Arrays) -> dict[str, npt.NDArray[Any]]:
        """Compute all outputs, by name, from the inputs, by name."""


class OnnxSession:
    """A file in ONNX Runtime.

    Args:
        path: of the file.
        threads: that one operator may use; 0: as many as there are cores.
        device: "cpu", or "cuda" where onnxruntime-gpu is installed.
    """

    def __init__(self, path: Path, threads: int = 0, device: str = "cpu") -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise ExportedFileError(f"{path}: needs ONNX Runtime: pip install onnxruntime") from error
        provider = "CUDAExecutionProvider" if device == "cuda" else "CPUExecutionProvider"
        if provider not in onnxruntime.get_available_providers():
            raise ExportedFileError(
                f"device {device!r}: this ONNX Runtime has no {provider}; pip install onnxruntime-gpu, or take the CPU"
            )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=[provider])
        except _onnx_errors() as error:
            raise ExportedFileError(f"{path}: ONNX Runtime cannot open it: {error}") from error
        self.properties = dict(self._session.get_modelmeta().custom_metadata_map)
        self._outputs = [output.name for output in self._session.get_outputs()]

    def run(self, inputs: Arrays) -> dict[str, npt.NDArray[Any]]:
        """See `Session`."""
        values = self._session.run(self._outputs, dict(inputs))
        return dict(zip(self._outputs, values, strict=True))


def _onnx_errors() -> tuple[type[Exception], ...]:
    """What ONNX Runtime raises about a file: its exceptions have no class in common but Exception."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    classes = [value for value in vars(state).values() if isinstance(value, type)]
    return tuple(one for one in classes if issubclass(one, Exception))


_ONE_CORE = threading.Lock()


@functools.cache
def _openvino_core() -> Any:
    """The process's only `openvino.Core`, which is never freed.

    The CPU plugin of a core gives the thread that first compiles a model an alternate signal stack (sigaltstack).
    Freed by another thread, by the garbage collector say, it unmaps this stack without taking it back from the first:
    the next signal there, such as the end of a child process, ends the process (seen with OpenVINO 2026.4). A process
    that has made a core must not fork and use OpenVINO in the child, which would wait for ever: spawn.
    """
    import openvino

    # The binding makes its tables of types when they are first needed, and threads that need them at the same time
    # wait for each other for ever.
    openvino.Type(np.float32)
    openvino.Type.f32.to_dtype()
    return openvino.Core()


class OpenVinoSession:
    """A file in OpenVINO on the CPU, in 32 bits; arguments as of `OnnxSession`."""

    def __init__(self, path: Path, threads: int = 0, device: str = "cpu") -> None:
        try:
            with _ONE_CORE:
                core = _openvino_core()
        except ImportError as error:
            raise ExportedFileError(f"{path}: needs OpenVINO: pip install openvino") from error
        if device != "cpu":
            raise ExportedFileError(f"device {device!r}: OpenVINO files run on the CPU here")
        settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
        if threads:
            settings["INFERENCE_NUM_THREADS"] = threads
        try:
            model = core.read_model(str(path))
            self._model = core.compile_model(model, "CPU", settings)
        except RuntimeError as error:
            raise ExportedFileError(f"{path}: OpenVINO cannot open it: {error}") from error
        known = model.get_rt_info() if model.has_rt_info(f"{PREFIX}format") else {}
        self.properties = {name: str(value.value) for name, value in known.items() if name.startswith(PREFIX)}
        self._outputs = [output.get_any_name() for output in self._model.outputs]
        self._of_thread = threading.local()

    def run(self, inputs: Arrays) -> dict[str, npt.NDArray[Any]]:
        """See `Session`."""
        if not hasattr(self._of_thread, "request"):
            self._of_thread.request = self._model.create_infer_request()
        contiguous = {name: np.ascontiguousarray(value) for name, value in inputs.items()}
        results = self._of_thread.request.infer(contiguous)
        return {name: results[name] for name in self._outputs}


def open_session(path: Path, threads: int = 0, device: str = "cpu") -> Session:
    """Open a file; arguments as of `OnnxSession`.

    Raises:
        ExportedFileError: of an unknown kind, damaged, or its runtime is not installed.
    """
    if path.suffix not in SUFFIXES:
        raise ExportedFileError(f"{path}: expected a file ending in {' or '.join(SUFFIXES)}")
    if not path.is_file():
        raise ExportedFileError(f"{path}: no such file")
    return (OnnxSession if path.suffix == ".onnx" else OpenVinoSession)(path, threads, device)
