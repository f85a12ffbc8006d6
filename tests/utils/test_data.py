"""utils/data.py: samples, batches, and that they are the same whatever the workers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from utils.boxes import cxcywh_to_xyxy
from utils.config import HypConfig
from utils.data import Batch, DetectionDataset, Sample, build_loader, collate, round_img_size
from utils.heatmap import HeatmapFile, heatmap_path, save_heatmap
from utils.images import ImageError
from utils.labels import DataError
from utils.sampling import SampleKey
from utils.transforms import Picture, Source, TrainPolicy

SIZES = [(90, 160), (160, 90), (120, 160), (90, 160), (64, 64), (90, 160), (120, 160)]
HYP = HypConfig(mixup=0.3, degrees=3.0, flipud=0.2)


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    """Seven noisy images of several shapes; image n has n boxes of classes 0, 1, 2, 0, …"""
    rng = np.random.default_rng(0)
    paths = []
    for number, (height, width) in enumerate(SIZES):
        path = tmp_path / "images" / f"{number}{'.png' if number % 2 else '.jpg'}"
        path.parent.mkdir(exist_ok=True)
        pixels = cv2.GaussianBlur(rng.integers(0, 255, (height, width, 3), dtype=np.uint8), (5, 5), 2)
        path.write_bytes(cv2.imencode(path.suffix, pixels)[1].tobytes())
        lines = [f"{n % 3} {0.15 + 0.12 * n:.3f} 0.5 0.1 {0.1 + 0.02 * number:.3f}" for n in range(number)]
        (tmp_path / "labels").mkdir(exist_ok=True)
        (tmp_path / "labels" / f"{number}.txt").write_text("\n".join(lines))
        paths.append(path)
    return paths


def dataset(images: Sequence[Path], **changes: Any) -> DetectionDataset:
    options: dict[str, Any] = {
        "num_classes": 3, "img_size": 128, "augment": False, "hyp": HYP, "rect": False, "batch_size": 2, **changes
    }  # fmt: skip
    return DetectionDataset(images, **options)


def assert_same(first: Batch, second: Batch) -> None:
    assert [meta.path for meta in first.metas] == [meta.path for meta in second.metas]
    for name in ("images", "targets", "heatmaps"):
        assert torch.equal(getattr(first, name), getattr(second, name)), name


# --- samples


@pytest.mark.parametrize("augment", [False, True])
@pytest.mark.parametrize("size, hw", [(128, (128, 128)), ((64, 160), (64, 160))])
def test_form_of_a_sample(images: list[Path], augment: bool, size: Any, hw: tuple[int, int]) -> None:
    data = dataset(images, augment=augment, img_size=size)
    assert len(data) == 7
    for index in range(7):
        sample = data[index]
        assert (
            sample.image.shape == (3, *hw)
            and sample.image.dtype == torch.uint8
            and sample.image.is_contiguous()
        )
        assert sample.boxes.shape == (len(sample.labels), 4) and sample.boxes.dtype == torch.float32
        assert sample.labels.dtype == torch.int64
        assert sample.heatmap.shape == (1, hw[0] // 8, hw[1] // 8) and sample.heatmap.dtype == torch.float32
        corners = cxcywh_to_xyxy(sample.boxes)
        assert (corners >= -1e-6).all() and (corners <= 1 + 1e-6).all()
        assert sample.heatmap.min() >= 0 and sample.heatmap.max() <= 1
        assert (sample.meta.path, sample.meta.index) == (images[index], index)
        assert sample.meta.letterbox.input_hw == hw and sample.meta.letterbox.original_hw == SIZES[index]


def test_evaluation_keeps_every_box_where_it_is(images: list[Path]) -> None:
    for size in (128, 32):  # at 32 the boxes are under 2 pixels
        data = dataset(images, img_size=size)
        for index, (height, width) in enumerate(SIZES):
            sample = data[index]
            assert sample.labels.tolist() == [n % 3 for n in range(index)]
            original = sample.meta.letterbox.to_original(cxcywh_to_xyxy(sample.boxes) * size)
            for n, box in enumerate(original.tolist()):
                x, half_h = (0.15 + 0.12 * n) * width, (0.05 + 0.01 * index) * height
                assert box == pytest.approx(
                    [x - 0.05 * width, height / 2 - half_h, x + 0.05 * width, height / 2 + half_h], abs=0.01
                )
            for cx, cy, _, _ in (sample.boxes * size / 8).tolist():
                near = sample.heatmap[0, max(0, int(cy) - 1) : int(cy) + 2, max(0, int(cx) - 1) : int(cx) + 2]
                assert near.max() >= 0.5


def test_evaluation_image_is_the_letterboxed_file(images: list[Path]) -> None:
    data = dataset(images, img_size=160)
    image = data[0].image.numpy().transpose(1, 2, 0)
    bgr = cv2.imread(str(images[0]))
    assert np.array_equal(image[35:125], bgr[..., ::-1])  # not scaled: 160 is its width
    assert (image[:35] == 114).all() and (image[125:] == 114).all()


def test_augmentation_changes_with_epoch_index_draw_and_seed(images: list[Path]) -> None:
    data = dataset(images, augment=True)
    first = data[3].image
    assert torch.equal(first, data[3].image)
    assert torch.equal(first, data[SampleKey(0, 3)].image)
    data.set_epoch(1)
    different = [
        data[3], data[SampleKey(0, 4)], data[SampleKey(0, 3, draw=1)], dataset(images, augment=True, seed=1)[3]
    ]  # fmt: skip
    assert not any(torch.equal(first, sample.image) for sample in different)
    assert torch.equal(different[0].image, data[SampleKey(1, 3)].image)


def test_the_sample_itself_may_be_anywhere_in_the_mosaic(
    images: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    places = []
    real = TrainPolicy.__call__

    def watch(self: TrainPolicy, sources: Sequence[Source], *rest: Any) -> Picture:
        places.append([source.hw for source in sources].index(SIZES[4]))  # no other image has this size
        return real(self, sources, *rest)

    monkeypatch.setattr(TrainPolicy, "__call__", watch)
    data = dataset(images, augment=True, hyp=replace(HYP, mixup=0.0))
    for epoch in range(40):
        data.set_epoch(epoch)
        assert data[4].meta.index == 4
    assert set(places) == {0, 1, 2, 3}


def test_png_without_heatmap_files_has_targets(images: list[Path]) -> None:
    png = [path for path in images if path.suffix == ".png"]
    for augment in (False, True):
        data = dataset(png, augment=augment, hyp=replace(HYP, mosaic=0.0, mixup=0.0))
        for index in range(1, len(png)):
            assert data[index].heatmap.max() >= 0.5


def test_heatmap_files_with_masks_are_used(images: list[Path]) -> None:
    values = np.zeros((23, 40), np.uint8)
    values[:, :10] = 255  # the left quarter, where no box says so
    hyp = replace(HYP, mosaic=0.0, mixup=0.0, translate=0.0, scale=0.0, degrees=0.0, fliplr=1.0, flipud=0.0)
    for mode, left in (("gaussian", 0.0), ("hybrid", 1.0)):
        save_heatmap(heatmap_path(images[0]), HeatmapFile(values, mode, 0.5, (90, 160), ""))  # type: ignore[arg-type]
        plain = dataset(images, img_size=160)[0].heatmap[0]
        assert plain[8, :5].min() == left and plain[:, 6:].max() == 0 and plain[:4].max() == 0
        flipped = dataset(images, img_size=160, augment=True, hyp=hyp)[0].heatmap[0]
        assert flipped[8, 15:].min() == left and flipped[:, :14].max() == 0


def test_masked_image_has_the_labels_of_its_original(images: list[Path]) -> None:
    masked = images[4].with_name("4_masked.jpg")
    masked.write_bytes(images[4].read_bytes())
    assert len(dataset([masked])[0].labels) == 4


def test_one_class(images: list[Path]) -> None:
    data = dataset(images, num_classes=1, single_class=True)
    assert data[6].labels.tolist() == [0] * 6 and not data.report.problems
    assert dataset(images, num_classes=2).report.problems  # class 2 is refused otherwise


def test_tau_reaches_the_heatmap(images: list[Path]) -> None:
    low, high = (dataset(images, hyp=replace(HYP, heatmap_tau=tau))[6].heatmap.sum() for tau in (0.1, 0.9))
    assert low < high


def test_sizes_for_the_anchor_check(images: list[Path]) -> None:
    sizes = dataset(images[:2], img_size=320).sizes_px()
    assert sizes.tolist() == pytest.approx(np.array([[0.1 * 90 * 2, 0.12 * 160 * 2]]))


@pytest.mark.parametrize("size, expected", [(100, (128, 128)), (128, (128, 128)), ((33, 64), (64, 64))])
def test_size_is_rounded_up_with_a_notice(
    size: Any, expected: tuple[int, int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert round_img_size(size) == expected
    assert ("not a multiple of 32" in capsys.readouterr().out) == (size not in (expected, expected[0]))
    with pytest.raises(DataError, match="expected pixels, at least 1"):
        round_img_size(0)


def test_errors_name_what_is_wrong(images: list[Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none of 1 images can be used"):
        dataset([tmp_path / "missing.jpg"])
    with pytest.raises(DataError, match="no labels to train with"):
        dataset(images[:1], augment=True)
    assert len(dataset(images[:1])) == 1
    data = dataset(images)
    images[2].write_bytes(b"gone bad")
    with pytest.raises(ImageError, match=r"2\.jpg"):
        data[2]


def test_a_bad_image_is_left_out(images: list[Path]) -> None:
    images[2].write_bytes(b"gone bad")
    data = dataset(images)
    assert data.images == images[:2] + images[3:] and data.report.skipped_images == 1
    assert data[2].meta.path == images[3] and len(data[2].labels) == 3


@pytest.mark.parametrize("cache", ["ram", "disk"])
def test_caches_give_the_same_evaluation(images: list[Path], cache: str) -> None:
    plain, cached = dataset(images), dataset(images, cache=cache)
    for index in range(7):
        assert torch.equal(plain[index].image, cached[index].image)
        assert torch.equal(plain[index].boxes, cached[index].boxes)
    assert dataset(images, cache=cache, augment=True)[5].image.float().std() > 5


# --- batches


def test_collate_by_hand() -> None:
    def sample(labels: list[int]) -> Sample:
        boxes = torch.rand(len(labels), 4)
        return Sample(torch.zeros(3, 32, 64, dtype=torch.uint8), boxes, torch.tensor(labels, dtype=torch.int64),
                      torch.zeros(1, 4, 8), None)  # type: ignore[arg-type]  # fmt: skip

    samples = [sample([2, 0]), sample([]), sample([1])]
    batch = collate(samples)
    assert batch.images.shape == (3, 3, 32, 64) and batch.heatmaps.shape == (3, 1, 4, 8)
    assert batch.targets[:, :2].tolist() == [[0, 2], [0, 0], [2, 1]]
    assert torch.equal(batch.targets[:, 2:], torch.cat([s.boxes for s in samples]))
    assert collate([sample([])]).targets.shape == (0, 6)


def test_to_device_scales_bytes_once() -> None:
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).reshape(1, 3, 1, 1)
    batch = Batch(images, torch.zeros(0, 6), torch.zeros(1, 1, 1, 1), [])
    once = batch.to("cpu")
    assert once.images.dtype == torch.float32
    assert once.images.flatten().tolist() == pytest.approx([0, 0.2, 1])
    assert torch.equal(once.to("cpu").images, once.images)
    assert batch.images.dtype == torch.uint8  # the loader's batch is left alone


def test_rect_evaluation_is_tight_and_complete(images: list[Path]) -> None:
    data = dataset(images, img_size=160, rect=True)
    batches = list(build_loader(data, 2, 0, shuffle=False, seed=0))
    assert [tuple(batch.images.shape[2:]) for batch in batches] == [
        (96, 160),
        (128, 160),
        (160, 160),
        (160, 96),
    ]
    assert sorted(meta.index for batch in batches for meta in batch.metas) == list(range(7))
    for batch in batches:  # by index alone a sample looks the same
        for number, meta in enumerate(batch.metas):
            assert torch.equal(batch.images[number], data[meta.index].image)


def test_rect_training_has_no_mosaic_and_its_own_shapes(images: list[Path]) -> None:
    data = dataset(images, img_size=160, rect=True, augment=True, hyp=replace(HYP, mixup=0.0))
    loader = build_loader(data, 2, 0, shuffle=True, seed=0)
    orders = []
    for epoch in range(4):
        data.set_epoch(epoch)
        batches = list(loader)
        assert sorted(tuple(b.images.shape[2:]) for b in batches) == [
            (96, 160),
            (128, 160),
            (160, 96),
            (160, 160),
        ]
        orders.append([meta.index for batch in batches for meta in batch.metas])
        for batch in batches:
            for number, meta in enumerate(batch.metas):  # only the image's own boxes
                assert (batch.targets[:, 0] == number).sum() <= meta.index
    assert len({tuple(order) for order in orders}) > 1


def test_rect_and_loader_must_agree(images: list[Path]) -> None:
    with pytest.raises(ValueError, match="rect shapes were made for batches of 2, not 3"):
        build_loader(dataset(images, rect=True), 3, 0, shuffle=False, seed=0)


def epochs(loader: DataLoader[Batch], data: DetectionDataset, numbers: Sequence[int]) -> list[Batch]:
    result = []
    for number in numbers:
        data.set_epoch(number)
        result += list(loader)
    return result


@pytest.mark.parametrize("cache", ["none", "ram"])
def test_workers_and_resuming_change_nothing(images: list[Path], cache: str) -> None:
    def run(workers: int, numbers: Sequence[int]) -> list[Batch]:
        data = dataset(images, augment=True, cache=cache)
        loader = build_loader(data, 3, workers, shuffle=True, seed=5)
        assert loader.num_workers == workers
        return epochs(loader, data, numbers)

    alone = run(0, [0, 1, 2])
    assert len(alone) == 9
    together = run(2, [0, 1, 2])
    for first, second in zip(alone, together, strict=True):
        assert_same(first, second)
    for first, second in zip(alone[6:], run(0, [2]), strict=True):  # resumed in the third epoch
        assert_same(first, second)
    assert not torch.equal(alone[0].images, alone[3].images)


def test_loader_leaves_the_global_random_state_alone(images: list[Path]) -> None:
    data = dataset(images, augment=True)
    before = torch.get_rng_state()
    list(build_loader(data, 3, 0, shuffle=True, seed=5))
    assert torch.equal(torch.get_rng_state(), before)


def test_processes_see_the_joint_batch(images: list[Path]) -> None:
    data = dataset(images[:6], augment=True)
    joint = next(iter(build_loader(data, 4, 0, shuffle=True, seed=1)))
    parts = [next(iter(build_loader(data, 2, 0, True, 1, rank=rank, world_size=2))) for rank in range(2)]
    assert torch.equal(joint.images, torch.cat([part.images for part in parts]))


def test_image_weights_reach_the_loader(images: list[Path]) -> None:
    weights = np.zeros(7)
    weights[5] = 1.0
    loader = build_loader(dataset(images, augment=True), 3, 0, shuffle=True, seed=1, image_weights=weights)
    batches = list(loader)
    assert {meta.index for batch in batches for meta in batch.metas} == {5}
    assert not torch.equal(batches[0].images[0], batches[0].images[1])


def test_repeat_factor_reaches_the_loader_and_the_mosaics(images: list[Path]) -> None:
    """Class 2 is on four images only (3 to 6), which then come more often, as first image and as another one."""
    hyp = replace(HYP, mosaic=1.0, mixup=0.0)
    plain, repeats = (
        dataset(images, augment=True, hyp=hyp, repeat_factor=factor, batch_size=7) for factor in (0.0, 1.0)
    )
    assert plain.repeats is None and repeats.repeats is not None
    assert repeats.repeats.tolist() == pytest.approx(
        [1, *[(7 / 6) ** 0.5], (7 / 5) ** 0.5, *[(7 / 4) ** 0.5] * 4]
    )
    seen: dict[bool, list[int]] = {True: [], False: []}
    for data in (plain, repeats):
        for epoch in range(20):
            data.set_epoch(epoch)
            for batch in build_loader(data, 7, 0, shuffle=True, seed=1):
                seen[data is repeats] += [meta.index for meta in batch.metas]
                seen[data is repeats] += [images.index(p) for meta in batch.metas for p in meta.others]
    shares = [np.isin(seen[flag], (3, 4, 5, 6)).mean() for flag in (False, True)]
    expected = repeats.repeats[3:].sum() / repeats.repeats.sum()
    assert shares == pytest.approx([4 / 7, expected], abs=0.05)


def test_pasted_objects_are_in_boxes_heatmap_and_metas(images: list[Path]) -> None:
    hyp = replace(HYP, mosaic=0.0, mixup=0.0, scale=0.0, copy_paste=3.0)
    plain, pasted = (dataset(images, augment=True, hyp=replace(hyp, copy_paste=mean)) for mean in (0.0, 3.0))
    more = 0
    for index in range(7):
        before, after = plain[index], pasted[index]
        number = len(after.labels) - len(before.labels)
        more += number
        assert torch.equal(after.boxes[: len(before.boxes)], before.boxes)
        assert (after.heatmap >= before.heatmap).all()
        assert len(after.meta.others) == (1 if number else 0)
        for cx, cy in after.boxes[len(before.boxes) :, :2].tolist():
            assert after.heatmap[0, int(cy * 16), int(cx * 16)] >= 0.5
    assert more > 3
    assert torch.equal(pasted[3].image, pasted[3].image)


def test_real_pictures(shared_dir: Path, tmp_path: Path) -> None:
    folder = shared_dir / "data" / "VisDrone" / "VisDrone2019-DET-val"
    lines = []
    for image in sorted((folder / "images").iterdir())[:3]:
        (tmp_path / "images").mkdir(exist_ok=True)
        (tmp_path / "labels").mkdir(exist_ok=True)
        (tmp_path / "images" / image.name).symlink_to(image)
        height, width = cv2.imread(str(image)).shape[:2]
        rows = [
            line.split(",") for line in (folder / "annotations" / f"{image.stem}.txt").read_text().split()
        ]
        text = [
            f"{int(r[5]) - 1} {(int(r[0]) + int(r[2]) / 2) / width} {(int(r[1]) + int(r[3]) / 2) / height} "
            f"{int(r[2]) / width} {int(r[3]) / height}"
            for r in rows
            if 0 < int(r[5]) < 11
        ]
        (tmp_path / "labels" / f"{image.stem}.txt").write_text("\n".join(text))
        lines += text
    data = dataset(sorted((tmp_path / "images").iterdir()), num_classes=10, img_size=640, augment=True)
    assert data.report.objects + len(data.report.problems) == len(lines)
    sample = data[0]
    assert len(sample.boxes) > 5 and sample.image.float().std() > 20 and sample.heatmap.max() > 0.9
