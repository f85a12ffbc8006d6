"""Typed configuration: what a YAML file may say about a model, a dataset and a training run.

YAML is data here: every key is a dataclass field, an unknown key is an error that names the nearest
known one, and the resolved configuration is saved with every run and inside every checkpoint.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Literal

from utils.typed_data import ConfigError

Anchors = list[list[list[float]]]
"""``anchors[level][anchor] = [width_px, height_px]``; levels are strides 8, 16, 32, and 4 where a model has it."""

# YOLOv5's published COCO anchors (pixels at 640): the fallback of a dataset without its own.
COCO_ANCHORS: Anchors = [
    [[10, 13], [16, 30], [33, 23]],
    [[30, 61], [62, 45], [59, 119]],
    [[116, 90], [156, 198], [373, 326]],
]

SlicerAlgorithm = Literal["grid", "greedy", "none"]
Borders = Literal["zeros", "neighbours"]
TrainPatches = Literal["selected", "uniform"]
Recompute = Literal["none", "stem", "all"]
"""Whose activations are computed again in the backward pass: nothing's, the stem's, the whole body's and neck's."""
HeatmapLossName = Literal["bce", "focal_dice"]
Suppression = Literal["hard", "soft", "fusion"]
"""What happens to a box that overlaps a better one of its class: it goes; its score shrinks; they are averaged."""


def _require(possible: bool, key: str, value: object, expected: str) -> None:
    """Refuse a value of the right type that no network can have."""
    if not possible:
        raise ConfigError(f"{key} is {value!r}; expected {expected}")


@dataclass(frozen=True)
class SeekerConfig:
    """ObjSeeker, the heatmap head (paper section III-B)."""

    kind: Literal["conv", "spp", "none"] = "conv"
    """``conv``: 13×13 depth-wise; ``spp``: pooling pyramid (released UAVDT model); ``none``: no seeker."""
    kernel: int = 13

    def __post_init__(self) -> None:
        # An even kernel would give a map with one row and one column more than the features.
        _require(self.kernel > 0 and self.kernel % 2 == 1, "seeker.kernel", self.kernel, "an odd number")


@dataclass(frozen=True)
class SlicerConfig:
    """AdaSlicer, heatmap → patches (paper section III-C)."""

    algorithm: SlicerAlgorithm = "grid"
    patches_per_side: int = 8
    threshold: float = 0.5
    """A cell is active when sigmoid(logit) ≥ threshold."""
    shift: Literal["center", "edge", "none"] = "center"
    """How a patch moves over its empty margin: ``center`` puts its active cells in the middle; ``edge`` is
    the released rule (towards the larger margin until the active cells touch the border), kept for parity; ``none``: not at
    all, and patches with any active cell are kept, not only those with a peak."""
    max_patches: int | None = None
    """Patch budget per image, best first; None: no limit."""

    def __post_init__(self) -> None:
        _require(self.patches_per_side > 0, "slicer.patches_per_side", self.patches_per_side, "at least 1")
        _require(0 <= self.threshold <= 1, "slicer.threshold", self.threshold, "0 to 1")
        budget = self.max_patches
        _require(
            budget is None or budget > 0, "slicer.max_patches", budget, "at least 1, or null for no limit"
        )


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

    def __post_init__(self) -> None:
        _require(0 <= self.threshold <= 1, "head.threshold", self.threshold, "0 to 1")
        _require(self.bins >= 2, "head.bins", self.bins, "at least 2 distances")


@dataclass(frozen=True)
class GPViTConfig:
    """Size of a GPViT body (arXiv 2212.06795); the defaults are GPViT-L1."""

    channels: int = 216
    heads: int = 12
    """Of the local blocks, half along columns and half along rows; group propagation has half as many."""
    group_tokens: list[int] = field(default_factory=lambda: [64, 32, 32, 16])
    """Group tokens of each stage; a stage is a local block, a group-propagation block and a local block."""
    window: int = 2
    """Width in stride-8 cells of the stripes that attention is local to, and side of the blocks that are dropped."""
    ffn_ratio: float = 4.0
    """Hidden channels of the feed-forward parts / channels."""
    stem_convs: int = 0
    """3×3 convolutions at stride 2 of the stem, behind its first one."""
    position_grid: int = 28
    """Side of the learned positional embedding: 224 / 8, from the classifiers' image size."""
    drop_path: float = 0.1
    """Stochastic depth of the last block in training, less before it."""
    neck_channels: int = 192
    """Of every pyramid level."""

    def __post_init__(self) -> None:
        for name in ("channels", "window", "ffn_ratio", "position_grid", "neck_channels"):
            value = getattr(self, name)
            _require(0 < value < math.inf, f"gpvit.{name}", value, "more than 0")
        _require(self.heads > 0 and self.heads % 2 == 0, "gpvit.heads", self.heads,
                 "an even number: half of them look along columns")  # fmt: skip
        groups = self.group_tokens
        _require(bool(groups) and min(groups) > 0, "gpvit.group_tokens", groups,
                 "the number of group tokens, at least 1, of each stage")  # fmt: skip
        _require(self.stem_convs >= 0, "gpvit.stem_convs", self.stem_convs, "at least 0")
        _require(0 <= self.drop_path < 1, "gpvit.drop_path", self.drop_path, "at least 0 and less than 1")


@dataclass(frozen=True)
class ModelConfig:
    """Everything needed to build the network."""

    family: Literal["yolov5", "yolov8", "retinanet", "rtmdet", "gpvit"] = "yolov5"
    depth: float = 0.33
    width: float = 0.5
    body: Literal["v5.0", "v6"] = "v5.0"
    """Release of YOLOv5 whose body it is: v5.0 begins with Focus, v6 with a 6×6 convolution."""
    max_channels: int = 1024
    """YOLOv8 only: most channels of a stage before scaling by width: 1024 in n and s, 768 in m, 512 in l and x."""
    channel_multiple: int = 8
    """Channels × width are rounded up to a multiple of this: 8 in the released checkpoints. RTMDet can have 4, as
    its size tiny has where OpenMMLab publishes it: 12 channels in the first convolution, not 16."""
    seeker: SeekerConfig = field(default_factory=SeekerConfig)
    slicer: SlicerConfig = field(default_factory=SlicerConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    spp_kernels: list[int] = field(default_factory=lambda: [3, 5, 7])
    """Pooling sizes of the v5.0 body's SPP: 3, 5, 7 in ESOD, 5, 9, 13 in plain YOLOv5 v5.0."""
    fine_level: bool = False
    """Predict at stride 4 (P2) as well; the level comes last. For families 'yolov5' and 'yolov8' and any head but
    'center'."""
    transformer: bool = False
    """Last C3 with transformer blocks, in which the patches of an image look at each other; YOLOv5 family only."""
    borders: Borders = "zeros"
    """What the layers behind the slicer see beyond a patch's border: ``zeros`` (the paper) or ``neighbours``, what the kept
    patches beside it hold there (`models.borders`). Of YOLOv5 and YOLOv8, with slicer.algorithm grid and
    slicer.shift none."""
    bn_eps: float = 1e-5
    """BatchNorm epsilon: 1e-5 in ESOD, 1e-3 in YOLOv5's own files."""
    gpvit: GPViTConfig = field(default_factory=GPViTConfig)
    """Size of a GPViT body; other families ignore it."""
    num_classes: int = 80
    names: list[str] = field(default_factory=list)
    """Class names; empty: "0", "1", …"""
    anchors: Anchors = field(default_factory=lambda: [[list(a) for a in level] for level in COCO_ANCHORS])

    @property
    def uses_anchors(self) -> bool:
        """Whether the head starts from anchors."""
        return self.head.kind in ("decoupled", "single")

    @property
    def strides(self) -> tuple[int, ...]:
        """Input pixels per grid step of the levels, in the order of the head's."""
        return (8, 16, 32, 4) if self.fine_level else (8, 16, 32)

    def __post_init__(self) -> None:
        for name in ("depth", "width", "max_channels", "num_classes"):
            _require(0 < getattr(self, name) < math.inf, name, getattr(self, name), "more than 0")
        _require(0 <= self.bn_eps < math.inf, "bn_eps", self.bn_eps, "at least 0")
        _require(
            all(k > 0 and k % 2 for k in self.spp_kernels), "spp_kernels", self.spp_kernels, "odd numbers"
        )
        if self.seeker.kind == "none" and self.slicer.algorithm != "none":
            raise ConfigError(
                f"slicer {self.slicer.algorithm!r}: this model has no heatmap head to slice by; use --slicer none"
            )
        if self.head.sparse and (self.head.kind == "single" or self.seeker.kind == "none"):
            raise ConfigError(
                "sparse head: needs a model with a heatmap head and a head of 3×3 convolutions (any but head.kind "
                "'single'); use --head dense"
            )
        if self.channel_multiple != 8 and (self.channel_multiple != 4 or self.family != "rtmdet"):
            raise ConfigError(
                f"channel_multiple is {self.channel_multiple}; 8 is expected, or 4 with family 'rtmdet'"
            )
        if self.names and len(self.names) != self.num_classes:
            raise ConfigError(f"num_classes is {self.num_classes} but there are {len(self.names)} names")
        if self.transformer and self.family != "yolov5":
            raise ConfigError(f"transformer: for family 'yolov5' only, not {self.family!r}: leave it out")
        if self.fine_level:
            self._check_fine_level()

    def _check_fine_level(self) -> None:
        if self.family not in ("yolov5", "yolov8") or self.head.kind == "center":
            raise ConfigError(
                "fine_level: for families 'yolov5' and 'yolov8' with any head.kind but 'center', not "
                f"{self.family!r} with {self.head.kind!r}: leave it out"
            )
        if len(self.anchors) == len(self.strides) - 1:
            # Anchors of strides 8, 16 and 32 are what datasets and plain models have.
            finest = [[side / 2 for side in anchor] for anchor in self.anchors[0]]
            object.__setattr__(self, "anchors", [*self.anchors, finest])


@dataclass(frozen=True)
class ModelOverrides:
    """What may be changed about a trained model; None keeps what its checkpoint says. Names as the flags'."""

    slicer: SlicerAlgorithm | None = None
    head: Literal["dense", "sparse"] | None = None
    heatmap_thres: float | None = None
    max_patches: int | None = None
    """0: no limit."""
    borders: Borders | None = None

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
        borders = self.borders or config.borders
        if self.borders == "neighbours":
            slicer = dataclasses.replace(slicer, shift="none")
        return dataclasses.replace(config, slicer=slicer, head=head, borders=borders)


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
    center_overlap: float = 0.3
    """How wide the class maps of ``head.kind: center`` forgive: a box with both corners off by the Gaussian's radius
    still has this IoU. The less, the wider; see `models.assign_centre.gaussian_radius`."""
    anchor_t: float = 4.0
    """A target matches an anchor when no side differs by more than this factor."""
    label_smoothing: float = 0.0
    heatmap: float = 0.05
    """Weight of the heatmap loss against the detection loss."""
    heatmap_stem: float = 0.1
    """Share of the heatmap's gradient that reaches the stem, which the detector needs too."""
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
    copy_paste: float = 0.0
    """Objects, mostly of rare classes, pasted into a training image, on average."""


@dataclass(frozen=True)
class TrainConfig:
    """What the flags of train.py say; the flags' help texts describe each."""

    data: str
    cfg: str = ""
    weights: str = ""
    hyp: str = ""
    epochs: int = 50
    batch_size: int = 8
    """Total over all processes; −1 before it is known what fits (`engine.batch_size`)."""
    img_size: int | list[int] = 1536
    """Longer side, or [height, width]."""
    rect: bool = False
    multi_scale: bool = False
    single_cls: bool = False
    image_weights: bool = False
    repeat_factor: float = 0.0
    cache: Literal["none", "ram", "disk"] = "none"
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    amp: Literal["auto", "bf16", "fp16", "off"] = "auto"
    checkpoint_activations: Recompute = "none"
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
    deterministic: bool = False
    logger: list[Literal["tensorboard", "wandb", "mlflow", "none"]] = field(
        default_factory=lambda: ["tensorboard"]
    )
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
