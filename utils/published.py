"""Which published files each model can start from, by the names their publishers gave them."""

from __future__ import annotations

from pathlib import Path

from utils.checkpoint import CheckpointError

PRETRAINED = Path("weights") / "pretrained"
"""Folder of initial weights, one file per model: ``yolov5m.pt`` for ``models/cfg/yolov5m.yaml``."""

PUBLISHED: dict[str, tuple[str, ...]] = {
    "retinanet": ("retinanet_resnet50_fpn*.pth", "resnet50-*.pth"),
    "rtmdet_tiny": ("rtmdet_tiny_*.pth", "cspnext-tiny*.pth"),
    "rtmdet_s": ("rtmdet_s_*.pth", "cspnext-s*.pth"),
    "rtmdet_m": ("rtmdet_m_*.pth", "cspnext-m*.pth"),
    "rtmdet_l": ("rtmdet_l_*.pth", "cspnext-l*.pth"),
    **{f"gpvit_l{n}": (f"gpvit_l{n}*.pth", f"gpvit_l{n}*.pt") for n in (1, 2, 3, 4)},
    **{f"yolov5{size}": (f"yolov5{size}_v5.0*.pt", f"yolov5{size}-v5.0*.pt") for size in "smlx"},
    **{f"yolov5{size}_v6": (f"yolov5{size}_v[67]*.pt", f"yolov5{size}-v[67]*.pt") for size in "nsmlx"},
    **{f"yolov8{size}": (f"yolov8{size}_coco*.pt", f"yolov8{size}-coco*.pt") for size in "nsmlx"},
}
"""Model → file names to look for, the best start first (a detector before a classifier)."""
PUBLISHED |= {
    "rtmdet": PUBLISHED["rtmdet_m"],
    "gpvit": PUBLISHED["gpvit_l1"],
    "yolov5m-tr": PUBLISHED["yolov5m"],
    **{f"{model}-p2": PUBLISHED[model] for model in ("yolov5s", "yolov5m", "yolov5n_v6")},
    "yolov5m-center": PUBLISHED["yolov5m"],
    "yolov8m-anchor": PUBLISHED["yolov8m"],
}


def default_weights(model: str) -> Path:
    """Where the initial weights of a model are looked for.

    The file of its own name; where there is none, that of the model that it is a variant of (``yolov5s`` for
    ``yolov5s-p2``), whose weights fill everything else, if that is there.
    """
    own, base = (PRETRAINED / f"{name}.pt" for name in (model, model.partition("-")[0]))
    return base if base.is_file() and not own.is_file() else own


def published_file(model: str, folder: Path) -> Path:
    """The published file of a model in a folder.

    Raises:
        CheckpointError: the model is unknown, or no such file is there; the message says which it could be.
    """
    if model not in PUBLISHED:
        raise CheckpointError(
            f"--model {model}: no published file is known for it; known are {', '.join(sorted(PUBLISHED))}. "
            "Give the file as --weights"
        )
    for pattern in PUBLISHED[model]:
        found = sorted(path for path in folder.glob(pattern) if path.is_file())
        if found:
            return found[-1]
    raise CheckpointError(
        f"{folder}: no file named {' or '.join(PUBLISHED[model])}. Put {model}'s published weights there under their own "
        "name, or give the file as --weights"
    )
