"""Examples in docstrings and on the Python page are run, and print what they say."""

from __future__ import annotations

import doctest
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MODULES = ("engine.prediction", "engine.predictor", "utils.picture_input")


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    failed, attempted = doctest.testmod(importlib.import_module(name))
    assert attempted > 0 and failed == 0


def test_every_module_with_examples_is_run() -> None:
    files = [
        path for folder in ("engine", "evaluate", "models", "utils") for path in (ROOT / folder).rglob("*.py")
    ]
    found = {path for path in files if ">>> " in path.read_text(encoding="utf-8")}
    assert found == {(ROOT / name.replace(".", "/")).with_suffix(".py") for name in MODULES}


def test_the_python_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    page = ROOT / "docs" / "python.md"
    failed, attempted = doctest.testfile(
        str(page), module_relative=False, encoding="utf-8", optionflags=doctest.ELLIPSIS
    )
    assert attempted > 10 and failed == 0


def test_the_readmes_python() -> None:
    (block,) = re.findall(
        r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    assert len(block.split("\n\n")) <= 2 and len(block.splitlines()) <= 5, "four lines"
    line = [sys.executable, "-c", block]
    result = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert re.search(r"\d+ car.*; \d+ patch(es)?, .* ms\ntensor\(\[\[", result.stdout)


def test_the_recipe_for_sahi() -> None:
    pytest.importorskip("sahi")
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    line = [sys.executable, "-c", block + "assert len(result.object_prediction_list) > 5"]
    result = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
