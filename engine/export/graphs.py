"""The network as modules that a tracer can follow: stem with seeker, and what runs on patches."""

from __future__ import annotations

from torch import Tensor, nn

from engine.export.borders import GraphPlacement
from models.borders import Placement
from models.esod import ESOD
from models.slicer import Patches
from utils.typed_data import ConfigError

REFUSED = {
    "gpvit": "its tokens attend to the kept ones of their image, in groups whose number and size change from image to "
    "image, which is no fixed graph",
    "transformer": "its patches attend to those of the same image, grouped by how many each image has, which is no "
    "fixed graph",
}
"""What cannot be exported → why."""


class StemGraph(nn.Module):
    """Images [B, 3, H, W] in 0–1 → stride-8 features and, with a seeker, heatmap logits [B, 1, H/8, W/8]."""

    def __init__(self, model: ESOD) -> None:
        super().__init__()
        self.stem, self.seeker = model.stem, model.seeker

    @property
    def output_names(self) -> list[str]:
        """Of what comes out."""
        return ["features"] if self.seeker is None else ["features", "heatmap_logits"]

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        features = self.stem(images)
        return (features,) if self.seeker is None else (features, self.seeker(features))


class PatchGraph(nn.Module):
    """Features of K patches [K, C, h, w] → raw predictions [K, rows·columns, boxes, values] of every level.

    A model with ``borders: neighbours`` also takes where they lie, see `GraphPlacement`; without, one patch
    covers the map.
    """

    def __init__(self, model: ESOD) -> None:
        super().__init__()
        self.output_names = [f"raw{stride}" for stride in model.config.strides]
        self.deep, self.neck, self.head = model.deep, model.neck, model.head
        self.surroundings = model.surroundings

    def forward(
        self, features: Tensor, corners: Tensor | None = None, owners: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        # The deep parts that are exported ask for no places.
        nowhere = Patches(features.new_zeros(0), features.new_zeros(0, 4), (0, 0))
        if self.surroundings is not None and corners is not None and owners is not None:
            self.surroundings.place(GraphPlacement(corners, owners, int(features.shape[2])))
        elif self.surroundings is not None:
            self.surroundings.place(Placement(nowhere, 1, nowhere.size_cell))
        pyramid = self.neck(*self.deep(features, nowhere))
        raws = []
        for level, maps in zip(self.head.levels, pyramid, strict=True):
            found = level(maps)
            raws.append(found.raw.view(features.shape[0], -1, *found.raw.shape[1:]))
        return tuple(raws)


def check_exportable(model: ESOD) -> None:
    """Refuse a network whose graph depends on the image in more than sizes.

    Raises:
        ConfigError: with the reason.
    """
    name: str = "transformer" if model.config.transformer else model.config.family
    if name in REFUSED:
        raise ConfigError(f"{name} cannot be exported: {REFUSED[name]}; run the .pt file")
