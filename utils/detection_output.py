"""Which files a detection run writes for each frame, and what it says at the end.

The files themselves are written by utils/writers.py, the pictures drawn by utils/draw.py and
utils/cluster_picture.py. Nothing here runs a model.
"""

from __future__ import annotations

import logging
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType

from utils.background import WorkBehind
from utils.cluster_picture import (
    BoxStyle,
    draw_cluster_picture,
    load_ground_truth,
    plural,
    shrunk_prediction,
)
from utils.draw import draw_boxes, save_image
from utils.frames import Frame
from utils.images import ByteImage
from utils.logger import LOGGER_NAME
from utils.record_files import RecordFile
from utils.records import class_name
from utils.results import Detections, PredictionLike
from utils.summary import Throughput
from utils.writers import BEST_CODEC, OutputNames, VideoWriter, crop_paths, save_crops, write_darknet

logger = logging.getLogger(f"{LOGGER_NAME}.detection_output")

CLUSTER_ENDING = "_cluster"
BEHIND_PER_WORKER = 2
"""So many files per thread may wait for being drawn and written."""


@dataclass(frozen=True)
class OutputOptions:
    """What to write: pictures with boxes, cluster pictures, label files (with scores), crops; videos of which codec."""

    save_pictures: bool = True
    view_cluster: bool = False
    save_txt: bool = False
    save_conf: bool = False
    save_crop: bool = False
    video_codec: str = BEST_CODEC
    style: BoxStyle = field(default_factory=BoxStyle)


class DetectionOutput:
    """Writes the results of a run into its folder; use it in a ``with`` block: at its end all is written.

    ``sub/a.jpg`` of the source becomes ``sub/a.jpg`` (boxes), ``sub/a_cluster.jpg``, ``labels/sub/a.txt``
    and ``crops/<class>/sub/a_<number>.jpg``; a video ``v.mp4`` becomes ``v.webm``, ``v_cluster.webm``, and
    ``labels/v_000012.txt`` for its frame 12. A name that is taken gets a number, nothing is overwritten.
    """

    def __init__(
        self,
        folder: Path,
        names: Sequence[str],
        options: OutputOptions,
        relative: Callable[[Path], Path],
        workers: int = 0,
        records: Sequence[RecordFile] = (),
    ) -> None:
        """
        Args:
            folder: of the run.
            names: class names.
            options: what to write.
            relative: where a file of the source belongs below the folder; `Source.relative` is one.
            workers: threads that draw and write while the caller goes on, at most `BEHIND_PER_WORKER` files
                each behind it; 0: everything is written when it is given.
            records: files to write every frame into, and to close at the end.
        """
        self.folder, self.names, self.options = folder, names, options
        self._relative, self._records = relative, records
        self._used = OutputNames()
        self._stems: dict[int, Path] = {}
        """By index of the files that are being written: one, or of live streams all."""
        self._videos: dict[Path, VideoWriter] = {}
        self._open_videos = ExitStack()
        self._queue = WorkBehind(workers, BEHIND_PER_WORKER * workers)

    def write(self, frame: Frame, prediction: PredictionLike) -> None:
        """Write everything that was asked for of one frame, or (with workers) see to it that it is written.

        Raises what writing this or an earlier frame raised. Neither frame nor prediction may be changed after.
        """
        for record in self._records:
            record.add(frame, self._relative(frame.path), prediction)
        options, in_order = self.options, frame.video is not None
        found = prediction.detections.to("cpu")
        shown = shrunk_prediction(prediction, (frame.image.shape[0], frame.image.shape[1]))
        stem = self._stem_of(frame)  # names are given out here, so that they do not depend on the threads
        if options.save_pictures:
            draw = partial(self._draw, frame.image, shown.detections.to("cpu"))
            self._queue.run(
                partial(self._picture, frame, stem, "", frame.path.suffix, draw), in_order=in_order
            )
        if options.view_cluster:
            draw = partial(self._cluster, frame, shown)
            self._queue.run(
                partial(self._picture, frame, stem, CLUSTER_ENDING, ".jpg", draw), in_order=in_order
            )
        if not (options.save_txt or options.save_crop):
            return
        if frame.frame_number is not None:
            stem = self._used.claim(stem.with_name(f"{stem.name}_{frame.frame_number:06d}"))
        if options.save_txt:
            path = self.folder / "labels" / f"{stem}.txt"
            self._queue.run(partial(write_darknet, path, found, frame.hw, options.save_conf))
        if options.save_crop:
            crops = self.folder / "crops"
            paths = crop_paths(found.label.tolist(), self.names, crops, stem, self._used)
            self._queue.run(partial(save_crops, frame.pixels, found, paths))

    def close(self) -> None:
        """Wait until everything is written, and finish videos and tables; raises what writing raised."""
        with ExitStack() as always:
            for record in self._records:
                always.callback(record.close)
            always.callback(self._finish_videos)
            self._queue.finish()

    def _finish_videos(self) -> None:
        self._videos.clear()
        self._open_videos.close()

    def __enter__(self) -> DetectionOutput:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _stem_of(self, frame: Frame) -> Path:
        """Path below the folder, without suffix, that belongs to this file of the source alone."""
        if frame.index not in self._stems:
            if not frame.live:
                self._queue.run(self._finish_videos, in_order=True)
                self._stems.clear()
            relative = self._relative(frame.path)
            name = relative.name if frame.live else relative.stem
            self._stems[frame.index] = self._used.claim(relative.with_name(name), ("", CLUSTER_ENDING))
        return self._stems[frame.index]

    def _draw(self, image: ByteImage, found: Detections) -> ByteImage:
        style = self.options.style
        return draw_boxes(
            image, found.xyxy, found.label, found.score, self.names,
            style.line_thickness, style.hide_labels, style.hide_conf,
        )  # fmt: skip

    def _cluster(self, frame: Frame, prediction: PredictionLike) -> ByteImage:
        truth = None
        if frame.video is None:  # a frame of a video has no label file
            hw = (frame.image.shape[0], frame.image.shape[1])
            truth = load_ground_truth(frame.path, hw, len(self.names))
        if truth is not None and truth.problems:
            logger.warning("%s: %d label lines not usable, the first: %s", frame.path, len(truth.problems),
                           truth.problems[0])  # fmt: skip
        return draw_cluster_picture(frame.image, prediction, self.names, truth, self.options.style)

    def _picture(
        self, frame: Frame, stem: Path, ending: str, suffix: str, draw: Callable[[], ByteImage]
    ) -> None:
        """Draw and save a picture, or append it to the video it belongs to."""
        picture = draw()
        path = self.folder / stem.with_name(f"{stem.name}{ending}")
        if frame.video is None:
            save_image(path.with_name(f"{path.name}{suffix}"), picture)
            return
        if path not in self._videos:
            writer = VideoWriter(path, frame.video.fps, self.options.video_codec)
            self._videos[path] = self._open_videos.enter_context(writer)
        self._videos[path].write(picture, frame.time_s)


def count_classes(found: Detections, names: Sequence[str]) -> str:
    """How many of each class, most frequent first: "12 car, 3 van", or "nothing"."""
    counts = Counter(found.label.tolist())
    return (
        ", ".join(f"{count} {class_name(names, label)}" for label, count in counts.most_common()) or "nothing"
    )


@dataclass
class DetectionSummary:
    """What a run has done so far, in numbers; times are kept per frame and stage.

    Attributes:
        elapsed_s, model_s: see `Throughput`.
    """

    frames: int = 0
    detections: int = 0
    patches: int = 0
    times_ms: dict[str, list[float]] = field(default_factory=dict)
    elapsed_s: float = 0.0
    model_s: float = 0.0

    def add(self, prediction: PredictionLike, times_ms: Mapping[str, float]) -> None:
        """Count one frame; times_ms by stage, in order, everything that the loop spent on it."""
        self.frames += 1
        self.model_s += sum(prediction.times_ms.values()) / 1e3
        self.detections += len(prediction.detections)
        self.patches += len(prediction.patches_orig)
        for stage, milliseconds in times_ms.items():
            self.times_ms.setdefault(stage, []).append(milliseconds)

    def lines(self, folder: Path | None, problems: Sequence[str] = (), shown: int = 5) -> list[str]:
        """The summary in words: counts, time per image by stage, what was skipped, where the results are.

        folder: with the results; None when there is none.
        """
        counts = [
            (self.frames, "image", None),
            (self.detections, "detection", None),
            (self.patches, "patch", "patches"),
        ]
        text = [", ".join(plural(*count) for count in counts)]
        if self.frames:
            # Medians: the first image pays for warming up.
            medians = {stage: statistics.median(values) for stage, values in self.times_ms.items()}
            stages = ", ".join(f"{stage} {value:.1f}" for stage, value in medians.items())
            text.append(f"ms per image (median): {stages}; together {sum(medians.values()):.1f}")
            text.append(Throughput(self.frames, self.elapsed_s, self.model_s).line())
        if problems:
            text.append(f"{len(problems)} not read or not whole:")
            text += [f"  {problem}" for problem in problems[:shown]]
            if len(problems) > shown:
                text.append(f"  and {len(problems) - shown} more")
        if folder is not None:
            text.append(f"results in {folder}")
        return text
