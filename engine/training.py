"""Training: one epoch, and the run around it (validation, checkpoints, logging, resuming)."""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from tqdm import tqdm

from engine.evaluation import Evaluation, evaluate
from engine.setup import TrainingRun, run_options
from engine.state import load_state, save_state, write_best
from models.decode import PostprocessConfig
from models.esod import ESOD, MAX_STRIDE
from models.loss import DetectionLoss
from models.training_patches import resize_label, training_selector
from utils.config import HypConfig, SlicerConfig
from utils.data import Batch, ImageMeta
from utils.dist import barrier, broadcast_buffers, broadcast_object, sum_over_processes
from utils.logger import RunLogger, get_logger
from utils.optim import LearningRate, ModelEMA
from utils.trackers import build_run_logger

GRADIENT_LIMIT = 10.0
"""Largest norm of a step's gradient: of the detector's, and of the heatmap head's."""
VALIDATION = PostprocessConfig(conf_thres=0.001, iou_thres=0.6, multi_label=True)


class NonFiniteLossError(RuntimeError):
    """The loss became NaN or infinite; the message names the files of the batch."""


@dataclass
class StepSettings:
    """What every step of a run shares.

    Attributes:
        hyp, slicer: of the run and of the model.
        device: of the model.
        amp_dtype: of autocast, None: float32.
        accumulate: batches per optimiser step.
        multi_scale: resize every batch by a random factor in 0.5–1.5.
        seed: of the random numbers of a step; they depend on nothing but it, the epoch and the step.
    """

    hyp: HypConfig
    slicer: SlicerConfig
    device: torch.device
    amp_dtype: torch.dtype | None
    accumulate: int
    multi_scale: bool = False
    seed: int = 0


@dataclass
class EpochResult:
    """Mean losses of an epoch, the mean share of patches trained on, and seconds."""

    losses: dict[str, float] = field(default_factory=dict)
    patches_per_image: float = 0.0
    seconds: float = 0.0


def train_one_epoch(
    model: nn.Module,
    criterion: DetectionLoss,
    batches: Iterable[Batch],
    optimizer: Optimizer,
    schedule: LearningRate,
    scaler: torch.amp.GradScaler,
    ema: ModelEMA | None,
    settings: StepSettings,
    epoch: int,
) -> EpochResult:
    """Train for one epoch.

    Args:
        model: an `ESOD`, plain or wrapped for distribution, in training mode on settings.device.
        batches: of `utils.data.build_loader`.
        epoch: from 0; with settings.seed it fixes every random choice.

    Raises:
        NonFiniteLossError: before the weights are touched by such a loss.
    """
    # This process's share of the losses, patches and images.
    sums = torch.zeros(len(criterion.names) + 2, device=settings.device)
    metas: list[ImageMeta] = []
    step = 0
    started = time.perf_counter()
    for step, loaded in enumerate(batches, start=1):
        iteration = epoch * schedule.steps_per_epoch + step - 1
        schedule.apply(optimizer, iteration)
        generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + iteration)
        batch = prepare(loaded, settings, generator)
        last = step == schedule.steps_per_epoch
        update = step % settings.accumulate == 0 or last
        selector = training_selector(
            batch.heatmaps,
            settings.slicer,
            settings.hyp,
            iteration / (schedule.steps_per_epoch * schedule.epochs),
            schedule.epochs,
            generator,
        )
        metas += batch.metas
        with _no_sync(model, update):
            with _autocast(settings):
                output = model(batch.images, selector)
                losses = criterion(output, batch.targets, batch.heatmaps)
            if not torch.isfinite(losses["total"]):
                raise NonFiniteLossError(_describe("loss", losses, batch.metas))
            scaler.scale(losses["total"]).backward()  # type: ignore[no-untyped-call]
        if update:
            _optimizer_step(model, optimizer, scaler, ema, metas)
            metas = []
        sums[:-2] += torch.stack([losses[name].detach() for name in criterion.names])
        sums[-2] += len(output.patches)
        sums[-1] += len(batch.images)
    *totals, patches, images = sum_over_processes(sums).tolist()
    means = [total / max(step, 1) for total in totals]
    return EpochResult(
        dict(zip(criterion.names, means, strict=True)),
        patches / max(images, 1),
        time.perf_counter() - started,
    )


def prepare(batch: Batch, settings: StepSettings, generator: torch.Generator) -> Batch:
    """The batch on the device, channels last; with multi_scale, resized by a random factor to a multiple of 32."""
    batch = batch.to(settings.device, non_blocking=True)
    batch.images = batch.images.contiguous(memory_format=torch.channels_last)
    if not settings.multi_scale:
        return batch
    height, width = batch.images.shape[2:]
    factor = 0.5 + torch.rand((), generator=generator).item()
    new_hw = tuple(max(round(side * factor / MAX_STRIDE), 1) * MAX_STRIDE for side in (height, width))
    images = F.interpolate(batch.images, size=new_hw, mode="bilinear", align_corners=False)
    label = resize_label(batch.heatmaps, (new_hw[0] // 8, new_hw[1] // 8))
    return Batch(images, batch.targets, label, batch.metas)


def fit(run: TrainingRun) -> Path:
    """Train from wherever the run is (start or resumed) to its end.

    Returns the run folder, with ``weights/last.pt`` (everything needed to resume), ``weights/best.pt``
    (fp16, inference only), ``results.csv`` and pictures.
    """
    log = get_logger()
    start_epoch = load_state(run) if run.resume is not None else 0
    settings = StepSettings(
        run.hyp,
        run.model.config.slicer,
        run.device,
        run.amp_dtype,
        run.accumulate,
        run.config.multi_scale,
        run.config.seed,
    )
    logger = (
        build_run_logger(run.folder, run.config.logger, start_epoch if run.resume is not None else None)
        if run.dist.is_main
        else None
    )
    model: nn.Module = run.model
    if run.dist.world_size > 1:
        model = DistributedDataParallel(
            run.model, device_ids=[run.device.index] if run.device.type == "cuda" else None
        )
    if logger is not None and run.resume is None:
        logger.log_config(run_options(run))
        for path in run.batch_pictures():
            logger.log_image(path.stem, path)
    barrier()
    completed = False
    try:
        for epoch in range(start_epoch, run.config.epochs):
            run.train_data.set_epoch(epoch)
            model.train()
            bar = _progress(run, epoch)
            result = train_one_epoch(
                model, run.criterion, bar, run.optimizer, run.schedule, run.scaler, run.ema, settings, epoch
            )
            stop = _finish_epoch(run, logger, epoch, result)
            run.set_class_ap(broadcast_object(run.class_ap))
            if broadcast_object(stop):
                log.info(f"no improvement for {run.config.patience} epochs (--patience): stopping")
                break
        completed = True
    finally:
        if logger is not None:
            logger.finish(completed)
    barrier()
    return run.folder


def _finish_epoch(run: TrainingRun, logger: RunLogger | None, epoch: int, result: EpochResult) -> bool:
    """Validate together; log and save on the main process. Whether to stop early, as the main process sees it."""
    last = epoch + 1 == run.config.epochs
    evaluation = None
    if last or not run.config.notest:
        averaged = unwrap(run.ema.module)
        broadcast_buffers(averaged)
        evaluation = evaluate(
            averaged, run.val_loader, run.names, VALIDATION, run.device, amp_dtype=run.amp_dtype
        )
    if logger is None:
        barrier()
        return False
    metrics = _metrics(run, result, evaluation)
    logger.log_metrics(epoch, metrics)
    if evaluation is not None:
        run.class_ap = [row.ap or 0.0 for row in evaluation.detection.per_class]
    fitness = evaluation.fitness if evaluation is not None else float("nan")
    improved = run.stopping.update(epoch, fitness)
    get_logger().info(_line(run, epoch, result, evaluation))
    stop = run.stopping.should_stop(epoch)
    final = last or stop
    if not run.config.nosave or final:
        # The best one first: killed in between, the epoch is repeated and both are written again.
        if improved or run.stopping.best_epoch < 0 or run.config.nosave:
            write_best(run, epoch, evaluation)
        save_state(run, epoch)
    barrier()
    return stop


def _metrics(run: TrainingRun, result: EpochResult, evaluation: Evaluation | None) -> dict[str, float]:
    """One row of results.csv."""
    row = {f"train/{name}_loss": value for name, value in result.losses.items()}
    row["train/patches_per_image"] = result.patches_per_image
    row["train/seconds"] = result.seconds
    for group in run.optimizer.param_groups:
        row[f"lr/{group['name']}"] = group["lr"]
    if evaluation is not None:
        row |= evaluation.scalars()
    return row


def _line(run: TrainingRun, epoch: int, result: EpochResult, evaluation: Evaluation | None) -> str:
    """The one line per epoch."""
    losses = "  ".join(f"{name} {value:.4f}" for name, value in result.losses.items())
    text = f"epoch {epoch + 1}/{run.config.epochs}  {losses}  patches/image {result.patches_per_image:.1f}"
    return f"{text}  {result.seconds:.0f} s" + (f"  |  {evaluation.line()}" if evaluation is not None else "")


def _progress(run: TrainingRun, epoch: int) -> Iterable[Batch]:
    return tqdm(
        run.train_loader,
        desc=f"epoch {epoch + 1}/{run.config.epochs}",
        unit="batch",
        leave=False,
        disable=None if run.dist.is_main else True,
    )


def _optimizer_step(
    model: nn.Module,
    optimizer: Optimizer,
    scaler: torch.amp.GradScaler,
    ema: ModelEMA | None,
    metas: list[ImageMeta],
) -> None:
    scaler.unscale_(optimizer)
    norm = clip_gradients(unwrap(model))
    # With fp16 the scaler itself skips such steps and lowers its scale.
    if not scaler.is_enabled() and not torch.isfinite(norm):
        raise NonFiniteLossError(_describe("gradient", {}, metas))
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    if ema is not None:
        ema.update(unwrap(model))


def clip_gradients(model: ESOD) -> Tensor:
    """Limit the norms of the gradients, and return the norm of all before it.

    The heatmap head is limited for itself: in one norm with the detector's its gradient, large where many cells
    are wrong, would shorten steps of layers that it does not reach.
    """
    seeker = [] if model.seeker is None else list(model.seeker.parameters())
    own = {id(weight) for weight in seeker}
    detector = [weight for weight in model.parameters() if id(weight) not in own]
    norms: list[Tensor] = [
        nn.utils.clip_grad_norm_(group, GRADIENT_LIMIT)
        for group in (detector, seeker)
        if any(weight.grad is not None for weight in group)
    ]
    return torch.stack(norms).norm() if norms else torch.zeros(())


def unwrap(model: nn.Module) -> ESOD:
    """The `ESOD` inside a DDP wrapper, or the model itself."""
    inner = model.module if isinstance(model, DistributedDataParallel) else model
    assert isinstance(inner, ESOD)
    return inner


def _no_sync(model: nn.Module, update: bool) -> AbstractContextManager[None]:
    """Gradients travel between processes only in the batch before a step."""
    return model.no_sync() if isinstance(model, DistributedDataParallel) and not update else nullcontext()


def _autocast(settings: StepSettings) -> torch.autocast:
    enabled = settings.amp_dtype is not None
    return torch.autocast(settings.device.type, dtype=settings.amp_dtype or torch.bfloat16, enabled=enabled)


def _describe(what: str, losses: dict[str, Tensor], metas: list[ImageMeta]) -> str:
    parts = ", ".join(f"{name} {losses[name].item():.4g}" for name in losses if name != "total")
    files = "\n".join(f"  {path}" for meta in metas for path in (meta.path, *meta.others))
    return (
        f"the {what} is not finite{f' ({parts})' if parts else ''}; weights and checkpoints from before this batch are "
        f"kept. Files of the batch:\n{files}\n"
        "Look at their labels; or lower lr0 in the hyp file, or train with --amp off."
    )
