"""Which sample when: batches of an epoch, a function of the seed and the epoch alone.

Not of the number of workers, nor of what ran before: so a resumed run meets the same batches. What a
sample looks like is in utils/data.py.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
from torch.utils.data import Sampler

ItemT = TypeVar("ItemT")

_ORDER, _RECT = 1, 2
"""Random streams of different purposes are told apart by these, beside seed and epoch."""


@dataclass(frozen=True)
class SampleKey:
    """A request for one sample. Everything random in it derives from the dataset's seed and these."""

    epoch: int
    index: int
    """In the dataset."""
    draw: int = 0
    """How often this index came before in the same epoch: repeats look different."""
    input_hw: tuple[int, int] | None = None
    """Height and width; None: what the dataset says."""


class RectBatch(NamedTuple):
    """Images of similar shape, and the smallest input that holds all of them."""

    indices: list[int]
    input_hw: tuple[int, int]


def rect_batches(
    shapes: npt.NDArray[np.int64], batch_size: int, rng: np.random.Generator | None = None
) -> list[RectBatch]:
    """Group images by shape into batches that waste little padding.

    Args:
        shapes: [n, 2] tight input height and width of every image.
        batch_size: images per batch; the last may have fewer.
        rng: which images of a shape come together, and the order of batches, are random; None: fixed.
    """
    tie = np.arange(len(shapes)) if rng is None else rng.permutation(len(shapes))
    order = np.lexsort((tie, shapes[:, 1], shapes[:, 0] / shapes[:, 1]))
    batches = []
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size]
        height, width = shapes[indices].max(axis=0).tolist()
        batches.append(RectBatch(indices.tolist(), (height, width)))
    if rng is not None:
        batches = [batches[i] for i in rng.permutation(len(batches))]
    return batches


class SampledDataset(Protocol):
    """What the sampler needs to know of a dataset."""

    epoch: int
    rect: bool

    def __len__(self) -> int: ...

    def rect_batches(self, epoch: int | None, chosen: Sequence[int] | None = None) -> list[RectBatch]:
        """Batches of an epoch; None: the fixed ones of evaluation. Of all images, or of the chosen ones."""


class EpochBatchSampler(Sampler[list[SampleKey]]):
    """The batches of the dataset's current epoch for one of several processes.

    All processes get the same number of batches, as training needs it. The r-th of them gets the r-th slice of each joint batch
    of ``batch_size × world_size`` images (or, with rectangular batches, the r-th of each ``world_size``
    batches). Where the images do not divide evenly some come twice, unless ``fill`` is False: then every
    image comes once, and a process may get fewer batches than the others, or none.

    Attributes:
        weights: how often each image is drawn, relative to the others (with replacement); None: each once.
        repeats: how often each image comes, relative to the others, as evenly as whole numbers allow (`repeated`); an
            epoch stays as long as without. Random in every epoch are those that come once more or less.
    """

    def __init__(
        self,
        dataset: SampledDataset,
        batch_size: int,
        *,
        shuffle: bool,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        weights: npt.NDArray[np.float64] | None = None,
        repeats: npt.NDArray[np.float64] | None = None,
        fill: bool = True,
    ) -> None:
        if batch_size < 1 or not 0 <= rank < world_size:
            raise ValueError(
                f"batch_size {batch_size}, rank {rank}, world_size {world_size} do not fit together"
            )
        if weights is not None and len(weights) != len(dataset):
            raise ValueError(f"{len(weights)} image weights for {len(dataset)} images")
        if weights is not None and dataset.rect:
            raise ValueError("image weights do not go with rectangular batches: leave one of them out")
        if weights is not None and repeats is not None:
            raise ValueError(
                "image weights and repeats both say how often images come: leave one of them out"
            )
        self._dataset = dataset
        self._batch_size = batch_size
        self._shuffle = shuffle
        self._seed = seed
        self._rank = rank
        self._world_size = world_size
        self._fill = fill
        self.weights = weights
        self.repeats = repeats

    def __len__(self) -> int:
        if self._fill:
            # Whole images in joint batches, or whole batches shared out: the number is the same.
            return math.ceil(len(self._dataset) / (self._batch_size * self._world_size))
        batches = math.ceil(len(self._dataset) / self._batch_size)
        return len(range(self._rank, batches, self._world_size))

    def __iter__(self) -> Iterator[list[SampleKey]]:
        return self._rect() if self._dataset.rect else self._plain()

    def _plain(self) -> Iterator[list[SampleKey]]:
        epoch, world = self._dataset.epoch, self._world_size
        if not self._fill:
            keys = _keys(self._order(epoch), epoch)
            starts = range(self._rank * self._batch_size, len(keys), self._batch_size * world)
            yield from (keys[start : start + self._batch_size] for start in starts)
            return
        keys = _keys(_repeat_to_multiple(self._order(epoch), world), epoch)
        joint = self._batch_size * world
        for start in range(0, len(keys), joint):
            chunk = keys[start : start + joint]
            share = len(chunk) // world
            yield chunk[self._rank * share : (self._rank + 1) * share]

    def _rect(self) -> Iterator[list[SampleKey]]:
        epoch = self._dataset.epoch
        shuffled = epoch if self._shuffle else None
        if self.repeats is None:
            batches = self._dataset.rect_batches(shuffled)
        else:
            batches = self._dataset.rect_batches(shuffled, self._order(epoch))
        if self._fill:
            batches = _repeat_to_multiple(batches, self._world_size)
        keys = iter(_keys([index for batch in batches for index in batch.indices], epoch))
        for number, batch in enumerate(batches):
            own = [replace(next(keys), input_hw=batch.input_hw) for _ in batch.indices]
            if number % self._world_size == self._rank:
                yield own

    def _order(self, epoch: int) -> list[int]:
        count = len(self._dataset)
        if self.weights is None and self.repeats is None and not self._shuffle:
            return list(range(count))
        rng = np.random.default_rng([self._seed, epoch, _ORDER])
        if self.repeats is not None:
            return repeated(self.repeats, count, rng)
        if self.weights is None:
            return [int(i) for i in rng.permutation(count)]
        share = np.asarray(self.weights, dtype=np.float64)
        return [int(i) for i in rng.choice(count, size=count, p=share / share.sum())]


def rect_rng(seed: int, epoch: int) -> np.random.Generator:
    """Random numbers for the rectangular batches of an epoch, the same in all processes."""
    return np.random.default_rng([seed, epoch, _RECT])


def _keys(order: Sequence[int], epoch: int) -> list[SampleKey]:
    seen: Counter[int] = Counter()
    keys = []
    for index in order:
        keys.append(SampleKey(epoch, index, seen[index]))
        seen[index] += 1
    return keys


def _repeat_to_multiple(items: list[ItemT], multiple: int) -> list[ItemT]:
    missing = -len(items) % multiple
    return items + [items[i % len(items)] for i in range(missing)] if items else items


def repeated(repeats: npt.NDArray[np.float64], count: int, rng: np.random.Generator) -> list[int]:
    """Indices, ``count`` in all and in random order, each about ``count · repeats / Σ repeats`` times.

    An index comes as often as that, rounded up or down at random so that the mean is right (systematic sampling).
    """
    order = rng.permutation(len(repeats))
    upto = np.cumsum(repeats[order])
    steps = np.floor(upto * (count / upto[-1]) + rng.random())
    steps[-1] = count  # whatever the rounding of the sum
    copies = np.diff(steps, prepend=0.0).astype(np.int64)
    return [int(i) for i in rng.permutation(np.repeat(order, copies))]


def repeat_factors(labels: Sequence[npt.NDArray[np.float32]], least_share: float) -> npt.NDArray[np.float64]:
    """How often each image should come so that classes on few images are seen more (LVIS, arXiv 1908.03195, app. B).

    A class on the share f of the images has the factor max(1, √(least_share / f)), an image the largest of its classes.

    Args:
        labels: per image [N, 5], the class first.
        least_share: classes on at least this share of the images are not repeated.

    Returns:
        float64 [images], at least 1; 1 for images without objects.
    """
    present = [np.unique(rows[:, 0].astype(np.int64)) for rows in labels]
    counts = Counter(int(c) for classes in present for c in classes)
    factor = {c: max(1.0, math.sqrt(least_share * len(labels) / n)) for c, n in counts.items()}
    return np.array([max((factor[int(c)] for c in classes), default=1.0) for classes in present])


def image_weights(
    labels: Sequence[npt.NDArray[np.float32]], class_weights: npt.NDArray[np.floating]
) -> npt.NDArray[np.float64]:
    """How often to draw each image so that rare classes are seen more.

    Args:
        labels: per image [N, 5], the class first.
        class_weights: [C], e.g. the inverse of how often a class occurs.

    Returns:
        float64 [images], the sum of the weights of an image's objects; images without any get the smallest
        weight of all, so that backgrounds are not forgotten.
    """
    weights = np.array(
        [class_weights[rows[:, 0].astype(np.int64)].sum() for rows in labels], dtype=np.float64
    )
    positive = weights[weights > 0]
    return np.where(weights > 0, weights, positive.min() if len(positive) else 1.0)
