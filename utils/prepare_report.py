"""What the images of a prepared dataset amount to: numbers as plain data, a table, a picture.

From the reports of utils/prepare.py; nothing is read again but the example pictures.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from utils.datasets.base import DatasetSource, Split
from utils.draw import draw_boxes, overlay_heatmap
from utils.heatmap import heatmap_path, load_heatmap
from utils.images import read_image
from utils.plots import INK, PALETTE, new_figure, plain_axes
from utils.prepare import GRID_SIDE, ImageReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIZE_LIMITS = (8, 16, 32, 96)
"""Borders between size groups: square root of the area, original pixels; 32 and 96 are COCO's."""
SIZE_NAMES = ("under 8 px", "8–16 px", "16–32 px", "32–96 px", "96 px and over")
EXAMPLES = 3

_TABLE = (
    ("images", "images"),
    ("images left out", "images_left_out"),
    ("images with a greyed copy", "images_masked"),
    ("objects", "objects"),
    ("objects per image", "objects_per_image"),
    ("share of empty 8×8 grid cells", "empty_grid_share"),
    ("heatmap file, mean kB", "heatmap_kb"),
    ("boxes clipped at the border", "boxes_clipped"),
    ("share of masks not used", "mask_fallback_share"),
)
_PAIRS_SHOWN = 5

Summary = dict[str, Any]
Reports = Mapping[str, Sequence[ImageReport]]


def summarise(source: DatasetSource, reports: Reports, settings: Mapping[str, object]) -> Summary:
    """What was prepared, as plain data for the report file.

    Args:
        source: the dataset.
        reports: of its images, by split, in the order of the jobs.
        settings: what was chosen, to be kept with the numbers.
    """
    images = [image for split in source.splits for image in reports[split.name]]
    failed = [image.problem for image in images if image.problem]
    return {
        "dataset": source.name,
        "settings": dict(settings),
        "classes": list(source.class_names),
        "splits": {
            split.name: summarise_split(split, reports[split.name], source.class_names)
            for split in source.splits
        },
        "problems": [problem for split in source.splits for problem in split.problems] + failed,
        "warnings": [
            *(warning for split in source.splits for warning in split.warnings),
            *(message for image in images for message in image.messages),
            *duplicates(reports),
        ],
    }


def summarise_split(split: Split, reports: Sequence[ImageReport], class_names: Sequence[str]) -> Summary:
    """The numbers of one split. Shares and means are over the images with annotations; None without any."""
    used = [image for image in reports if image.listed]
    labelled = [
        image for image, job in zip(reports, split.jobs, strict=True) if image.listed and job.annotations
    ]
    table = class_size_table(labelled, len(class_names))
    dropped = sum((Counter(image.dropped) for image in labelled), Counter[str]())
    fallbacks = sum((Counter(image.fallbacks) for image in labelled), Counter[str]())
    objects = [len(image.labels) for image in labelled]
    return {
        "images": len(used),
        "images_left_out": len(reports) - len(used),
        "images_masked": sum(image.listed != image.image for image in used),
        "objects": int(table.sum()),
        "objects_per_image": _mean(objects, 2),
        "empty_grid_share": _mean([image.empty_cells / GRID_SIDE**2 for image in labelled], 4),
        "heatmap_kb": _mean([image.heatmap_bytes / 1000 for image in labelled], 2),
        "boxes_per_class": dict(zip(class_names, table.sum(axis=1).tolist(), strict=True)),
        "boxes_per_size": dict(zip(SIZE_NAMES, table.sum(axis=0).tolist(), strict=True)),
        "boxes_per_class_and_size": {
            name: dict(zip(SIZE_NAMES, row, strict=True))
            for name, row in zip(class_names, table.tolist(), strict=True)
        },
        "boxes_clipped": sum(image.clipped for image in labelled),
        "dropped": dict(sorted(dropped.items())),
        "mask_fallbacks": dict(sorted(fallbacks.items())),
        "mask_fallback_share": round(fallbacks.total() / max(sum(objects), 1), 4),
    }


def class_size_table(images: Sequence[ImageReport], num_classes: int) -> npt.NDArray[np.int64]:
    """Objects by class and size group: int64 [classes, groups of SIZE_NAMES]."""
    table = np.zeros((num_classes, len(SIZE_NAMES)), dtype=np.int64)
    for image in images:
        sizes = np.sqrt(image.wh.prod(axis=1))
        np.add.at(table, (image.labels, np.searchsorted(SIZE_LIMITS, sizes, side="right")), 1)
    return table


def duplicates(reports: Reports) -> list[str]:
    """Which images are the same file, byte by byte: worst where they are in different splits."""
    first: dict[str, tuple[str, ImageReport]] = {}
    messages: list[str] = []
    for split, images in reports.items():
        for image in images:
            if not image.digest:
                continue
            earlier_split, earlier = first.setdefault(image.digest, (split, image))
            if earlier is not image:
                where = (
                    "" if split == earlier_split else f", though one is in {earlier_split} and one in {split}"
                )
                messages.append(f"{image.image}: the same file as {earlier.image}{where}")
    across = sorted(messages, key=lambda message: ", though one is in " not in message)
    if len(across) > _PAIRS_SHOWN:
        across[_PAIRS_SHOWN:] = [f"{len(across) - _PAIRS_SHOWN} more images are the same as others"]
    return across


def _mean(values: Sequence[float], digits: int) -> float | None:
    return round(sum(values) / len(values), digits) if values else None


# ------------------------------------------------------------------------------------------------ table


def summary_table(summary: Summary) -> str:
    """The numbers with one column per split."""
    splits: dict[str, Summary] = summary["splits"]
    rows = [("", list(splits))]
    rows += [(title, [_show(split[key]) for split in splits.values()]) for title, key in _TABLE]
    for title, key in (
        ("boxes", "boxes_per_class"),
        ("boxes", "boxes_per_size"),
        ("no label", "dropped"),
        ("mask not used", "mask_fallbacks"),
    ):
        names = dict.fromkeys(name for split in splits.values() for name in split[key])
        rows += [
            (f"{title}: {name}", [_show(split[key].get(name, 0)) for split in splits.values()])
            for name in names
        ]
    width = max(len(title) for title, _ in rows)
    columns = max(12, *(len(cell) + 2 for _, cells in rows for cell in cells))
    return "\n".join(
        f"{title:<{width}}" + "".join(f"{cell:>{columns}}" for cell in cells) for title, cells in rows
    )


def _show(value: float | None) -> str:
    return "–" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


# ---------------------------------------------------------------------------------------------- picture


def report_figure(summary: Summary, reports: Reports) -> Figure:
    """Boxes by class and size, objects per image, empty cells, and a few images with heatmap and boxes."""
    figure = new_figure(15, 13)
    grid = figure.add_gridspec(3, 6, height_ratios=(1, 1, 1.5))
    labelled = {name: [i for i in images if i.listed and i.heatmap_bytes] for name, images in reports.items()}
    _draw_classes(figure.add_subplot(grid[0, :4]), summary)
    _draw_sizes(figure.add_subplot(grid[0, 4:]), summary)
    _draw_histogram(
        figure.add_subplot(grid[1, :3]),
        "Objects per image",
        {name: [float(len(image.labels)) for image in images] for name, images in labelled.items()},
    )
    _draw_histogram(
        figure.add_subplot(grid[1, 3:]),
        "Share of empty cells of an 8×8 grid",
        {name: [image.empty_cells / GRID_SIDE**2 for image in images] for name, images in labelled.items()},
    )
    for number, image in enumerate(_examples([image for images in labelled.values() for image in images])):
        axes = figure.add_subplot(grid[2, 2 * number : 2 * number + 2])
        axes.imshow(example_picture(image))
        axes.set_axis_off()
        axes.set_title(f"{image.image.name}: {len(image.labels)} objects", loc="left", color=INK, fontsize=10)
    return figure


def example_picture(image: ImageReport) -> npt.NDArray[np.uint8]:
    """An image as it is trained on, its label heatmap over it and its boxes: uint8 RGB [H, W, 3]."""
    assert image.listed is not None
    pixels = read_image(image.listed)
    overlaid = overlay_heatmap(pixels, load_heatmap(heatmap_path(image.image)).values / 255.0)
    return draw_boxes(overlaid, image.boxes, image.labels, line_thickness=1, hide_labels=True)


def _examples(images: Sequence[ImageReport]) -> list[ImageReport]:
    """A few images with objects, from few to many."""
    ranked = sorted((image for image in images if len(image.labels)), key=lambda image: len(image.labels))
    places = (
        {round(share * (len(ranked) - 1)) for share in np.linspace(0.25, 0.9, EXAMPLES)} if ranked else set()
    )
    return [ranked[place] for place in sorted(places)]


def _colour(index: int) -> tuple[float, float, float]:
    red, green, blue = PALETTE[index % len(PALETTE)]
    return red / 255, green / 255, blue / 255


def _draw_classes(axes: Axes, summary: Summary) -> None:
    """Stacked bars: boxes per class, coloured by split."""
    plain_axes(axes)
    base = np.zeros(len(summary["classes"]))
    for index, (name, split) in enumerate(summary["splits"].items()):
        counts = np.array(list(split["boxes_per_class"].values()), dtype=float)
        axes.bar(summary["classes"], counts, bottom=base, color=_colour(index), label=name)
        base += counts
    axes.tick_params(axis="x", labelrotation=30)
    axes.legend(frameon=False, fontsize=9, labelcolor=INK)
    axes.set_title("Boxes per class", loc="left", color=INK, fontsize=12)


def _draw_sizes(axes: Axes, summary: Summary) -> None:
    plain_axes(axes)
    base = np.zeros(len(SIZE_NAMES))
    for index, split in enumerate(summary["splits"].values()):
        counts = np.array(list(split["boxes_per_size"].values()), dtype=float)
        axes.barh(SIZE_NAMES, counts, left=base, color=_colour(index))
        base += counts
    axes.set_title("Boxes by √area, original pixels", loc="left", color=INK, fontsize=12)


def _draw_histogram(axes: Axes, title: str, values: Mapping[str, Sequence[float]]) -> None:
    plain_axes(axes)
    everything = [value for series in values.values() for value in series]
    if everything:
        series = [list(row) for row in values.values()]
        axes.hist(series, bins=24, stacked=True, color=[_colour(index) for index in range(len(series))])
    axes.set_ylabel("images", color=INK)
    axes.set_title(title, loc="left", color=INK, fontsize=12)
