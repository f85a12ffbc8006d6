"""Small pictures and files to make datasets of."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

MakeImage = Callable[..., Path]
WriteJson = Callable[[Path, Any], Path]


@pytest.fixture
def make_image() -> MakeImage:
    def make(path: Path, hw: tuple[int, int] = (54, 102), value: int = 90) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        _, data = cv2.imencode(path.suffix, np.full((*hw, 3), value, dtype=np.uint8))
        path.write_bytes(bytes(data))
        return path

    return make


@pytest.fixture
def write_json() -> WriteJson:
    def write(path: Path, content: Any) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content), encoding="utf-8")
        return path

    return write
