"""What a run says and records by itself: messages, ``results.csv``, ``results.png``; see utils/trackers.py for others.

Recording only: what is measured, and when, is decided elsewhere. In several processes the main one
alone speaks and writes.
"""

from __future__ import annotations

import csv
import io
import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

LOGGER_NAME = "esod"
EPOCH_COLUMN = "epoch"


class LogError(ValueError):
    """A record that cannot be written or continued."""


class _StdoutHandler(logging.Handler):
    """Writes to whatever ``sys.stdout`` is at the moment of the message."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            prefix = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
            tqdm.write(f"{prefix}{self.format(record)}", file=sys.stdout)  # a progress bar stays below
            sys.stdout.flush()
        except (OSError, ValueError):
            self.handleError(record)


def get_logger() -> logging.Logger:
    """The project's logger: plain lines on standard output, "warning: " and "error: " put before such.

    With torchrun, processes other than the main one say errors only.
    """
    logger = logging.getLogger(LOGGER_NAME)
    if not any(isinstance(handler, _StdoutHandler) for handler in logger.handlers):
        logger.addHandler(_StdoutHandler())
        logger.propagate = False
        logger.setLevel(logging.INFO if os.environ.get("RANK", "0") == "0" else logging.ERROR)
    return logger


@contextmanager
def warnings_only(wanted: bool = True) -> Iterator[None]:
    """In its ``with`` block the logger says warnings and errors only, if that is wanted."""
    logger = get_logger()
    before = logger.level
    logger.setLevel(max(before, logging.WARNING) if wanted else before)
    try:
        yield
    finally:
        logger.setLevel(before)


class RunLogger(Protocol):
    """Where a training run records what it is and what it finds. Epochs count from 0."""

    def log_config(self, config: Mapping[str, Any]) -> None:
        """Record what the run was started with: nested mappings of plain data. Once, in a new run."""

    def log_metrics(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Record the named numbers of an epoch."""

    def log_image(self, name: str, path: Path) -> None:
        """Record a picture that has been written to a file."""

    def log_file(self, path: Path) -> None:
        """Record a file that the run leaves (table, curves, weights)."""

    def finish(self, completed: bool) -> None:
        """End the recording; not completed: the run was stopped or failed, and may be resumed."""


class CsvLogger:
    """``results.csv``: one row per epoch, first column ``epoch``; columns never change their order.

    A name that appears later gets a column of its own at the end, empty in earlier rows. The file is
    replaced as a whole (temporary file, rename), so that a kill at any moment leaves a complete one.
    """

    def __init__(self, path: str | Path, resume_epoch: int | None = None) -> None:
        """Begin a file, or continue one from an epoch: rows of that epoch and later ones are dropped.

        Raises:
            LogError: the file to continue is not a results file.
        """
        self.path = Path(path)
        self.columns = [EPOCH_COLUMN]
        self.rows: list[dict[str, str]] = []
        if resume_epoch is not None and self.path.exists():
            self._read(resume_epoch)
            self._write()

    def log_config(self, config: Mapping[str, Any]) -> None:
        """The run's config.yaml has it."""

    def log_metrics(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Add the row of an epoch; numbers with 6 significant digits."""
        self.columns += [name for name in metrics if name not in self.columns]
        values = {name: f"{float(value):.6g}" for name, value in metrics.items()}
        self.rows.append({EPOCH_COLUMN: str(epoch), **values})
        self._write()

    def log_image(self, name: str, path: Path) -> None:
        """A table holds no pictures: the file at path is all there is to record."""

    def log_file(self, path: Path) -> None:
        """The file is in the run folder already."""

    def finish(self, completed: bool) -> None:
        """Every row is on disk already."""

    def _read(self, resume_epoch: int) -> None:
        with self.path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            columns = list(reader.fieldnames or [])
            rows = list(reader)
        if columns[:1] != [EPOCH_COLUMN]:
            raise LogError(f"{self.path}: not a results file: its first column is not {EPOCH_COLUMN!r}")
        self.columns = columns
        for number, row in enumerate(rows, start=2):
            try:
                keep = int(row[EPOCH_COLUMN]) < resume_epoch
            except (TypeError, ValueError) as error:
                raise LogError(f"{self.path}: line {number}: not an epoch: {row[EPOCH_COLUMN]!r}") from error
            if keep:
                self.rows.append({name: row[name] or "" for name in columns})

    def _write(self) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        temporary = self.path.with_name(f".{self.path.name}.tmp")
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text.getvalue())
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self.path)


class PlotLogger:
    """``results.png`` from ``results.csv``, drawn when the run ends."""

    def __init__(self, csv_path: Path, png_path: Path) -> None:
        self.csv_path = csv_path
        self.png_path = png_path

    def log_config(self, config: Mapping[str, Any]) -> None:
        """Curves only."""

    def log_metrics(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """The numbers are read from the table at the end."""

    def log_image(self, name: str, path: Path) -> None:
        """Curves only."""

    def log_file(self, path: Path) -> None:
        """Curves only."""

    def finish(self, completed: bool) -> None:
        """Draw the curves, when there is an epoch to draw."""
        if self.csv_path.exists() and len(self.csv_path.read_text(encoding="utf-8").splitlines()) > 1:
            from utils.plots import plot_results

            plot_results(self.csv_path, self.png_path)


class CombinedLogger:
    """Several loggers as one, in the given order."""

    def __init__(self, loggers: Sequence[RunLogger]) -> None:
        self.loggers = list(loggers)

    def log_config(self, config: Mapping[str, Any]) -> None:
        """Record the configuration everywhere."""
        for logger in self.loggers:
            logger.log_config(config)

    def log_metrics(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Record an epoch everywhere."""
        for logger in self.loggers:
            logger.log_metrics(epoch, metrics)

    def log_image(self, name: str, path: Path) -> None:
        """Record a picture everywhere."""
        for logger in self.loggers:
            logger.log_image(name, path)

    def log_file(self, path: Path) -> None:
        """Record a file everywhere."""
        for logger in self.loggers:
            logger.log_file(path)

    def finish(self, completed: bool) -> None:
        """Finish everywhere."""
        for logger in self.loggers:
            logger.finish(completed)
