"""Files are written whole or not at all; JSON is what every program reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import BinaryIO

import pytest

from utils.files import write_atomic, write_json, write_text


def test_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "x.bin"
    write_atomic(path, lambda file: file.write(b"first"))

    def fail(file: BinaryIO) -> None:
        file.write(b"half of it")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomic(path, fail)
    assert path.read_bytes() == b"first"
    assert list(path.parent.iterdir()) == [path]


def test_text(tmp_path: Path) -> None:
    write_text(tmp_path / "new" / "a.md", "τ ≤ 1\n")
    assert (tmp_path / "new" / "a.md").read_bytes() == "τ ≤ 1\n".encode()


def test_json(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.json"
    odd = b"street\xff.jpg".decode("utf-8", "surrogateescape")  # the name of a file, as Python has it
    write_json(path, {"a": 0.1 + 0.2, "τ": [None, (1, 2)], "weights": Path("runs") / "a.pt", "image": odd})
    text = path.read_text(encoding="utf-8")
    assert json.loads(text) == {
        "a": 0.1 + 0.2,
        "τ": [None, [1, 2]],
        "weights": str(Path("runs/a.pt")),
        "image": odd,
    }
    assert '"τ"' in text
    assert text.endswith("}\n")


@pytest.mark.parametrize(
    ("content", "error"),
    [({"a": float("nan")}, ValueError), ([float("inf")], ValueError), ({"a": object()}, TypeError)],
)
def test_json_refuses_and_keeps_what_was_there(
    tmp_path: Path, content: object, error: type[Exception]
) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(error, match="JSON"):
        write_json(path, content)
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]
