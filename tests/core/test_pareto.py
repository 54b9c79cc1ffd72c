import numpy as np
import pytest

from evocompress.core.pareto import hypervolume, knee, layers, non_dominated, spread


def dominated_by_any(points, index):
    return any(
        all(a <= b for a, b in zip(other, points[index], strict=True))
        and any(a < b for a, b in zip(other, points[index], strict=True))
        for other in points
    )


@pytest.mark.parametrize("objectives", [1, 2, 3])
def test_front_equals_the_definition(objectives):
    points = np.random.default_rng(objectives).integers(0, 6, size=(60, objectives)).astype(float)
    expected = [not dominated_by_any(points.tolist(), i) for i in range(len(points))]
    assert non_dominated(points).tolist() == expected


def test_equal_points_are_both_kept():
    assert non_dominated(np.array([[1.0, 2.0], [1.0, 2.0], [2.0, 2.0]])).tolist() == [
        True,
        True,
        False,
    ]


def test_failed_points_are_never_in_a_front():
    points = np.array([[np.inf, 0.0], [np.nan, 0.0], [1.0, 1.0]])
    assert non_dominated(points).tolist() == [False, False, True]


@pytest.mark.parametrize("shape", [(0,), (0, 1), (0, 3)])
def test_no_points_have_an_empty_front(shape):
    front = non_dominated(np.empty(shape))
    assert front.shape == (0,) and front.dtype == bool


def test_hypervolume_of_two_rectangles():
    points = np.array([[1.0, 3.0], [2.0, 1.0], [5.0, 0.0]])
    assert hypervolume(points, np.array([4.0, 4.0])) == pytest.approx(3 * 1 + 2 * 3 - 2 * 1)
    assert hypervolume(points, np.array([1.0, 1.0])) == 0.0


def test_knee_is_the_point_below_the_chord():
    points = np.array([[0.0, 1.0], [0.1, 0.2], [1.0, 0.0], [0.5, 0.5], [0.0, np.inf]])
    assert knee(points) == 1
    assert knee(points * [1000.0, 0.001]) == 1


def test_knee_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="finite point"):
        knee(np.array([[np.inf, 1.0]]))


def test_layers_are_fronts_taken_away_one_by_one():
    points = np.random.default_rng(0).integers(0, 8, size=(40, 2)).astype(float)
    points[3, 1] = np.inf
    found = layers(points)
    left = np.isfinite(points).all(axis=1)
    for number in range(found.max() + 1):
        front = non_dominated(np.where(left[:, None], points, np.inf))
        assert front.tolist() == (found == number).tolist()
        left &= ~front
    assert not left.any() and found[3] == -1


def test_spread_keeps_the_ends_and_leaves_no_large_gap():
    front = np.sort(np.random.default_rng(1).uniform(size=200))
    points = np.stack([front, 1 - front], axis=1)
    chosen = spread(points, 11)
    assert len(chosen) == len(set(chosen.tolist())) == 11
    assert {0, 199} <= set(chosen.tolist())
    assert np.diff(np.sort(front[chosen])).max() < 0.16, "evenly would be 0.1"


def test_spread_fills_up_from_the_next_layers():
    points = np.array([[0.0, 1.0], [1.0, 0.0], [0.5, 2.0], [2.0, 0.5], [9.0, 9.0], [np.inf, 0.0]])
    assert spread(points, 2).tolist() == [0, 1]
    assert spread(points, 4).tolist() == [0, 1, 2, 3]
    assert spread(points, 99).tolist() == [0, 1, 2, 3, 4]
    assert spread(points, 3).tolist()[:2] == [0, 1]
    assert spread(np.full((2, 2), np.inf), 3).tolist() == []
    assert spread(np.empty((0, 2)), 3).tolist() == []


def test_spread_of_one_takes_an_end():
    assert spread(np.array([[0.0, 1.0], [0.4, 0.4], [1.0, 0.0]]), 1).tolist() == [0]
