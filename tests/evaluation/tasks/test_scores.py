"""Means, standard errors, paired differences and flips, against sums written out."""

import math

import numpy as np
import pytest

from evocompress.evaluation.tasks import Score, score

DENSE = np.array([1.0, 1, 0, 1, 0, 1, 1, 0])
OTHER = np.array([1.0, 0, 0, 1, 1, 0, 1, 0])


def error_of(values):
    mean = sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return math.sqrt(variance / len(values))


def test_a_model_is_compared_with_the_dense_one_question_by_question():
    found = score(OTHER, DENSE)
    assert (found.value, found.difference) == (0.5, -0.125)
    assert found.error == pytest.approx(error_of(OTHER))
    assert found.difference_error == pytest.approx(error_of([0, -1, 0, 0, 1, -1, 0, 0]))
    assert (found.lost, found.won) == (2, 1)


def test_the_same_answers_differ_by_nothing_for_certain():
    found = score(DENSE, DENSE)
    assert (found.difference, found.difference_error, found.lost, found.won) == (0, 0, 0, 0)


def test_the_dense_model_has_no_difference():
    assert score(DENSE) == Score(0.625, pytest.approx(error_of(DENSE)))


def test_one_question_has_no_error():
    found = score(OTHER[:1], DENSE[:1])
    assert found.error is None and found.difference_error is None


def test_values_that_are_no_answers_do_not_flip():
    found = score(OTHER / 2, DENSE)
    assert found.lost is None and found.won is None and found.difference == -0.375
