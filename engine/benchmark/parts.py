"""Parts of detection alone, each on inputs of a known size: slicing, gathering, heads, suppression, reading a picture."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from engine.benchmark.bench import DECIMALS
from engine.benchmark.heatmaps import given_logits
from engine.benchmark.results import median
from engine.benchmark.variants import Prepared, benchmark_config
from models.decode import DecodedBoxes, PostprocessConfig, suppress
from models.esod import find_candidates
from models.levels import HeadPositions
from models.slicer import STRIDE, Patches, cut_patches, fixed_grid
from models.sparse import grow
from utils.boxes import Letterbox, letterbox_shape
from utils.config import ModelConfig, SlicerConfig
from utils.images import read_image
from utils.profile import StageTimer
from utils.synthetic import draw_picture
from utils.transforms import letterbox_image

GREEDY_CENTRES = 100
PATCHES = 56
POSITION_SHARES = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
HEAD_KEPT = 0.2
BOXES, CLASSES = 20_000, 10
PICTURE_HW = (1080, 1920)
JPEG_QUALITY = 90


@dataclass(frozen=True)
class Part:
    """Something to time.

    Attributes:
        name: of the part.
        detail: how large its inputs are.
        run: does it once.
    """

    name: str
    detail: str
    run: Callable[[], object]


@dataclass
class PartTimes:
    """Milliseconds of a part in each round."""

    name: str
    detail: str
    ms: list[float] = field(default_factory=list)

    @property
    def median_ms(self) -> float:
        """Of the rounds."""
        return median(self.ms)


def time_parts(
    parts: list[Part], rounds: int, warmup: int, seed: int, device: torch.device
) -> list[PartTimes]:
    """Run all parts once in every round, in an order drawn anew; the first ``warmup`` rounds do not count."""
    results = [PartTimes(part.name, part.detail) for part in parts]
    pairs = list(zip(parts, results, strict=True))
    order = random.Random(seed)
    with torch.inference_mode():
        for number in range(warmup + rounds):
            order.shuffle(pairs)
            for part, result in pairs:
                timer = StageTimer(device)
                with timer.frame():
                    part.run()
                if number >= warmup:
                    result.ms.append(round(timer.frame_ms[-1], DECIMALS))
    return results


@torch.inference_mode()
def slicing_parts(
    config: ModelConfig, input_hw: tuple[int, int], device: torch.device, seed: int
) -> list[Part]:
    """Both slicers, from probabilities to patches, and cutting patches out of a feature map of 192 channels."""
    map_hw = (input_hw[0] // STRIDE, input_hw[1] // STRIDE)
    slicer = config.slicer
    logits = given_logits(benchmark_config(config, sparse=False), 1, map_hw, HEAD_KEPT, 3, seed)
    grid_prob = logits.sigmoid().to(device)
    greedy_prob = scattered_peaks(map_hw, GREEDY_CENTRES, seed)
    grid = fixed_grid(1, map_hw, slicer.patches_per_side, device)
    count = min(PATCHES, len(grid))
    patches = Patches(grid.image_index[:count], grid.xyxy_cell[:count], grid.size_cell)
    features = torch.rand(1, 192, *map_hw, device=device).contiguous(memory_format=torch.channels_last)
    size = f"map {map_hw[0]}×{map_hw[1]}"
    return [
        Part("slicing, grid", f"{size}, {HEAD_KEPT:.0%} kept", lambda: chosen(grid_prob, slicer, "grid")),
        Part(
            "slicing, greedy",
            f"{size}, {GREEDY_CENTRES} centres",
            lambda: chosen(greedy_prob, slicer, "greedy"),
        ),
        Part("gathering", f"{size}×192, {count} patches", lambda: cut_patches(features, patches)),
    ]


def chosen(prob: Tensor, config: SlicerConfig, algorithm: str) -> Patches:
    """Patches by an algorithm, from probabilities [B, 1, H/8, W/8]; waits for the device once, as a forward pass."""
    settings = SlicerConfig(algorithm, config.patches_per_side, config.threshold, config.shift)  # type: ignore[arg-type]
    candidates = find_candidates(prob, settings)
    return candidates.take(int(candidates.keep.sum()))


def scattered_peaks(map_hw: tuple[int, int], count: int, seed: int) -> Tensor:
    """Probabilities [1, 1, H, W] with so many single cells above every threshold, no two of them neighbours."""
    height, width = map_hw
    generator = torch.Generator().manual_seed(seed)
    # Every other cell of every other row.
    places = torch.randperm((height // 2) * (width // 2), generator=generator)[:count]
    prob = torch.zeros(1, 1, height, width)
    prob[0, 0, places // (width // 2) * 2, places % (width // 2) * 2] = 0.9 + 0.09 * torch.rand(
        len(places), generator=generator
    )
    return prob


@torch.inference_mode()
def head_parts(ready: Prepared, input_hw: tuple[int, int], device: torch.device, seed: int) -> list[Part]:
    """The dense head, and the sparse one at several shares of the positions, on the patches of a share of the map."""
    model = ready.esod
    config = benchmark_config(model.config, sparse=False)
    map_hw = (input_hw[0] // STRIDE, input_hw[1] // STRIDE)
    model.config = config
    ready.given.logits = given_logits(config, 1, map_hw, HEAD_KEPT, 3, seed).to(device, ready.variant.dtype)
    seen: list[list[Tensor]] = []
    handle = model.head.register_forward_pre_hook(lambda module, inputs: seen.append(list(inputs[0])))
    try:
        model(ready.images(torch.rand(1, 3, *input_hw, device=device)), runner=ready.given)
    finally:
        handle.remove()
    pyramid, head = seen[0], model.head
    place = f"{len(pyramid[0])} patches of {pyramid[0].shape[2]}×{pyramid[0].shape[3]} cells, {ready.variant.name}"
    parts = [Part("head, dense", place, lambda: head(pyramid, [None] * len(pyramid)))]
    if config.head.kind == "single":
        return parts
    for share in POSITION_SHARES:
        where = [random_positions(level, share, head.needs_around, seed) for level in pyramid]
        parts.append(
            Part(f"head, sparse at {share:.0%}", place, lambda where=where: head(pyramid, where))  # type: ignore[misc]
        )
    return parts


def random_positions(features: Tensor, share: float, around: bool, seed: int) -> HeadPositions:
    """A share of the positions of maps [K, C, h, w], at least one, in order."""
    maps, _, height, width = features.shape
    cells = maps * height * width
    generator = torch.Generator().manual_seed(seed)
    mask = torch.zeros(cells, dtype=torch.bool)
    mask[torch.randperm(cells, generator=generator)[: max(round(share * cells), 1)]] = True
    mask = mask.view(maps, height, width)
    near = grow(mask).nonzero().to(features.device) if around else None
    return HeadPositions(mask.nonzero().to(features.device), near)


def suppression_parts(device: torch.device, seed: int) -> list[Part]:
    """From decoded boxes to detections, as test.py does it: a box is a candidate for each of its classes."""
    generator = torch.Generator().manual_seed(seed)
    height, width = PICTURE_HW
    # Boxes stand around objects, as a head's do.
    objects = torch.rand(BOXES // 40, 2, generator=generator) * torch.tensor([width, height])
    centre = objects[torch.randint(len(objects), (BOXES,), generator=generator)]
    size = 8 + 40 * torch.rand(BOXES, 2, generator=generator)
    boxes = torch.cat((centre + 4 * torch.randn(BOXES, 2, generator=generator), size), dim=1)
    decoded = DecodedBoxes(
        torch.zeros(BOXES, dtype=torch.int64, device=device),
        boxes.to(device),
        torch.rand(BOXES, generator=generator).clamp(min=0.05).to(device),
        torch.rand(BOXES, CLASSES, generator=generator).clamp(min=0.05).to(device),
    )
    config = PostprocessConfig(conf_thres=0.001, iou_thres=0.65, multi_label=True)
    box = Letterbox.fit(PICTURE_HW, PICTURE_HW)
    detail = f"{BOXES} boxes × {CLASSES} classes, each a candidate"
    return [Part("suppression", detail, lambda: suppress(decoded, 0, box, config))]


@contextmanager
def picture_parts(input_hw: tuple[int, int], seed: int) -> Iterator[list[Part]]:
    """Reading a JPEG and placing it in the network input, on one thread, as a loader's worker process does."""
    threads = cv2.getNumThreads()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "picture.jpg"
        height, width = PICTURE_HW
        cv2.imwrite(
            str(path), draw_picture(width, height, seed, 0, 0).image, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
        )
        kib = path.stat().st_size / 1024
        letterbox = Letterbox.fit(PICTURE_HW, letterbox_shape(PICTURE_HW, input_hw))
        detail = f"{height}×{width}, {kib:.0f} KiB"

        def to_tensor() -> Tensor:
            placed = letterbox_image(read_image(path), letterbox)
            return torch.from_numpy(np.ascontiguousarray(placed.transpose(2, 0, 1)))

        target = "×".join(map(str, letterbox.input_hw))
        cv2.setNumThreads(0)
        try:
            yield [
                Part("JPEG to tensor", f"{detail} → {target}, one worker", to_tensor),
                Part("JPEG decoding alone", detail, lambda: read_image(path)),
            ]
        finally:
            cv2.setNumThreads(threads)
