"""Drawn aerial pictures with exact boxes: the sample data, free of anybody's licence.

``draw_picture`` is all that the rest of the project needs.
"""

from __future__ import annotations

import numpy as np

from utils.synthetic import ground
from utils.synthetic.layouts import CYCLE, WITH_FAR_CROWD
from utils.synthetic.populate import add_far_crowd
from utils.synthetic.scene import Annotation, Picture, Scene, random_camera, random_light

__all__ = ["VERSION", "Annotation", "Picture", "draw_picture"]

VERSION = 1
"""Goes up whenever the same seed draws something else than before."""

BASES = (ground.GRASS, ground.GRASS, ground.MEADOW, ground.SOIL)


def draw_picture(width: int, height: int, seed: int, split: int, index: int) -> Picture:
    """Draw one picture; the same arguments give the same bytes, whatever else was drawn before.

    ``width`` and ``height`` in pixels, ≥ 64. ``split`` and ``index`` (≥ 0) name the picture within the
    data set; every twelfth (index 3, 15, …) has no annotation at all.
    """
    if min(width, height) < 64:
        raise ValueError(f"a picture of {width}×{height} px is too small to draw: use at least 64×64")
    rng = np.random.default_rng([seed, split, index])
    camera = random_camera(rng, width, height)
    sun, look = random_light(rng)
    base = BASES[int(rng.integers(len(BASES)))].tinted(rng)
    scene = Scene(rng, camera, sun, look, base)
    place = index % len(CYCLE)
    CYCLE[place](scene)
    if place in WITH_FAR_CROWD:
        add_far_crowd(scene)
    return scene.finish()
