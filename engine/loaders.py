"""Datasets and loaders of a run, and what is computed from the labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from engine.outputs import true_boxes
from utils.config import DatasetConfig, HypConfig, TrainConfig
from utils.data import Batch, DetectionDataset, build_loader, image_weights, resolve_split
from utils.dist import SINGLE, DistInfo, main_process_first
from utils.mosaic import mosaic_picture
from utils.typed_data import ConfigError


class TrainingData(NamedTuple):
    """The training set, its loader, and the loader of this process's share of the validation set."""

    images: DetectionDataset
    train_loader: DataLoader[Batch]
    val_loader: DataLoader[Batch]


def build_data(
    config: TrainConfig, hyp: HypConfig, dataset: DatasetConfig, dist: DistInfo, device: torch.device
) -> TrainingData:
    """Training set and its loader; loader of the validation set. Both loaders give this process's share."""
    if config.batch_size % dist.world_size:
        raise ConfigError(
            f"--batch-size {config.batch_size} (over all processes) is not a multiple of the {dist.world_size} processes"
        )
    pin_memory = device.type == "cuda"
    own_batch = config.batch_size // dist.world_size
    with main_process_first():
        train_data = DetectionDataset(
            resolve_split(dataset, config.data, "train"),
            num_classes=dataset.nc,
            img_size=config.size(),
            augment=True,
            hyp=hyp,
            rect=config.rect,
            batch_size=own_batch,
            cache=config.cache,
            seed=config.seed,
            single_class=config.single_cls,
            repeat_factor=config.repeat_factor,
        )
    weights = None
    if config.image_weights:
        weights = draw_weights(train_data, class_counts(train_data, dataset.nc), [0.0] * dataset.nc)
    train_loader = build_loader(
        train_data,
        own_batch,
        config.workers,
        True,
        config.seed,
        dist.rank,
        dist.world_size,
        weights,
        pin_memory,
    )
    val_loader = evaluation_loader(
        dataset,
        config.data,
        "val",
        config.size(),
        config.batch_size,
        config.workers,
        config.single_cls,
        pin_memory,
        dist,
    )
    return TrainingData(train_data, train_loader, val_loader)


def evaluation_loader(
    dataset: DatasetConfig,
    data: str,
    split: str,
    img_size: int | tuple[int, int],
    batch_size: int,
    workers: int,
    single_class: bool,
    pin_memory: bool = False,
    dist: DistInfo = SINGLE,
    rect: bool = True,
) -> DataLoader[Batch]:
    """Loader of a split without augmentation, images padded as little as possible.

    Several processes share the batches that one would have: the same images together, in inputs of the same
    size, each once. So what is computed does not depend on the number of processes. A process without a batch
    gets an empty loader.

    Args:
        dataset: of the YAML file at ``data``.
        split: "train", "val" or "test".
        img_size, workers, single_class, pin_memory: see `DetectionDataset` and `build_loader`.
        batch_size: images per batch, in each process.
        dist: this process among the others.
        rect: False: every input has the size img_size, for networks that take no other.
    """
    with main_process_first():
        images = DetectionDataset(
            resolve_split(dataset, data, split),
            num_classes=dataset.nc,
            img_size=img_size,
            augment=False,
            hyp=HypConfig(),
            rect=rect,
            batch_size=batch_size,
            single_class=single_class,
        )
    return build_loader(
        images,
        batch_size,
        workers,
        shuffle=False,
        seed=0,
        rank=dist.rank,
        world_size=dist.world_size,
        pin_memory=pin_memory,
        fill=False,
    )


def class_counts(data: DetectionDataset, num_classes: int) -> Tensor:
    """Labelled objects per class: [num_classes] int64."""
    labels = [torch.from_numpy(rows[:, 0]).long() for rows in data.labels]
    return torch.bincount(torch.cat(labels), minlength=num_classes)


def draw_weights(data: DetectionDataset, counts: Tensor, class_ap: Sequence[float]) -> Any:
    """How often to draw each training image: classes that are rare or badly detected count more.

    A class weighs (1 − AP)² / its number of objects; see `utils.sampling.image_weights`.
    """
    weights = (1 - np.asarray(class_ap, dtype=np.float64)) ** 2 / counts.clamp(min=1).numpy()
    return image_weights(data.labels, weights + 1e-12)


def mosaic_of_batch(batch: Batch, names: list[str]) -> Any:
    """A picture of a batch with boxes and label heatmaps; uint8 RGB [h, w, 3]."""
    boxes, labels = zip(*(true_boxes(batch, i) for i in range(len(batch.images))), strict=True)
    return mosaic_picture(
        [image.permute(1, 2, 0).numpy() for image in batch.images],
        [b.numpy() for b in boxes],
        [label.numpy() for label in labels],
        [heatmap[0].numpy() for heatmap in batch.heatmaps],
        names,
    )
