"""What the sample data asks a detector to find: cars, vans, pedestrians, cyclists and a few "others".

People and bicycles are drawn larger than life (``PERSON_SCALE``, ``BICYCLE_SCALE``): from the height at
which a car covers 20 pixels they would be specks that no small network can tell apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

from utils.synthetic.shapes import Colour, Model, ellipse, rectangle, rounded

PEDESTRIAN: Final = 1
BICYCLE: Final = 3
CAR: Final = 4
VAN: Final = 5
OTHERS: Final = 11

PERSON_SCALE: Final = 1.75
BICYCLE_SCALE: Final = 1.45

DARK: Final[Colour] = (26.0, 25.0, 24.0)
GLASS: Final[Colour] = (58.0, 46.0, 38.0)
TAIL_LIGHT: Final[Colour] = (40.0, 35.0, 190.0)
HEAD_LIGHT: Final[Colour] = (235.0, 245.0, 245.0)

CAR_COLOURS: Final[Sequence[Colour]] = (
    (238, 238, 236), (238, 238, 236), (232, 234, 235), (190, 188, 184), (168, 165, 160), (95, 92, 90),
    (48, 46, 45), (38, 36, 36), (45, 38, 165), (40, 30, 140), (150, 80, 40), (120, 60, 28), (60, 130, 190),
    (70, 85, 60), (120, 150, 170),
)  # fmt: skip
VAN_COLOURS: Final[Sequence[Colour]] = (
    (240, 240, 238), (240, 240, 238), (234, 236, 236), (200, 198, 194), (40, 175, 225), (150, 95, 50),
    (70, 62, 58), (50, 45, 150),
)  # fmt: skip
SHIRTS: Final[Sequence[Colour]] = (
    (235, 235, 235), (40, 40, 200), (190, 90, 40), (50, 190, 230), (60, 150, 60), (170, 60, 150), (50, 120, 235),
    (35, 33, 32), (200, 180, 90), (150, 130, 220),
)  # fmt: skip
TROUSERS: Final[Sequence[Colour]] = ((70, 50, 36), (38, 36, 34), (90, 80, 74), (120, 135, 150), (48, 42, 40))
HEADS: Final[Sequence[Colour]] = ((28, 30, 38), (40, 48, 66), (60, 100, 150), (30, 28, 28), (200, 205, 210))
FRAMES: Final[Sequence[Colour]] = ((40, 38, 180), (170, 90, 30), (45, 43, 42), (200, 200, 198), (60, 160, 70))


def pick(rng: np.random.Generator, colours: Sequence[Colour], spread: float = 10.0) -> Colour:
    """One of the colours, each channel moved a little."""
    colour = np.asarray(colours[int(rng.integers(len(colours)))], dtype=np.float64)
    blue, green, red = np.clip(colour + rng.normal(0, spread / 2, 3) + rng.normal(0, spread / 2), 8, 250)
    return float(blue), float(green), float(red)


def tone(colour: Colour, factor: float) -> Colour:
    """The colour, darker (factor < 1) or brighter."""
    blue, green, red = (min(250.0, channel * factor) for channel in colour)
    return blue, green, red


def car(rng: np.random.Generator, x: float, y: float, heading: float) -> Model:
    """A car of 4.1–4.8 m: low body with bonnet, glass all round, roof in the body's colour."""
    model = Model(x, y, heading)
    length, width = float(rng.uniform(4.1, 4.8)), float(rng.uniform(1.76, 1.9))
    body = pick(rng, CAR_COLOURS)
    model.prism(rounded(length * 0.94, width * 0.94, 0.3), 0.0, rounded(length * 0.94, width * 0.94, 0.3), 0.4,
                [DARK], DARK)  # fmt: skip
    model.prism(
        rounded(length, width, 0.42), 0.3, rounded(length * 0.97, width * 0.95, 0.42), 0.86, [body], body
    )
    # The cabin of a saloon leaves a boot behind it; that of a hatchback or an estate does not.
    rear, front, height = ((-0.36, 0.22, 1.42), (-0.46, 0.22, 1.48), (-0.47, 0.26, 1.68))[
        int(rng.integers(3))
    ]
    slope = 0.1 if rear < -0.4 else 0.12
    glass = tone(GLASS, float(rng.uniform(0.7, 1.5)))
    shine = tone(glass, 1.35)
    model.prism(
        rectangle(rear * length, front * length, width * 0.88), 0.86,
        rectangle((rear + slope * 0.7) * length, (front - slope * 1.25) * length, width * 0.7), height,
        [glass, shine, glass, glass], tone(body, 1.04),
    )  # fmt: skip
    _lights(model, length, width, 0.55, 0.78)
    return model


def van(rng: np.random.Generator, x: float, y: float, heading: float) -> Model:
    """A van of 5.3–6.3 m: tall box, short sloping windscreen; with side windows or closed."""
    model = Model(x, y, heading)
    length, width, height = (
        float(rng.uniform(5.3, 6.3)),
        float(rng.uniform(2.0, 2.2)),
        float(rng.uniform(2.1, 2.6)),
    )
    body = pick(rng, VAN_COLOURS)
    front, rear = length / 2, -length / 2
    model.prism(rounded(length * 0.95, width * 0.94, 0.2), 0.0, rounded(length * 0.95, width * 0.94, 0.2), 0.4,
                [DARK], DARK)  # fmt: skip
    model.prism(rounded(length, width, 0.3), 0.3, rounded(length * 0.985, width, 0.3), 1.2, [body], body)
    windows = rng.random() < 0.5
    side = tone(GLASS, 1.2) if windows else tone(body, 0.96)
    model.prism(
        rectangle(rear * 0.97, front - 0.55, width * 0.95), 1.2, rectangle(rear * 0.96, front - 1.15, width * 0.9),
        height, [side, tone(GLASS, 1.3), side, tone(GLASS, 1.1)], tone(body, 1.05),
    )  # fmt: skip
    top = height + 0.01
    for position in np.arange(rear + 0.9, front - 1.7, 1.1):
        model.face(_level_quad(float(position), float(position) + 0.22, width * 0.74, top), tone(body, 0.84))
    if not windows:
        for lateral in (-1, 1):
            edge = lateral * width / 2 * 0.985
            quad = [[front - 1.75, edge, 1.15], [front - 0.95, edge, 1.15], [front - 1.2, edge, height * 0.85],
                    [front - 1.75, edge, height * 0.85]]  # fmt: skip
            model.face(quad if lateral < 0 else quad[::-1], GLASS)
    _lights(model, length, width, 0.6, 0.95)
    return model


def pedestrian(rng: np.random.Generator, x: float, y: float, heading: float) -> Model:
    """Somebody standing or walking: legs, torso with shoulders, arms, head."""
    model = Model(x, y, heading, PERSON_SCALE * float(rng.uniform(0.92, 1.06)))
    stride = float(rng.uniform(0.0, 0.3))
    trousers, shirt = pick(rng, TROUSERS), pick(rng, SHIRTS)
    for side in (-1, 1):
        model.stroke([[side * stride, side * 0.1, 0.0], [0.0, side * 0.1, 0.85]], 0.19, trousers, casts=True)
        model.stroke(
            [[0.0, side * 0.27, 1.35], [-side * stride * 0.8, side * 0.33, 0.85]], 0.12, tone(shirt, 0.8)
        )
    model.prism(ellipse(0.15, 0.22), 0.78, ellipse(0.19, 0.31), 1.42, [tone(shirt, 0.92)], shirt)
    model.ball([0.03, 0.0, 1.6], 0.17, pick(rng, HEADS))
    return model


def bicycle(rng: np.random.Generator, x: float, y: float, heading: float) -> Model:
    """A bicycle with its rider."""
    model = Model(x, y, heading, BICYCLE_SCALE * float(rng.uniform(0.95, 1.08)))
    frame, shirt, trousers = pick(rng, FRAMES), pick(rng, SHIRTS), pick(rng, TROUSERS)
    angle = np.linspace(0, 2 * math.pi, 15)
    for centre in (-0.54, 0.54):
        wheel = np.column_stack([centre + 0.35 * np.cos(angle), np.zeros(15), 0.35 + 0.35 * np.sin(angle)])
        model.stroke(wheel.tolist(), 0.09, DARK)
        model.hull(wheel.tolist())
    model.stroke([[-0.54, 0, 0.35], [-0.1, 0, 0.85], [0.42, 0, 0.9], [0.54, 0, 0.35], [0.0, 0, 0.35], [-0.54, 0, 0.35]],
                 0.1, frame)  # fmt: skip
    model.stroke([[0.42, -0.28, 1.0], [0.42, 0.28, 1.0]], 0.09, DARK)
    for side in (-1, 1):
        foot = 0.3 if side > 0 else 0.12
        model.stroke(
            [[-0.12, side * 0.1, 0.95], [0.2, side * 0.12, 0.72], [0.02, side * 0.12, foot]], 0.15, trousers
        )
        model.stroke([[0.08, side * 0.2, 1.38], [0.42, side * 0.24, 1.02]], 0.1, tone(shirt, 0.85))
    model.prism(ellipse(0.15, 0.17, centre_x=-0.14), 0.9, ellipse(0.18, 0.26, centre_x=0.08), 1.45,
                [tone(shirt, 0.92)], shirt)  # fmt: skip
    model.ball([0.16, 0.0, 1.6], 0.155, pick(rng, HEADS))
    return model


def other(rng: np.random.Generator, x: float, y: float, heading: float) -> Model:
    """A vehicle that belongs to no class: a loaded trailer, or an excavator."""
    model = Model(x, y, heading)
    if rng.random() < 0.5:
        bed = rectangle(-2.2, 2.0, 2.0)
        model.prism(bed, 0.5, bed, 0.75, [(60, 66, 72)], (80, 90, 100))
        load = pick(rng, ((60, 110, 150), (120, 140, 90), (90, 90, 180)))
        cargo = rounded(3.2, 1.5, 0.5)
        model.prism(cargo, 0.75, cargo * 0.8, 1.5, [tone(load, 0.8)], load)
        model.stroke([[2.0, 0.0, 0.6], [3.3, 0.0, 0.6]], 0.16, DARK, casts=True)
        return model
    yellow = pick(rng, ((30, 165, 225), (30, 140, 230)))
    for side in (-1, 1):
        track = rectangle(-1.9, 1.9, 0.6) + np.array([0.0, side * 1.1])
        model.prism(track, 0.0, track, 0.8, [DARK], (50, 50, 52))
    model.prism(rounded(3.4, 2.4, 0.4), 0.8, rounded(3.2, 2.3, 0.4), 1.9, [yellow], yellow)
    cab = rectangle(0.1, 1.5, 1.0) + np.array([0.0, 0.6])
    model.prism(cab, 1.9, cab, 2.8, [GLASS], tone(yellow, 0.95))
    model.stroke([[1.2, -0.4, 1.9], [3.0, -0.4, 3.6], [4.6, -0.4, 1.4]], 0.4, tone(yellow, 0.85), casts=True)
    return model


Maker = Callable[[np.random.Generator, float, float, float], Model]

MAKERS: Final[dict[int, Maker]] = {
    PEDESTRIAN: pedestrian,
    BICYCLE: bicycle,
    CAR: car,
    VAN: van,
    OTHERS: other,
}
"""How each category is drawn: ``MAKERS[category](rng, x, y, heading)``."""


def _level_quad(rear: float, front: float, width: float, z: float) -> list[list[float]]:
    return [[x, y, z] for x, y in rectangle(rear, front, width).tolist()]


def _lights(model: Model, length: float, width: float, low: float, high: float) -> None:
    """Two lamps at each end, as faces just outside of the body."""
    for side in (-1, 1):
        inner, outer = sorted((side * width * 0.24, side * width * 0.44))
        front, rear = length * 0.502, -length * 0.502
        model.face(
            [[front, inner, low], [front, outer, low], [front, outer, high], [front, inner, high]], HEAD_LIGHT
        )
        model.face(
            [[rear, outer, low], [rear, inner, low], [rear, inner, high], [rear, outer, high]], TAIL_LIGHT
        )
