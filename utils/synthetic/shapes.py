"""Small three-dimensional models and how they become pixels: convex faces, strokes and balls, drawn
in the order in which they were added.

It is not a renderer: there is no depth buffer, so a model adds its far and low parts first.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from utils.synthetic.camera import Camera, Points, Sun

Colour = tuple[float, float, float]
"""Blue, green, red in 0–255."""

FRACTION_BITS = 4
"""OpenCV draws with fixed-point coordinates; this many bits behind the point."""


def rectangle(rear: float, front: float, width: float) -> Points:
    """Corners [4,2] m, counter-clockwise from above: faces of a prism on it are right, front, left, rear."""
    half = width / 2
    return np.array([[rear, -half], [front, -half], [front, half], [rear, half]])


def rounded(length: float, width: float, corner: float) -> Points:
    """A rectangle around the origin with cut corners: [8,2] m, counter-clockwise."""
    x, y = length / 2, width / 2
    cut = min(corner, y * 0.9)
    return np.array(
        [
            [-x + cut, -y], [x - cut, -y], [x, -y + cut], [x, y - cut],
            [x - cut, y], [-x + cut, y], [-x, y - cut], [-x, -y + cut],
        ]
    )  # fmt: skip


def ellipse(radius_x: float, radius_y: float, count: int = 8, centre_x: float = 0.0) -> Points:
    """A polygon [count,2] m on an ellipse, counter-clockwise."""
    angle = np.arange(count) * (2 * math.pi / count)
    return np.column_stack([centre_x + radius_x * np.cos(angle), radius_y * np.sin(angle)])


@dataclass(frozen=True)
class Face:
    """A flat convex polygon, seen from the side on which its corners turn counter-clockwise."""

    indices: list[int]
    """Rows of the model's points; at least three, the first three not on a line."""
    colour: Colour


@dataclass(frozen=True)
class Stroke:
    """A poly-line with a thickness."""

    indices: list[int]
    width_m: float
    colour: Colour


@dataclass(frozen=True)
class Ball:
    """A ball of one colour; its only point is its centre."""

    indices: list[int]
    radius_m: float
    colour: Colour


class Model:
    """A thing at a place: primitives in drawing order and what casts its shadow.

    Methods take local metres: x forward, y left, z up; ``heading`` (radians) turns and ``scale``
    enlarges them.
    """

    def __init__(self, x: float, y: float, heading: float = 0.0, scale: float = 1.0) -> None:
        self.x = x
        self.y = y
        self.heading = heading
        self.scale = scale
        self.primitives: list[Face | Stroke | Ball] = []
        self.casters: list[list[int]] = []
        """Rows of points whose convex hulls cast a shadow."""
        self.casting_balls: list[Ball] = []
        self._local: list[Sequence[float]] = []

    def world_points(self) -> Points:
        """All points of the model [N,3] in world metres."""
        local = np.array(self._local, dtype=np.float64) * self.scale
        sine, cosine = math.sin(self.heading), math.cos(self.heading)
        x = self.x + local[:, 0] * cosine - local[:, 1] * sine
        y = self.y + local[:, 0] * sine + local[:, 1] * cosine
        return np.column_stack([x, y, local[:, 2]])

    def face(self, points: Sequence[Sequence[float]], colour: Colour) -> None:
        """Add one flat polygon."""
        self.primitives.append(Face(self._add(points), colour))

    def prism(
        self, lower: Points, z0: float, upper: Points, z1: float, sides: Sequence[Colour], top: Colour
    ) -> None:
        """Add a solid between the footprint ``lower`` [N,2] at z0 and ``upper`` [N,2] at z1.

        ``sides`` are the colours of the side faces, repeated as needed.
        """
        low = self._add([(x, y, z0) for x, y in lower.tolist()])
        high = self._add([(x, y, z1) for x, y in upper.tolist()])
        for i in range(len(low)):
            j = (i + 1) % len(low)
            self.primitives.append(Face([low[i], low[j], high[j], high[i]], sides[i % len(sides)]))
        self.primitives.append(Face(high, top))
        self.casters.append(low + high)

    def stroke(
        self, points: Sequence[Sequence[float]], width: float, colour: Colour, casts: bool = False
    ) -> None:
        """Add a poly-line; a casting one must be convex or straight where its shadow matters."""
        self.primitives.append(Stroke(self._add(points), width * self.scale, colour))
        if casts:
            half = width / 2
            for start, end in itertools.pairwise(points):
                ends = [(x + d, y + d, z) for x, y, z in (start, end) for d in (-half, half)]
                self.casters.append(self._add(ends))

    def ball(self, centre: Sequence[float], radius: float, colour: Colour, casts: bool = True) -> None:
        """Add a ball."""
        ball = Ball(self._add([centre]), radius * self.scale, colour)
        self.primitives.append(ball)
        if casts:
            self.casting_balls.append(ball)

    def hull(self, points: Sequence[Sequence[float]]) -> None:
        """Add an invisible convex solid that only casts a shadow."""
        self.casters.append(self._add(points))

    def _add(self, points: Sequence[Sequence[float]]) -> list[int]:
        first = len(self._local)
        self._local.extend(points)
        return list(range(first, len(self._local)))


@dataclass(frozen=True)
class Sprite:
    """A drawn model: a patch of pixels with coverage."""

    left: int
    top: int
    colour: NDArray[np.float32]
    """[h,w,3] BGR in 0–255, already multiplied by ``alpha``."""
    alpha: NDArray[np.float32]
    """[h,w] coverage, 0–1."""
    box_px: tuple[float, float, float, float]
    """Left, top, right, bottom of the covered sub-pixels; may reach outside the picture."""

    def window(self, height: int, width: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
        """(rows, columns) in a picture of that size, and the same in the sprite; empty when it is outside."""
        rows, columns = self.alpha.shape
        top, bottom = np.clip([self.top, self.top + rows], 0, height)
        left, right = np.clip([self.left, self.left + columns], 0, width)
        inside = slice(top - self.top, bottom - self.top), slice(left - self.left, right - self.left)
        return (slice(top, bottom), slice(left, right)), inside


def fixed_point(points: Points) -> NDArray[np.int32]:
    """Positions with i covering [i, i+1) as OpenCV's fixed point, where i is the centre of pixel i."""
    return np.round((points - 0.5) * (1 << FRACTION_BITS)).astype(np.int32)


def draw(model: Model, camera: Camera, sun: Sun, supersample: int = 4) -> Sprite | None:
    """The model as a sprite, or None when nothing of it lies inside the picture."""
    world = model.world_points()
    pixels, scale = camera.project(world)
    drawn = [index for primitive in model.primitives for index in primitive.indices]
    reach = np.zeros(len(world))
    for primitive in model.primitives:
        if not isinstance(primitive, Face):
            reach[primitive.indices] = _reach(primitive)
    margin = (reach * scale)[drawn, None]
    low = np.floor((pixels[drawn] - margin).min(axis=0)).astype(int) - 1
    high = np.ceil((pixels[drawn] + margin).max(axis=0)).astype(int) + 1
    if high[0] <= 0 or high[1] <= 0 or low[0] >= camera.width or low[1] >= camera.height:
        return None
    canvas = np.zeros(((high[1] - low[1]) * supersample, (high[0] - low[0]) * supersample, 4), np.uint8)
    corners = fixed_point((pixels - low) * supersample)
    lit = _lit_faces(model, world, pixels, sun)
    for primitive in model.primitives:
        if isinstance(primitive, Face):
            colour = lit.pop(0)
            if colour is not None:
                cv2.fillConvexPoly(canvas, corners[primitive.indices], colour, cv2.LINE_8, FRACTION_BITS)
        else:
            _paint_round(canvas, primitive, corners, float(scale[primitive.indices[0]]) * supersample)
    return _to_sprite(canvas, int(low[0]), int(low[1]), supersample)


def cast_shadow(canvas: NDArray[np.uint8], model: Model, camera: Camera, sun: Sun) -> None:
    """Draw the model's shadow on the ground as 255 into ``canvas``, whole multiples of the picture's size."""
    supersample = canvas.shape[0] // camera.height
    world = model.world_points()
    pixels = (camera.project_ground(sun.shadow_on_ground(world)) * supersample).astype(np.float32)
    outlines = [pixels[caster] for caster in model.casters]
    if model.casting_balls:
        rings = _ball_shadows(model.casting_balls, world, sun)
        flat = camera.project_ground(rings.reshape(-1, 2)) * supersample
        outlines += list(flat.reshape(rings.shape).astype(np.float32))
    for outline in outlines:
        hull = cv2.convexHull(outline)[:, 0].astype(np.float64)
        cv2.fillConvexPoly(canvas, fixed_point(hull), (255.0,), cv2.LINE_8, FRACTION_BITS)


def _reach(primitive: Stroke | Ball) -> float:
    """How far (m) the primitive's paint goes beyond its points."""
    return primitive.width_m / 2 if isinstance(primitive, Stroke) else primitive.radius_m


def _lit_faces(
    model: Model, world: Points, pixels: Points, sun: Sun
) -> list[tuple[float, float, float, float] | None]:
    """The colour of each face of the model in the light, None where it shows its back."""
    faces = [primitive for primitive in model.primitives if isinstance(primitive, Face)]
    if not faces:
        return []
    corners = np.array([face.indices[:3] for face in faces])
    first, second = (pixels[corners[:, i + 1]] - pixels[corners[:, i]] for i in (0, 1))
    # y points down in the picture: a face that turns counter-clockwise turns the other way there.
    seen = first[:, 0] * second[:, 1] - first[:, 1] * second[:, 0] < 0
    edges = [world[corners[:, i + 1]] - world[corners[:, i]] for i in (0, 1)]
    light = sun.light(np.cross(edges[0], edges[1]))
    return [
        _opaque(face.colour, float(brightness)) if visible else None
        for face, brightness, visible in zip(faces, light, seen, strict=True)
    ]


def _paint_round(
    canvas: NDArray[np.uint8], primitive: Stroke | Ball, corners: NDArray[np.int32], scale: float
) -> None:
    """Draw a stroke or ball; ``corners`` are the model's points, ``scale`` pixels per metre, of the canvas."""
    colour = _opaque(primitive.colour, 1.0)
    if isinstance(primitive, Stroke):
        thickness = max(1, round(primitive.width_m * scale))
        line = corners[primitive.indices]
        cv2.polylines(canvas, [line], False, colour, thickness, cv2.LINE_8, FRACTION_BITS)
    else:
        x, y = corners[primitive.indices[0]].tolist()
        radius = max(1, round(primitive.radius_m * scale * (1 << FRACTION_BITS)))
        cv2.circle(canvas, (x, y), radius, colour, cv2.FILLED, cv2.LINE_8, FRACTION_BITS)


def _to_sprite(canvas: NDArray[np.uint8], left: int, top: int, supersample: int) -> Sprite | None:
    x, y, width, height = cv2.boundingRect(cv2.extractChannel(canvas, 3))
    if not width:
        return None
    box = (
        left + x / supersample,
        top + y / supersample,
        left + (x + width) / supersample,
        top + (y + height) / supersample,
    )
    size = (canvas.shape[1] // supersample, canvas.shape[0] // supersample)
    small = cv2.resize(canvas, size, interpolation=cv2.INTER_AREA).astype(np.float32)
    return Sprite(left, top, small[:, :, :3], small[:, :, 3] / np.float32(255), box)


def _opaque(colour: Colour, light: float) -> tuple[float, float, float, float]:
    blue, green, red = (min(255.0, channel * light) for channel in colour)
    return blue, green, red, 255.0


def _ball_shadows(balls: list[Ball], world: Points, sun: Sun) -> Points:
    """Outlines [K,10,2] m of the balls' shadows on the ground."""
    across = np.array([-math.sin(sun.azimuth), math.cos(sun.azimuth), 0.0])
    upward = np.cross(sun.direction, across)
    angle = np.arange(10)[:, None] * (2 * math.pi / 10)
    ring = sun.shadow_on_ground(np.cos(angle) * across + np.sin(angle) * upward)
    centres = sun.shadow_on_ground(world[[ball.indices[0] for ball in balls]])
    radii = np.array([ball.radius_m for ball in balls])
    outlines: Points = centres[:, None] + radii[:, None, None] * ring
    return outlines
