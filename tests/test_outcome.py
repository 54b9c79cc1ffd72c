import numpy as np
import pytest

from evocompress.config import SpaceConfig, SparsitySpace
from evocompress.journal import Journal
from evocompress.outcome import front_rows
from evocompress.run import Outcome
from evocompress.search.base import Incumbent
from evocompress.space import build_space
from evocompress.testing.decoders import Decoder
from evocompress.types import Evaluate, MicroBatchValue, Result

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


def rows_of(space, path, *, values, fidelity):
    """The front of candidates with a mean value each, or ``None`` where they failed."""
    with Journal(path, {}) as journal:
        for candidate, value in values.items():
            journal.record(answer(candidate, value))
        best = Incumbent(next(iter(values)), 1.0)
        return front_rows(space, journal, Outcome(best, fidelity), MICRO_BATCHES)


def answer(candidate, value):
    request = Evaluate(candidate, tuple(range(MICRO_BATCHES)))
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
