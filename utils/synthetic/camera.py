"""The drone's camera and the sun of a drawn scene: where a point of the world falls in the picture.

World frame: metres, x to the right of the picture, y away from the camera, z up; the camera looks at
the origin. Picture frame: ``_px``, pixel i covers [i, i + 1). It is not a calibrated camera model: no
lens distortion, no roll.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]


@dataclass(frozen=True)
class Camera:
    """A pinhole camera above flat ground."""

    width: int
    height: int
    focal_px: float
    distance_m: float
    """From the camera to the ground point in the middle of the picture."""
    pitch: float
    """Radians below the horizon; π/2 looks straight down."""

    def project(self, points: Points) -> tuple[Points, Points]:
        """Picture positions of world points.

        ``points`` [N,3] metres; returns ([N,2] pixels, [N] pixels per metre at each point). Points must
        lie in front of the camera.
        """
        sine, cosine = math.sin(self.pitch), math.cos(self.pitch)
        away = points[:, 1] + self.distance_m * cosine
        above = points[:, 2] - self.distance_m * sine
        scale = self.focal_px / (away * cosine - above * sine)
        u = self.width / 2 + scale * points[:, 0]
        v = self.height / 2 - scale * (away * sine + above * cosine)
        return np.stack([u, v], axis=1), scale

    def project_ground(self, points: Points) -> Points:
        """Picture positions [N,2] px of ground points [N,2] m."""
        return self.project(np.column_stack([points, np.zeros(len(points))]))[0]

    def ground_at(self, pixels: Points) -> Points:
        """Ground points [N,2] m that are seen at picture positions [N,2] px below the horizon."""
        sine, cosine = math.sin(self.pitch), math.cos(self.pitch)
        right = (pixels[:, 0] - self.width / 2) / self.focal_px
        up = (self.height / 2 - pixels[:, 1]) / self.focal_px
        reach = self.distance_m * sine / (sine - up * cosine)
        return np.stack([reach * right, reach * (cosine + up * sine) - self.distance_m * cosine], axis=1)

    def pixels_per_metre(self, x: float, y: float) -> float:
        """Scale of the picture at a ground point."""
        return float(self.project(np.array([[x, y, 0.0]]))[1][0])

    @property
    def half_extent_m(self) -> tuple[float, float]:
        """Half the width and half the depth of the visible ground, measured through its middle."""
        pixels_per_metre = self.focal_px / self.distance_m
        return (
            self.width / 2 / pixels_per_metre,
            self.height / 2 / (pixels_per_metre * math.sin(self.pitch)),
        )


@dataclass(frozen=True)
class Sun:
    """Direction and strength of the light."""

    azimuth: float
    """Radians, direction from the scene towards the sun, counter-clockwise from +x."""
    elevation: float
    """Radians above the horizon, in (0, π/2)."""
    strength: float
    """Share of the light that comes from the sun and not from the sky, 0–1."""

    @property
    def direction(self) -> Points:
        """Unit vector [3] from the scene towards the sun."""
        flat = math.cos(self.elevation)
        return np.array(
            [flat * math.cos(self.azimuth), flat * math.sin(self.azimuth), math.sin(self.elevation)]
        )

    def shadow_on_ground(self, points: Points) -> Points:
        """Where the shadows [N,2] m of world points [N,3] m fall on the ground."""
        direction = self.direction
        shadow: Points = points[:, :2] - points[:, 2:] * (direction[:2] / direction[2])
        return shadow

    def light(self, normals: Points) -> Points:
        """Brightness factors [N] of surfaces with normals [N,3] of any length; 1 for level ground."""
        length = np.maximum(np.linalg.norm(normals, axis=1), 1e-12)
        facing = np.clip(normals @ self.direction / length / math.sin(self.elevation), 0.0, 1.25)
        factors: Points = 1.0 + self.strength * 0.6 * (facing - 1.0)
        return factors
