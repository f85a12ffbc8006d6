"""How far a detection run is: a bar on a terminal, with frames per second and, where it can be known, the time left."""

from __future__ import annotations

import sys
import time
from collections import deque
from types import TracebackType
from typing import NoReturn

from tqdm import tqdm

from utils.frames import Frame

RATE_FRAMES = 30
"""Frames per second are those of the last so many frames."""
_WITH_TOTAL = "{percentage:3.0f}% {bar:16} {desc}, {remaining} left{postfix}"
_WITHOUT_TOTAL = "{desc}, {elapsed}{postfix}"


class Progress:
    """A bar on standard error, in a ``with`` block; nothing at all where it is not wanted or no terminal.

    With several files it counts files, and of a video that is being read the share that is done.
    """

    def __init__(self, wanted: bool = True, interval_s: float = 0.1) -> None:
        """wanted: shown where standard error is a terminal. interval_s: at least so long between two updates of it."""
        self.shown = wanted and sys.stderr.isatty()
        self._bar: tqdm[NoReturn] | None = None
        self._interval_s = interval_s
        self._times = deque([time.perf_counter()], maxlen=RATE_FRAMES + 1)

    def update(self, frame: Frame, text: str) -> None:
        """A frame is done; text: what to say about it, cut where the line ends."""
        if not self.shown:
            return
        self._times.append(time.perf_counter())
        done = files_done(frame)
        if self._bar is None:
            self._bar = tqdm(
                total=None if done is None else frame.total,
                bar_format=_WITHOUT_TOTAL if done is None else _WITH_TOTAL,
                file=sys.stderr, dynamic_ncols=True, leave=False, smoothing=0.1,
                mininterval=self._interval_s,
            )  # fmt: skip
        self._bar.set_description_str(f"{self.frames_per_second():.1f} FPS", refresh=False)
        self._bar.set_postfix_str(text, refresh=False)
        # At the end nothing is left over of a file that was skipped or ended early.
        self._bar.update(1 if done is None else max(done - self._bar.n, 0))

    def frames_per_second(self) -> float:
        """Of the last frames."""
        return (len(self._times) - 1) / max(self._times[-1] - self._times[0], 1e-9)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()


def files_done(frame: Frame) -> float | None:
    """How many files of the source are done once this frame is, with fractions; None when that cannot be known.

    Frames of a video whose length is not said count nothing until the next file, so one alone cannot be known.
    """
    if frame.total is None:
        return None
    if frame.video is None or frame.frame_number is None:
        return frame.index + 1
    if frame.video.duration_s is None or frame.time_s is None:
        return None if frame.total == 1 else frame.index
    return frame.index + min((frame.time_s + 1 / frame.video.fps) / frame.video.duration_s, 1.0)
