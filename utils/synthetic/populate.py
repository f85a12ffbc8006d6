"""Filling a scene: groups of trees, rows of buildings, fields, traffic, people, parked vehicles.

Each function takes a scene and says where something may be; the scene decides whether it fits. All
distances are metres. Which of them make up a street or a park is in ``layouts``.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from utils.synthetic import fixtures, ground
from utils.synthetic.camera import Points
from utils.synthetic.movers import BICYCLE, CAR, PEDESTRIAN, VAN
from utils.synthetic.roads import LANE_M, ParkingLot, Road
from utils.synthetic.scene import Scene
from utils.synthetic.shapes import rectangle

IsClear = Callable[[float, float], bool]


def box(x: float, y: float, heading: float, length: float, width: float) -> Points:
    """Corners [4,2] of a rectangle around (x, y)."""
    sine, cosine = math.sin(heading), math.cos(heading)
    turned = rectangle(-length / 2, length / 2, width) @ np.array([[cosine, sine], [-sine, cosine]])
    placed: Points = turned + np.array([x, y])
    return placed


def anywhere(scene: Scene, share: float = 1.0) -> tuple[float, float]:
    """A random place on the visible ground; ``share`` < 1 keeps it near the middle."""
    half_x, half_y = scene.camera.half_extent_m
    return float(scene.rng.uniform(-1, 1) * half_x * share), float(scene.rng.uniform(-1, 1) * half_y * share)


def reach(scene: Scene) -> float:
    """Half the length of a line that leaves the picture at both ends."""
    half_x, half_y = scene.camera.half_extent_m
    return 1.6 * math.hypot(half_x, half_y)


# Fixtures


def plant(scene: Scene, x: float, y: float, largest: float = 4.0, conifers: float = 0.15) -> None:
    """A tree or bush where the ground is free."""
    radius = float(scene.rng.uniform(1.4, largest))
    if not scene.ground.is_free(box(x, y, 0.0, radius, radius)):
        return
    if radius < 1.9 and scene.rng.random() < 0.6:
        scene.add_fixture(fixtures.bush(scene.rng, x, y, radius * 0.6))
    elif scene.rng.random() < conifers:
        scene.add_fixture(fixtures.conifer(scene.rng, x, y, radius * 0.7, scene.sun.azimuth))
    else:
        scene.add_fixture(fixtures.tree(scene.rng, x, y, radius, scene.sun.azimuth))


def scatter_trees(scene: Scene, groups: int, conifers: float = 0.15) -> None:
    """Trees in loose groups over the whole picture."""
    for _ in range(groups):
        x, y = anywhere(scene, 1.1)
        spread = float(scene.rng.uniform(2, 11))
        for dx, dy in scene.rng.normal(0, spread, (int(scene.rng.integers(1, 7)), 2)):
            plant(scene, x + float(dx), y + float(dy), conifers=conifers)


def line_with_trees(scene: Scene, road: Road, spacing: float, is_clear: IsClear = lambda x, y: True) -> None:
    """Street trees and lamps on both edges of the carriageway, where ``is_clear(x, y)``."""
    for side in (-1, 1):
        start = float(scene.rng.uniform(0, spacing))
        stations = np.arange(-road.track.reach + start, road.track.reach, spacing)
        for index, station in enumerate(road.stations_in_view(scene.ground, stations, 60.0)):
            x, y, heading = road.track.at(station, side * (road.half_width + 1.3))
            if not is_clear(x, y):
                continue
            if index % 3 == 0:
                inward = heading - side * math.pi / 2
                scene.add_fixture(fixtures.lamp(scene.rng, x, y, inward))
            elif scene.rng.random() < 0.75:
                radius = float(scene.rng.uniform(1.3, 2.5))
                scene.add_fixture(fixtures.tree(scene.rng, x, y, radius, scene.sun.azimuth))


def build(scene: Scene, x: float, y: float, heading: float, gabled: bool) -> bool:
    """A building where the ground is free."""
    rng = scene.rng
    if gabled:
        size = (float(rng.uniform(9, 15)), float(rng.uniform(7, 10)), float(rng.uniform(3, 5.5)))
    else:
        size = (float(rng.uniform(13, 30)), float(rng.uniform(10, 18)), float(rng.uniform(4, 12)))
    if not scene.ground.is_free(box(x, y, heading, size[0] + 2, size[1] + 2)):
        return False
    scene.ground.paint(
        box(x, y, heading, size[0] + 2.4, size[1] + 2.4), ground.CONCRETE.tinted(rng), take=True
    )
    maker = fixtures.house if gabled else fixtures.block
    scene.add_fixture(maker(rng, x, y, heading, size))
    return True


def build_along(scene: Scene, road: Road, gabled: bool, share: float) -> None:
    """Buildings along both sides of a road, with gaps."""
    step = 19.0 if gabled else 33.0
    setback = 11.0 if gabled else 14.0
    for side in (-1, 1):
        for station in np.arange(-road.track.reach, road.track.reach, step):
            if scene.rng.random() < share:
                offset = side * (road.half_total + setback + float(scene.rng.uniform(-1, 3)))
                x, y, heading = road.track.at(float(station) + float(scene.rng.uniform(-3, 3)), offset)
                build(
                    scene, x, y, heading + (math.pi / 2 if gabled and scene.rng.random() < 0.4 else 0), gabled
                )


def paint_fields(scene: Scene, heading: float, count: int) -> None:
    """Farm land: rectangles of crops with furrows."""
    rng = scene.rng
    materials = (ground.CROP, ground.STUBBLE, ground.SOIL, ground.MEADOW, ground.GRASS)
    for _ in range(count):
        x, y = anywhere(scene, 1.2)
        length, width = float(rng.uniform(40, 110)), float(rng.uniform(25, 60))
        material = materials[int(rng.integers(len(materials)))].tinted(rng, 10)
        turn = heading + (math.pi / 2 if rng.random() < 0.5 else 0.0)
        scene.ground.paint(box(x, y, turn, length, width), material)
        spacing = float(rng.uniform(1.6, 3.4))
        furrow = material.lighter(0.92)
        for offset in np.arange(-width / 2 + spacing, width / 2, spacing):
            sine, cosine = math.sin(turn), math.cos(turn)
            strip = box(x - float(offset) * sine, y + float(offset) * cosine, turn, length, spacing * 0.45)
            scene.ground.paint(strip, furrow)


def paint_tiles(scene: Scene, x: float, y: float, heading: float, size: tuple[float, float]) -> None:
    """A paved square with joints."""
    paving = ground.PAVING.tinted(scene.rng)
    scene.ground.paint(box(x, y, heading, size[0], size[1]), paving, take=True)
    sine, cosine = math.sin(heading), math.cos(heading)
    for offset in np.arange(-size[0] / 2 + 4, size[0] / 2, 4.0):
        strip = box(x + float(offset) * cosine, y + float(offset) * sine, heading, 0.2, size[1])
        scene.ground.paint(strip, paving.lighter(0.9))
    for offset in np.arange(-size[1] / 2 + 4, size[1] / 2, 4.0):
        strip = box(x - float(offset) * sine, y + float(offset) * cosine, heading, size[0], 0.2)
        scene.ground.paint(strip, paving.lighter(0.9))


# Objects


def on_road(scene: Scene, road: Road) -> float:
    """A random station where the road is in the picture (or anywhere, where it is not)."""
    reach_m = road.track.reach
    seen = road.stations_in_view(scene.ground, np.linspace(-reach_m, reach_m, 80), 0.0)
    if not seen:
        return float(scene.rng.uniform(-1, 1)) * reach_m
    return float(scene.rng.uniform(seen[0] - 2, seen[-1] + 2))


def vehicle(scene: Scene, vans: float = 0.27) -> int:
    """A van with this probability, else a car."""
    return VAN if scene.rng.random() < vans else CAR


def add_traffic(scene: Scene, road: Road, queues: int, longest: int, vans: float = 0.27) -> None:
    """Vehicles in short queues, each in a lane."""
    rng = scene.rng
    for _ in range(queues):
        lane = int(rng.integers(1, road.lanes + 1)) * (1 if rng.random() < 0.5 else -1)
        station = on_road(scene, road)
        for _ in range(int(rng.integers(1, longest + 1))):
            x, y, heading = road.lane_pose(station, lane)
            scene.add_object(vehicle(scene, vans), x, y, heading + float(rng.normal(0, 0.03)))
            station += float(rng.uniform(7.5, 11.0))


def park_at_kerb(scene: Scene, road: Road, runs: int, longest: int) -> None:
    """Rows of vehicles on the shoulders of a road."""
    rng = scene.rng
    for _ in range(runs):
        side = 1 if rng.random() < 0.5 else -1
        station = on_road(scene, road)
        for _ in range(int(rng.integers(2, longest + 1))):
            x, y, heading = road.track.at(station, side * (road.half_width - 1.2))
            heading += (math.pi if side > 0 else 0.0) + float(rng.normal(0, 0.02))
            scene.add_object(vehicle(scene), x, y, heading)
            station += float(rng.uniform(6.0, 7.5))


def add_cyclists(scene: Scene, road: Road, count: int) -> None:
    """Cyclists at the edge of the outermost lane, in loose groups."""
    rng = scene.rng
    station = 0.0
    for index in range(count):
        station = station + float(rng.uniform(4, 7)) if index % 3 else on_road(scene, road)
        lane = 1 if rng.random() < 0.5 else -1
        x, y, heading = road.track.at(station, lane * (road.lanes * LANE_M - 0.5))
        scene.add_object(BICYCLE, x, y, heading + (math.pi if lane > 0 else 0) + float(rng.normal(0, 0.08)))


def add_group(scene: Scene, x: float, y: float, count: int, spread: float) -> None:
    """People who stand or walk together."""
    for dx, dy in scene.rng.normal(0, spread, (count, 2)):
        heading = float(scene.rng.uniform(0, 2 * math.pi))
        scene.add_object(PEDESTRIAN, x + float(dx), y + float(dy), heading, crowded=0.25)


def add_walkers(scene: Scene, road: Road, offset: float, groups: int, largest: int = 4) -> None:
    """People on a pavement or path, at about this offset from the centre line on either side."""
    rng = scene.rng
    for _ in range(groups):
        station = on_road(scene, road)
        side = 1 if rng.random() < 0.5 else -1
        for _ in range(int(rng.integers(1, largest + 1))):
            lateral = side * offset + float(rng.normal(0, 0.7))
            x, y, heading = road.track.at(station + float(rng.normal(0, 3.0)), lateral)
            scene.add_object(PEDESTRIAN, x, y, heading + (math.pi if rng.random() < 0.5 else 0), crowded=0.25)


def park_vehicles(scene: Scene, lot: ParkingLot, share: float) -> None:
    """Parked vehicles; neighbouring bays tend to be taken, or free, together."""
    rng = scene.rng
    taken = share
    for x, y, heading in lot.bay_poses():
        taken = float(np.clip(taken + rng.normal(0, 0.25), share - 0.3, share + 0.25))
        if rng.random() < taken:
            scene.add_object(vehicle(scene, 0.2), x, y, heading + float(rng.normal(0, 0.03)))


def add_far_crowd(scene: Scene) -> None:
    """An ignored region in the upper part of the picture: a blurred car park or a crowd."""
    rng = scene.rng
    half_x, half_y = scene.camera.half_extent_m
    x, y = float(rng.uniform(-0.75, 0.75)) * half_x, float(rng.uniform(0.7, 0.95)) * half_y
    poses: list[tuple[int, float, float, float]] = []
    if rng.random() < 0.5:
        lot = ParkingLot(x, y, float(rng.normal(0, 0.12)), int(rng.integers(7, 13)), 1)
        corners = lot.corners()
        if not scene.ground.is_free(corners):
            return
        lot.paint(scene.ground, ground.ASPHALT.tinted(rng))
        poses = [(vehicle(scene), *pose) for pose in lot.bay_poses() if rng.random() < 0.85]
    else:
        corners = box(x, y, 0.0, float(rng.uniform(18, 30)), 11.0)
        if not scene.ground.is_free(corners):
            return
        scene.ground.paint(corners, ground.PAVING.tinted(rng), take=True)
        low, high = corners.min(axis=0) + 1, corners.max(axis=0) - 1
        for px, py in rng.uniform(low, high, (int(rng.integers(35, 60)), 2)):
            poses.append((PEDESTRIAN, float(px), float(py), float(rng.uniform(0, 6.28))))
    scene.ground.take(corners)
    scene.add_ignored_region(corners, poses)
