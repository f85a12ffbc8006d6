"""utils/sampling.py: which image in which batch, in which process, in which epoch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest

from utils.sampling import (
    EpochBatchSampler,
    RectBatch,
    SampleKey,
    image_weights,
    rect_batches,
    rect_rng,
    repeat_factors,
    repeated,
)


class Plain:
    """A dataset of n images."""

    rect = False

    def __init__(self, count: int, epoch: int = 0) -> None:
        self.count, self.epoch = count, epoch

    def __len__(self) -> int:
        return self.count

    def rect_batches(self, epoch: int | None, chosen: Sequence[int] | None = None) -> list[RectBatch]:
        chosen = range(self.count) if chosen is None else chosen
        shapes = np.array([(32 + 32 * (i % 3), 96) for i in chosen])
        found = rect_batches(shapes, 4, None if epoch is None else rect_rng(0, epoch))
        return [RectBatch([chosen[i] for i in batch.indices], batch.input_hw) for batch in found]


class Rect(Plain):
    rect = True


def batches(
    dataset: Plain, batch_size: int = 4, world: int = 1, **options: object
) -> list[list[list[SampleKey]]]:
    """For each process the list of its batches."""
    settings: dict[str, object] = {"shuffle": True, "seed": 7, **options}
    samplers = [
        EpochBatchSampler(dataset, batch_size, rank=r, world_size=world, **settings) for r in range(world)
    ]  # type: ignore[arg-type]
    result = [list(sampler) for sampler in samplers]
    assert [len(one) for one in result] == [len(sampler) for sampler in samplers]
    return result


def indices(one: list[list[SampleKey]]) -> list[int]:
    return [key.index for batch in one for key in batch]


def test_every_image_once_in_another_order_each_epoch() -> None:
    first, second = (indices(batches(Plain(22, epoch))[0]) for epoch in (0, 1))
    assert sorted(first) == sorted(second) == list(range(22)) and first != second
    assert first == indices(batches(Plain(22, 0))[0])
    assert first != indices(batches(Plain(22, 0), seed=8)[0])
    assert [len(batch) for batch in batches(Plain(22))[0]] == [4] * 5 + [2]


def test_without_shuffling() -> None:
    assert indices(batches(Plain(9), shuffle=False)[0]) == list(range(9))


@pytest.mark.parametrize("count", [1, 7, 16, 22, 25])
@pytest.mark.parametrize("world", [2, 3, 4])
@pytest.mark.parametrize("kind", [Plain, Rect])
def test_processes_share_all_images_evenly(count: int, world: int, kind: type[Plain]) -> None:
    shared = batches(kind(count), world=world)
    assert len({len(one) for one in shared}) == 1
    counts = Counter(index for one in shared for index in indices(one))
    assert set(counts) == set(range(count))
    if kind is Plain:
        assert sum(counts.values()) == -(-count // world) * world
        for step in zip(*shared, strict=True):
            assert len({len(batch) for batch in step}) == 1


@pytest.mark.parametrize("count", [1, 7, 16, 22, 25])
@pytest.mark.parametrize("world", [1, 2, 3, 5])
@pytest.mark.parametrize("kind", [Plain, Rect])
def test_without_filling_the_batches_of_one_process_are_dealt_out(
    count: int, world: int, kind: type[Plain]
) -> None:
    alone = batches(kind(count), shuffle=False)[0]
    shared = batches(kind(count), shuffle=False, world=world, fill=False)
    assert sorted(i for one in shared for i in indices(one)) == list(range(count))
    for rank, one in enumerate(shared):
        assert one == alone[rank::world]


def test_joint_batches_are_those_of_one_process() -> None:
    alone = batches(Plain(24), batch_size=8)[0]
    shared = batches(Plain(24), batch_size=4, world=2)
    for number, batch in enumerate(alone):
        assert [key.index for key in batch] == [key.index for one in shared for key in one[number]]


def test_repeats_of_an_image_have_their_own_randomness() -> None:
    (one,) = batches(Plain(5), weights=np.array([0.0, 1.0, 0.0, 0.0, 0.0]))
    keys = [key for batch in one for key in batch]
    assert {key.index for key in keys} == {1} and [key.draw for key in keys] == [0, 1, 2, 3, 4]


def test_weights_are_frequencies() -> None:
    counts: Counter[int] = Counter()
    for epoch in range(200):
        counts.update(indices(batches(Plain(4, epoch), weights=np.array([1.0, 1.0, 2.0, 4.0]))[0]))
    share = np.array([counts[i] for i in range(4)]) / counts.total()
    assert np.abs(share - np.array([1, 1, 2, 4]) / 8).max() < 0.05


def test_the_epoch_is_in_the_request() -> None:
    dataset = Plain(5)
    sampler = EpochBatchSampler(dataset, 2, shuffle=True, seed=0)
    assert {key.epoch for batch in sampler for key in batch} == {0}
    dataset.epoch = 3
    assert {key.epoch for batch in sampler for key in batch} == {3}


def test_rectangular_batches_waste_little() -> None:
    shapes = np.array([(64, 96), (96, 64), (64, 96), (32, 96), (96, 64), (96, 96), (64, 96)])
    fixed = rect_batches(shapes, 3)
    assert fixed == [RectBatch([3, 0, 2], (64, 96)), RectBatch([6, 5, 1], (96, 96)), RectBatch([4], (96, 64))]
    mixed = [rect_batches(shapes, 3, np.random.default_rng(seed)) for seed in range(10)]
    for one in mixed:
        assert sorted(i for batch in one for i in batch.indices) == list(range(7))
        for batch in one:
            assert batch.input_hw == tuple(shapes[batch.indices].max(axis=0))
    assert len({tuple(tuple(batch.indices) for batch in one) for one in mixed}) > 3


def test_rectangular_requests_say_their_shape() -> None:
    for batch in batches(Rect(14))[0]:
        assert len({key.input_hw for key in batch}) == 1 and batch[0].input_hw is not None
    assert batches(Rect(14, 0)) != batches(Rect(14, 1))
    assert [[k.index for k in b] for b in batches(Rect(14, 0), shuffle=False)[0]] == [
        b.indices for b in Rect(14).rect_batches(None)
    ]


@pytest.mark.parametrize("bad", [{"batch_size": 0}, {"rank": 2, "world_size": 2}, {"weights": np.ones(3)}])
def test_contradictions(bad: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        EpochBatchSampler(Plain(5), **{"batch_size": 2, "shuffle": True, "seed": 0, **bad})  # type: ignore[arg-type]


def test_weights_do_not_go_with_rect() -> None:
    with pytest.raises(ValueError, match="image weights do not go with rectangular batches"):
        EpochBatchSampler(Rect(5), 4, shuffle=True, seed=0, weights=np.ones(5))


@pytest.mark.parametrize("kind", [Plain, Rect])
@pytest.mark.parametrize("world", [1, 3])
def test_repeats_come_as_often_as_whole_numbers_allow(kind: type[Plain], world: int) -> None:
    """Expected times are 12 · repeats / 16: 0.75 for most, 2.25 for the second, 1.5 for the fourth."""
    repeats = np.array([1.0, 3, 1, 2, *[1] * 9])[:12]
    repeats *= 16 / repeats.sum()
    expected = repeats * 12 / 16
    totals: Counter[int] = Counter()
    for epoch in range(200):
        parts = batches(kind(12, epoch), 4, world, repeats=repeats)
        seen = Counter(index for part in parts for index in indices(part))
        assert sum(seen.values()) == 12
        for index, times in enumerate(expected):
            assert np.floor(times) <= seen[index] <= np.ceil(times)
        totals += seen
    assert [totals[i] / 200 for i in range(12)] == pytest.approx(expected, abs=0.12)
    assert batches(kind(12, 3), repeats=repeats) == batches(kind(12, 3), repeats=repeats)
    assert batches(kind(12, 3), repeats=repeats) != batches(kind(12, 4), repeats=repeats)


def test_repeated_images_differ_in_their_draw() -> None:
    parts = batches(Plain(8), repeats=np.array([7.0, 1, 1, 1, 1, 1, 1, 1]))
    draws = [key.draw for batch in parts[0] for key in batch if key.index == 0]
    assert sorted(draws) == list(range(len(draws))) and len(draws) >= 3


def test_repeated_gives_the_number_asked_for_whatever_the_rounding() -> None:
    for seed in range(50):
        rng = np.random.default_rng(seed)
        assert len(repeated(rng.uniform(1, 4, 97), 97, rng)) == 97


def test_repeats_and_weights_contradict_each_other() -> None:
    with pytest.raises(ValueError, match="leave one of them out"):
        EpochBatchSampler(Plain(5), 4, shuffle=True, seed=0, weights=np.ones(5), repeats=np.ones(5))


def test_repeat_factors_by_hand() -> None:
    def rows(*classes: int) -> np.ndarray:
        return np.array([[c, 0.5, 0.5, 0.1, 0.1] for c in classes], np.float32).reshape(-1, 5)

    # Class 0 is on 3 of 4 images, class 1 on one, however many objects of it there are.
    labels = [rows(0, 0), rows(0), rows(0, 1, 1, 1), rows()]
    assert repeat_factors(labels, 0.25).tolist() == [1, 1, 1, 1]
    assert repeat_factors(labels, 1.0).tolist() == pytest.approx([(4 / 3) ** 0.5, (4 / 3) ** 0.5, 2, 1])


def test_image_weights_by_hand() -> None:
    labels = [np.array([[0, 0, 0, 0, 0], [2, 0, 0, 0, 0]], np.float32), np.zeros((0, 5), np.float32),
              np.array([[1, 0, 0, 0, 0]], np.float32)]  # fmt: skip
    assert image_weights(labels, np.array([1.0, 0.5, 4.0])).tolist() == [5.0, 0.5, 0.5]
    assert image_weights(labels[1:2], np.array([1.0])).tolist() == [1.0]
