import numpy as np
import pytest

from evocompress.core.config import SpaceConfig, SparsitySpace, WidthSpace
from evocompress.core.requests import UNTREATED, Evaluate, MicroBatchValue, Result
from evocompress.pipeline.journal import Journal
from evocompress.pipeline.loop import SearchResult
from evocompress.pipeline.results import (
    costs_of,
    front_rows,
    front_summary,
    not_compared,
    winner_record,
)
from evocompress.search.base import Incumbent
from evocompress.space import sampling
from evocompress.space.build import build_space
from evocompress.testing.decoders import Decoder

TOKENS = 10


@pytest.fixture(scope="module")
def space():
    decoder = Decoder()
    config = SpaceConfig(sparsity=SparsitySpace(target=0.5, step=32, levels=2))
    return build_space(decoder.units(), decoder.architecture(), config)


@pytest.fixture
def candidates(space):
    """The uniform candidate, and one that is not."""
    other = sampling.random(space, np.random.default_rng(0))
    return [space.candidate(genome) for genome in (sampling.uniform(space), other)]


def rows_of(space, path, values, micro_batches=(0, 1), **options):
    """The front of candidates, the first being the winner of a comparison on micro-batches.

    Args:
        space: The space.
        path: Of the journal.
        values: {candidate: {micro-batch: mean value}}, each asked for alone.
        micro_batches: On which the winner was chosen.
        options: Of `front_rows`.
    """
    best = Incumbent(next(iter(values)), 1.0, micro_batches, options.pop("treatment", UNTREATED))
    with Journal(path, {}) as journal:
        for candidate, measured in values.items():
            for micro_batch, value in measured.items():
                journal.record(answer(candidate, micro_batch, value))
        outcome = SearchResult(best, tuple(candidate.id for candidate in values))
        return front_rows(space, journal, outcome, **options)


def answer(candidate, micro_batch, value, treatment=UNTREATED):
    request = Evaluate(candidate, (micro_batch,), treatment)
    if value is None:
        return Result(request, (), failed="NaN")
    return Result(request, (MicroBatchValue(micro_batch, (value * TOKENS,), (TOKENS,)),))


def test_values_are_over_the_micro_batches_that_all_have_in_common(space, candidates, tmp_path):
    uniform, other = candidates
    # Pooled, the winner is worse (0.4 against 0.3): it alone was measured on the hard text, too.
    values = {uniform: {0: 0.1, 1: 0.3, 2: 0.8}, other: {0: 0.2, 1: 0.4}}
    rows = rows_of(space, tmp_path / "j", values)
    assert {row["id"]: row["value"] for row in rows} == pytest.approx(
        {uniform.id: 0.2, other.id: 0.3}
    )
    assert [row["tokens"] for row in rows] == [2 * TOKENS, 2 * TOKENS]


def test_what_was_measured_on_less_is_not_compared(space, candidates, tmp_path):
    uniform, other = candidates
    rows = rows_of(space, tmp_path / "j", {uniform: {0: 0.5, 1: 0.5}, other: {0: 0.1, 2: 0.1}})
    assert [row["id"] for row in rows] == [uniform.id]
    assert rows[0]["non_dominated"] is True


def test_candidates_that_are_not_compared_are_counted(space, candidates, tmp_path):
    uniform, other = candidates
    failed, unasked = (
        space.candidate(sampling.random(space, np.random.default_rng(n))) for n in (1, 2)
    )
    outcome = SearchResult(
        Incumbent(uniform, 0.5, (0, 1)), tuple(c.id for c in (uniform, other, failed))
    )
    with Journal(tmp_path / "j", {}) as journal:
        for candidate, batch, value in (
            (uniform, 0, 0.5),
            (uniform, 1, 0.5),
            (other, 0, 0.1),
            (failed, 0, None),
            (unasked, 0, 0.1),
        ):
            journal.record(answer(candidate, batch, value))
        assert not_compared(journal, outcome) == 1  # the one with a value on a part
        journal.record(answer(other, 1, 0.9))
        assert not_compared(journal, outcome) == 0


def test_many_small_requests_are_as_good_as_one_large_one(space, candidates, tmp_path):
    uniform, other = candidates
    values = {uniform: {0: 0.5, 1: 0.5, 2: 0.5}, other: {0: 0.6, 1: 0.6, 2: 0.6, 3: 0.6}}
    rows = rows_of(space, tmp_path / "j", values, (0, 1, 2))
    assert {row["id"] for row in rows} == {uniform.id, other.id}


def test_the_worse_of_equally_costly_candidates_is_dominated(space, candidates, tmp_path):
    uniform, other = candidates
    rows = rows_of(space, tmp_path / "j", {other: {0: 0.1, 1: 0.1}, uniform: {0: 0.5, 1: 0.5}})
    costs = [row["costs"]["matrix_nonzeros"] for row in rows]
    assert costs[0] <= costs[1]
    assert [row["non_dominated"] for row in rows] == [True, False]


def test_a_candidate_that_lost_on_other_text_does_not_dominate_the_winner(
    space, candidates, tmp_path
):
    uniform, other = candidates
    values = {uniform: {0: 0.5, 1: 0.5, 2: 0.1}, other: {0: 0.4, 1: 0.4, 2: 0.9}}
    rows = rows_of(space, tmp_path / "j", values)
    assert [(row["id"], row["non_dominated"]) for row in rows] == [(uniform.id, True)]


@pytest.mark.parametrize("further", [{}, {2: 0.1}], ids=["none", "as good"])
def test_a_candidate_as_good_as_the_winner_and_cheaper_stays(shapes, further, tmp_path):
    _, winner, cheaper = (shapes.candidate(genome) for genome in sampling.ladder(shapes, 4)[:3])
    costs = [costs_of(shapes, each)["params"] for each in (winner, cheaper)]
    winner, cheaper = (winner, cheaper) if costs[0] > costs[1] else (cheaper, winner)
    values = {each: {0: 0.1, 1: 0.1} | further for each in (winner, cheaper)}
    rows = rows_of(shapes, tmp_path / "j", values, objectives=("params",))
    assert [(row["id"], row["non_dominated"]) for row in rows] == [
        (winner.id, False),
        (cheaper.id, True),
    ]


def test_other_treatments_and_failures_are_not_compared(space, candidates, tmp_path):
    uniform, other = candidates
    values = {uniform: {0: 0.5, 1: 0.5}, other: {0: None}}
    assert [row["id"] for row in rows_of(space, tmp_path / "j", values)] == [uniform.id]
    assert rows_of(space, tmp_path / "k", values, treatment="tuned") == []


def test_all_values_of_the_winner_are_kept_for_comparisons(space, candidates, tmp_path):
    best = Incumbent(candidates[0], 0.5, (0,))
    with Journal(tmp_path / "j", {}) as journal:
        for micro_batch in (0, 2):
            journal.record(answer(candidates[0], micro_batch, 0.5))
        found = journal.measured(best.candidate.id, best.treatment)
    assert winner_record(space, best, measured=found)["measured"] == [
        [0, 0.5 * TOKENS, TOKENS],
        [2, 0.5 * TOKENS, TOKENS],
    ]


@pytest.fixture(scope="module")
def shapes():
    """A space without a budget."""
    decoder = Decoder()
    config = SpaceConfig(width=WidthSpace(multiple_of=4))
    return build_space(decoder.units(), decoder.architecture(), config)


@pytest.fixture
def graded(shapes, tmp_path):
    """Rows of three candidates from large to small, and the shares of parameters they have."""
    even = [shapes.candidate(genome) for genome in sampling.ladder(shapes, 4)[1:]]
    values = dict(zip(even, ({0: value, 1: value} for value in (0.1, 0.2, 0.9)), strict=True))
    names = {even[0].id: "uniform width"}
    rows = rows_of(
        shapes,
        tmp_path / "j",
        values,
        objectives=("params",),
        origins=names,
    )
    dense = shapes.cost_model.dense()["params"]
    return rows, [row["costs"]["params"] / dense for row in rows]


def test_objectives_are_axes_of_the_front(graded):
    rows, shares = graded
    assert shares == sorted(shares, reverse=True)
    assert [row["non_dominated"] for row in rows] == [True, True, True]


def test_references_are_named(graded):
    assert [row.get("label") for row in graded[0]] == ["uniform width", None, None]


def test_the_summary_has_the_hypervolume_of_rectangles(shapes, graded):
    rows, (large, middle, _) = graded
    summary = front_summary(shapes, rows, ("params",))
    assert summary["axes"] == ["params"]
    assert summary["reference"] == {"value": 0.9, "params": shapes.cost_model.dense()["params"]}
    # The worst is the reference itself; the best adds what the middle one leaves.
    volume = (0.9 - 0.2) * (1 - middle) + (0.2 - 0.1) * (1 - large)
    assert summary["hypervolume"] == pytest.approx(volume)
    assert summary["knee"] == rows[1]["id"]


def test_the_winner_sums_the_front_up_where_there_is_one(shapes, graded):
    rows, _ = graded
    best = Incumbent(shapes.candidate(sampling.ladder(shapes, 4)[1]), 0.1, (0, 1))
    record = winner_record(shapes, best, rows, objectives=("params",))
    assert record["front"] == front_summary(shapes, rows, ("params",))
    assert winner_record(shapes, best)["front"] is None
    assert winner_record(shapes, best, rows)["front"] is None  # of a search within a budget
