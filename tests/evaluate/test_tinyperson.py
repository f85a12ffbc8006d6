"""TinyPerson's official protocol: golden cases with all options, slow references, every quirk, wrong files."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evaluate.tinyperson import evaluate_tinyperson
from evaluate.tinyperson_ap import SIZE_RANGES
from evaluate.tinyperson_io import read_tinyperson
from evaluate.tinyperson_missrate import FALSE_POSITIVES_PER_IMAGE, SETUPS
from evaluate.tinyperson_overlaps import THRESHOLDS, Flags
from tests.conftest import RunCommand

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "tinyperson"
CASES = sorted(path.name for path in GOLDEN.iterdir())
ALL_FLAGS = [Flags(uncertain, iod) for uncertain in (True, False) for iod in (True, False)]

Box = tuple[float, float, float, float]


@dataclass
class Case:
    """Ground truth and results in memory, written and evaluated on demand."""

    images: int = 1
    categories: int = 1
    objects: list[dict[str, Any]] = field(default_factory=list)
    found: list[dict[str, Any]] = field(default_factory=list)

    def object(self, *box: float, image: int = 0, category: int = 1, **fields: Any) -> Case:
        """Ids begin at 1, so that none is the special 0 unless asked for."""
        entry = {"id": len(self.objects) + 1, "image_id": image, "category_id": category, "bbox": list(box)}
        self.objects.append(entry | {"area": box[2] * box[3]} | fields)
        return self

    def detection(self, *box: float, score: float = 0.5, image: int = 0, category: int = 1) -> Case:
        self.found.append({"image_id": image, "category_id": category, "bbox": list(box), "score": score})
        return self

    def truth(self) -> dict[str, Any]:
        return {
            # Not in order of their ids, which decides.
            "images": [{"id": index} for index in reversed(range(self.images))],
            "categories": [{"id": index + 1, "name": "p"} for index in range(self.categories)],
            "annotations": self.objects,
        }

    def evaluate(self, folder: Path, flags: Flags | None = None) -> dict[str, float]:
        truth, results = folder / "gt.json", folder / "results.json"
        truth.write_text(json.dumps(self.truth()))
        results.write_text(json.dumps(self.found))
        return evaluate_tinyperson(read_tinyperson(truth, results), flags).metrics()


# --- golden cases ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", ALL_FLAGS, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_golden_case(case: str, flags: Flags, tmp_path: Path, run_command: RunCommand) -> None:
    out = tmp_path / "out.json"
    options = [] if flags.ignore_uncertain else ["--no-ignore-uncertain"]
    options += [] if flags.use_iod_for_ignore else ["--no-iod-for-ignore"]
    result = run_command(
        "evaluate/tinyperson.py", "--gt", GOLDEN / case / "gt.json", "--results", GOLDEN / case / "results.json",
        *options, "--json", out,
    )  # fmt: skip
    assert result.status == 0, result.err
    expected = json.loads((GOLDEN / case / "expected.json").read_text())["settings"][str(flags)]
    found = json.loads(out.read_text())
    assert found["settings"].keys() == {str(flags)}
    assert found["settings"][str(flags)] == pytest.approx(expected, abs=1e-9)
    assert {key: found[key] for key in expected} == found["settings"][str(flags)]
    assert f"{expected['AP50_tiny']:.4f}" in result.out and f"{expected['MR50_tiny']:.2f}" in result.out


# --- the slow way, straight from the description ---------------------------------------------------------------


def slow_overlap(detection: Box, truth: Box, iod: bool) -> float:
    sides = [
        min(detection[k] + detection[k + 2], truth[k] + truth[k + 2]) - max(detection[k], truth[k])
        for k in (0, 1)
    ]
    if min(sides) <= 0:
        return 0.0
    common, area = sides[0] * sides[1], detection[2] * detection[3]
    return common / (area if iod else area + truth[2] * truth[3] - common)


def measure(overlap: float, truth: dict[str, Any], box: Box) -> float:
    return overlap / (1 + overlap) * (1 + truth["area"] / (box[2] * box[3])) if overlap else 0.0


def group(
    case: Case, image: int, category: int, most: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    objects, found = (
        [e for e in rows if (e["image_id"], e["category_id"]) == (image, category)]
        for rows in (case.objects, case.found)
    )
    return objects, sorted(found, key=lambda e: -e["score"])[:most]


def slow_ap_rows(
    case: Case, image: int, category: int, limits: tuple[float, float], threshold: float, flags: Flags
) -> tuple[int, list[tuple[float, int]]]:
    """Objects to find, and (score, 1 hit, 0 false, -1 ignored)."""
    objects, found = group(case, image, category, 200)

    def is_ignored(entry: dict[str, Any]) -> bool:
        flagged = entry["ignore"] or entry["iscrowd"] or (flags.ignore_uncertain and entry["uncertain"])
        return bool(flagged or not limits[0] <= entry["area"] <= limits[1])

    objects.sort(key=is_ignored)
    taken, rows = [False] * len(objects), []
    for entry in found:
        box = entry["bbox"]
        best, match = min(threshold, 1 - 1e-10), -1
        overlaps = [slow_overlap(box, truth["bbox"], bool(truth["iscrowd"])) for truth in objects]
        for index, truth in enumerate(objects):
            if taken[index] and not truth["iscrowd"]:
                continue
            if match >= 0 and not is_ignored(objects[match]) and is_ignored(truth):
                break
            if overlaps[index] >= best:
                best, match = overlaps[index], index
        others = [index for index, truth in enumerate(objects) if is_ignored(truth)]
        if match < 0 and flags.use_iod_for_ignore and others:
            measures = [measure(overlaps[index], objects[index], box) for index in others]
            if max(measures) >= threshold:
                match = others[int(np.argmax(measures))]
        matched = match >= 0 and objects[match]["id"] != 0
        neutral = match >= 0 and is_ignored(objects[match])
        if match >= 0:
            taken[match] = True
        if not matched and not limits[0] <= box[2] * box[3] <= limits[1]:
            neutral = True
        rows.append((entry["score"], -1 if neutral else int(matched)))
    return sum(not is_ignored(truth) for truth in objects), rows


def slow_mr_rows(
    case: Case, image: int, category: int, limits: tuple[float, float], threshold: float, flags: Flags
) -> tuple[int, list[tuple[float, int]]]:
    objects, found = group(case, image, category, 1000)
    found = [e for e in found if limits[0] / 1.25 <= np.sqrt(e["bbox"][2] * e["bbox"][3]) < limits[1] * 1.25]

    def is_ignored(entry: dict[str, Any]) -> bool:
        flagged = (
            entry["ignore"]
            or (flags.ignore_uncertain and entry["uncertain"])
            or entry.get("vis_ratio", 1) < 0.65
        )
        return bool(flagged or not limits[0] <= np.sqrt(entry["area"]) <= limits[1])

    objects.sort(key=is_ignored)
    taken, rows = [False] * len(objects), []
    for entry in found:
        box = entry["bbox"]
        best, match = min(threshold, 1 - 1e-10), -1
        overlaps = [slow_overlap(box, truth["bbox"], is_ignored(truth)) for truth in objects]
        for index, truth in enumerate(objects):
            if taken[index] and not is_ignored(truth):
                continue
            if match >= 0 and is_ignored(truth):
                break
            if overlaps[index] >= best:
                best, match = overlaps[index], index
        neutral = match >= 0 and is_ignored(objects[match])
        if match < 0 and flags.use_iod_for_ignore:
            pairs = zip(overlaps, objects, strict=True)
            neutral = any(
                is_ignored(truth) and measure(overlap, truth, box) > 0.5 for overlap, truth in pairs
            )
        if match >= 0:
            taken[match] = True
        hit = match >= 0 and objects[match]["id"] != 0
        rows.append((entry["score"], -1 if neutral else int(hit)))
    return sum(not is_ignored(truth) for truth in objects), rows


def slow_metrics(case: Case, flags: Flags) -> dict[str, float]:
    metrics: dict[str, float] = {}
    tables = (("AP", SIZE_RANGES, slow_ap_rows), ("MR", SETUPS, slow_mr_rows))
    for kind, sizes, rows_of in tables:
        for name, limits in sizes.items():
            for threshold in THRESHOLDS:
                curves = []
                for category in range(1, case.categories + 1):
                    parts = [rows_of(case, i, category, limits, threshold, flags) for i in range(case.images)]
                    count = sum(n for n, _ in parts)
                    state = np.array(
                        [s for _, s in sorted((r for _, p in parts for r in p), key=lambda r: -r[0])]
                    )
                    if count:
                        curves.append((np.cumsum(state == 1), np.cumsum(state == 0), count))
                key = f"{100 * threshold:.0f}_{name}"
                if kind == "AP":
                    metrics[f"AP{key}"], metrics[f"AR{key}"] = slow_interpolated(curves)
                else:
                    metrics[f"MR{key}"] = slow_rate(curves, case.images)
    return metrics


def slow_interpolated(curves: list[tuple[np.ndarray, np.ndarray, int]]) -> tuple[float, float]:
    if not curves:
        return -1, -1
    levels, last = [], []
    for hits, alarms, count in curves:
        recall, precision = hits / count, hits / (hits + alarms + np.spacing(1))
        last.append(recall[-1] if len(recall) else 0)
        for level in np.linspace(0, 1, 101):
            reached = precision[recall >= level]
            levels.append(reached.max() if len(reached) else 0)
    return float(np.mean(levels)), float(np.mean(last))


def slow_rate(curves: list[tuple[np.ndarray, np.ndarray, int]], images: int) -> float:
    if not curves:
        return -100
    recalls = []
    for hits, alarms, count in curves:
        for point in FALSE_POSITIVES_PER_IMAGE:
            below = np.flatnonzero(alarms / images <= point)
            row = below[-1] if len(below) else -1
            recalls.append(hits[row] / count if len(hits) else 0)
    return 0 if max(recalls) == 1 else float(100 * np.exp(np.mean(np.log(1 - np.array(recalls)))))


def drawn_case(rng: np.random.Generator) -> Case:
    """Few positions, sizes and scores; two categories; the object of id 0 anywhere."""
    case = Case(images=int(rng.integers(2, 12)), categories=2)

    def box() -> list[float]:
        return [*(rng.integers(0, 4, 2) * 5.0), *(rng.choice([4, 8, 10, 12, 15, 20, 30, 40], 2) * 1.0)]

    ids = rng.permutation(40)
    for number in ids:
        one = box()
        case.object(
            *one, image=int(rng.integers(case.images)), category=int(rng.choice([1, 1, 2])), id=int(number),
            area=one[2] * one[3] * float(rng.choice([1, 1, 1, 0.5, 2])), ignore=bool(rng.uniform() < 0.2),
            iscrowd=int(rng.uniform() < 0.1), uncertain=bool(rng.uniform() < 0.2),
            **({"vis_ratio": 0.6} if rng.uniform() < 0.1 else {}),
        )  # fmt: skip
    for _ in range(250):
        near = np.array(case.objects[rng.integers(40)]["bbox"]) if rng.uniform() < 0.7 else np.array(box())
        near[:2] += rng.integers(-1, 2, 2)
        case.detection(
            *near, score=float(rng.integers(1, 8) / 8), image=int(rng.integers(case.images)), category=int(rng.choice([1, 1, 2]))
        )  # fmt: skip
    return case


@pytest.mark.parametrize("flags", ALL_FLAGS, ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_the_slow_way(seed: int, flags: Flags, tmp_path: Path) -> None:
    case = drawn_case(np.random.default_rng(seed))
    assert case.evaluate(tmp_path, flags) == pytest.approx(slow_metrics(case, flags), abs=1e-9)
