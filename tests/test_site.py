"""The documentation as a site: every page in it, links out of docs/ rewritten, nothing fetched from elsewhere."""

from __future__ import annotations

import importlib.util
import os
import posixpath
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def hook() -> ModuleType:
    """docs/hooks/repository.py."""
    spec = importlib.util.spec_from_file_location("site_hook", ROOT / "docs" / "hooks" / "repository.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("source", "uri", "link", "expected"),
    [
        ("README.md", "index.md", "docs/method.md#x", "method.md#x"),
        ("README.md", "index.md", "LICENSE", "repository/LICENSE"),
        ("README.md", "index.md", "CONTRIBUTING.md", "contributing.md"),
        ("docs/method.md", "method.md", "notes/sparse-head.md", "notes/sparse-head.md"),
        ("docs/notes/sparse-head.md", "notes/sparse-head.md", "../../weights/README.md", "../weights.md"),
        ("docs/results/README.md", "results/README.md", "../images/a.png", "../images/a.png"),
        (
            "weights/README.md",
            "weights.md",
            "../docs/results/sample_yolov5n.json",
            "results/sample_yolov5n.json",
        ),
        ("weights/README.md", "weights.md", "pretrained/README.md", "weights_pretrained.md"),
        ("README.md", "index.md", "https://arxiv.org/abs/2407.16424", "https://arxiv.org/abs/2407.16424"),
        ("README.md", "index.md", "#install", "#install"),
    ],
)
def test_links(hook: ModuleType, source: str, uri: str, link: str, expected: str) -> None:
    assert hook.rewrite(f"see [it]({link}).", source, uri) == f"see [it]({expected})."


def test_every_link_of_every_page_leads_to_something_of_the_site(hook: ModuleType) -> None:
    docs = ROOT / "docs"
    pages = {
        **hook.PAGES,
        **{
            f"docs/{p.relative_to(docs).as_posix()}": p.relative_to(docs).as_posix()
            for p in docs.rglob("*.md")
        },
    }
    there = {path.relative_to(docs).as_posix() for path in docs.rglob("*") if path.is_file()} | set(
        pages.values()
    )
    there |= {f"repository/{target}" for source in pages for target in hook.outside(source)}
    broken = []
    for source, uri in pages.items():
        text = hook.rewrite((ROOT / source).read_text(encoding="utf-8"), source, uri)
        for match in hook.LINK.finditer(text):
            path = match[2].partition("#")[0]
            if path and not re.match(r"[a-z]+:", path):
                target = posixpath.normpath(posixpath.join(posixpath.dirname(uri), path))
                broken += [f"{source}: {match[2]}"] if target not in there else []
    assert broken == []


def test_no_list_or_table_follows_a_line_of_text_directly(hook: ModuleType) -> None:
    """GitHub draws such a list, MkDocs runs it into the paragraph."""
    found = []
    for path in [*(ROOT / name for name in hook.PAGES), *(ROOT / "docs").rglob("*.md")]:
        text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        for before, line in zip(text.splitlines(), text.splitlines()[1:], strict=False):
            starts = (
                re.match(r"(- |\d+\. )", line) and before.strip() and not re.match(r"(- |\d+\. |\s)", before)
            )
            inside = re.match(r"[^|\s<-].*", before) and line.startswith("|")
            found += [f"{path.relative_to(ROOT)}: {line[:60]}"] if starts or inside else []
    assert found == []


@pytest.mark.slow
def test_the_site_is_built_strictly_and_fetches_nothing(tmp_path: Path) -> None:
    pytest.importorskip("material")
    subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)],
        cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, check=True,
    )  # fmt: skip
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > 15
    for page in pages:
        text = page.read_text(encoding="utf-8")
        fetched = re.findall(r"<(?:script|img|iframe|source)[^>]*\ssrc=\"(https?:[^\"]+)", text)
        fetched += re.findall(
            r"<link[^>]*rel=\"(?:stylesheet|preconnect|icon)\"[^>]*href=\"(https?:[^\"]+)", text
        )
        assert fetched == [], page.name
    start = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "<table>" in start.partition("<h2")[0], "the table of the README is one"
