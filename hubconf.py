"""Entry points for torch.hub: detectors from weights files, and networks with random weights by name.

    detector = torch.hub.load("PATH/OF/THIS/FOLDER", "sample", source="local")
    detector = torch.hub.load("PATH/OF/THIS/FOLDER", "esod", source="local", weights="best.pt")
    network = torch.hub.load("PATH/OF/THIS/FOLDER", "yolov5m", source="local", num_classes=10)

There is a network for each file of models/cfg; docs/python.md explains what the entry points give.
"""

from __future__ import annotations

from collections.abc import Callable as _Callable
from dataclasses import replace as _replace
from pathlib import Path as _Path
from types import ModuleType as _ModuleType

import models as _models
import utils as _utils

dependencies = ["torch", "torchvision", "numpy", "cv2", "yaml"]

_ROOT = _Path(__file__).resolve().parent


def _refuse_others(packages: tuple[_ModuleType, ...]) -> None:
    """Raise ImportError where the program already has packages of its own that are called as ours are."""
    for package in packages:
        folders = [_Path(folder).resolve() for folder in getattr(package, "__path__", [])]
        if _ROOT / package.__name__ not in folders:
            raise ImportError(
                f"this program already uses {package.__name__!r} from {package.__file__}; ESOD has a package of that "
                "name, too: load it in a process of its own, or rename yours"
            )


_refuse_others((_models, _utils))

from engine.inference import Detector as _Detector  # noqa: E402 - an error in it would not say what is wrong
from engine.inference import load_model as _load_model  # noqa: E402
from models.build import build_model as _build_model  # noqa: E402
from models.esod import ESOD as _ESOD  # noqa: E402
from utils.config import ModelConfig as _ModelConfig  # noqa: E402
from utils.config import ModelOverrides as _ModelOverrides  # noqa: E402
from utils.config import SlicerAlgorithm as _SlicerAlgorithm  # noqa: E402
from utils.typed_data import load_config as _load_config  # noqa: E402


def esod(
    weights: str | _Path,
    device: str = "",
    slicer: _SlicerAlgorithm | None = None,
    max_patches: int | None = None,
    half: bool = False,
) -> _Detector:
    """A detector from a weights file; ``predict`` takes pictures.

    Args:
        weights: path, of any file that detect.py takes.
        device: "" (a GPU when there is one), "cpu", "0", …
        slicer: "grid", "greedy" or "none" (dense); None: as the file says.
        max_patches: at most so many patches per image; None: as the file says, 0: no limit.
        half: compute in half precision.
    """
    return _load_model(weights, device, _ModelOverrides(slicer=slicer, max_patches=max_patches), half=half)


def sample(device: str = "", slicer: _SlicerAlgorithm | None = None) -> _Detector:
    """The shipped detector of drawn cars, vans, people and bicycles (weights/README.md); arguments as for esod."""
    return esod(_ROOT / "weights" / "sample_yolov5n.pt", device, slicer)


def _builder(file: _Path) -> _Callable[..., _ESOD]:
    """The entry point for a file of models/cfg."""

    def build(
        num_classes: int = 80, names: list[str] | None = None, slicer: _SlicerAlgorithm | None = None
    ) -> _ESOD:
        config = _replace(_load_config(_ModelConfig, file), num_classes=num_classes, names=names or [])
        return _build_model(_ModelOverrides(slicer=slicer).apply(config))

    build.__name__ = build.__qualname__ = file.stem.replace("-", "_")
    build.__doc__ = (
        f"The network of models/cfg/{file.name} with random weights, a torch.nn.Module.\n\n"
        "    Args:\n        num_classes, names: of its head; names may be left out.\n"
        '        slicer: "grid", "greedy" or "none" (dense); None: as the file says.\n    '
    )
    return build


# One entry point for each file of models/cfg: yolov5n, yolov5m_tr, gpvit_l1, …
globals().update(
    {entry.__name__: entry for entry in map(_builder, sorted((_ROOT / "models" / "cfg").glob("*.yaml")))}
)
