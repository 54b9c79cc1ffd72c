"""Fronts of points of which every coordinate is to be small."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]


def non_dominated(points: Points) -> NDArray[np.bool_]:
    """Which of the points (N, M) no other point dominates.

    A point dominates another one if it is nowhere larger and somewhere smaller; equal points
    do not dominate each other. A point with an infinite or missing coordinate (a failed
    candidate) is never part of a front. Without points, of whatever shape, the mask is empty.
    """
    if not len(points):
        return np.zeros(0, dtype=np.bool_)
    front = np.asarray(np.isfinite(points).all(axis=1))
    for index in np.flatnonzero(front):
        rivals = points[front]
        no_larger = (rivals <= points[index]).all(axis=1)
        front[index] = not (no_larger & (rivals < points[index]).any(axis=1)).any()
    return front


def hypervolume(points: Points, reference: Points) -> float:
    """The volume between the points (N, M) and a reference point (M,) that is worse than them.

    Points that are not smaller than the reference everywhere add nothing.
    """
    from pymoo.indicators.hv import HV

    inside = points[(points < reference).all(axis=1)]
    if not len(inside):
        return 0.0
    return float(HV(ref_point=reference)(inside))


def knee(points: Points) -> int:
    """Index of the knee of the front of the points (N, M): the best balanced of them.

    It lies deepest below the plane through the front's ends, every coordinate being scaled to
    the range of the front (Das 1999, "On characterizing the knee of the Pareto curve").

    Raises:
        ValueError: No point is finite.
    """
    front = np.flatnonzero(non_dominated(points))
    if not front.size:
        raise ValueError("a front needs at least one finite point")
    low, high = points[front].min(axis=0), points[front].max(axis=0)
    scaled = (points[front] - low) / np.where(high > low, high - low, 1.0)
    return int(front[np.argmin(scaled.sum(axis=1))])
