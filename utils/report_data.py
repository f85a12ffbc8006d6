"""What a run folder holds for its report: read as data, whatever is missing left out."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

Content = Mapping[str, Any]


class ReportError(ValueError):
    """A run folder of which no report can be made; the message says why."""


@dataclass(frozen=True)
class RunFiles:
    """The contents of a run folder; what is not there is empty.

    Attributes:
        folder: of the run.
        results: column of ``results.csv`` → a number per row, NaN where there is none.
        config: ``config.yaml`` of a training.
        metrics, analysis, official, worst: the JSON files of ``test.py``.
        cost: ``measure.json``, or ``speed.json``.
    """

    folder: Path
    results: dict[str, list[float]] = field(default_factory=dict)
    config: Content = field(default_factory=dict)
    metrics: Content = field(default_factory=dict)
    analysis: Content = field(default_factory=dict)
    official: Content = field(default_factory=dict)
    worst: Content = field(default_factory=dict)
    cost: Content = field(default_factory=dict)

    def pictures(self, pattern: str) -> list[Path]:
        """Files of the folder whose name matches, sorted."""
        return sorted(self.folder.glob(pattern))

    def inside(self, name: str) -> Path | None:
        """A file of the folder by its relative path; None when it is elsewhere or not there."""
        path = (self.folder / name).resolve()
        return path if path.is_relative_to(self.folder.resolve()) and path.is_file() else None


def read_run(folder: Path) -> RunFiles:
    """Everything a report is made of.

    Raises:
        ReportError: no such folder, nothing in it to report on, or a file that cannot be read.
    """
    if not folder.is_dir():
        raise ReportError(f"{folder} is not a folder; expected the folder of a run, such as runs/train/exp")
    run = RunFiles(
        folder,
        results=_read_results(folder / "results.csv"),
        config=_read_yaml(folder / "config.yaml"),
        metrics=_read_json(folder / "metrics.json"),
        analysis=_read_json(folder / "analysis.json"),
        official=_read_json(folder / "official.json"),
        worst=_read_json(folder / "worst.json"),
        cost=_read_json(folder / "measure.json") or _read_json(folder / "speed.json"),
    )
    if not (run.results or run.metrics or run.cost):
        raise ReportError(
            f"{folder} has none of results.csv, metrics.json, measure.json and speed.json: "
            "give the folder of a finished train.py or test.py run"
        )
    return run


def number(value: object, digits: int = 3) -> str:
    """A number as a table shows it; n/a for what is none, or not defined."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return "n/a"
    return f"{value:,}" if isinstance(value, int) else f"{value:.{digits}f}"


def percent(value: object) -> str:
    """A share as a percentage; n/a for what is none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return "n/a"
    return f"{100 * value:.1f} %"


def flat(content: object, prefix: str = "") -> list[tuple[str, str]]:
    """Nested plain data as (dotted name, text); lists in one line, what is empty or None left out."""
    if isinstance(content, Mapping):
        return [
            pair
            for key, value in content.items()
            for pair in flat(value, f"{prefix}.{key}" if prefix else str(key))
        ]
    if content is None or content in ("", [], {}):
        return []
    return [(prefix, ", ".join(str(v) for v in content) if isinstance(content, list) else str(content))]


def part(content: object, key: str) -> Content:
    """A mapping inside of a mapping; empty where there is none."""
    value = content.get(key) if isinstance(content, Mapping) else None
    return value if isinstance(value, Mapping) else {}


def rows(content: object, key: str) -> list[Content]:
    """A list of mappings inside of a mapping; empty where there is none."""
    value = content.get(key) if isinstance(content, Mapping) else None
    return [row for row in value if isinstance(row, Mapping)] if isinstance(value, list) else []


def _read_results(path: Path) -> dict[str, list[float]]:
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        lines = [line for line in csv.reader(file) if line]
    if len(lines) < 2:
        return {}
    return {name: [_number(line, index) for line in lines[1:]] for index, name in enumerate(lines[0])}


def _number(line: list[str], index: int) -> float:
    try:
        return float(line[index])
    except (IndexError, ValueError):
        return math.nan


def _read_json(path: Path) -> Content:
    return _mapping(path, json.loads, json.JSONDecodeError) if path.is_file() else {}


def _read_yaml(path: Path) -> Content:
    return _mapping(path, yaml.safe_load, yaml.YAMLError) if path.is_file() else {}


def _mapping(path: Path, parse: Any, error_type: type[Exception]) -> Content:
    try:
        content = parse(path.read_text(encoding="utf-8"))
    except (error_type, UnicodeDecodeError) as error:
        raise ReportError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ReportError(f"{path} holds a {type(content).__name__}; expected names with values")
    return content
