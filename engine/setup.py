"""Everything a training run consists of, built from its configuration."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from engine.batch_size import FIND_BATCH, find_batch_size
from engine.loaders import TrainingData, build_data, class_counts, draw_weights, mosaic_of_batch
from models.build import build_model
from models.esod import ESOD
from models.loss import DetectionLoss
from models.weights import Weights, initialise, read_weights
from utils.anchors import GOOD_RECALL, LEVELS, best_possible_recall, kmeans_anchors
from utils.checkpoint import MatchReport, sha256_of
from utils.config import (
    Anchors,
    DatasetConfig,
    HypConfig,
    ModelConfig,
    ModelOverrides,
    SeekerConfig,
    TrainConfig,
)
from utils.data import (
    Batch,
    DetectionDataset,
    dataset_fingerprint,
)
from utils.dist import DistInfo, has_fast_bf16, sum_over_processes
from utils.draw import save_image
from utils.environment import environment_report
from utils.logger import get_logger
from utils.optim import (
    EarlyStopping,
    LearningRate,
    ModelEMA,
    accumulation_steps,
    build_optimizer,
    freeze,
    scaled_weight_decay,
)
from utils.sampling import EpochBatchSampler
from utils.typed_data import ConfigError, config_from_dict, config_to_dict, load_config

BATCH_PICTURES = 3
LEAST_MATCH = 0.05
"""Share of the initial weights' numbers below which they are of a model of another size."""


@dataclass
class RunOptions:
    """What a run is built from: its options, and where it runs."""

    config: TrainConfig
    hyp: HypConfig
    overrides: ModelOverrides
    """Changes to the model of --cfg."""
    dataset: DatasetConfig
    folder: Path
    """Of the run; exists."""
    dist: DistInfo
    device: torch.device


@dataclass
class TrainingRun(RunOptions):
    """The parts of a run; see the functions below for how each is made."""

    names: list[str]
    amp_dtype: torch.dtype | None
    model: ESOD
    ema: ModelEMA
    criterion: DetectionLoss
    optimizer: Optimizer
    schedule: LearningRate
    scaler: torch.amp.GradScaler
    stopping: EarlyStopping
    accumulate: int
    train_data: DetectionDataset
    train_loader: DataLoader[Batch]
    val_loader: DataLoader[Batch]
    provenance: dict[str, Any]
    class_ap: list[float]
    """AP per class at the last validation, 0 before the first."""
    resume: Mapping[str, Any] | None = None
    """The checkpoint to go on from."""

    def set_class_ap(self, class_ap: Sequence[float]) -> None:
        """With --image-weights: draw the next epoch's images by how well their classes are detected."""
        self.class_ap = list(class_ap)
        if self.config.image_weights:
            sampler = self.train_loader.batch_sampler
            assert isinstance(sampler, EpochBatchSampler)
            sampler.weights = draw_weights(
                self.train_data, class_counts(self.train_data, self.dataset.nc), class_ap
            )

    def batch_pictures(self) -> list[Path]:
        """Draw the first training batches with their boxes and label heatmaps; returns the files."""
        self.train_data.set_epoch(0)
        files = []
        for number, batch in zip(range(BATCH_PICTURES), self.train_loader, strict=False):
            path = self.folder / f"train_batch{number}.jpg"
            save_image(path, mosaic_of_batch(batch, self.names))
            files.append(path)
        return files


def build_run(
    config: TrainConfig,
    hyp: HypConfig,
    overrides: ModelOverrides,
    folder: Path,
    dist: DistInfo,
    device: torch.device,
    weights: Path | None = None,
    resume: Mapping[str, Any] | None = None,
    model_config: ModelConfig | None = None,
) -> TrainingRun:
    """Build all parts of a run: a new one, or with ``resume`` (see `engine.state`) one to go on with.

    Args:
        config: options. hyp: hyper-parameters. overrides: changes to the model of --cfg.
        folder: of the run; exists.
        dist: this process among the others; device: its own.
        weights: initial weights, None: from scratch. Ignored when resuming.
        resume: the checkpoint of the run to go on with.
        model_config: the network, when it is known to the last anchor (a run that is repeated).

    Raises:
        ConfigError, CheckpointError, DataError: with what to do about it.
    """
    set_seed(config.seed, device, config.deterministic)
    dataset = load_config(DatasetConfig, config.data)
    if config.single_cls:
        dataset = replace(dataset, nc=1, names=["object"])
    initial = read_weights(weights) if weights is not None and resume is None else None
    options = RunOptions(config, hyp, overrides, dataset, folder, dist, device)
    if resume is not None:
        model_config = config_from_dict(ModelConfig, resume["config"])
    known = model_config is not None
    model_config = model_config or resolve_model(config, dataset, overrides, initial)
    if config.batch_size == FIND_BATCH:
        found = find_batch_size(
            model_config, config, hyp, device, choose_amp(config.amp, device), dist.world_size
        )
        config = replace(config, batch_size=found)
        options = replace(options, config=config)
    data = build_data(config, hyp, dataset, dist, device)
    if not known and model_config.uses_anchors:
        sizes, automatic = data.images.sizes_px(), not config.noautoanchor
        anchors = check_anchors(model_config.anchors, sizes, hyp, automatic)
        model_config = replace(model_config, anchors=anchors)
    model = build_model(model_config)
    provenance: dict[str, Any] = {
        "environment": environment_report(),
        "processes": dist.world_size,
        "data": dataset_fingerprint(data.images.images),
    }
    if initial is not None and weights is not None:
        report = initialise(model, initial)
        get_logger().info(f"initial weights {weights}: {report.summary()}")
        check_size(config.cfg, initial.state_dict, report)
        known_by = {"file": str(weights), "file_sha256": sha256_of(weights)}
        provenance["initial_weights"] = {**initial.provenance, **known_by}
    return _assemble(options, data, model, provenance, resume)


def _assemble(
    options: RunOptions,
    data: TrainingData,
    model: ESOD,
    provenance: dict[str, Any],
    resume: Mapping[str, Any] | None,
) -> TrainingRun:
    """Model on its device, criterion, optimiser and schedule around the data."""
    config, hyp, dataset, device = options.config, options.hyp, options.dataset, options.device
    world_size = options.dist.world_size
    if config.sync_bn and world_size > 1:
        if device.type != "cuda":
            raise ConfigError(
                "--sync-bn needs GPUs (PyTorch shares BatchNorm's statistics there only): leave it out"
            )
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    model.recompute = config.checkpoint_activations
    model.heatmap_stem = hyp.heatmap_stem
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    frozen = freeze(model, config.freeze, uncounted=("seeker",))
    if frozen:
        get_logger().info(f"frozen: {len(frozen)} parameters under {', '.join(config.freeze)}")
    accumulate = accumulation_steps(hyp.nominal_batch, config.batch_size)
    decay = scaled_weight_decay(hyp.weight_decay, hyp.nominal_batch, config.batch_size, accumulate)
    amp_dtype = choose_amp(config.amp, device)
    counts = class_counts(data.images, dataset.nc)
    criterion = DetectionLoss(model.config, hyp, counts, sum_over_processes, world_size)
    return TrainingRun(
        **vars(options),
        names=dataset.names,
        amp_dtype=amp_dtype,
        model=model,
        ema=ModelEMA(model),
        criterion=criterion.to(device),
        optimizer=build_optimizer(model, config.optimizer, hyp.lr0, hyp.momentum, decay),
        schedule=LearningRate(hyp, len(data.train_loader), config.epochs),
        scaler=torch.amp.GradScaler(device.type, enabled=amp_dtype == torch.float16),
        stopping=EarlyStopping(config.patience),
        accumulate=accumulate,
        train_data=data.images,
        train_loader=data.train_loader,
        val_loader=data.val_loader,
        provenance=provenance,
        class_ap=[0.0] * dataset.nc,
        resume=resume,
    )


def set_seed(seed: int, device: torch.device, deterministic: bool = False) -> None:
    """Seed torch's generators, and ask for algorithms that give the same bits every time.

    On a CPU always, where they cost little; on CUDA with ``deterministic`` (--deterministic). An operation that has
    no such algorithm says so in a warning and runs all the same.
    """
    torch.manual_seed(seed)
    if device.type == "cpu" or deterministic:
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if device.type == "cuda" and deterministic:
        # cuBLAS reads it when it is first used; without it matrix products may differ from run to run.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True


def save_options(run: TrainingRun) -> None:
    """Write ``config.yaml`` into the run folder."""
    (run.folder / "config.yaml").write_text(
        yaml.safe_dump(run_options(run), sort_keys=False, allow_unicode=True), encoding="utf-8"
    )


def run_options(run: TrainingRun) -> dict[str, Any]:
    """Everything that was resolved, as plain data: to read and to repeat."""
    return {
        "train": config_to_dict(run.config),
        "hyp": config_to_dict(run.hyp),
        "model": config_to_dict(run.model.config),
        "dataset": config_to_dict(run.dataset),
        "provenance": run.provenance,
    }


def resolve_model(
    config: TrainConfig, dataset: DatasetConfig, overrides: ModelOverrides, initial: Weights | None
) -> ModelConfig:
    """The network to train: the --cfg file, classes and anchors of the dataset, the command line's changes.

    BatchNorm's epsilon follows the initial weights, which were trained with it. A dense model
    (slicer none) gets no heatmap head.

    Raises:
        ConfigError: neither --cfg nor initial weights say what to build, or they contradict each other.
    """
    if config.cfg:
        base = load_config(ModelConfig, config.cfg)
    elif initial is not None:
        base = initial.config
    else:
        raise ConfigError(
            "--cfg is empty and there are no initial weights: give --cfg models/cfg/yolov5s.yaml"
        )
    if initial is not None:
        check_family(config.cfg, base, initial.config)
    base = overrides.apply(replace(base, names=[], num_classes=dataset.nc))
    if base.slicer.algorithm == "none":
        if base.head.sparse:
            raise ConfigError(
                "--slicer none trains a model without heatmap, which --head sparse needs: leave one out"
            )
        base = replace(base, seeker=SeekerConfig(kind="none"), borders="zeros")
    return replace(
        base,
        names=dataset.names,
        anchors=dataset.anchors_for(config.longer_side()),
        bn_eps=base.bn_eps if initial is None else initial.config.bn_eps,
    )


def check_family(cfg: str, model: ModelConfig, initial: ModelConfig) -> None:
    """Refuse initial weights of which next to nothing would fit.

    Raises:
        ConfigError: they are of another family, or of another release of YOLOv5.
    """
    if initial.family != model.family:
        raise ConfigError(
            f"--cfg {cfg} is a {model.family}, the initial weights are of a {initial.family}: nothing would fit. "
            f"Give a --cfg of the family {initial.family}, or weights of a {model.family}"
        )
    if initial.family == "yolov5" and initial.body != model.body:
        raise ConfigError(
            f"--cfg {cfg} has the body of YOLOv5 {model.body}, the initial weights that of {initial.body}: "
            "next to nothing would fit. Give models/cfg/<MODEL>_v6.yaml for v6 weights, <MODEL>.yaml for v5.0"
        )


def check_size(cfg: str, source: Mapping[str, Tensor], report: MatchReport) -> None:
    """Refuse initial weights of another size of the same family: training would begin from random numbers.

    Raises:
        ConfigError: less than `LEAST_MATCH` of the source's numbers fit.
    """
    taken = sum(source[name].numel() for name in report.matched)
    share = taken / max(sum(tensor.numel() for tensor in source.values()), 1)
    if share < LEAST_MATCH:
        raise ConfigError(
            f"--cfg {cfg}: only {share:.1%} of the initial weights' numbers fit, they are of a model of another size. "
            "Give the --cfg that they are of, or --weights none to train from scratch"
        )


def check_anchors(anchors: Anchors, sizes_px: Any, hyp: HypConfig, automatic: bool) -> Anchors:
    """The anchors to use, and a word on how well they fit.

    Args:
        anchors: of the dataset YAML at this image size; with a level at stride 4, which datasets have none for, they are
            replaced even when they fit.
        sizes_px: [N, 2] width and height of the training boxes in input pixels.
        hyp: for its anchor_t.
        automatic: replace anchors whose best possible recall is below `GOOD_RECALL`.
    """
    log = get_logger()
    if len(sizes_px) == 0:
        return anchors
    recall, matching = best_possible_recall(sizes_px, anchors, hyp.anchor_t)
    levels, count = len(anchors), sum(map(len, anchors))
    log.info(f"anchors: best possible recall {recall:.4f}, {matching:.2f} of {count} match an object")
    if not automatic or (recall >= GOOD_RECALL and levels == LEVELS):
        return anchors
    try:
        better = kmeans_anchors(sizes_px, count, levels)
    except ValueError as error:
        log.warning(f"anchors: kept as they are ({error})")
        return anchors
    if levels > LEVELS:
        better = [*better[1:], better[0]]  # stride 4 comes last
    new_recall, _ = best_possible_recall(sizes_px, better, hyp.anchor_t)
    if new_recall <= recall and new_recall < GOOD_RECALL:
        return anchors
    log.info(
        f"anchors: replaced by k-means of the labels (recall {new_recall:.4f}; keep yours with --noautoanchor)"
    )
    return better


def choose_amp(setting: str, device: torch.device) -> torch.dtype | None:
    """The autocast type: auto is bf16 where the device computes it fast, else fp16 on CUDA, else none."""
    if setting == "off":
        return None
    if setting == "bf16":
        return torch.bfloat16
    if setting == "fp16":
        if device.type == "cpu":
            raise ConfigError("--amp fp16 needs a GPU; on a CPU use --amp bf16, auto or off")
        return torch.float16
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return torch.bfloat16 if has_fast_bf16() else None
