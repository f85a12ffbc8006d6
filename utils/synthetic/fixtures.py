"""What stands around in the sample data and is not to be found: trees, bushes, houses, lamps.

They hide objects and look a little like them (roof windows, bushes), so a detector has to learn more
than "something on the ground".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np

from utils.synthetic.camera import Points
from utils.synthetic.movers import DARK, pick, tone
from utils.synthetic.shapes import Colour, Model, ellipse, rectangle

LEAVES: Final[Sequence[Colour]] = ((48, 92, 66), (40, 78, 58), (52, 104, 84), (60, 100, 62), (40, 100, 96))
NEEDLES: Final[Sequence[Colour]] = ((52, 76, 44), (44, 66, 40))
WALLS: Final[Sequence[Colour]] = (
    (190, 200, 208),
    (170, 182, 196),
    (150, 168, 190),
    (120, 140, 170),
    (205, 208, 210),
)
TILES: Final[Sequence[Colour]] = ((62, 74, 142), (58, 66, 112), (84, 82, 84), (70, 76, 92), (104, 96, 92))
FLAT_ROOFS: Final[Sequence[Colour]] = (
    (150, 152, 154), (126, 128, 130), (168, 174, 176), (104, 106, 108), (160, 130, 96),
)  # fmt: skip
WINDOW: Final[Colour] = (88, 78, 68)


def tree(rng: np.random.Generator, x: float, y: float, radius: float, sun_azimuth: float) -> Model:
    """A broad-leaved tree with a crown of ``radius`` m: discs of leaves, brighter towards the sun."""
    model = Model(x, y)
    height = radius * float(rng.uniform(1.2, 1.7))
    model.stroke([[0, 0, 0], [0, 0, height]], 0.35, (52, 66, 84))
    leaf = pick(rng, LEAVES, 16.0)
    count = int(np.clip(radius * 16, 24, 70))
    angle = rng.uniform(0, 2 * math.pi, count)
    distance = radius * 0.78 * np.sqrt(rng.random(count))
    level = rng.uniform(-0.25, 0.5, count) * np.sqrt(np.maximum(0.05, 1 - (distance / radius) ** 2)) * radius
    sizes = radius * rng.uniform(0.16, 0.34, count)
    lit = distance / radius * np.cos(angle - sun_azimuth) * 0.28 + level / radius * 0.5
    shade = np.clip(0.86 + lit + rng.normal(0, 0.09, count), 0.45, 1.5)
    across, along = (distance * np.cos(angle)).tolist(), (distance * np.sin(angle)).tolist()
    for i in np.argsort(level):
        centre = (across[i], along[i], height + float(level[i]))
        model.ball(centre, float(sizes[i]), tone(leaf, float(shade[i])), casts=i % 2 == 0)
    return model


def conifer(rng: np.random.Generator, x: float, y: float, radius: float, sun_azimuth: float) -> Model:
    """A fir: rings that shrink and brighten towards the tip."""
    model = Model(x, y)
    height, needle = radius * float(rng.uniform(3.0, 4.2)), pick(rng, NEEDLES, 12.0)
    for ring in np.linspace(0, 1, 7):
        reach = radius * (1 - 0.88 * float(ring))
        for angle in rng.uniform(0, 2 * math.pi, max(2, round(9 * (1 - float(ring))))):
            lit = (
                0.75 + 0.35 * float(ring) + 0.22 * math.cos(angle - sun_azimuth) + float(rng.normal(0, 0.07))
            )
            centre = (
                reach * 0.62 * math.cos(angle),
                reach * 0.62 * math.sin(angle),
                height * (0.12 + 0.85 * ring),
            )
            model.ball(centre, reach * 0.42 + 0.12, tone(needle, max(0.4, lit)))
    return model


def bush(rng: np.random.Generator, x: float, y: float, radius: float) -> Model:
    """A low round bush."""
    model = Model(x, y)
    leaf = pick(rng, LEAVES, 16.0)
    for _ in range(9):
        offset = rng.normal(0, radius * 0.36, 2)
        lit = float(rng.uniform(0.7, 1.2))
        model.ball(
            (offset[0], offset[1], radius * 0.5), radius * float(rng.uniform(0.35, 0.6)), tone(leaf, lit)
        )
    return model


def lamp(rng: np.random.Generator, x: float, y: float, heading: float) -> Model:
    """A street lamp whose arm points along ``heading``."""
    model = Model(x, y, heading)
    height = float(rng.uniform(6.5, 8.5))
    model.stroke([[0, 0, 0], [0, 0, height], [1.8, 0, height + 0.4]], 0.16, (150, 150, 150), casts=True)
    return model


def bench(rng: np.random.Generator, x: float, y: float, heading: float) -> Model:
    """A wooden bench."""
    model = Model(x, y, heading)
    wood = pick(rng, ((70, 100, 135), (60, 80, 110)))
    seat = rectangle(-1.0, 1.0, 0.55)
    model.prism(seat, 0.3, seat, 0.5, [tone(wood, 0.7)], wood)
    return model


def block(
    rng: np.random.Generator, x: float, y: float, heading: float, size: tuple[float, float, float]
) -> Model:
    """A building with a flat roof; ``size`` is length, width and height in m."""
    length, width, height = size
    model = Model(x, y, heading)
    wall, roof = pick(rng, WALLS, 14.0), pick(rng, FLAT_ROOFS, 14.0)
    base = rectangle(-length / 2, length / 2, width)
    model.prism(base, 0.0, base, height, [wall], tone(roof, 1.12))
    _windows(model, base, height, max(1, round(height / 3.2)), rng.random() < 0.3)
    inner = base * (1 - 0.8 / np.array([length, width]))
    _level(model, inner, height + 0.01, tone(roof, 0.95))
    for _ in range(int(rng.integers(2, 7))):
        stain = inner * float(rng.uniform(0.1, 0.3)) + rng.uniform(-0.3, 0.3, 2) * np.array([length, width])
        _level(model, stain, height + 0.02, tone(roof, float(rng.uniform(0.86, 1.03))))
    for _ in range(int(rng.integers(1, 2 + int(length * width / 110)))):
        centre = rng.uniform(-0.36, 0.36, 2) * np.array([length, width])
        unit = rectangle(-0.5, 0.5, 1.0) * rng.uniform(0.9, 2.4, 2) + centre
        grey = pick(rng, ((175, 175, 172), (140, 142, 144), (110, 112, 114)))
        model.prism(unit, height, unit, height + float(rng.uniform(0.5, 1.4)), [tone(grey, 0.8)], grey)
    return model


def house(
    rng: np.random.Generator, x: float, y: float, heading: float, size: tuple[float, float, float]
) -> Model:
    """A house with a gabled roof whose ridge runs along its length; ``size`` is length, width, eaves in m."""
    length, width, eaves = size
    model = Model(x, y, heading)
    wall, tiles = pick(rng, WALLS, 14.0), pick(rng, TILES, 14.0)
    base = rectangle(-length / 2, length / 2, width)
    model.prism(base, 0.0, base, eaves, [wall], wall)
    _windows(model, base, eaves, max(1, round(eaves / 3)), striped=False)
    half, out, ridge = width / 2 + 0.4, length / 2 + 0.4, eaves + width * float(rng.uniform(0.24, 0.36))
    model.face(
        [[length / 2, -width / 2, eaves], [length / 2, width / 2, eaves], [length / 2, 0, ridge]], wall
    )
    model.face(
        [[-length / 2, width / 2, eaves], [-length / 2, -width / 2, eaves], [-length / 2, 0, ridge]], wall
    )
    rows = 7
    for i in range(rows):
        low, high = i / rows, (i + 1) / rows
        colour = tone(tiles, 1.0 + (0.05 if i % 2 else -0.05))
        for side in (-1, 1):
            edges = [
                (share, side * half * (1 - share), eaves + (ridge - eaves) * share) for share in (low, high)
            ]
            (_, y0, z0), (_, y1, z1) = edges
            quad = [[-out, y0, z0], [out, y0, z0], [out, y1, z1], [-out, y1, z1]]
            model.face(quad if side < 0 else quad[::-1], colour)
    gutters = [(sx * out, sy * half, eaves) for sx in (-1, 1) for sy in (-1, 1)]
    model.hull([*gutters, (-out, 0, ridge), (out, 0, ridge)])
    chimney = rectangle(-0.4, 0.4, 0.8) + np.array([float(rng.uniform(-0.3, 0.3)) * length, 0.0])
    model.prism(chimney, ridge - 0.4, chimney, ridge + 0.8, [(70, 80, 120)], DARK)
    return model


def canopy(rng: np.random.Generator, x: float, y: float, heading: float) -> Model:
    """A parasol or a small market stall."""
    model = Model(x, y, heading)
    cloth = pick(rng, ((60, 60, 200), (225, 225, 225), (190, 110, 50), (70, 150, 70)))
    model.stroke([[0, 0, 0], [0, 0, 2.3]], 0.1, DARK)
    rim = ellipse(1.6, 1.6, 8)
    model.prism(rim, 2.2, rim * 0.05, 2.9, [cloth, tone(cloth, 0.85)], cloth)
    return model


def _level(model: Model, corners: Points, z: float, colour: Colour) -> None:
    model.face([(x, y, z) for x, y in corners.tolist()], colour)


def _windows(model: Model, base: Points, height: float, floors: int, striped: bool) -> None:
    """Windows on all four walls: single ones, or a band per floor."""
    for i in range(4):
        (x0, y0), (x1, y1) = base[i].tolist(), base[(i + 1) % 4].tolist()
        columns = 1 if striped else max(1, int(math.hypot(x1 - x0, y1 - y0) / 3.0))
        for floor in range(floors):
            low, high = height * (floor + 0.3) / floors, height * (floor + 0.75) / floors
            for column in range(columns):
                margin = 0.04 if striped else 0.25
                a, b = (column + margin) / columns, (column + 1 - margin) / columns
                ax, ay, bx, by = (
                    x0 + (x1 - x0) * a,
                    y0 + (y1 - y0) * a,
                    x0 + (x1 - x0) * b,
                    y0 + (y1 - y0) * b,
                )
                model.face([(ax, ay, low), (bx, by, low), (bx, by, high), (ax, ay, high)], WINDOW)
