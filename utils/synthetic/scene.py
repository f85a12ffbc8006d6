"""A scene that is being built: ground, fixtures, objects and ignored regions, and the picture made of them.

The boxes it reports are those of the drawn pixels, shadows left out. It knows how to place and to
compose; what a street or a park consists of is in ``layouts``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from utils.synthetic import movers
from utils.synthetic.camera import Camera, Points, Sun
from utils.synthetic.ground import Ground, Material, merged, noise
from utils.synthetic.shapes import FRACTION_BITS, Model, Sprite, cast_shadow, draw, fixed_point

IGNORED_REGION: Final = 0
SOLID: Final = 0.3
"""Coverage from which a pixel belongs to a sprite when overlaps are counted."""
MIN_SIDE_PX: Final = 3
MIN_VISIBLE: Final = 0.4
"""Share of an object's pixels that must not be hidden; below, it is taken out of the scene."""


@dataclass(frozen=True)
class Annotation:
    """One row of VisDrone's annotation files; the box is left, top, width, height in whole pixels."""

    x: int
    y: int
    w: int
    h: int
    score: int
    """1: counts; 0: ignored region or "others"."""
    category: int
    truncation: int
    """1: cut by the picture's border."""
    occlusion: int
    """0: fully visible, 1: up to half hidden, 2: more."""

    def row(self) -> str:
        """``x,y,w,h,score,category,truncation,occlusion``."""
        values = (self.x, self.y, self.w, self.h, self.score, self.category, self.truncation, self.occlusion)
        return ",".join(str(value) for value in values)


@dataclass(frozen=True)
class Picture:
    """A finished picture: ``image`` uint8 [H,W,3] BGR and its annotations."""

    image: NDArray[np.uint8]
    annotations: list[Annotation]


@dataclass(frozen=True)
class Look:
    """Light and camera: how the scene's colours become the picture's."""

    exposure: float
    warmth: float
    """Red up and blue down by this share."""
    contrast: float
    haze: float
    """Share of sky light mixed in at the top of the picture."""
    blur_px: float
    noise: float
    """Standard deviation of the sensor noise, of 255."""


@dataclass(frozen=True)
class _Placed:
    model: Model
    sprite: Sprite
    category: int | None
    """None: a fixture, or an object inside an ignored region: drawn, not annotated."""


class Scene:
    """Collects what is to be drawn and draws it; ``rng`` decides everything that is left open."""

    def __init__(
        self, rng: np.random.Generator, camera: Camera, sun: Sun, look: Look, base: Material
    ) -> None:
        self.rng = rng
        self.camera = camera
        self.sun = sun
        self.look = look
        self.ground = Ground(camera, base)
        self._placed: list[_Placed] = []
        self._claimed = np.zeros((camera.height, camera.width), np.uint8)
        self._ignored: list[tuple[int, int, int, int]] = []

    def add_fixture(self, model: Model) -> None:
        """Add something that is drawn and not annotated."""
        sprite = draw(model, self.camera, self.sun, supersample=2)
        if sprite is not None:
            self._placed.append(_Placed(model, sprite, None))

    def add_object(self, category: int, x: float, y: float, heading: float, crowded: float = 0.12) -> bool:
        """Draw a new object of a category at a place, unless it would not do there.

        It is left out (returns False) when less than half of its box is inside the picture, a side is
        under 3 px, more than the share ``crowded`` of it covers other objects, or it touches an
        ignored region.
        """
        model = movers.MAKERS[category](self.rng, x, y, heading)
        sprite = draw(model, self.camera, self.sun)
        if sprite is None:
            return False
        left, top, right, bottom = self._clip(sprite.box_px)
        if min(right - left, bottom - top) < MIN_SIDE_PX:
            return False
        full = (sprite.box_px[2] - sprite.box_px[0]) * (sprite.box_px[3] - sprite.box_px[1])
        if (right - left) * (bottom - top) < 0.5 * full or self._in_ignored(left, top, right, bottom):
            return False
        outside, inside = sprite.window(self.camera.height, self.camera.width)
        mask = sprite.alpha[inside] > SOLID
        claimed = self._claimed[outside]
        if (claimed[mask] > 0).mean() > crowded:
            return False
        claimed[mask] = 1
        self._placed.append(_Placed(model, sprite, category))
        return True

    def bar(self, polygon: Points) -> None:
        """Keep objects off a polygon [N,2] m, such as water."""
        pixels = fixed_point(self.camera.project_ground(polygon))
        cv2.fillPoly(self._claimed, [pixels], (1.0,), cv2.LINE_8, FRACTION_BITS)

    def add_ignored_region(self, corners: Points, poses: list[tuple[int, float, float, float]]) -> None:
        """Fill an area [4,2] m with (category, x, y, heading) that nobody can count: drawn, blurred, not boxed."""
        sprites = [(movers.MAKERS[c](self.rng, x, y, h), draw) for c, x, y, h in poses]
        pixels = self.camera.project_ground(corners)
        left, top, right, bottom = self._clip((*pixels.min(axis=0), *pixels.max(axis=0)))
        placed = []
        for model, render in sprites:
            sprite = render(model, self.camera, self.sun)
            if sprite is not None:
                placed.append(_Placed(model, sprite, None))
                box = self._clip(sprite.box_px)
                left, top = min(left, box[0]), min(top, box[1])
                right, bottom = max(right, box[2]), max(bottom, box[3])
        if min(right - left, bottom - top) < 16 or self._claimed[top:bottom, left:right].any():
            return
        self._placed += placed
        self._claimed[top:bottom, left:right] = 1
        self._ignored.append((left, top, right, bottom))

    def finish(self) -> Picture:
        """Compose the picture and list what is in it."""
        self._placed.sort(key=lambda placed: -placed.model.y)
        visible = self._visible_shares()
        kept = [v >= MIN_VISIBLE or p.category is None for p, v in zip(self._placed, visible, strict=True)]
        self._placed = [placed for placed, keep in zip(self._placed, kept, strict=True) if keep]
        visible = self._visible_shares()
        image = self._develop(self._compose())
        annotations = [
            Annotation(x, y, right - x, bottom - y, 0, IGNORED_REGION, 0, 0)
            for x, y, right, bottom in self._ignored
        ]
        for placed, share in zip(self._placed, visible, strict=True):
            if placed.category is not None:
                annotations.append(self._annotate(placed, placed.category, share))
        return Picture(image, annotations)

    def _annotate(self, placed: _Placed, category: int, visible: float) -> Annotation:
        box = placed.sprite.box_px
        left, top, right, bottom = self._clip(box)
        cut = (
            box[0] < -0.5
            or box[1] < -0.5
            or box[2] > self.camera.width + 0.5
            or box[3] > self.camera.height + 0.5
        )
        occlusion = 0 if visible > 0.95 else 1 if visible >= 0.5 else 2
        score = 0 if category == movers.OTHERS else 1
        return Annotation(left, top, right - left, bottom - top, score, category, int(cut), occlusion)

    def _clip(self, box: tuple[float, float, float, float]) -> tuple[int, int, int, int]:
        """The box in whole pixels inside the picture."""
        x = np.clip(np.round([box[0], box[2]]), 0, self.camera.width).astype(int)
        y = np.clip(np.round([box[1], box[3]]), 0, self.camera.height).astype(int)
        return int(x[0]), int(y[0]), int(x[1]), int(y[1])

    def _in_ignored(self, left: int, top: int, right: int, bottom: int) -> bool:
        return any(left < r and right > x and top < b and bottom > y for x, y, r, b in self._ignored)

    def _visible_shares(self) -> list[float]:
        """For each sprite, far to near: the share of its pixels in the picture that nothing nearer covers."""
        height, width = self.camera.height, self.camera.width
        owner = np.full((height, width), -1, np.int32)
        totals = []
        for index, placed in enumerate(self._placed):
            outside, inside = placed.sprite.window(height, width)
            mask = placed.sprite.alpha[inside] > SOLID
            owner[outside][mask] = index
            totals.append(int(mask.sum()))
        counts = np.bincount(owner[owner >= 0], minlength=len(totals))
        return [float(seen) / max(total, 1) for seen, total in zip(counts, totals, strict=True)]

    def _compose(self) -> NDArray[np.float32]:
        """Ground, shadows, and the sprites from far to near: [H,W,3] in 0–255."""
        height, width = self.camera.height, self.camera.width
        canvas = np.zeros((height * 2, width * 2), np.uint8)
        for placed in self._placed:
            if placed.category is None:
                cast_shadow(canvas, placed.model, self.camera, self.sun)
        of_fixtures = self._soften(canvas)
        for placed in self._placed:
            if placed.category is not None:
                cast_shadow(canvas, placed.model, self.camera, self.sun)
        depth = 0.62 * self.sun.strength
        light = 1 - np.float32(depth) * self._soften(canvas)
        image = np.asarray(cv2.multiply(self.ground.render(self.rng), merged([light] * 3)), dtype=np.float32)
        for placed in self._placed:
            sprite = placed.sprite
            outside, inside = sprite.window(height, width)
            colour = sprite.colour[inside]
            if placed.category is not None:
                alpha = sprite.alpha[inside]
                shaded = float((of_fixtures[outside] * alpha).sum() / max(float(alpha.sum()), 1e-6))
                colour = colour * np.float32(1 - 0.8 * depth * shaded)
            image[outside] = image[outside] * (1 - sprite.alpha[inside])[:, :, None] + colour
        for left, top, right, bottom in self._ignored:
            self._smear(image, left, top, right, bottom)
        return image

    def _soften(self, shadow: NDArray[np.uint8]) -> NDArray[np.float32]:
        size = (self.camera.width, self.camera.height)
        small = cv2.resize(shadow, size, interpolation=cv2.INTER_AREA).astype(np.float32) / 255
        return cv2.GaussianBlur(small, (0, 0), 0.7).astype(np.float32)

    @staticmethod
    def _smear(image: NDArray[np.float32], left: int, top: int, right: int, bottom: int) -> None:
        """Blur a region, in place."""
        region = image[top:bottom, left:right]
        region[:] = cv2.GaussianBlur(region, (0, 0), 2.2)

    def _develop(self, image: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Haze, white balance, contrast, vignette, blur and sensor noise."""
        look, (height, width) = self.look, image.shape[:2]
        image = cv2.GaussianBlur(image, (0, 0), look.blur_px).astype(np.float32)
        haze = np.linspace(1, 0.15, height, dtype=np.float32)[:, None] * np.float32(look.haze)
        y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
        x = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
        vignette = 1 - np.float32(0.05) * (x * x + y * y)
        grain = self.rng.standard_normal((height, width), dtype=np.float32) * np.float32(look.noise)
        tint = noise(self.rng, height, width, 2) * np.float32(look.noise)
        planes = []
        for plane, side in zip(cv2.split(image), (-1, 0, 1), strict=True):
            gain = np.float32(look.exposure * (1 + side * look.warmth))
            hazy = np.asarray(plane, np.float32) * (1 - haze) + 205 * haze
            developed = ((hazy * gain - 118) * np.float32(look.contrast) + 118) * vignette
            planes.append(developed + grain + np.float32(side * 0.7) * tint)
        return np.clip(np.rint(merged(planes)), 0, 255).astype(np.uint8)


def random_camera(rng: np.random.Generator, width: int, height: int) -> Camera:
    """A camera from which a car covers about 14–30 px."""
    focal = 1.7 * max(width, height)
    scale = float(rng.uniform(4.0, 6.1))
    return Camera(width, height, focal, focal / scale, math.radians(float(rng.uniform(44, 74))))


def random_light(rng: np.random.Generator) -> tuple[Sun, Look]:
    """Clear, cloudy, low sun or dusk."""
    azimuth = float(rng.uniform(0, 2 * math.pi))
    kind = int(rng.choice(4, p=[0.45, 0.25, 0.2, 0.1]))
    low, high, strength, exposure, warmth, contrast, haze = (
        (42, 65, 0.85, 1.0, 0.02, 1.08, 0.04),
        (50, 70, 0.3, 0.95, -0.02, 0.92, 0.12),
        (24, 36, 0.8, 0.92, 0.08, 1.05, 0.08),
        (30, 45, 0.35, 0.74, -0.05, 0.95, 0.06),
    )[kind]
    sun = Sun(azimuth, math.radians(float(rng.uniform(low, high))), strength)
    look = Look(
        exposure=exposure * float(rng.uniform(0.93, 1.08)),
        warmth=warmth + float(rng.normal(0, 0.015)),
        contrast=contrast,
        haze=haze * float(rng.uniform(0.5, 1.3)),
        blur_px=float(rng.uniform(0.3, 0.6)),
        noise=float(rng.uniform(1.5, 4.0)),
    )
    return sun, look
