"""Magnitude and Wanda against loops over single weights, and the mask arithmetic."""

import numpy as np
import pytest
import torch

from evocompress.compression.criteria import CRITERIA, Statistics
from evocompress.compression.criteria.masks import shares, smallest
from evocompress.core.errors import LibraryError
from evocompress.core.types import DROP, Level
from evocompress.testing.criteria import example


def first_smallest(scores: list[float], count: int) -> set[int]:
    return set(sorted(range(len(scores)), key=lambda index: (scores[index], index))[:count])


def test_magnitude_zeroes_the_smallest_of_the_matrix():
    weight, statistics = example()
    level = Level(zeros=1234)
    (result,) = CRITERIA["magnitude"].compress(weight, statistics, [level])
    expected = weight.flatten().tolist()
    for index in first_smallest([abs(value) for value in expected], level.zeros):
        expected[index] = 0.0
    assert result.flatten().tolist() == expected


def test_magnitude_decides_ties_by_position():
    weight = torch.ones(4, 6)
    (result,) = CRITERIA["magnitude"].compress(weight, Statistics(), [Level(zeros=7)])
    assert result.flatten().tolist() == [0.0] * 7 + [1.0] * 17


def test_wanda_zeroes_the_smallest_of_each_row_by_input_norm():
    weight, statistics = example(dead=3)
    norms = statistics.gram.diagonal().double().sqrt().tolist()
    level = Level(zeros=50 * len(weight))
    (result,) = CRITERIA["wanda"].compress(weight, statistics, [level])
    for row, found in zip(weight.tolist(), result.tolist(), strict=True):
        scores = [abs(value) * norm for value, norm in zip(row, norms, strict=True)]
        masked = first_smallest(scores, 50)
        assert found == [0.0 if j in masked else value for j, value in enumerate(row)]


def test_wanda_groups_by_input_norm():
    weight, statistics = example()
    norms = statistics.gram.diagonal().double().sqrt()
    (result,) = CRITERIA["wanda"].compress(weight, statistics, [Level(weight.numel() // 2, "2:4")])
    scores = (weight.abs() * norms).reshape(-1, 4).tolist()
    for group, found in zip(scores, result.reshape(-1, 4).tolist(), strict=True):
        assert {j for j, value in enumerate(found) if value == 0} == first_smallest(group, 2)


def test_wanda_deals_the_zeros_evenly_to_the_rows():
    weight, statistics = example()
    (result,) = CRITERIA["wanda"].compress(weight, statistics, [Level(zeros=24 * 31 + 7)])
    counts = (result == 0).sum(1)
    assert set(counts.tolist()) == {31, 32} and int(counts.sum()) == 24 * 31 + 7


def test_wanda_needs_only_the_diagonal():
    weight, full = example()
    diagonal = Statistics(squares=full.gram.diagonal(), sequences=full.sequences)
    level = Level(zeros=999)
    by_gram = CRITERIA["wanda"].compress(weight, full, [level])[0]
    assert torch.equal(by_gram, CRITERIA["wanda"].compress(weight, diagonal, [level])[0])


@pytest.mark.parametrize("total", [0, 1, 17, 99, 100])
def test_shares_sum_up_and_stay_near_their_part(total):
    ends = [30, 60, 90, 100]
    counts = shares(total, ends)
    assert sum(counts) == total
    exact = np.diff([0, *ends]) * total / 100
    assert np.all(np.abs(counts - exact) < 1) and np.all(np.asarray(counts) <= [30, 30, 30, 10])


def test_smallest_is_exact_among_ties():
    scores = torch.tensor([[2.0, 1.0, 1.0, 1.0, 0.0], [3.0, 3.0, 3.0, 3.0, 3.0]])
    mask = smallest(scores, [3, 2])
    assert mask.tolist() == [[False, True, True, False, True], [True, True, False, False, False]]


def test_scores_that_are_nan_end():
    """With bounds that nobody checks it would go on through the memory behind them."""
    mask = smallest(torch.full((1, 5), torch.nan), [3])
    assert not mask.any()


@pytest.mark.parametrize("name", CRITERIA.built_in)
@pytest.mark.parametrize(
    ("level", "words"),
    [
        (DROP, "impossible"),
        (Level(zeros=24 * 160 + 1), "0 to 3840 zeros"),
        (Level(zeros=24 * 160 * 3 // 7, pattern="3:7"), "does not divide the 160 inputs"),
        (Level(zeros=100, pattern="2:4"), "makes 1920 zeros, not the 100"),
    ],
)
def test_impossible_levels_are_refused(name, level, words):
    with pytest.raises(LibraryError, match=words):
        CRITERIA[name].compress(*example(), [level])
