"""Distances on the globe, and the boxes of degrees that a circle fits in."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

EARTH_RADIUS_KM = 6371.0088  # mean radius, IUGG

Doubles = npt.NDArray[np.float64]


def distance_km(lat: float, lon: float, lats: Doubles, lons: Doubles) -> Doubles:
    """Great-circle distances by the haversine formula, float64 [n]. Degrees in, kilometres out."""
    north, norths = np.radians(lat), np.radians(lats)
    half_north = np.sin((norths - north) / 2) ** 2
    half_east = np.sin(np.radians(lons - lon) / 2) ** 2
    root = np.sqrt(half_north + np.cos(north) * np.cos(norths) * half_east)
    out: Doubles = 2 * EARTH_RADIUS_KM * np.arcsin(np.minimum(root, 1.0))
    return out


def reach(lat: float, km: float) -> tuple[float, float]:
    """Degrees north and east within which every point of a circle lies; the margin outweighs rounding.

    East: 180 when the circle holds a pole, else asin(sin(km / R) / cos(lat)), at the parallel where it is widest.
    """
    angle = km / EARTH_RADIUS_KM
    north = math.degrees(angle) * (1 + 1e-9) + 1e-6
    if abs(lat) + north >= 90:
        return north, 180.0
    return north, math.degrees(math.asin(min(1.0, math.sin(angle) / math.cos(math.radians(lat))))) * (1 + 1e-6) + 1e-6
