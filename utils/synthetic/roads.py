"""Roads, paths and parking bays: where they run, how they are painted, and where a vehicle on them is."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from utils.synthetic.camera import Points
from utils.synthetic.ground import ASPHALT, CONCRETE, PAINT, Ground, Material

LANE_M = 3.3
KERB_M = 0.35


@dataclass(frozen=True)
class Track:
    """A smooth centre line; positions along it are metres from its middle, offsets are to its left."""

    points: Points
    """[N,2] m."""
    headings: Points
    """[N] radians."""
    stations: Points
    """[N] metres along the line, increasing, 0 in the middle."""

    @classmethod
    def through(cls, x: float, y: float, heading: float, reach: float, bend: float = 0.0) -> Track:
        """A line through (x, y) that runs ``reach`` m both ways and turns by ``bend`` radians in each half."""
        stations = np.linspace(-reach, reach, 61)
        headings = heading + bend * stations / reach
        step = stations[1] - stations[0]
        directions = np.column_stack([np.cos(headings), np.sin(headings)])
        points = np.cumsum((directions[:-1] + directions[1:]) / 2 * step, axis=0)
        points = np.concatenate([np.zeros((1, 2)), points])
        return cls(points - points[30] + np.array([x, y]), headings, stations)

    @property
    def reach(self) -> float:
        """Metres from the middle to either end."""
        return float(self.stations[-1])

    def at(self, station: float, offset: float = 0.0) -> tuple[float, float, float]:
        """(x, y, heading) at a position; beyond the ends it stays at the end."""
        x, y, heading = (
            float(np.interp(station, self.stations, values))
            for values in (self.points[:, 0], self.points[:, 1], self.headings)
        )
        return x - offset * math.sin(heading), y + offset * math.cos(heading), heading

    def line(self, stations: Points, offset: float) -> Points:
        """The points [N,2] m at stations [N] and one offset."""
        x, y, heading = (
            np.interp(stations, self.stations, values)
            for values in (self.points[:, 0], self.points[:, 1], self.headings)
        )
        return np.column_stack([x - offset * np.sin(heading), y + offset * np.cos(heading)])

    def ribbon(self, right: float, left: float, start: float, end: float) -> Points:
        """The polygon [N,2] m between two offsets (right < left) and two stations."""
        stations = np.linspace(start, end, max(2, math.ceil((end - start) / 6) + 1))
        return np.concatenate([self.line(stations, right), self.line(stations, left)[::-1]])

    def whole(self, right: float, left: float) -> Points:
        """The ribbon from end to end."""
        return self.ribbon(right, left, -self.reach, self.reach)


@dataclass(frozen=True)
class Road:
    """A road with ``lanes`` in each direction; traffic keeps to the right."""

    track: Track
    lanes: int
    pavement_m: float = 0.0
    """Width of the pavement on each side."""
    shoulder_m: float = 0.0
    """Width of the parking strip between the outermost lane and the kerb, on each side."""

    @property
    def half_width(self) -> float:
        """From the centre line to the kerb."""
        return self.lanes * LANE_M + 0.4 + self.shoulder_m

    @property
    def half_total(self) -> float:
        """From the centre line to the outer edge of the pavement."""
        return self.half_width + self.pavement_m

    def lane_pose(self, station: float, lane: int) -> tuple[float, float, float]:
        """(x, y, heading) in a lane: −1, −2, … run with the track on its right, 1, 2, … against it."""
        offset = (abs(lane) - 0.5) * LANE_M * (1 if lane > 0 else -1)
        x, y, heading = self.track.at(station, offset)
        return x, y, heading + (math.pi if lane > 0 else 0.0)

    def stations_in_view(self, ground: Ground, stations: Points, margin_px: float) -> list[float]:
        """Those of the stations [N] where the road lies in the picture or within a margin around it."""
        sides = [self.track.line(stations, offset) for offset in (-self.half_total, 0.0, self.half_total)]
        seen = np.any([ground.sees(side, margin_px) for side in sides], axis=0)
        return [float(station) for station in stations[seen]]

    def paint_surface(
        self, ground: Ground, asphalt: Material = ASPHALT, pavement: Material = CONCRETE
    ) -> None:
        """Pavement, kerb, carriageway and the tracks that wheels leave."""
        track, half = self.track, self.half_width
        if self.pavement_m > 0:
            ground.paint(track.whole(-self.half_total, self.half_total), pavement, take=True)
            ground.paint(track.whole(-half - KERB_M, half + KERB_M), pavement.lighter(1.2))
        ground.paint(track.whole(-half, half), asphalt, take=True)
        for lane in range(-self.lanes, self.lanes):
            for wheel in (0.9, 2.4):
                offset = lane * LANE_M + wheel
                ground.paint(track.whole(offset - 0.3, offset + 0.3), asphalt.lighter(0.955))

    def paint_markings(
        self, ground: Ground, is_clear: Callable[[float, float], bool] = lambda x, y: True
    ) -> None:
        """Edge lines, centre line and lane dashes, where ``is_clear(x, y)``."""
        reach = self.track.reach
        edge = self.lanes * LANE_M + 0.05
        solid = [edge, -edge]
        solid += [-0.2, 0.2] if self.lanes > 1 else []
        dashed = [side * LANE_M * lane for lane in range(1, self.lanes) for side in (-1, 1)]
        dashed += [0.0] if self.lanes == 1 else []
        for offsets, length, step in ((solid, 3.0, 3.0), (dashed, 3.0, 8.0)):
            for station in self.stations_in_view(ground, np.arange(-reach, reach - 3, step), 40.0):
                x, y, _ = self.track.at(station + length / 2)
                if is_clear(x, y):
                    for offset in offsets:
                        ground.paint(
                            self.track.ribbon(offset - 0.1, offset + 0.1, station, station + length), PAINT
                        )

    def paint_crossing(self, ground: Ground, station: float) -> None:
        """A zebra crossing of 3.5 m at a station."""
        for offset in np.arange(-self.half_width + 0.5, self.half_width - 0.8, 1.1):
            ground.paint(self.track.ribbon(float(offset), float(offset) + 0.6, station, station + 3.5), PAINT)

    def paint_stop_line(self, ground: Ground, station: float, lane_side: int) -> None:
        """A stop line across one direction (−1: right half, 1: left half)."""
        right, left = sorted((lane_side * 0.4, lane_side * (self.half_width - 0.4)))
        ground.paint(self.track.ribbon(right, left, station, station + 0.5), PAINT)


@dataclass(frozen=True)
class ParkingLot:
    """Rows of bays along an axis through (x, y)."""

    x: float
    y: float
    heading: float
    bays: int
    rows: int
    """Double rows: two bays nose to nose, with an aisle between double rows."""

    BAY_WIDTH = 2.7
    BAY_DEPTH = 5.2
    AISLE = 6.0

    @property
    def size(self) -> tuple[float, float]:
        """Length along the heading and depth across it, in m, with a margin."""
        return self.bays * self.BAY_WIDTH + 6.0, self.rows * (2 * self.BAY_DEPTH + self.AISLE) + 6.0

    def corners(self, margin: float = 0.0) -> Points:
        """The lot's outline [4,2] m."""
        length, depth = (value / 2 + margin for value in self.size)
        return self._world(np.array([[-length, -depth], [length, -depth], [length, depth], [-length, depth]]))

    def bay_poses(self) -> list[tuple[float, float, float]]:
        """(x, y, heading) of every bay, noses towards the middle of the double row."""
        poses = []
        for row, centre in enumerate(self._row_centres()):
            for bay in range(self.bays):
                along = (bay + 0.5 - self.bays / 2) * self.BAY_WIDTH
                for side in (-1, 1):
                    place = self._world(np.array([[along, centre + side * self.BAY_DEPTH / 2]]))[0]
                    turn = -side if (bay + row) % 4 else side
                    poses.append((float(place[0]), float(place[1]), self.heading + turn * math.pi / 2))
        return poses

    def paint(self, ground: Ground, asphalt: Material) -> None:
        """Kerb, surface and the lines between the bays."""
        ground.paint(self.corners(0.5), CONCRETE, take=True)
        ground.paint(self.corners(), asphalt, take=True)
        half = self.bays * self.BAY_WIDTH / 2
        for centre in self._row_centres():
            self._line(ground, -half, half, centre - 0.09, centre + 0.09)
            for bay in range(self.bays + 1):
                along = bay * self.BAY_WIDTH - half
                self._line(
                    ground, along - 0.09, along + 0.09, centre - self.BAY_DEPTH, centre + self.BAY_DEPTH
                )

    def _row_centres(self) -> list[float]:
        pitch = 2 * self.BAY_DEPTH + self.AISLE
        return [(row + 0.5 - self.rows / 2) * pitch for row in range(self.rows)]

    def _line(self, ground: Ground, left: float, right: float, low: float, high: float) -> None:
        ground.paint(self._world(np.array([[left, low], [right, low], [right, high], [left, high]])), PAINT)

    def _world(self, local: Points) -> Points:
        sine, cosine = math.sin(self.heading), math.cos(self.heading)
        turned: Points = local @ np.array([[cosine, sine], [-sine, cosine]]) + np.array([self.x, self.y])
        return turned
