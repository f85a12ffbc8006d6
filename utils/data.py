"""From a list of images to batches: the dataset, the loader.

The types `Sample` and `Batch` are in utils/batches.py. Label files are read by utils/labels.py, pixels by
utils/pixel_store.py, geometry and colour are in utils/transforms.py, the order of samples in utils/sampling.py.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import cast

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset

from utils.batches import Batch, ImageMeta, Sample, collate
from utils.boxes import Letterbox, letterbox_shape, tuple_hw
from utils.config import HypConfig
from utils.copy_paste import CopyPaste
from utils.heatmap import FloatArray, heatmap_path, load_heatmap, render_heatmap, warp_heatmap
from utils.images import ByteImage
from utils.labels import DataError, LabelReport, check_labels, load_labels
from utils.logger import get_logger
from utils.pixel_store import CacheMode, PixelStore
from utils.sampling import (
    EpochBatchSampler,
    RectBatch,
    SampleKey,
    image_weights,
    rect_batches,
    rect_rng,
    repeat_factors,
)
from utils.splits import dataset_fingerprint, dataset_root, resolve_split
from utils.transforms import (
    Picture,
    Source,
    TrainPolicy,
    blend,
    letterbox_image,
    letterbox_matrix,
    to_centres,
)
from utils.warp import channels_first, transform_boxes

__all__ = [
    "Batch",
    "DataError",
    "DetectionDataset",
    "ImageMeta",
    "Sample",
    "SampleKey",
    "build_loader",
    "collate",
    "dataset_fingerprint",
    "dataset_root",
    "image_weights",
    "resolve_split",
    "round_img_size",
]

_SAMPLE = 0
"""Random stream of a sample, beside those of utils/sampling.py."""


def round_img_size(img_size: int | tuple[int, int], stride: int = 32) -> tuple[int, int]:
    """(height, width), rounded up to multiples of stride; says so when that changes it."""
    given = (img_size, img_size) if isinstance(img_size, int) else tuple_hw(img_size)
    if min(given) < 1:
        raise DataError(f"image size {img_size}: expected pixels, at least 1")
    rounded = (math.ceil(given[0] / stride) * stride, math.ceil(given[1] / stride) * stride)
    if rounded != given:
        size = " × ".join(str(side) for side in dict.fromkeys(rounded))
        get_logger().warning(f"image size {img_size} is not a multiple of {stride}: using {size}")
    return rounded


class DetectionDataset(Dataset[Sample]):
    """Images with Darknet labels as network inputs, letterboxed or augmented.

    The look of a sample depends on (seed, epoch, index) alone, see `SampleKey`.

    Attributes:
        images: the usable files.
        image_hw: int64 [n, 2], their sizes.
        labels: n arrays float32 [N, 5]: class, (cx, cy, w, h)_norm of the image.
        report: what was found in the files and what was left out.
        img_hw: (height, width) that inputs have, or with ``rect`` do not exceed.
        epoch: for a plain index and for the loader's sampler; see `set_epoch`.
        rect: inputs are as tight around their batch's images as the stride allows.
    """

    def __init__(
        self,
        images: Sequence[Path],
        *,
        num_classes: int,
        img_size: int | tuple[int, int],
        augment: bool,
        hyp: HypConfig,
        rect: bool,
        batch_size: int,
        stride: int = 32,
        cache: CacheMode = "none",
        seed: int = 0,
        single_class: bool = False,
        repeat_factor: float = 0.0,
    ) -> None:
        """
        Args:
            images: as `resolve_split` gives them.
            num_classes: labels must be below it.
            img_size: longer side, or (height, width), rounded up to a multiple of stride.
            augment: training: mosaic (not with rect), mixup, affine, flips, colour. Otherwise letterbox only.
            hyp: strengths of the augmentation, heatmap_tau.
            rect: see above; each batch has its own shape.
            batch_size: of the loader, per process; needed for rect.
            stride: inputs are multiples of it.
            cache: keep smaller copies of the images in memory or on disk.
            seed: of all randomness.
            single_class: all labels become class 0, whatever the files say.
            repeat_factor: show images with classes that are on fewer than this share of them more often, see
                `utils.sampling.repeat_factors`; also as parts of mosaics. 0: all alike.

        Raises:
            DataError: no usable image, or (with augment) no label at all.
        """
        self.img_hw = round_img_size(img_size, stride)
        self._stride = stride
        self._batch_size = batch_size
        self._seed = seed
        self._tau = hyp.heatmap_tau
        self._policy = TrainPolicy(hyp) if augment else None
        self.rect = rect
        self.epoch = 0
        found = load_labels(images, None if single_class else num_classes)
        check_labels(found, 1 if single_class else num_classes, hyp.heatmap_tau, needed=augment)
        self.images = found.images
        self.image_hw = found.image_hw
        self.labels = [_as_one_class(rows) for rows in found.labels] if single_class else found.labels
        self.report: LabelReport = found.report
        self._has_masks = found.mask_tau > 0
        self._pixels = PixelStore(self.images, self.image_hw, cache, self.img_hw)
        self._fixed_hw = self._evaluation_shapes()
        self._paste = CopyPaste(self.labels, hyp) if augment and hyp.copy_paste > 0 else None
        self.repeats = repeat_factors(self.labels, repeat_factor) if repeat_factor > 0 else None

    def __len__(self) -> int:
        return len(self.images)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of what comes next; loaders follow from their next iteration on."""
        self.epoch = epoch

    def __getitem__(self, key: int | SampleKey) -> Sample:
        """A sample by index (in the current epoch) or by key. Raises ImageError, HeatmapError: damaged file."""
        if not isinstance(key, SampleKey):
            key = SampleKey(self.epoch, int(key))
        hw = key.input_hw or self._fixed_hw[key.index]
        if self._policy is None:
            picture = self._letterboxed(key.index, hw)
            return self._sample(picture, channels_first(picture.image), [key.index], hw)
        rng = np.random.default_rng([self._seed, key.epoch, _SAMPLE, key.index, key.draw])
        used = self._choose(self._policy, key.index, rng)
        picture = self._augmented(self._policy, used, hw, rng)
        if rng.random() < self._policy.mixup:
            others = self._choose(self._policy, int(rng.integers(len(self))), rng)
            picture = blend(picture, self._augmented(self._policy, others, hw, rng), rng)
            used = used + others
        if self._paste is not None:
            picture, donors = self._paste(picture, self._source, rng)
            used = used + donors
        return self._sample(picture, self._policy.colour(picture.image, rng), used, hw)

    def rect_batches(self, epoch: int | None, chosen: Sequence[int] | None = None) -> list[RectBatch]:
        """Batches of similar shape: shuffled for an epoch, or with None the fixed ones of evaluation.

        Of all images, or of the chosen ones, which may be there several times.
        """
        chosen = range(len(self)) if chosen is None else chosen
        sizes = self.image_hw[np.asarray(chosen, dtype=np.int64)].tolist()
        shapes = [letterbox_shape(tuple_hw(hw), self.img_hw, self._stride) for hw in sizes]
        rng = None if epoch is None else rect_rng(self._seed, epoch)
        batches = rect_batches(np.array(shapes, dtype=np.int64), self._batch_size, rng)
        return [RectBatch([chosen[i] for i in batch.indices], batch.input_hw) for batch in batches]

    @property
    def batch_size(self) -> int:
        """Images per batch and process that the shapes of ``rect`` are made for."""
        return self._batch_size

    @property
    def shares_memory(self) -> bool:
        """Images are held in memory, where only forked workers can see them without a copy."""
        return self._pixels.mode == "ram" and sys.platform == "linux"

    def sizes_px(self) -> FloatArray:
        """Width and height of every labelled box in pixels of the (letterboxed) input; float32 [T, 2]."""
        sizes = [np.zeros((0, 2), dtype=np.float32)]
        for rows, (height, width) in zip(self.labels, self.image_hw.tolist(), strict=True):
            scale = min(self.img_hw[0] / height, self.img_hw[1] / width)
            sizes.append((rows[:, 3:5] * (width * scale, height * scale)).astype(np.float32))
        return np.concatenate(sizes)

    def _evaluation_shapes(self) -> list[tuple[int, int]]:
        """Input height and width of each image when it is asked for by index alone."""
        shapes = [self.img_hw] * len(self.images)
        for batch in self.rect_batches(None) if self.rect else []:
            for index in batch.indices:
                shapes[index] = batch.input_hw
        return shapes

    def _source(self, index: int) -> Source:
        rows = self.labels[index]
        height, width = self.image_hw[index].tolist()
        centre, half = rows[:, 1:3] * (width, height), rows[:, 3:5] * (width / 2, height / 2)
        return Source(
            (height, width),
            np.concatenate([centre - half, centre + half], axis=1).astype(np.float32),
            rows[:, 0].astype(np.int64),
            (lambda: load_heatmap(heatmap_path(self.images[index]))) if self._has_masks[index] else None,
            partial(self._pixels.read, index),
        )

    def _choose(self, policy: TrainPolicy, index: int, rng: np.random.Generator) -> list[int]:
        """An image, alone or followed by three random ones for a mosaic."""
        if self.rect or rng.random() >= policy.mosaic:
            return [index]
        if self.repeats is None:
            return [index, *rng.integers(len(self), size=3).tolist()]
        share = self.repeats / self.repeats.sum()
        return [index, *rng.choice(len(self), size=3, p=share).tolist()]

    def _augmented(
        self, policy: TrainPolicy, chosen: Sequence[int], hw: tuple[int, int], rng: np.random.Generator
    ) -> Picture:
        places = rng.permutation(len(chosen)) if len(chosen) > 1 else range(1)
        return policy([self._source(chosen[i]) for i in places], hw, rng)

    def _letterboxed(self, index: int, hw: tuple[int, int]) -> Picture:
        """The image as it is in evaluation: every box stays, however small it becomes."""
        source = self._source(index)
        letterbox = Letterbox.fit(source.hw, hw)
        image, image_scale = source.read(1.0, None)
        matrix = letterbox_matrix(letterbox)
        xyxy = transform_boxes(source.xyxy, matrix).astype(np.float32)
        if source.heatmap is None:
            heatmap = render_heatmap(to_centres(xyxy), hw, self._tau)
        else:
            heatmap = warp_heatmap(source.heatmap(), matrix[:2], hw)
        return Picture(letterbox_image(image, letterbox, image_scale), xyxy, source.labels, heatmap)

    def _sample(
        self, picture: Picture, planes: ByteImage, used: Sequence[int], hw: tuple[int, int]
    ) -> Sample:
        """A picture, whose final pixels are the planes [3, H, W], as tensors."""
        index = used[0]
        letterbox = Letterbox.fit(tuple_hw(self.image_hw[index].tolist()), hw)
        boxes = to_centres(picture.xyxy) / np.array([hw[1], hw[0], hw[1], hw[0]], dtype=np.float32)
        return Sample(
            torch.from_numpy(planes),
            torch.from_numpy(boxes.astype(np.float32)),
            torch.from_numpy(picture.labels),
            torch.from_numpy(picture.heatmap)[None],
            ImageMeta(self.images[index], index, letterbox, tuple(self.images[i] for i in used[1:])),
        )


def _as_one_class(rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return np.concatenate([np.zeros_like(rows[:, :1]), rows[:, 1:]], axis=1)


def build_loader(
    dataset: DetectionDataset,
    batch_size: int,
    workers: int,
    shuffle: bool,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
    image_weights: npt.NDArray[np.float64] | None = None,
    pin_memory: bool = False,
    fill: bool = True,
) -> DataLoader[Batch]:
    """Batches of a dataset for one process; see `EpochBatchSampler` for how processes share them.

    Args:
        dataset: its `set_epoch` decides which epoch an iteration over the loader is.
        batch_size: images per batch in this process (not the total over processes).
        workers: processes that prepare batches; 0: this one does. Exactly as given.
        shuffle: another order every epoch.
        seed: of the order.
        rank, world_size: this process among all.
        image_weights: draw images with these relative frequencies instead of once each.
        pin_memory: page-locked batches, which copy to a GPU faster; on when the model is on one.
        fill: repeat images so that all processes get as many batches (training); False: each image once.

    Raises:
        ValueError: the arguments do not fit together.
    """
    if dataset.rect and batch_size != dataset.batch_size:
        raise ValueError(f"rect shapes were made for batches of {dataset.batch_size}, not {batch_size}")
    sampler = EpochBatchSampler(
        dataset,
        batch_size,
        shuffle=shuffle,
        seed=seed,
        rank=rank,
        world_size=world_size,
        weights=image_weights,
        repeats=dataset.repeats,
        fill=fill,
    )
    return DataLoader(
        cast("Dataset[Batch]", dataset),  # of samples; but what the loader yields is what collate makes
        batch_sampler=sampler,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=pin_memory,
        persistent_workers=workers > 0,
        worker_init_fn=_start_worker,
        multiprocessing_context="fork" if workers > 0 and dataset.shares_memory else None,
        generator=torch.Generator().manual_seed(seed),  # or each epoch would take from the global one
    )


def _start_worker(_: int) -> None:
    cv2.setNumThreads(0)  # one core per worker; OpenCV's own threads would fight over them
