"""Building blocks of self-contained pages: nothing from outside gets into the markup unescaped."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.line_chart import HEIGHT, LEFT, WIDTH, Line, line_chart, nice_ticks
from utils.page import (
    Html,
    bars,
    document,
    element,
    figure,
    folded,
    join,
    jpeg_uri,
    note,
    pairs,
    picture_uri,
    section,
    table,
    tiles,
)


def test_text_is_escaped_and_html_is_not() -> None:
    inner = element("b", "a < b & c")
    assert inner == "<b>a &lt; b &amp; c</b>"
    assert element("p", inner, "<i>") == f"<p>{inner}&lt;i&gt;</p>"
    assert join(["<", inner]) == f"&lt;{inner}"


def test_values_of_attributes_cannot_leave_their_quotes() -> None:
    written = element("img", src='x" onerror="alert(1)', class_="a", aria_label=None, stroke_width=2)
    assert written == '<img src="x&quot; onerror=&quot;alert(1)" class="a" stroke-width="2">'


@given(st.text())
def test_whatever_the_text_no_tag_comes_of_it(text: str) -> None:
    parts = [
        section(text, note(text or "x"), folded(text, text or "x")), table([text], [[text, text]]), tiles([(text, text)]),
        pairs([(text, text)]), bars([text, text], [(text, [1.0, 2.0])], text),
    ]  # fmt: skip
    known = {"section", "h2", "p", "details", "summary", "div", "table", "thead", "tbody", "tr", "th", "td", "b", "span",
             "dl", "dt", "dd", "i"}  # fmt: skip
    assert set(re.findall(r"</?([^\s>]+)", "".join(parts))) <= known


def test_what_is_empty_is_left_out() -> None:
    assert section("title", "", Html("")) == folded("title", "") == note("") == tiles([]) == pairs([]) == ""
    assert table(["a"], []) == bars(["a"], [], "ms") == ""


def test_bars_are_on_one_scale() -> None:
    written = bars(["dense", "ESOD"], [("stem", [4.0, 4.0]), ("head", [8.0, 1.0])], "ms")
    assert re.findall(r"width:([0-9.]+)%", written) == ["50.00", "50.00", "100.00", "12.50"]
    assert "8.0 ms" in written and written.count("dense") == 1
    assert "width:0.00%" in bars(["ms"], [("stem", [0.0])], "ms"), "no division by zero"


def test_a_page_may_load_and_run_nothing() -> None:
    page = document("a <title>", [element("p", "text")])
    assert "default-src 'none'" in page.replace("&#x27;", "'") and "width=device-width" in page
    assert "<title>a &lt;title&gt;</title>" in page and "prefers-color-scheme: dark" in page
    assert not re.search(r"<script|https?://|url\(|@import|<link", page)


def decoded(uri: str) -> np.ndarray:
    data = base64.b64decode(uri.partition("base64,")[2])
    return np.asarray(cv2.imdecode(np.frombuffer(data, dtype=np.uint8), cv2.IMREAD_COLOR))


def test_pictures_are_embedded_small_enough(tmp_path: Path) -> None:
    picture = np.zeros((300, 600, 3), dtype=np.uint8)
    picture[:, :, 2] = 250  # red in BGR
    cv2.imwrite(str(tmp_path / "large.jpg"), picture)
    cv2.imwrite(str(tmp_path / "chart.png"), picture)
    shrunk = picture_uri(tmp_path / "large.jpg", 200)
    assert shrunk is not None and shrunk.startswith("data:image/jpeg;base64,")
    assert decoded(shrunk).shape == (100, 200, 3)
    assert decoded(shrunk)[50, 100, 2] > 230, "the colours are in the right order"
    chart = picture_uri(tmp_path / "chart.png", 200)
    assert chart is not None and decoded(chart).shape == (300, 600, 3), "a chart stays as sharp as it is"
    assert decoded(jpeg_uri(picture[:, :, ::-1], 1000)).shape == (300, 600, 3), "never enlarged"


@pytest.mark.parametrize("content", [b"", b"no picture"])
def test_a_picture_that_cannot_be_read_says_so(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "<b>.jpg"
    path.write_bytes(content)
    written = figure(path, "caption")
    assert "&lt;b&gt;.jpg cannot be read" in written and "<img" not in written
    assert picture_uri(tmp_path / "missing.jpg", 100) is None


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_are_round_and_enclose(low: float, width: float) -> None:
    ticks = nice_ticks(low, low + width)
    slack = 1e-6 * (abs(low) + width)
    assert ticks[0] <= low + slack and ticks[-1] >= low + width - slack
    assert 2 <= len(ticks) <= 8
    steps = np.diff(ticks)
    assert np.allclose(steps, steps[0])


def test_ticks_of_a_single_value_enclose_it() -> None:
    for value in (0.0, 3.0, -2.0):
        ticks = nice_ticks(value, value)
        assert ticks[0] < value < ticks[-1]


def points_of(chart: str) -> list[list[tuple[float, float]]]:
    return [
        [(float(x), float(y)) for x, y in (pair.split(",") for pair in points.split())]
        for points in re.findall(r'points="([^"]*)"', chart)
    ]


def test_a_chart_draws_values_where_they_belong() -> None:
    nan = float("nan")
    chart = line_chart(
        "t", [Line("up", [1, 2, 3], [0, nan, 1]), Line("none", [1, 2, 3], [nan] * 3)], marked_x=3
    )
    (line,) = points_of(chart)
    assert len(line) == 2, "a gap is left out, and so is a line without values"
    (x1, y1), (x2, y2) = line
    assert x1 == LEFT and x2 > x1 and y2 < y1, "upwards is up"
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in line)
    assert "up 1" in chart and "none" not in chart and 'class="best"' in chart


def test_a_chart_of_one_epoch_is_a_dot() -> None:
    chart = line_chart("t", [Line("a", [1], [0.3])])
    assert "<circle" in chart and "nan" not in chart
    assert line_chart("t", [Line("a", [1], [float("inf")])]) == ""
