"""What a street, a car park, a square, a village or a field consists of.

A layout paints the ground of a scene first, then puts up fixtures, then adds the objects; all
distances are metres.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import numpy as np

from utils.synthetic import fixtures, ground
from utils.synthetic.movers import BICYCLE, CAR, OTHERS, VAN
from utils.synthetic.populate import (
    add_cyclists,
    add_group,
    add_traffic,
    add_walkers,
    anywhere,
    box,
    build,
    build_along,
    line_with_trees,
    on_road,
    paint_fields,
    paint_tiles,
    park_at_kerb,
    park_vehicles,
    reach,
    scatter_trees,
    vehicle,
)
from utils.synthetic.roads import ParkingLot, Road, Track
from utils.synthetic.scene import Scene
from utils.synthetic.shapes import ellipse

Layout = Callable[[Scene], None]


def crossing(scene: Scene) -> None:
    """Two streets that cross, with zebra crossings, queues and people."""
    rng = scene.rng
    x, y = anywhere(scene, 0.45)
    heading = float(rng.uniform(0, math.pi))
    main = Road(Track.through(x, y, heading, reach(scene)), int(rng.integers(1, 3)), 3.5)
    side = Road(Track.through(x, y, heading + math.pi / 2 + float(rng.normal(0, 0.12)), reach(scene)), 1, 3.0)
    asphalt = ground.ASPHALT.tinted(rng)
    for road in (side, main):
        road.paint_surface(scene.ground, asphalt, ground.PAVING.tinted(rng))
    scene.ground.paint(
        main.track.ribbon(-main.half_width, main.half_width, -side.half_width, side.half_width), asphalt
    )
    scene.ground.paint(
        side.track.ribbon(-side.half_width, side.half_width, -main.half_total, main.half_total), asphalt
    )
    clear = main.half_total + side.half_total + 1

    def is_clear(px: float, py: float) -> bool:
        return math.hypot(px - x, py - y) > clear

    for road, across in ((main, side), (side, main)):
        road.paint_markings(scene.ground, is_clear)
        near = across.half_total + 0.6
        for end, lane_side in ((near, 1), (-near - 3.5, -1)):
            road.paint_crossing(scene.ground, end)
            road.paint_stop_line(scene.ground, end + (4.6 if end > 0 else -1.6), lane_side)
    for road in (main, side):
        build_along(scene, road, gabled=False, share=0.75)
        line_with_trees(scene, road, float(rng.uniform(11, 17)), is_clear)
    scatter_trees(scene, 14)
    _queue_at(scene, main, side.half_total + 8, int(rng.integers(2, 6)))
    _queue_at(scene, side, main.half_total + 8, int(rng.integers(0, 4)))
    add_traffic(scene, main, int(rng.integers(2, 6)), 3)
    add_traffic(scene, side, int(rng.integers(0, 3)), 2)
    for road, across in ((main, side), (side, main)):
        for end in (across.half_total + 2.3, -across.half_total - 2.3):
            px, py, _ = road.track.at(end, float(rng.uniform(-1, 1)) * road.half_width)
            add_group(scene, px, py, int(rng.integers(0, 7)), 1.9)
    add_walkers(scene, main, main.half_width + 2, int(rng.integers(2, 6)))
    add_walkers(scene, side, side.half_width + 2, int(rng.integers(0, 4)))
    add_cyclists(scene, main, int(rng.integers(4, 10)))


def _queue_at(scene: Scene, road: Road, stop: float, count: int) -> None:
    """Vehicles that wait on both sides of a junction."""
    for lane in [lane for lane in range(-road.lanes, road.lanes + 1) if lane]:
        station = stop
        for _ in range(count):
            x, y, heading = road.lane_pose(station if lane > 0 else -station, lane)
            scene.add_object(vehicle(scene), x, y, heading)
            station += float(scene.rng.uniform(6.6, 8.2))


def street(scene: Scene) -> None:
    """One wide, slightly curved street with houses along it; vehicles in a few queues."""
    rng = scene.rng
    x, y = anywhere(scene, 0.4)
    track = Track.through(x, y, float(rng.uniform(-0.6, 0.6)), reach(scene), float(rng.uniform(-0.5, 0.5)))
    road = Road(track, int(rng.integers(1, 3)), 3.2, shoulder_m=2.5)
    road.paint_surface(scene.ground, ground.ASPHALT.tinted(rng), ground.PAVING.tinted(rng))
    road.paint_markings(scene.ground)
    zebra = float(rng.uniform(-0.3, 0.3)) * track.reach
    road.paint_crossing(scene.ground, zebra)
    build_along(scene, road, gabled=bool(rng.random() < 0.4), share=0.65)
    line_with_trees(scene, road, float(rng.uniform(10, 18)))
    scatter_trees(scene, 22)
    add_traffic(scene, road, int(rng.integers(4, 9)), 4)
    park_at_kerb(scene, road, int(rng.integers(2, 6)), 6)
    add_cyclists(scene, road, int(rng.integers(4, 10)))
    px, py, _ = track.at(zebra + 1.7)
    add_group(scene, px, py, int(rng.integers(1, 7)), 2.0)
    add_walkers(scene, road, road.half_width + 1.8, int(rng.integers(4, 9)))


def car_park(scene: Scene) -> None:
    """A full car park beside a building, the rest green."""
    rng = scene.rng
    x, y = anywhere(scene, 0.6)
    heading = float(rng.choice([0.0, math.pi / 2])) + float(rng.uniform(-0.5, 0.5))
    lot = ParkingLot(x, y, heading, int(rng.integers(10, 19)), int(rng.integers(1, 4)))
    depth = lot.size[1] / 2 + 9.0
    lane = Track.through(x - depth * math.sin(heading), y + depth * math.cos(heading), heading, reach(scene))
    road = Road(lane, 1, 2.4, shoulder_m=2.4)
    asphalt = ground.ASPHALT.tinted(rng)
    road.paint_surface(scene.ground, asphalt)
    road.paint_markings(scene.ground)
    lot.paint(scene.ground, asphalt.lighter(1.06))
    away = lot.size[1] / 2 + 14
    build(scene, x + away * math.sin(heading), y - away * math.cos(heading), heading, gabled=False)
    for _ in range(3):
        px, py = anywhere(scene)
        build(scene, px, py, heading, gabled=False)
    scatter_trees(scene, 26)
    park_vehicles(scene, lot, float(rng.uniform(0.5, 0.8)))
    add_traffic(scene, road, int(rng.integers(2, 6)), 2)
    park_at_kerb(scene, road, int(rng.integers(1, 4)), 4)
    for px, py, _ in rng.permutation(np.array(lot.bay_poses()))[:4]:
        add_group(scene, float(px), float(py), int(rng.integers(1, 4)), 2.5)
    add_walkers(scene, road, road.half_width + 1.2, int(rng.integers(1, 5)), 3)
    add_cyclists(scene, road, int(rng.integers(2, 8)))


def square(scene: Scene) -> None:
    """A paved square with groups of people, stalls, benches and parked bicycles."""
    rng = scene.rng
    x, y = anywhere(scene, 0.35)
    heading = float(rng.uniform(-0.6, 0.6))
    size = (float(rng.uniform(60, 95)), float(rng.uniform(36, 54)))
    path = Road(Track.through(x, y, heading + math.pi / 2, reach(scene)), 1)
    scene.ground.paint(path.track.whole(-2.6, 2.6), ground.GRAVEL.tinted(rng), take=True)
    away = size[1] / 2 + 9
    border = Track.through(x - away * math.sin(heading), y + away * math.cos(heading), heading, reach(scene))
    road = Road(border, 1, 2.4, shoulder_m=2.4)
    road.paint_surface(scene.ground, ground.ASPHALT.tinted(rng))
    road.paint_markings(scene.ground)
    paint_tiles(scene, x, y, heading, size)
    basin = ellipse(5.0, 5.0, 24) + np.array([x, y])
    scene.ground.paint(basin, ground.CONCRETE.lighter(1.15))
    scene.bar(basin)
    scene.ground.paint((basin - [x, y]) * 0.86 + [x, y], ground.WATER.tinted(rng))
    for _ in range(7):
        px, py = anywhere(scene)
        build(scene, px, py, heading, gabled=False)
    scatter_trees(scene, 26)
    corners = box(x, y, heading, *size)
    for share_x, share_y in rng.uniform(0.05, 0.95, (7, 2)):
        px, py = corners[0] + (corners[1] - corners[0]) * share_x + (corners[3] - corners[0]) * share_y
        maker = fixtures.bench if rng.random() < 0.6 else fixtures.canopy
        if math.hypot(px - x, py - y) > 8:
            scene.add_fixture(maker(rng, float(px), float(py), float(rng.uniform(0, 3))))
    for share_x, share_y in rng.uniform(0.06, 0.94, (int(rng.integers(6, 12)), 2)):
        px, py = corners[0] + (corners[1] - corners[0]) * share_x + (corners[3] - corners[0]) * share_y
        add_group(scene, float(px), float(py), int(rng.integers(1, 9)), float(rng.uniform(1.5, 3.5)))
    for share_x, share_y in rng.uniform(0.05, 0.95, (int(rng.integers(6, 13)), 2)):
        px, py = corners[0] + (corners[1] - corners[0]) * share_x + (corners[3] - corners[0]) * share_y
        scene.add_object(BICYCLE, float(px), float(py), float(rng.uniform(0, 6.28)))
    add_walkers(scene, path, 0.5, int(rng.integers(1, 5)), 3)
    add_traffic(scene, road, int(rng.integers(1, 4)), 2)
    park_at_kerb(scene, road, int(rng.integers(1, 4)), 4)


def village(scene: Scene) -> None:
    """Houses with gardens along a narrow road; a car here and there."""
    rng = scene.rng
    x, y = anywhere(scene, 0.4)
    track = Track.through(x, y, float(rng.uniform(0, math.pi)), reach(scene), float(rng.uniform(-0.7, 0.7)))
    road = Road(track, 1, 1.6)
    road.paint_surface(scene.ground, ground.ASPHALT.tinted(rng), ground.CONCRETE.tinted(rng))
    road.paint_markings(scene.ground)
    drives = []
    for station in rng.uniform(-0.5, 0.5, int(rng.integers(8, 15))) * track.reach:
        side = 1 if rng.random() < 0.5 else -1
        right, left = sorted((side * road.half_width, side * (road.half_total + 9)))
        scene.ground.paint(
            track.ribbon(right, left, float(station), float(station) + 4), ground.GRAVEL, take=True
        )
        drives.append(track.at(float(station) + 2, side * (road.half_total + 5)))
    build_along(scene, road, gabled=True, share=0.8)
    for _ in range(12):
        px, py = anywhere(scene)
        build(scene, px, py, float(rng.uniform(0, math.pi)), gabled=True)
    if rng.random() < 0.5:
        px, py = anywhere(scene)
        pool = ellipse(4.2, 2.4, 20) + np.array([px, py])
        if scene.ground.is_free(box(px, py, 0, 10, 7)):
            scene.ground.paint((pool - [px, py]) * 1.2 + [px, py], ground.CONCRETE, take=True)
            scene.ground.paint(pool, ground.POOL)
    scatter_trees(scene, 40)
    for px, py, heading in drives:
        if rng.random() < 0.8:
            turn = math.pi / 2 * (1 if rng.random() < 0.5 else -1)
            scene.add_object(VAN if rng.random() < 0.3 else CAR, px, py, heading + turn)
        add_group(scene, px + 2.5, py, int(rng.integers(0, 3)), 2.0)
    add_traffic(scene, road, int(rng.integers(2, 6)), 2)
    add_walkers(scene, road, road.half_width + 0.9, int(rng.integers(2, 6)), 2)
    add_cyclists(scene, road, int(rng.integers(3, 8)))


def countryside(scene: Scene) -> None:
    """Fields and one road with hardly anything on it."""
    rng = scene.rng
    heading = float(rng.uniform(-0.8, 0.8))
    paint_fields(scene, heading, int(rng.integers(9, 15)))
    x, y = anywhere(scene, 0.6)
    road = Road(Track.through(x, y, heading, reach(scene), float(rng.uniform(-0.3, 0.3))), 1)
    road.paint_surface(scene.ground, ground.ASPHALT.tinted(rng))
    road.paint_markings(scene.ground)
    px, py = anywhere(scene, 0.8)
    for _ in range(3):
        build(
            scene,
            px + float(rng.normal(0, 14)),
            py + float(rng.normal(0, 14)),
            heading,
            bool(rng.random() < 0.6),
        )
    scatter_trees(scene, 9)
    add_traffic(scene, road, int(rng.integers(2, 5)), 2, vans=0.4)
    add_cyclists(scene, road, int(rng.integers(1, 7)))
    if rng.random() < 0.6:
        scene.add_object(OTHERS, px + float(rng.normal(0, 12)), py - 12, float(rng.uniform(0, 6.28)))


def park(scene: Scene) -> None:
    """Lawns, a pond and winding paths with people and cyclists."""
    rng = scene.rng
    tracks = []
    px, py = anywhere(scene, 0.6)
    shore = ellipse(float(rng.uniform(14, 24)), float(rng.uniform(9, 15)), 26)
    pond = shore * rng.uniform(0.88, 1.12, (26, 1)) + np.array([px, py])
    scene.ground.paint((pond - [px, py]) * 1.08 + [px, py], ground.SOIL, take=True)
    scene.ground.paint(pond, ground.WATER.tinted(rng))
    scene.bar(pond)
    for turn in (0.0, 1.2):
        x, y = anywhere(scene, 0.5)
        heading = turn + float(rng.uniform(-0.5, 0.5))
        track = Track.through(x, y, heading, reach(scene), float(rng.uniform(-0.9, 0.9)))
        scene.ground.paint(track.whole(-2.2, 2.2), ground.GRAVEL.tinted(rng), take=True)
        tracks.append(track)
    scatter_trees(scene, 50, conifers=0.25)
    for track in tracks:
        path = Road(track, 0)
        for station in np.arange(-track.reach / 2, track.reach / 2, 22.0):
            x, y, heading = track.at(float(station), 3.0)
            scene.add_fixture(fixtures.bench(rng, x, y, heading))
        add_walkers(scene, path, 0.8, int(rng.integers(4, 9)), 4)
        for _ in range(int(rng.integers(4, 9))):
            x, y, heading = track.at(on_road(scene, path), float(rng.normal(0, 0.8)))
            scene.add_object(BICYCLE, x, y, heading + (math.pi if rng.random() < 0.5 else 0))
    for _ in range(3):
        x, y = anywhere(scene, 0.8)
        add_group(scene, x, y, int(rng.integers(2, 8)), 3.0)


def industry(scene: Scene) -> None:
    """Halls and yards; a few vans, a digger or a trailer."""
    rng = scene.rng
    heading = float(rng.uniform(-0.5, 0.5))
    x, y = anywhere(scene, 0.3)
    road = Road(Track.through(x, y, heading, reach(scene)), 1, 1.8, shoulder_m=2.6)
    road.paint_surface(scene.ground, ground.ASPHALT.tinted(rng))
    road.paint_markings(scene.ground)
    yard_x, yard_y, _ = road.track.at(float(rng.uniform(-0.2, 0.2)) * road.track.reach, road.half_total + 13)
    scene.ground.paint(box(yard_x, yard_y, heading, 48, 24), ground.CONCRETE.tinted(rng), take=True)
    build_along(scene, road, gabled=False, share=0.9)
    for _ in range(10):
        px, py = anywhere(scene)
        build(scene, px, py, heading, gabled=False)
    scatter_trees(scene, 16)
    for along in np.arange(-21, 22, 7.0):
        if rng.random() < 0.6:
            px = yard_x + float(along) * math.cos(heading) + float(rng.normal(0, 0.8))
            py = yard_y + float(along) * math.sin(heading) + float(rng.normal(0, 3))
            category = int(rng.choice([VAN, CAR, OTHERS], p=[0.55, 0.25, 0.2]))
            scene.add_object(category, px, py, heading + math.pi / 2 * int(rng.integers(4)))
    add_group(scene, yard_x, yard_y, int(rng.integers(1, 6)), 5.0)
    add_traffic(scene, road, int(rng.integers(3, 7)), 3, vans=0.45)
    park_at_kerb(scene, road, int(rng.integers(1, 4)), 5)
    add_walkers(scene, road, road.half_width + 1, int(rng.integers(1, 4)), 2)


def nothing(scene: Scene) -> None:
    """No object at all: fields, a wood, or water with an empty road."""
    rng = scene.rng
    kind = int(rng.integers(3))
    heading = float(rng.uniform(-0.8, 0.8))
    if kind == 0:
        paint_fields(scene, heading, 14)
    x, y = anywhere(scene, 0.5)
    if kind == 2:
        river = Track.through(x, y, heading, reach(scene), float(rng.uniform(-0.8, 0.8)))
        scene.ground.paint(river.whole(-17, 17), ground.SOIL.tinted(rng), take=True)
        scene.ground.paint(river.whole(-14, 14), ground.WATER.tinted(rng))
        x, y, _ = river.at(0.0, 34.0)
    road = Road(Track.through(x, y, heading, reach(scene), 0.2), 1)
    road.paint_surface(scene.ground, ground.ASPHALT.tinted(rng))
    road.paint_markings(scene.ground)
    for _ in range(3):
        px, py = anywhere(scene)
        build(scene, px, py, heading, gabled=bool(rng.random() < 0.7))
    scatter_trees(scene, (8, 120, 45)[kind], conifers=0.4)


CYCLE: Final[tuple[Layout, ...]] = (
    crossing, car_park, village, nothing, square, countryside, street, park, car_park, industry, street, square,
)  # fmt: skip
"""The layouts in the order of the images of a split: one in twelve has no object."""

WITH_FAR_CROWD: Final = frozenset({1, 2, 5, 6, 9})
"""Positions in ``CYCLE`` where an ignored region is tried."""
