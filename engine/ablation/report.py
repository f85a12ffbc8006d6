"""Tables of an ablation: one row per variant, means over its seeds, for people and for programs."""

from __future__ import annotations

import csv
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from engine.ablation.spec import Ablation, Run

COLUMNS = (
    ("AP", "detection", "ap"),
    ("AP50", "detection", "ap50"),
    ("AP small", "detection", "ap_small"),
    ("missing %", "selector", "missing_rate"),
    ("empty %", "selector", "empty_rate"),
    ("occupancy %", "selector", "occupancy"),
)
"""Title, part and key of metrics.json; shown times 100."""


@dataclass(frozen=True)
class Result:
    """What a finished run left.

    Attributes:
        variant, seed, name: see `Run`.
        commands: as they were given.
        metrics: of test.py, what metrics.json holds.
        training: epochs, seconds and patches per image of its own training, and its provenance; None without one.
        threshold: of the heatmap, where it was chosen by occupancy.
        test_seconds: of test.py from its start to its end.
    """

    variant: str
    seed: int
    name: str
    commands: list[str]
    metrics: dict[str, Any]
    training: dict[str, Any] | None
    threshold: float | None
    test_seconds: float


def training_facts(folder: Path, provenance: dict[str, Any]) -> dict[str, Any]:
    """Epochs, seconds in the training loop and mean patches per image out of a results.csv, and the provenance."""
    with (folder / "results.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    seconds = [float(row["train/seconds"]) for row in rows]
    patches = [float(row["train/patches_per_image"]) for row in rows]
    return {
        "epochs": len(rows),
        "seconds": sum(seconds),
        "patches_per_image": sum(patches) / len(patches),
        "provenance": provenance,
    }


def result_data(spec: Ablation, results: Sequence[Result]) -> dict[str, Any]:
    """Everything, for programs: plain data for a JSON file."""
    return {"ablation": asdict(spec), "results": [asdict(r) for r in results]}


def page(source: str, spec: Ablation, results: Sequence[Result], missing: Sequence[Run]) -> str:
    """The page for people."""
    lines = [
        f"# {spec.title}",
        "",
        *([spec.about.strip(), ""] if spec.about else []),
        table(spec, results),
        "",
    ]
    if missing:
        lines += [f"Not run: {', '.join(run.name for run in missing)}.", ""]
    lines += [*conditions(source, spec, results), "", "## Commands", "", "```console"]
    for result in results:
        lines += [f"# {result.name}", *result.commands]
    lines += ["```", ""]
    changes = [f"- `{name}`: {hyp_text(v.hyp)}" for name, v in spec.variants.items() if v.hyp]
    common = f"`{spec.base}`" + (f" with {hyp_text(spec.hyp)}" if spec.hyp else "")
    lines += [f"`hyp.yaml` of a training is {common}" + (", and of" if changes else "."), "", *changes]
    return "\n".join(lines).rstrip() + "\n"


def table(spec: Ablation, results: Sequence[Result]) -> str:
    """The Markdown table, a row per variant that has a result."""
    head = ["variant", *(title for title, *_ in COLUMNS), "threshold", "epochs", "training s", "test s", ""]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for name, variant in spec.variants.items():
        own = [result for result in results if result.variant == name]
        if not own:
            continue
        cells = [f"`{name}`", *(_spread([r.metrics[part][key] for r in own]) for _, part, key in COLUMNS)]
        cells.append(_mean([r.threshold for r in own], 3))
        trainings = [r.training or {} for r in own]
        cells += [_mean([t.get(key) for t in trainings], 0) for key in ("epochs", "seconds")]
        cells += [_mean([r.test_seconds for r in own], 0), variant.note]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def conditions(source: str, spec: Ablation, results: Sequence[Result]) -> list[str]:
    """Where the numbers come from."""
    if not results:
        return []
    first = results[0].metrics
    environment = first["environment"]
    commits = sorted({str(r.metrics["environment"].get("git_commit"))[:10] for r in results})
    note = first.get("dataset_note")
    seeds = (
        f"Seeds {', '.join(map(str, spec.seeds))}: mean and, in brackets, the lowest and the highest."
        if len(spec.seeds) > 1
        else f"One seed ({spec.seeds[0]}) each: differences below the spread of seeds mean nothing."
    )
    lines = [f"Protocol: {first['detection']['protocol']}.", *([f"Note: {note}."] if note else []), seeds]
    if spec.occupancy is not None:
        lines.append(
            f"Tested at the heatmap threshold at which patches cover {spec.occupancy:.0%} of the map, found on the tested "
            "images."
        )
    if spec.minutes is not None:
        lines.append(
            f"Trainings of about {spec.minutes:g} minutes, by the time of a short one before; timings on a shared machine."
        )
    return [
        *lines,
        "",
        f"Made by `python scripts/ablation.py {source}` on {environment['cpu']}, {environment['threads']} threads"
        f"{', ' + str(environment['gpu']) if environment.get('gpu') else ''}, torch {environment['torch']}, at commit "
        f"{', '.join(commits)}. AP and rates in percent; training s: in the training loop; test s: the whole command. "
        "Everything else is in the JSON file beside this page.",
    ]


def hyp_text(values: dict[str, Any]) -> str:
    """Hyper-parameters in a line."""
    return ", ".join(f"`{key}: {value}`" for key, value in values.items())


def command_line(script: str, words: Sequence[str]) -> str:
    """A command as one would type it."""
    return shlex.join(["python", script, *words])


def _mean(values: Sequence[float | None], digits: int) -> str:
    known = [value for value in values if value is not None]
    return f"{sum(known) / len(known):.{digits}f}" if known else "–"


def _spread(values: Sequence[float | None]) -> str:
    known = [100 * value for value in values if value is not None]
    if not known:
        return "–"
    mean = f"{sum(known) / len(known):.2f}"
    return mean if len(known) == 1 else f"{mean} ({min(known):.2f}–{max(known):.2f})"
