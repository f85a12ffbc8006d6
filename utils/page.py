"""Self-contained HTML pages: escaping, tables, bars, pictures as data URIs. One file, no script, nothing fetched.

What is on a page is decided elsewhere (`utils.report`). Text from outside (class names, paths, notes of a dataset)
goes through `element`, which escapes whatever is not `Html`.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np

from utils.images import ByteImage

PARTS_STYLE = Path(__file__).with_name("page_parts.css")
"""Of `note`, `tiles` and `bars`, for pages that are made otherwise."""
PAGE_STYLE = Path(__file__).with_name("page.css")
VOID_TAGS = frozenset({"img", "meta", "br"})
PNG_LIMIT_BYTES = 300_000
"""A PNG up to this size, a chart, is embedded as it is; other pictures as JPEG."""
JPEG_QUALITY = 82
CONTENT_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""The browser itself refuses scripts and every request, whatever a page should contain."""


class Html(str):
    """Text that is HTML already; a plain `str` is text that has to be escaped."""

    __slots__ = ()


def element(tag: str, *children: str, **attributes: str | int | float | None) -> Html:
    """An HTML (or SVG) element; children and values of attributes are escaped unless they are `Html`.

    Args:
        tag: its name.
        children: what is in it, in order.
        attributes: ``class_`` means ``class`` and ``stroke_width`` means ``stroke-width``; None leaves one out.
    """
    written = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
        for name, value in attributes.items()
        if value is not None
    )
    if tag in VOID_TAGS:
        return Html(f"<{tag}{written}>")
    return Html(f"<{tag}{written}>{join(children)}</{tag}>")


def join(parts: Iterable[str]) -> Html:
    """Parts one after the other, each escaped unless it is `Html`."""
    return Html("".join(part if isinstance(part, Html) else html.escape(part) for part in parts))


def document(title: str, body: Iterable[str]) -> str:
    """A whole page with the house's style sheet inside; light or dark as the reader's system is."""
    style = "".join(file.read_text(encoding="utf-8") for file in (PARTS_STYLE, PAGE_STYLE))
    head = join([
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=CONTENT_POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
        Html(f"<style>{style}</style>"),
    ])  # fmt: skip
    main = element("main", *body)
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>{main}</body></html>\n'


def section(title: str, *children: str) -> Html:
    """A titled part of a page; nothing when there is nothing in it."""
    content = join(children)
    return element("section", element("h2", title), content) if content else Html("")


def folded(title: str, *children: str) -> Html:
    """Something that the reader has to unfold."""
    content = join(children)
    return element("details", element("summary", title), content) if content else Html("")


def note(text: str) -> Html:
    """A remark that must not be overlooked; nothing for an empty text."""
    return element("p", text, class_="note") if text else Html("")


def tiles(values: Sequence[tuple[str, str]]) -> Html:
    """Headline numbers: (name, number) each."""
    boxes = (element("div", element("b", number), element("span", name)) for name, number in values)
    return element("div", *boxes, class_="tiles") if values else Html("")


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> Html:
    """A table whose first column is text and whose others are numbers; scrolls by itself where it is too wide."""
    body = [
        element("tr", element("th", row[0], scope="row"), *(element("td", c) for c in row[1:]))
        for row in rows
    ]
    if not body:
        return Html("")
    head = element("tr", *(element("th", name, scope="col") for name in heads))
    content = element("table", element("thead", head), element("tbody", *body))
    return element("div", content, class_="scroll")


def pairs(values: Iterable[tuple[str, str]]) -> Html:
    """Names with their values, one below the other."""
    rows = [element("div", element("dt", name), element("dd", value)) for name, value in values]
    return element("dl", *rows) if rows else Html("")


def bars(
    heads: Sequence[str], rows: Sequence[tuple[str, Sequence[float]]], unit: str, digits: int = 1
) -> Html:
    """Horizontal bars on one scale, with their numbers: a group per row, a bar per head.

    Args:
        heads: what the bars of a group are, e.g. ("dense", "ESOD"); with one head there is no legend.
        rows: (name, as many values as heads), at least 0 each.
        unit: behind every number. digits: behind the point.
    """
    longest = max((value for _, values in rows for value in values), default=0.0)
    first = 0 if len(heads) > 1 else 1
    groups = []
    for name, values in rows:
        texts = [f"{value:.{digits}f} {unit}" for value in values]
        lines = [_bar(first + i, value / (longest or 1.0), texts[i]) for i, value in enumerate(values)]
        groups.append(
            element("div", element("span", name, class_="name"), element("div", *lines), class_="group")
        )
    key = element(
        "p", *(element("span", head, class_=f"key k{i}") for i, head in enumerate(heads)), class_="keys"
    )
    return element("div", key if len(heads) > 1 else "", *groups, class_="bars") if groups else Html("")


def _bar(colour: int, share: float, text: str) -> Html:
    fill = element("i", class_=f"k{colour}", style=f"width:{100 * share:.2f}%")
    return element(
        "div", element("span", fill, class_="track"), element("span", text, class_="value"), class_="bar"
    )


def figure(path: Path, caption: str = "", longer_side: int = 1280, *, chart: bool = False) -> Html:
    """A picture file inside the page, shrunk to a longer side in pixels; says so where it cannot be read.

    A chart keeps a width at which its text can be read, and scrolls sideways on a phone.
    """
    source = picture_uri(path, longer_side)
    text = element("figcaption", caption) if caption else Html("")
    if source is None:
        return element("figure", element("p", f"{path.name} cannot be read", class_="note"), text)
    picture = element("img", src=source, alt=caption or path.stem)
    return element("figure", element("div", picture, class_="chart" if chart else None), text)


def picture_uri(path: Path, longer_side: int) -> str | None:
    """A picture file as a data URI; None when it cannot be read."""
    try:
        data = path.read_bytes()
        picture = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), cv2.IMREAD_COLOR) if data else None
    except (OSError, cv2.error):
        return None
    if picture is None:
        return None
    if path.suffix.lower() == ".png" and len(data) <= PNG_LIMIT_BYTES:
        return _uri("png", data)
    return jpeg_uri(np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), dtype=np.uint8), longer_side)


def jpeg_uri(picture: ByteImage, longer_side: int) -> str:
    """Pixels, uint8 [H, W, 3] RGB, as a data URI of a JPEG whose longer side is at most so many pixels."""
    scale = min(1.0, longer_side / max(picture.shape[:2]))
    if scale < 1:
        size = tuple(max(1, round(side * scale)) for side in picture.shape[1::-1])
        picture = np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
    bgr = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    done, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    assert done
    return _uri("jpeg", data.tobytes())


def _uri(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
