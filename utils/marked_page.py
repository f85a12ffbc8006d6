"""Pages whose numbers a script writes between two marks, and whose other text is written by hand."""

from __future__ import annotations

from pathlib import Path

from utils.files import write_atomic
from utils.typed_data import ConfigError


def replace_between(text: str, content: str, markers: tuple[str, str], path: Path) -> str:
    """A page's text with other content between its markers, which stay.

    Raises:
        ConfigError: the page has not both markers, in this order.
    """
    begin, end = (text.find(marker) for marker in markers)
    if begin < 0 or end < begin:
        raise ConfigError(
            f"{path}: no place for the numbers; put these two lines into it: {' '.join(markers)}"
        )
    return text[: begin + len(markers[0])] + "\n" + content + "\n" + text[end:]


def update_page(path: Path, content: str, markers: tuple[str, str], new: str | None = None) -> None:
    """Write content between the markers of a page; a page that does not exist begins as ``new``.

    Raises:
        ConfigError: the page has not both markers.
        OSError: there is no page and nothing to begin with, or it cannot be written.
    """
    text = new if new is not None and not path.exists() else path.read_text(encoding="utf-8")
    page = replace_between(text, content, markers, path)
    write_atomic(path, lambda file: file.write(page.encode()))
