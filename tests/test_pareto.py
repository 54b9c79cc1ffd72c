import numpy as np
import pytest

from evocompress.pareto import hypervolume, knee, non_dominated


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
