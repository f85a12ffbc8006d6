"""Times and memory of training samples: our data pipeline against the yardstick, on the same images and labels."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch

from engine.benchmark.data_yardstick import FloatArray, YardstickPipeline, paint_mask
from utils.config import HypConfig
from utils.data import DetectionDataset, SampleKey
from utils.images import image_hw, list_images
from utils.jpeg import JPEG_SUFFIXES
from utils.labels import label_path, parse_label_text
from utils.memory import MemoryUse, measure_memory
from utils.synthetic import draw_picture
from utils.typed_data import ConfigError

YARDSTICK, OURS, OURS_RAM = "yardstick", "ours", "ours, --cache ram"
CASES = (YARDSTICK, OURS, OURS_RAM)
MASK_TYPES = ("float32", "uint8")
JPEG_QUALITY = 92
SPLIT = 2
"""Of the drawn pictures: not one of the sample's."""

Pipeline = Callable[[int], object]
"""Makes a training sample; any number from 0 on gives another one."""


@dataclass(frozen=True)
class Pictures:
    """What the pipelines read, in one folder: ``images/*.jpg``, ``labels/*.txt``, ``masks/*.npy``."""

    folder: Path

    @property
    def images(self) -> list[Path]:
        """The JPEG files, sorted."""
        return sorted((self.folder / "images").iterdir())

    @property
    def masks(self) -> list[Path]:
        """The yardstick's full-resolution masks, in the order of the images."""
        return [self.folder / "masks" / f"{image.stem}.npy" for image in self.images]

    def boxes(self) -> list[FloatArray]:
        """Per image float32 [N, 5]: class, (x1, y1, x2, y2) in pixels."""
        found = []
        for image in self.images:
            height, width = image_hw(image)
            path = label_path(image)
            rows = parse_label_text(path.read_text(encoding="ascii"), None, str(path)).rows
            centre, half = rows[:, 1:3] * (width, height), rows[:, 3:5] * (width / 2, height / 2)
            corners = np.concatenate([rows[:, :1], centre - half, centre + half], axis=1)
            found.append(corners.astype(np.float32))
        return found


def draw_pictures(folder: Path, count: int, hw: tuple[int, int], seed: int) -> Pictures:
    """Drawn aerial pictures of a height and width as JPEG files, with labels, in a new folder."""
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True)
    scale = np.array([hw[1], hw[0], hw[1], hw[0]])
    for index in range(count):
        picture = draw_picture(hw[1], hw[0], seed, SPLIT, index)
        path = folder / "images" / f"{index:05}.jpg"
        cv2.imwrite(str(path), picture.image, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
        counted = [a for a in picture.annotations if a.score == 1]
        rows = [np.array([a.x + a.w / 2, a.y + a.h / 2, a.w, a.h]) / scale for a in counted]
        lines = [f"0 {' '.join(f'{value:.6f}' for value in row)}\n" for row in rows]
        label_path(path).write_text("".join(lines), encoding="ascii")
    return Pictures(folder)


def take_pictures(folder: Path, source: Path, count: int, hw: tuple[int, int]) -> Pictures:
    """The first JPEG files of a height and width in a folder, as links, with their labels as copies.

    Raises:
        ConfigError: there are fewer of them than wanted.
    """
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True)
    jpegs = [path for path in list_images(source) if path.suffix.lower() in JPEG_SUFFIXES]
    fitting = [path for path in jpegs if image_hw(path) == hw and label_path(path).is_file()]
    if len(fitting) < count:
        raise ConfigError(
            f"--images {source}: {len(fitting)} labelled JPEG files of {hw[1]}×{hw[0]} pixels, {count} are wanted: "
            "give --count or --picture-size, or leave out --images to draw some"
        )
    for index, path in enumerate(fitting[:count]):
        link = folder / "images" / f"{index:05}.jpg"
        link.symlink_to(path.resolve())
        shutil.copyfile(label_path(path), folder / "labels" / f"{index:05}.txt")
    return Pictures(folder)


def write_masks(pictures: Pictures, dtype: str, tau: float) -> None:
    """The yardstick's masks: 0–1 as float32, or 0–255 as uint8."""
    (pictures.folder / "masks").mkdir()
    for image, boxes, path in zip(pictures.images, pictures.boxes(), pictures.masks, strict=True):
        mask = paint_mask(boxes[:, 1:], image_hw(image), tau)
        np.save(path, mask if dtype == "uint8" else mask.astype(np.float32) / 255)


def build_pipeline(case: str, pictures: Pictures, size: int, hyp: HypConfig, seed: int) -> Pipeline:
    """The pipeline of one of `CASES`, for square samples."""
    if case == YARDSTICK:
        yardstick = YardstickPipeline(pictures.images, pictures.masks, pictures.boxes(), size, hyp, seed)
        return yardstick.__getitem__
    data = DetectionDataset(
        pictures.images,
        num_classes=1,
        img_size=size,
        augment=True,
        hyp=hyp,
        rect=False,
        batch_size=1,
        cache="ram" if case == OURS_RAM else "none",
        seed=seed,
        single_class=True,
    )
    return lambda number: data[SampleKey(number // len(data), number % len(data))]


@dataclass(frozen=True)
class CaseTimes:
    """Milliseconds per sample of a pipeline: by the clock, and of processor time in this process."""

    case: str
    wall_ms: list[float]
    cpu_ms: list[float]

    @property
    def mean_wall_ms(self) -> float:
        """What a sample takes on average, which is what an epoch is made of."""
        return sum(self.wall_ms) / len(self.wall_ms)

    @property
    def mean_cpu_ms(self) -> float:
        """The same of processor time, which other programs disturb less."""
        return sum(self.cpu_ms) / len(self.cpu_ms)


def use_one_thread() -> None:
    """What a loading process of training has: one core."""
    cv2.setNumThreads(0)
    torch.set_num_threads(1)


def time_cases(pipelines: Sequence[tuple[str, Pipeline]], samples: int, warmup: int) -> list[CaseTimes]:
    """Time the pipelines sample by sample in turn, so that whatever else the machine does meets all of them."""
    times = [CaseTimes(case, [], []) for case, _ in pipelines]
    for number in range(warmup + samples):
        for (_, make), found in zip(pipelines, times, strict=True):
            wall, cpu = time.perf_counter(), time.process_time()
            make(number)
            if number >= warmup:
                found.wall_ms.append((time.perf_counter() - wall) * 1000)
                found.cpu_ms.append((time.process_time() - cpu) * 1000)
    return times


def memory_of(make: Pipeline, samples: int) -> MemoryUse:
    """Peak memory while samples are made, one after the other; in a process where nothing ran before."""

    def run() -> None:
        for number in range(samples):
            make(number)

    return measure_memory(run, torch.device("cpu"))
