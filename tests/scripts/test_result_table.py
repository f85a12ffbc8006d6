"""scripts/result_table.py makes the published table again from what the published JSON holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT, RunCommand

SCRIPT = "scripts/result_table.py"
PUBLISHED = ROOT / "docs/results/visdrone_subset"


@pytest.fixture
def rows() -> list[dict[str, Any]]:
    """Of the published result."""
    content: list[dict[str, Any]] = json.loads(PUBLISHED.with_suffix(".json").read_text(encoding="utf-8"))
    return content


def write_runs(folder: Path, rows: list[dict[str, Any]]) -> None:
    """The run folders that such rows are read from."""
    for row in rows:
        test, training = folder / f"test-{row['name']}", folder / row["trained"]
        test.mkdir(parents=True)
        training.mkdir(exist_ok=True)
        (test / "metrics.json").write_text(json.dumps(row["metrics"]))
        (test / "measure.json").write_text(json.dumps(row["measure"]))
        (training / "config.yaml").write_text(yaml.safe_dump(row["training"]))


def arguments(rows: list[dict[str, Any]]) -> list[str]:
    return ["--rows", *(row["name"] for row in rows), "--trained", *(row["trained"] for row in rows)]


def test_the_published_table(tmp_path: Path, rows: list[dict[str, Any]], run_command: RunCommand) -> None:
    write_runs(tmp_path, rows)
    (tmp_path / "esod/results.png").write_bytes(b"picture")
    output = tmp_path / "made/name_of_it"
    command = "MODEL=this bash that.sh"
    result = run_command(
        SCRIPT, "--runs", tmp_path, "--output", output, "--made-by", command, *arguments(rows)
    )
    assert result.status == 0, result.err
    page = output.with_suffix(".md").read_text(encoding="utf-8")
    published = PUBLISHED.with_suffix(".md").read_text(encoding="utf-8").splitlines()
    table = [line for line in published if line.startswith("|")]
    assert [line for line in page.splitlines() if line.startswith("|")] == table
    assert page.startswith("# name of it\n") and f"`{command}`" in page and "not comparable" in page
    assert "![training curves of name_of_it-esod](name_of_it-esod.png)" in page
    assert "name_of_it-dense.png" not in page
    size = rows[0]["training"]["train"]["img_size"]
    assert "; tested at" in page and f"Input {size} pixels" in page
    assert json.loads(output.with_suffix(".json").read_text()) == rows


def test_rows_of_another_size_are_named(
    tmp_path: Path, rows: list[dict[str, Any]], run_command: RunCommand
) -> None:
    rows = rows[:2]
    rows[1]["metrics"]["options"]["img_size"] = 800
    write_runs(tmp_path, rows)
    result = run_command(SCRIPT, "--runs", tmp_path, "--output", tmp_path / "o", *arguments(rows))
    assert result.status == 0, result.err
    assert "640 pixels (esod-grid tested at 800)," in (tmp_path / "o.md").read_text(encoding="utf-8")


def test_missing_results_are_named(
    tmp_path: Path, rows: list[dict[str, Any]], run_command: RunCommand
) -> None:
    write_runs(tmp_path, rows)
    (tmp_path / "test-dense/measure.json").unlink()
    result = run_command(SCRIPT, "--runs", tmp_path, "--output", tmp_path / "o", *arguments(rows))
    assert result.status != 0 and "measure.json: no such file" in result.err
    result = run_command(
        SCRIPT, "--runs", tmp_path, "--output", tmp_path / "o", "--rows", "dense", "--trained"
    )
    assert result.status != 0
    assert not (tmp_path / "o.md").exists()
