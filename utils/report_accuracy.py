"""The parts of a report that a test fills: scores, patches, curves, worst images, causes; and what it costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from utils.page import Html, bars, element, figure, folded, join, note, pairs, section, table, tiles
from utils.report_data import Content, RunFiles, flat, number, part, percent, rows

PICTURE_PX = 1100
PROTOCOL_NOTE = (
    "Compare these scores only with scores of the same protocol on the same images: not with those of another split, "
    "of a part of a dataset, or of a dataset's official protocol."
)
TRAINED_ON_NOTE = "These are scores on the split that models of this dataset are trained on (--task train): they say how well it was learnt, not how well the model detects."
CURVES = (
    ("PR_curve.png", "Precision over recall, IoU 0.5"),
    ("F1_curve.png", "F1 over confidence"),
    ("P_curve.png", "Precision over confidence"),
    ("R_curve.png", "Recall over confidence"),
    ("confusion_matrix.png", "Where the objects of a class went"),
)
STAGE_TITLES = {"nms": "decode, NMS"}


def accuracy_sections(run: RunFiles) -> Html:
    """Everything about an accuracy test; nothing for a run that is none."""
    if not run.metrics:
        return Html("")
    return join([
        _headline(run.metrics),
        section("What the scores mean", *_notes(run.metrics)),
        section("Detection", _detection(part(run.metrics, "detection"))),
        section("Patches", _patches(part(run.metrics, "selector"))),
        section("Images with most missed objects", _worst(run)),
        section("Why objects are missed", _causes(run)),
        section("Curves", _curves(run)),
        section("First batches", _batches(run)),
        section("Official protocol", folded("Numbers", pairs(flat(run.official)))),
        section("How it was tested", _record(run.metrics)),
    ])  # fmt: skip


def cost_sections(run: RunFiles) -> Html:
    """What ``--task measure`` or ``--task speed`` found; nothing without."""
    cost = run.cost
    if not cost:
        return Html("")
    values = [
        ("GFLOPs per image", number(part(cost, "gflops_2mac").get("mean"), 2)),
        ("dense, first image", number(part(cost, "dense").get("gflops_2mac"), 2)),
        ("ms per image, median", number(part(cost, "latency_ms").get("median"), 1)),
        ("images per second", number(cost.get("fps"), 2)),
        ("patches per image", number(part(cost, "patches").get("mean"), 1)),
        ("occupancy", percent(part(cost, "occupancy").get("mean"))),
    ]
    stages = [
        (STAGE_TITLES.get(name, name), [float(stage["median_ms"])])
        for name, stage in part(cost, "stages_ms").items()
        if isinstance(stage, Mapping) and "median_ms" in stage
    ]
    chart = next((p for name in ("measure.png", "speed.png") if (p := run.inside(name)) is not None), None)
    return section(
        "Cost",
        tiles([(name, text) for name, text in values if text != "n/a"]),
        element("p", f"{number(cost.get('images'))} images one by one, input {cost.get('input', '?')}, on {cost.get('device', '?')}. "
                "A multiply-accumulate counts two operations.", class_="soft"),
        element("h3", "Median milliseconds by stage") if stages else "",
        bars(["ms"], stages, "ms"),
        figure(chart, "Cost of every image over the share of it that was looked at closely", PICTURE_PX, chart=True) if chart else "",
        _spreads(cost),
        *(note(str(text)) for text in cost.get("notes", [])),
        "" if run.metrics else folded("Options", pairs(flat(cost.get("options")))),
        "" if run.metrics else folded("Environment", pairs(flat(cost.get("environment")))),
    )  # fmt: skip


def _headline(metrics: Content) -> Html:
    detection, selector = part(metrics, "detection"), part(metrics, "selector")
    return tiles([
        ("AP", number(detection.get("ap"))),
        ("AP50", number(detection.get("ap50"))),
        ("AP small", number(detection.get("ap_small"))),
        ("objects in no patch", percent(selector.get("missing_rate"))),
        ("area not computed", percent(selector.get("empty_rate"))),
        ("images", number(detection.get("images"))),
        ("labelled objects", number(detection.get("labels"))),
    ])  # fmt: skip


def _notes(metrics: Content) -> list[str]:
    task = part(metrics, "options").get("task")
    protocols = (part(metrics, name).get("protocol") for name in ("detection", "selector"))
    return [
        note(str(metrics.get("dataset_note") or "")),
        note(TRAINED_ON_NOTE if task == "train" else ""),
        *(element("p", str(text)) for text in protocols if text),
        element("p", PROTOCOL_NOTE, class_="soft"),
    ]


def _detection(detection: Content) -> Html:
    sizes = [
        [name, number(detection.get(f"ap{key}")), number(detection.get(f"ar{key}"))]
        for name, key in (("all", ""), ("small (< 32² px)", "_small"), ("medium", "_medium"), ("large (≥ 96² px)", "_large"))
    ]  # fmt: skip
    keys = ("images", "labels", "ap", "ap50", "precision", "recall", "f1")
    heads = ["class", "images", "labels", "AP", "AP50", "precision", "recall", "F1"]
    total = [*(number(detection.get(key)) for key in keys)]
    classes = [
        [str(row.get("name")), *(number(row.get(key)) for key in keys)]
        for row in rows(detection, "per_class")
    ]
    yolo = part(detection, "yolo")
    others = [
        ("AP75", number(detection.get("ap75"))),
        ("precision, recall and F1 at confidence", number(detection.get("best_confidence"))),
        ("YOLOv5-style mAP@0.5", number(yolo.get("map50"))),
        ("YOLOv5-style mAP@0.5:0.95", number(yolo.get("map"))),
        ("detections", number(detection.get("detections"))),
    ]
    return join([
        element("h3", "By size"), table(["size", "AP", "AR"], sizes),
        element("h3", "By class"), table(heads, [["all", *total], *classes]),
        pairs((name, text) for name, text in others if text != "n/a"),
    ])  # fmt: skip


def _patches(selector: Content) -> Html:
    values = (
        (
            "objects that no patch covers by more than half (missing rate)",
            percent(selector.get("missing_rate")),
        ),
        ("objects whose centre is in a patch", percent(selector.get("bpr_center"))),
        ("area that is computed, overlaps twice (occupancy)", percent(selector.get("occupancy"))),
        ("area in some patch", percent(selector.get("occupancy_union"))),
        ("patches per image", number(selector.get("patches_per_image"), 1)),
        ("label cells that are active (heatmap recall)", percent(selector.get("heatmap_recall"))),
        ("active cells that are label cells (heatmap precision)", percent(selector.get("heatmap_precision"))),
    )
    groups = [
        [str(row.get("name")), number(row.get("labels")), percent(row.get("missing_rate")),
         percent(row.get("heatmap_recall"))]
        for row in (*rows(selector, "by_size"), *rows(selector, "by_class"))
    ]  # fmt: skip
    heads = ["size or class", "labels", "in no patch", "heatmap recall"]
    return join(
        [pairs((n, t) for n, t in values if t != "n/a"), folded("By size and class", table(heads, groups))]
    )


def _worst(run: RunFiles) -> Html:
    if not run.worst:
        return Html("")
    images = rows(run.worst, "images")
    confidence = number(run.worst.get("confidence"))
    if not images:
        return element("p", f"No labelled object is missed at confidence {confidence}.")
    legend = element(
        "p",
        *(
            element("span", element("i", style=f"border-color:{colour}"), text)
            for colour, text in (("#ff2060", "missed"), ("#00c93c", "found"), ("#e0bc00", "false alarm"))
        ),
        class_="legend",
    )
    text = f"Found means a detection of the right class, IoU at least {number(run.worst.get('iou'), 1)}, confidence at least {confidence} (that of the best F1)."
    blocks = [_worst_image(run, rank, image) for rank, image in enumerate(images, start=1)]
    return join([element("p", text, class_="soft"), legend, *blocks])


def _worst_image(run: RunFiles, rank: int, image: Content) -> Html:
    missed = part(image, "missed_by_class")
    which = ", ".join(f"{count} {name}" for name, count in missed.items())
    title = f"{rank}. {image.get('missed')} of {image.get('labels')} objects missed"
    text = f"{image.get('file')} · missed: {which} · false alarms: {image.get('false_alarms')}"
    files = [run.inside(str(image.get(key, ""))) for key in ("picture", "closer")]
    captions = ("the whole image", "where most of the missed ones are")
    shown = [figure(file, caption, PICTURE_PX) for file, caption in zip(files, captions, strict=True) if file]
    return join(
        [element("h3", title), element("p", text, class_="soft"), element("div", *shown, class_="wide")]
    )


def _causes(run: RunFiles) -> Html:
    total = part(run.analysis, "total")
    if not total:
        return Html("")
    groups = [total, *rows(run.analysis, "by_size")]
    meaning = part(run.analysis, "meaning")
    heads = ["cause", *(str(group.get("name")) for group in groups)]
    lines = [
        [name, *(number(group.get(key)) for group in groups)] for name, key in (("labelled", "labels"), ("missed", "missed"))
    ]  # fmt: skip
    lines += [
        [key.replace("_", " "), *(number(part(group, "causes").get(key)) for group in groups)]
        for key in meaning
    ]
    explained = folded(
        "What the causes mean", pairs((k.replace("_", " "), str(v)) for k, v in meaning.items())
    )
    return join(
        [element("p", str(run.analysis.get("protocol", "")), class_="soft"), table(heads, lines), explained]
    )


def _curves(run: RunFiles) -> Html:
    return _gallery([(run.folder / name, caption) for name, caption in CURVES], chart=True)


def _batches(run: RunFiles) -> Html:
    return _gallery(
        [
            (path, path.name)
            for path in run.pictures("batch*_labels.jpg") + run.pictures("batch*_predictions.jpg")
        ]
    )


def _gallery(files: Sequence[tuple[Path, str]], chart: bool = False) -> Html:
    figures = [figure(path, caption, PICTURE_PX, chart=chart) for path, caption in files if path.is_file()]
    return element("div", *figures, class_="wide") if figures else Html("")


def _spreads(cost: Content) -> Html:
    named = (
        ("GFLOPs", "gflops_2mac", 2), ("GFLOPs by thop", "gflops_thop", 2), ("ms", "latency_ms", 1),
        ("patches", "patches", 1), ("occupancy", "occupancy", 3),
    )  # fmt: skip
    keys = ("mean", "median", "p95", "least", "most")
    lines = [
        [name, *(number(part(cost, key).get(column), digits) for column in keys)]
        for name, key, digits in named
        if part(cost, key)
    ]
    return table(["per image", *keys], lines)


def _record(metrics: Content) -> Html:
    named = (("Options", "options"), ("Throughput", "throughput"), ("Environment", "environment"))
    return join(folded(title, pairs(flat(metrics.get(key)))) for title, key in named)
