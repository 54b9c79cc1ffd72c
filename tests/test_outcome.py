import numpy as np
import pytest

from evocompress import start
from evocompress.config import SpaceConfig, SparsitySpace, WidthSpace
from evocompress.journal import Journal
from evocompress.outcome import front_rows, front_summary, winner_record
from evocompress.run import Outcome
from evocompress.search.base import Incumbent
from evocompress.space import build_space
from evocompress.testing.decoders import Decoder
from evocompress.types import UNTREATED, Evaluate, MicroBatchValue, Result

TOKENS = 10
MICRO_BATCHES = 2


@pytest.fixture(scope="module")
def space():
    decoder = Decoder()
    config = SpaceConfig(sparsity=SparsitySpace(target=0.5, step=32, levels=2))
    return build_space(decoder.units(), decoder.architecture(), config)


@pytest.fixture
def candidates(space):
    """The uniform candidate, and one that is not."""
    other = space.random(np.random.default_rng(0))
    return [space.candidate(genome) for genome in (space.uniform(), other)]


def rows_of(space, path, *, values, fidelity, treatment=UNTREATED, **options):
    """The front of candidates with a mean value each, or ``None`` where they failed."""
    with Journal(path, {}) as journal:
        for candidate, value in values.items():
            journal.record(answer(candidate, value, treatment))
        best = Incumbent(next(iter(values)), 1.0)
        outcome = Outcome(best, fidelity, dict.fromkeys(fidelity, treatment))
        return front_rows(space, journal, outcome, MICRO_BATCHES, **options)


def answer(candidate, value, treatment=UNTREATED):
    request = Evaluate(candidate, tuple(range(MICRO_BATCHES)), treatment)
    if value is None:
        return Result(request, (), failed="NaN")
    sums = (value * TOKENS,)
    measured = tuple(MicroBatchValue(m, sums, (TOKENS,)) for m in request.micro_batches)
    return Result(request, measured)


def test_only_the_most_closely_measured_are_compared(space, candidates, tmp_path):
    uniform, other = candidates
    fidelity = {uniform.id: 20, other.id: 10}
    rows = rows_of(space, tmp_path / "j", values={uniform: 0.5, other: 0.1}, fidelity=fidelity)
    assert [row["id"] for row in rows] == [uniform.id]
    assert rows[0]["value"] == pytest.approx(0.5)
    assert rows[0]["tokens"] == MICRO_BATCHES * TOKENS
    assert rows[0]["non_dominated"] is True


def test_the_worse_of_equally_costly_candidates_is_dominated(space, candidates, tmp_path):
    values = dict(zip(candidates, (0.5, 0.1), strict=True))
    fidelity = {candidate.id: 20 for candidate in candidates}
    rows = rows_of(space, tmp_path / "j", values=values, fidelity=fidelity)
    costs = [row["costs"]["matrix_nonzeros"] for row in rows]
    assert costs[1] <= costs[0]
    assert [row["non_dominated"] for row in rows] == [False, True]


def test_a_front_is_empty_where_the_most_closely_measured_failed(space, candidates, tmp_path):
    uniform, other = candidates
    fidelity = {uniform.id: 10, other.id: 20}
    rows = rows_of(space, tmp_path / "j", values={uniform: 0.5, other: None}, fidelity=fidelity)
    assert rows == []


@pytest.fixture(scope="module")
def shapes():
    """A space without a budget."""
    decoder = Decoder()
    config = SpaceConfig(width=WidthSpace(multiple_of=4))
    return build_space(decoder.units(), decoder.architecture(), config)


@pytest.fixture
def graded(shapes, tmp_path):
    """Rows of three candidates from large to small, and the shares of parameters they have."""
    even = [shapes.candidate(genome) for genome in start.ladder(shapes, 4)[1:]]
    values = dict(zip(even, (0.1, 0.2, 0.9), strict=True))
    names = {even[0].id: "uniform width"}
    rows = rows_of(
        shapes,
        tmp_path / "j",
        values=values,
        fidelity={candidate.id: 20 for candidate in even},
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
    best = Incumbent(shapes.candidate(start.ladder(shapes, 4)[1]), 0.1)
    record = winner_record(shapes, best, rows, objectives=("params",))
    assert record["front"] == front_summary(shapes, rows, ("params",))
    assert winner_record(shapes, best)["front"] is None
