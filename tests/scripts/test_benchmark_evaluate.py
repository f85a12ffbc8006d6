"""The benchmark of the official evaluations, at a tiny size."""

from __future__ import annotations

import json
from pathlib import Path

from tests.conftest import RunCommand

PROTOCOLS = ["visdrone", "uavdt", "tinyperson"]


def test_all_protocols_are_measured(run_command: RunCommand, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    result = run_command("scripts/benchmark_evaluate.py", "--scale", "0.001", "--json", out)
    assert result.status == 0, result.err
    rows = json.loads(out.read_text())["rows"]
    assert [row["protocol"] for row in rows] == PROTOCOLS
    assert [row["images"] for row in rows] == [2, 22, 1]
    assert [row["detections"] for row in rows] == [1000, 2200, 200]
    for row in rows:
        assert 0 < row["cpu_s"] < 60 and row["wall_s"] > 0 and 10 < row["peak_mib"] < 4096
    assert all(name in result.out for name in PROTOCOLS)


def test_wrong_options(run_command: RunCommand) -> None:
    assert run_command("scripts/benchmark_evaluate.py", "--scale", "0").status == 2
    assert run_command("scripts/benchmark_evaluate.py", "--protocols", "coco").status == 2
