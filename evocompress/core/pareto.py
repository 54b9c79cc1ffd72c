"""Fronts of points whose coordinates are all to be small."""

from __future__ import annotations

import numpy as np

from evocompress.core.arrays import Booleans, Floats, Integers

Points = Floats


def non_dominated(points: Points) -> Booleans:
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


def layers(points: Points) -> Integers:
    """For each of the points (N, M) how many fronts must be taken away before it is on one.

    So the front is layer 0 (Deb et al. 2002, non-dominated sorting). A point with an infinite
    or missing coordinate has layer -1.
    """
    found = np.full(len(points), -1, dtype=np.int64)
    left = np.flatnonzero(np.isfinite(points).all(axis=1))
    number = 0
    while left.size:
        front = non_dominated(points[left])
        found[left[front]] = number
        left, number = left[~front], number + 1
    return found


def spread(points: Points, count: int) -> Integers:
    """Indices of up to `count` of the points (N, M): layer after layer, as evenly as possible.

    Of the layer that does not fit as a whole those points are taken that lie, one after the
    other, farthest from what is taken already; of the front its ends first. Distances are
    Euclidean, every coordinate being scaled to the range of the finite points. Points with an
    infinite or missing coordinate are never taken.
    """
    order = layers(points)
    taken: list[int] = []
    for number in range(int(order.max(initial=-1)) + 1):
        layer = np.flatnonzero(order == number)
        if len(taken) + len(layer) > count:
            taken = _evenly(_scaled(points, order >= 0), layer, taken, count)
            break
        taken.extend(layer.tolist())
    return np.array(sorted(taken), dtype=np.int64)


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
    scaled = _scaled(points[front], np.ones(front.size, dtype=np.bool_))
    return int(front[np.argmin(scaled.sum(axis=1))])


def _scaled(points: Points, counted: Booleans) -> Points:
    """The points (N, M) with the range of the counted ones as 0 to 1 in every coordinate."""
    low, high = points[counted].min(axis=0), points[counted].max(axis=0)
    scaled: Points = (points - low) / np.where(high > low, high - low, 1.0)
    return scaled


def _evenly(points: Points, layer: Integers, taken: list[int], count: int) -> list[int]:
    """The taken points and as many of the layer as make `count`, each far from those before."""
    ends = dict.fromkeys(layer[points[layer].argmin(axis=0)].tolist())
    chosen = taken or list(ends)[:count]
    while len(chosen) < count:
        free = layer[~np.isin(layer, chosen)]
        distances = np.linalg.norm(points[free][:, None] - points[chosen][None], axis=2)
        chosen = [*chosen, int(free[np.argmax(distances.min(axis=1))])]
    return chosen
