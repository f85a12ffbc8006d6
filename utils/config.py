"""Typed configuration: what a YAML file may say about a model, a dataset and a training run.

YAML is data here: every key is a dataclass field, an unknown key is an error that names the nearest
known one, and the resolved configuration is saved with every run and inside every checkpoint.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

ConfigT = TypeVar("ConfigT")

Anchors = list[list[list[float]]]
"""``anchors[level][anchor] = [width_px, height_px]``; levels are strides 8, 16, 32."""

# YOLOv5's published COCO anchors (pixels at 640): the fallback of a dataset without its own.
COCO_ANCHORS: Anchors = [
    [[10, 13], [16, 30], [33, 23]],
    [[30, 61], [62, 45], [59, 119]],
    [[116, 90], [156, 198], [373, 326]],
]

SlicerAlgorithm = Literal["grid", "greedy", "none"]
TrainPatches = Literal["selected", "uniform"]
HeatmapLossName = Literal["bce", "focal_dice"]


class ConfigError(ValueError):
    """A configuration that cannot be used; the message says which key, and what to write instead."""


@dataclass(frozen=True)
class SeekerConfig:
    """ObjSeeker, the heatmap head (paper section III-B)."""

    kind: Literal["conv", "spp", "none"] = "conv"
    """``conv``: 13×13 depth-wise; ``spp``: pooling pyramid (released UAVDT model); ``none``: no seeker."""
    kernel: int = 13


@dataclass(frozen=True)
class SlicerConfig:
    """AdaSlicer, heatmap → patches (paper section III-C)."""

    algorithm: SlicerAlgorithm = "grid"
    patches_per_side: int = 8
    threshold: float = 0.5
    """A cell is active when sigmoid(logit) ≥ threshold."""
    shift: Literal["center", "edge"] = "center"
    """How a patch moves over its empty margin: ``center`` puts its active cells in the middle; ``edge`` is
    the released rule (towards the larger margin until the active cells touch the border), kept for parity."""
    max_patches: int | None = None
    """Patch budget per image, best first; None: no limit."""


@dataclass(frozen=True)
class HeadConfig:
    """Detection head (paper section III-D)."""

    kind: Literal["decoupled", "dfl", "center", "single"] = "decoupled"
    """``decoupled``: ESOD's, with anchors; ``dfl``: YOLOv8's, anchor-free; ``center``: CenterNet's, anchor-free;
    ``single``: the one 1×1 convolution per level of plain YOLOv5."""
    bins: int = 16
    """``dfl`` only: distances 0 … bins − 1, in grid steps, that a box's sides are distributions over."""
    sparse: bool = False
    """Evaluate the head around heatmap peaks only (inference; training is always dense)."""
    threshold: float = 0.3
    """A heatmap peak counts for the sparse head when sigmoid(logit) ≥ threshold."""


@dataclass(frozen=True)
class ModelConfig:
    """Everything needed to build the network."""

    family: Literal["yolov5"] = "yolov5"
    depth: float = 0.33
    width: float = 0.5
    body: Literal["v5.0", "v6"] = "v5.0"
    """Release of YOLOv5 whose body it is: v5.0 begins with Focus, v6 with a 6×6 convolution."""
    seeker: SeekerConfig = field(default_factory=SeekerConfig)
    slicer: SlicerConfig = field(default_factory=SlicerConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    spp_kernels: list[int] = field(default_factory=lambda: [3, 5, 7])
    """Pooling sizes of the v5.0 body's SPP: 3, 5, 7 in ESOD, 5, 9, 13 in plain YOLOv5 v5.0."""
    transformer: bool = False
    """Last C3 with transformer blocks, in which the patches of an image look at each other; YOLOv5 family only."""
    bn_eps: float = 1e-5
    """BatchNorm epsilon: 1e-5 in ESOD, 1e-3 in YOLOv5's own files."""
    num_classes: int = 80
    names: list[str] = field(default_factory=list)
    """Class names; empty: "0", "1", …"""
    anchors: Anchors = field(default_factory=lambda: [[list(a) for a in level] for level in COCO_ANCHORS])

    def __post_init__(self) -> None:
        if self.seeker.kind == "none" and self.slicer.algorithm != "none":
            raise ConfigError(
                f"slicer {self.slicer.algorithm!r}: this model has no heatmap head to slice by; use --slicer none"
            )
        if self.head.sparse and (self.head.kind == "single" or self.seeker.kind == "none"):
            raise ConfigError(
                "sparse head: needs a model with a heatmap head and a head of 3×3 convolutions (any but head.kind "
                "'single'); use --head dense"
            )
        if self.names and len(self.names) != self.num_classes:
            raise ConfigError(f"num_classes is {self.num_classes} but there are {len(self.names)} names")
        if self.transformer and self.family != "yolov5":
            raise ConfigError(f"transformer: for family 'yolov5' only, not {self.family!r}: leave it out")


@dataclass(frozen=True)
class ModelOverrides:
    """What may be changed about a trained model; None keeps what its checkpoint says. Names as the flags'."""

    slicer: SlicerAlgorithm | None = None
    head: Literal["dense", "sparse"] | None = None
    heatmap_thres: float | None = None
    max_patches: int | None = None
    """0: no limit."""

    def apply(self, config: ModelConfig) -> ModelConfig:
        """The configuration with these changes.

        Raises:
            ConfigError: they contradict the model; the message says what to use instead.
        """
        slicer, head = config.slicer, config.head
        if self.slicer is not None:
            slicer = dataclasses.replace(slicer, algorithm=self.slicer)
        if self.heatmap_thres is not None:
            slicer = dataclasses.replace(slicer, threshold=self.heatmap_thres)
            # A patch that was chosen for a weak peak would be computed for nothing if the head ignored the peak.
            head = dataclasses.replace(head, threshold=min(head.threshold, self.heatmap_thres))
        if self.max_patches is not None:
            slicer = dataclasses.replace(slicer, max_patches=self.max_patches or None)
        if self.head is not None:
            head = dataclasses.replace(head, sparse=self.head == "sparse")
        return dataclasses.replace(config, slicer=slicer, head=head)


@dataclass(frozen=True)
class HypConfig:
    """Hyper-parameters of a training run (``data/hyps/*.yaml``); names follow YOLOv5's documentation."""

    lr0: float = 0.01
    lrf: float = 0.1
    """Final learning rate as a share of lr0 (cosine)."""
    momentum: float = 0.937
    weight_decay: float = 5e-4
    warmup_epochs: float = 3.0
    warmup_momentum: float = 0.8
    warmup_bias_lr: float = 0.1
    nominal_batch: int = 64
    """Gradients are accumulated until about this many images."""
    box: float = 0.05
    cls: float = 0.5
    cls_pw: float = 1.0
    obj: float = 1.0
    obj_pw: float = 1.0
    dfl_box: float = 7.5
    dfl_cls: float = 0.5
    dfl: float = 1.5
    """Weights of box overlap, classes and distance distributions for ``head.kind: dfl`` (YOLOv8's names: box, cls, dfl)."""
    center_heat: float = 1.0
    center_offset: float = 1.0
    center_size: float = 0.1
    """Weights of class maps, centre offsets and sizes for ``head.kind: center`` (CenterNet, arXiv 1904.07850, eq. 4)."""
    center_overlap: float = 0.7
    """How wide the class maps of ``head.kind: center`` forgive: a box with both corners off by the Gaussian's radius
    still has this IoU. The less, the wider; see `models.assign_centre.gaussian_radius`."""
    anchor_t: float = 4.0
    """A target matches an anchor when no side differs by more than this factor."""
    label_smoothing: float = 0.0
    heatmap: float = 0.05
    """Weight of the heatmap loss against the detection loss."""
    heatmap_loss: HeatmapLossName = "bce"
    heatmap_tau: float = 0.5
    """Label value at a box corner (paper eq. 3)."""
    heatmap_warmup_epochs: float = 3.0
    """For this long the label alone, not the prediction, chooses the training patches."""
    train_patches: TrainPatches = "selected"
    empty_patch_share: float = 0.1
    """Selected mode: probability that a patch without label and prediction is trained on all the same."""
    hsv_h: float = 0.015
    hsv_s: float = 0.7
    hsv_v: float = 0.4
    degrees: float = 0.0
    translate: float = 0.1
    scale: float = 0.5
    shear: float = 0.0
    flipud: float = 0.0
    fliplr: float = 0.5
    mosaic: float = 1.0
    mixup: float = 0.0


@dataclass(frozen=True)
class TrainConfig:
    """What the flags of train.py say; the flags' help texts describe each."""

    data: str
    cfg: str = ""
    weights: str = ""
    hyp: str = ""
    epochs: int = 50
    batch_size: int = 8
    """Total over all processes."""
    img_size: int | list[int] = 1536
    """Longer side, or [height, width]."""
    rect: bool = False
    multi_scale: bool = False
    single_cls: bool = False
    image_weights: bool = False
    cache: Literal["none", "ram", "disk"] = "none"
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    amp: Literal["auto", "bf16", "fp16", "off"] = "auto"
    sync_bn: bool = False
    workers: int = 4
    device: str = ""
    freeze: list[str] = field(default_factory=list)
    patience: int = 0
    save_period: int = 0
    nosave: bool = False
    notest: bool = False
    noautoanchor: bool = False
    seed: int = 0
    project: str = "runs/train"
    name: str = "exp"
    exist_ok: bool = False

    def size(self) -> int | tuple[int, int]:
        """img_size as the data pipeline takes it."""
        return self.img_size if isinstance(self.img_size, int) else (self.img_size[0], self.img_size[1])

    def longer_side(self) -> int:
        """The longer side of the input in pixels."""
        return self.img_size if isinstance(self.img_size, int) else max(self.img_size)


@dataclass(frozen=True)
class DatasetConfig:
    """A dataset YAML. Relative paths are resolved against ``path``, itself relative to the YAML's folder
    or the working directory, whichever exists (see `resolve_split`)."""

    path: str = "."
    train: str | list[str] = ""
    val: str | list[str] = ""
    test: str | list[str] = ""
    nc: int = 0
    names: list[str] = field(default_factory=list)
    anchors: dict[int, Anchors] = field(default_factory=dict)
    """Anchors per image size: {1536: [[[w, h], …], …]}; other sizes use the nearest, scaled."""
    note: str = ""
    """Printed wherever scores on this dataset are, e.g. "not comparable with published numbers"."""
    official: str = ""
    """Whose official protocol ``test.py --official`` runs: VisDrone, UAVDT or TinyPerson; empty: there is none."""

    def __post_init__(self) -> None:
        if self.nc != len(self.names):
            raise ConfigError(f"dataset YAML: nc is {self.nc} but there are {len(self.names)} names")

    def anchors_for(self, img_size: int) -> Anchors:
        """Anchors in pixels of an input whose longer side is img_size: the nearest entry, scaled."""
        table = self.anchors or {640: COCO_ANCHORS}
        nearest = min(table, key=lambda size: abs(size - img_size))
        ratio = img_size / nearest
        return [[[w * ratio, h * ratio] for w, h in level] for level in table[nearest]]


def config_from_dict(cls: type[ConfigT], data: object, where: str = "") -> ConfigT:
    """Build a configuration dataclass from plain data, checking every key and type.

    Raises ConfigError naming the key (and the nearest valid one), what was given and what was expected.
    """
    label = where or cls.__name__
    if not isinstance(data, dict):
        raise ConfigError(f"{label}: expected a mapping, found {type(data).__name__}")
    hints = typing.get_type_hints(cls)
    known = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    values = {}
    for key, value in data.items():
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known keys: {', '.join(sorted(known))}"
            raise ConfigError(f"{label}: unknown key {key!r}{hint}")
        values[key] = _coerce(hints[key], value, f"{label}.{key}")
    return cls(**values)


def config_to_dict(config: Any) -> dict[str, Any]:
    """Plain data (dicts, lists, numbers, strings) of a configuration dataclass, for YAML and checkpoints."""
    return dataclasses.asdict(config)


def load_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML mapping. Raises ConfigError for a missing, unreadable or non-mapping file."""
    try:
        data = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file") from error
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{path}: not readable as YAML: {error}") from error
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected a mapping at the top, found {type(data).__name__}")
    return data


def load_config(cls: type[ConfigT], path: str | Path) -> ConfigT:
    """Read a YAML file into a configuration dataclass; see `config_from_dict` for the errors."""
    return config_from_dict(cls, load_yaml(path), where=str(path))


def _coerce(hint: Any, value: Any, where: str) -> Any:
    """Check value against a type hint, converting int → float and nested mappings → dataclasses."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return config_from_dict(hint, value, where)
    if origin is Literal:
        if value not in args:
            near = difflib.get_close_matches(str(value), [str(a) for a in args], n=1)
            hint_text = f" (did you mean {near[0]!r}?)" if near else ""
            raise ConfigError(f"{where}: {value!r} is not one of {', '.join(map(repr, args))}{hint_text}")
        return value
    if origin in (typing.Union, types.UnionType):
        return _coerce_union(args, value, where)
    if origin is list and isinstance(value, (list, tuple)):
        return [_coerce(args[0], item, f"{where}[{i}]") for i, item in enumerate(value)]
    if origin is dict and isinstance(value, dict):
        return {_coerce(args[0], k, where): _coerce(args[1], v, f"{where}[{k}]") for k, v in value.items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    expected = origin or hint
    if not isinstance(value, expected) or (isinstance(value, bool) and hint is not bool):
        raise ConfigError(f"{where}: expected {_hint_name(hint)}, found {value!r}")
    return value


def _coerce_union(options: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and type(None) in options:
        return None
    for option in options:
        try:
            return _coerce(option, value, where)
        except ConfigError:
            continue
    expected = " or ".join(_hint_name(option) for option in options)
    raise ConfigError(f"{where}: expected {expected}, found {value!r}")


def _hint_name(hint: Any) -> str:
    return getattr(hint, "__name__", str(hint)) if typing.get_origin(hint) is None else str(hint)
