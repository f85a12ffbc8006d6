"""What MkDocs has to be told about this repository: pages outside docs/, and links that lead out of docs/.

The pages are written to be read in the repository, with links relative to their file. Here a link to a file outside
docs/ becomes one to its page on the site (`PAGES`) or to a copy of the file (``repository/…``).
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.structure.files import Files

ROOT = Path(__file__).resolve().parent.parent.parent
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "weights/README.md": "weights.md",
    "weights/pretrained/README.md": "weights_pretrained.md",
    "third_party/README.md": "third_party.md",
}
"""Files of the repository outside docs/ that are pages of the site."""

LINK = re.compile(r"(\]\()([^)\s]+)(\))")


def on_config(config: Any) -> Any:
    """Pages that nobody has put into the navigation go to its end."""
    named = set(re.findall(r"[\w/.-]+\.md", str(config.nav)))
    docs = ROOT / "docs"
    found = sorted(path.relative_to(docs).as_posix() for path in docs.rglob("*.md"))
    missing = [name for name in (*found, *PAGES.values()) if name not in named]
    if missing:
        config.nav.append({"More": missing})
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the pages outside docs/, and the files that pages link to."""
    from mkdocs.structure.files import File

    for source, uri in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, uri, content=rewrite(text, source, uri)))
    sources = [*PAGES, *(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))]
    for target in sorted({target for source in sources for target in outside(source)}):
        files.append(File.generated(config, f"repository/{target}", content=(ROOT / target).read_bytes()))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Links of the pages in docs/; the others were rewritten when they were added."""
    if page.file.generated_by is not None:
        return markdown
    return rewrite(markdown, f"docs/{page.file.src_uri}", page.file.src_uri)


def rewrite(text: str, source: str, uri: str) -> str:
    """A page's text with links that lead somewhere on the site.

    Args:
        source: the page's path in the repository.
        uri: its path on the site.
    """

    def replaced(match: re.Match[str]) -> str:
        path, mark, anchor = match[2].partition("#")
        if not path or re.match(r"[a-z]+:", path):
            return match[0]
        target = site_path(posixpath.normpath(posixpath.join(posixpath.dirname(source), path)))
        return f"{match[1]}{posixpath.relpath(target, posixpath.dirname(uri) or '.')}{mark}{anchor}{match[3]}"

    return LINK.sub(replaced, text)


def site_path(path: str) -> str:
    """Where a file of the repository is on the site."""
    return PAGES.get(path) or (
        path.removeprefix("docs/") if path.startswith("docs/") else f"repository/{path}"
    )


def outside(source: str) -> set[str]:
    """Files that a page links to and that are neither in docs/ nor pages."""
    text = (ROOT / source).read_text(encoding="utf-8")
    links = [match[2].partition("#")[0] for match in LINK.finditer(text)]
    local = [link for link in links if link and not re.match(r"[a-z]+:", link)]
    paths = {posixpath.normpath(posixpath.join(posixpath.dirname(source), link)) for link in local}
    return {path for path in paths if site_path(path).startswith("repository/") and (ROOT / path).is_file()}
