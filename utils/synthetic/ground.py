"""The ground of a drawn scene: flat areas of a material, and the texture laid over them.

Areas are painted at twice the picture's size and averaged down. The texture is noise at four scales in
the picture's frame, so it does not follow the perspective; at these angles nobody sees it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from utils.synthetic.camera import Camera, Points
from utils.synthetic.shapes import FRACTION_BITS, Colour, fixed_point

SUPERSAMPLE: Final = 2


@dataclass(frozen=True)
class Material:
    """A colour and how rough it looks: amplitudes of coarse (patches), middle and fine noise, 0–255."""

    colour: Colour
    coarse: int
    middle: int
    fine: int

    @property
    def roughness(self) -> tuple[float, float, float]:
        """The three amplitudes."""
        return float(self.coarse), float(self.middle), float(self.fine)

    def tinted(self, rng: np.random.Generator, spread: float = 8.0) -> Material:
        """The same material in a slightly different colour."""
        blue, green, red = np.clip(
            np.asarray(self.colour) + rng.normal(0, spread) + rng.normal(0, spread / 3, 3), 4, 250
        )
        return Material((float(blue), float(green), float(red)), self.coarse, self.middle, self.fine)

    def lighter(self, factor: float) -> Material:
        """The same material, brighter (factor > 1) or darker."""
        blue, green, red = (min(250.0, channel * factor) for channel in self.colour)
        return Material((blue, green, red), self.coarse, self.middle, self.fine)


GRASS: Final = Material((62, 112, 96), 150, 120, 120)
MEADOW: Final = Material((70, 126, 122), 180, 130, 130)
SOIL: Final = Material((92, 122, 148), 130, 100, 90)
CROP: Final = Material((66, 138, 118), 90, 80, 120)
STUBBLE: Final = Material((112, 158, 178), 90, 80, 100)
ASPHALT: Final = Material((104, 104, 103), 46, 34, 46)
CONCRETE: Final = Material((158, 164, 166), 44, 36, 30)
PAVING: Final = Material((146, 154, 164), 40, 36, 40)
GRAVEL: Final = Material((134, 150, 162), 70, 60, 90)
WATER: Final = Material((112, 96, 62), 50, 26, 12)
PAINT: Final = Material((222, 226, 226), 30, 40, 30)
POOL: Final = Material((205, 180, 70), 20, 30, 10)


def noise(rng: np.random.Generator, height: int, width: int, cell: int) -> NDArray[np.float32]:
    """Smooth noise [height,width] in about −1…1 with features of ``cell`` px."""
    grid = rng.random((height // cell + 3, width // cell + 3), dtype=np.float32) * 2 - 1
    size = (grid.shape[1] * cell, grid.shape[0] * cell)
    large = cv2.resize(grid, size, interpolation=cv2.INTER_CUBIC) if cell > 1 else grid
    return np.asarray(large[cell : cell + height, cell : cell + width], dtype=np.float32)


def merged(planes: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Three planes [H,W] as one image [H,W,3]. (OpenCV: numpy is several times slower on short last axes.)"""
    return np.asarray(cv2.merge(list(planes)), dtype=np.float32)


class Ground:
    """The painted ground and which part of it is taken."""

    def __init__(self, camera: Camera, base: Material) -> None:
        self.camera = camera
        shape = (camera.height * SUPERSAMPLE, camera.width * SUPERSAMPLE, 3)
        self._colour: NDArray[np.uint8] = np.empty(shape, np.uint8)
        self._roughness: NDArray[np.uint8] = np.empty(shape, np.uint8)
        corners = ((0, 0), (shape[1], shape[0]))
        cv2.rectangle(self._colour, *corners, base.colour, cv2.FILLED)
        cv2.rectangle(self._roughness, *corners, base.roughness, cv2.FILLED)
        self._taken = np.zeros((camera.height, camera.width), np.uint8)

    def paint(self, polygon: Points, material: Material, take: bool = False) -> None:
        """Cover a polygon [N,2] m with a material; ``take`` keeps fixtures off it."""
        pixels = self.camera.project_ground(polygon)
        corners = [fixed_point(pixels * SUPERSAMPLE)]
        cv2.fillPoly(self._colour, corners, material.colour, cv2.LINE_AA, FRACTION_BITS)
        cv2.fillPoly(self._roughness, corners, material.roughness, cv2.LINE_8, FRACTION_BITS)
        if take:
            cv2.fillPoly(self._taken, [fixed_point(pixels)], (1.0,), cv2.LINE_8, FRACTION_BITS)

    def take(self, polygon: Points) -> None:
        """Keep fixtures off a polygon [N,2] m."""
        pixels = fixed_point(self.camera.project_ground(polygon))
        cv2.fillPoly(self._taken, [pixels], (1.0,), cv2.LINE_8, FRACTION_BITS)

    def sees(self, points: Points, margin_px: float) -> NDArray[np.bool_]:
        """Which ground points [N,2] m lie in the picture or within a margin around it: [N]."""
        pixels = self.camera.project_ground(points)
        size = np.array([self.camera.width, self.camera.height])
        return np.asarray(np.all((pixels > -margin_px) & (pixels < size + margin_px), axis=1), dtype=np.bool_)

    def is_free(self, corners: Points) -> bool:
        """Whether a quadrilateral [4,2] m touches the picture and none of it (7×7 probes) is taken."""
        share = np.linspace(0, 1, 7)
        across, along = (axis.ravel()[:, None] for axis in np.meshgrid(share, share))
        near = corners[0] + (corners[1] - corners[0]) * across
        far = corners[3] + (corners[2] - corners[3]) * across
        pixels = np.floor(self.camera.project_ground(near + (far - near) * along)).astype(int)
        column, row = pixels.T
        seen = (column >= 0) & (column < self.camera.width) & (row >= 0) & (row < self.camera.height)
        return bool(seen.any()) and not self._taken[row[seen], column[seen]].any()

    def render(self, rng: np.random.Generator) -> NDArray[np.float32]:
        """The ground [H,W,3] BGR in 0–255 with its texture."""
        height, width = self.camera.height, self.camera.width
        colour = cv2.resize(self._colour, (width, height), interpolation=cv2.INTER_AREA)
        rough = cv2.resize(self._roughness, (width, height), interpolation=cv2.INTER_AREA)
        coarse, middle, fine = (np.asarray(plane, np.float32) / np.float32(255) for plane in cv2.split(rough))
        patches = noise(rng, height, width, 96) * 0.6 + noise(rng, height, width, 41) * 0.5
        tufts = noise(rng, height, width, 13) * 0.5 + noise(rng, height, width, 6) * 0.5
        grain = noise(rng, height, width, 3) * 0.5 + noise(rng, height, width, 1) * 0.6
        relief = 1 + coarse * patches * 0.20 + middle * tufts * 0.30 + fine * grain * 0.42
        hue = coarse * (noise(rng, height, width, 70) + noise(rng, height, width, 23) * 0.5) * 0.08
        # Dry patches: less blue, more red.
        gains = (relief * (1 - hue), relief, relief * (1 + hue))
        return merged([plane * gain for plane, gain in zip(cv2.split(colour), gains, strict=True)])
