import numpy as np
import pytest

from evocompress.core.config import SpaceConfig
from evocompress.core.errors import ConfigError
from evocompress.core.pareto import non_dominated
from evocompress.search.base import Problem
from evocompress.search.baselines.stratified_random import Bins, StratifiedRandom
from evocompress.search.operators.cost_sampling import at_any_cost, span
from evocompress.space.build import build_space
from evocompress.space.repair import repair
from evocompress.testing import searchers as contract
from evocompress.testing.decoders import Decoder

DECODER = Decoder(layers=6)
SETTINGS = {"candidate_tokens": 128, "front_tokens": 512, "front_size": 6}


def space_of(**config):
    given = {"width": {"multiple_of": 4}, "drop": {}, **config}
    return build_space(DECODER.units(), DECODER.architecture(), SpaceConfig(**given))


@pytest.fixture(scope="module")
def space():
    return space_of()


def searcher(space, tokens=None, **settings):
    limit = {} if tokens else {"candidates": 100}
    given = StratifiedRandom.Settings(**{**SETTINGS, **limit, **settings})
    problem = Problem(space, contract.POOL, tokens)
    return StratifiedRandom(problem, given, np.random.default_rng(0))


def run(space, search):
    """The compared candidates, those of the last ask, and the requested tokens."""
    steps = contract.run(search, contract.Separable.of(space))
    *before, last = [[request.candidate for request in requests] for requests, _ in steps]
    spent = sum(contract.POOL.requested(r) for requests, _ in steps for r in requests)
    return [candidate for candidates in before for candidate in candidates], last, spent


def shares(space, candidates, cost="params"):
    return space.cost_model.of(candidates)[cost] / space.cost_model.dense()[cost]


def test_a_bin_has_room_for_another_one_when_few_have_any():
    bins = Bins(0.0, 10.0, 5, spare=2)
    assert bins.take(0.0) and not bins.take(1.9)
    assert bins.take(2.0) and not bins.take(3.0)
    assert bins.take(10.0), "the last bin holds the upper end"
    assert bins.take(9.0) and bins.take(1.0), "two of five had room left: one more for each"
    assert not bins.take(9.5)


def test_bins_can_be_enlarged_before():
    bins = Bins(0.0, 10.0, 5, spare=0)
    assert bins.take(1.0) and not bins.take(1.0)
    bins.enlarge()
    assert bins.take(1.0) and not bins.take(1.0)


def test_an_empty_range_is_one_place():
    bins = Bins(1.0, 1.0, 3, spare=2)
    assert all(bins.take(1.0) for _ in range(10))


def test_candidates_are_spread_evenly_over_the_first_objective(space):
    compared, _, _ = run(space, searcher(space, bins=10, open_bins=0))
    low, high = span(space, "params")
    dense = space.cost_model.dense()["params"]
    counts = np.histogram(shares(space, compared) * dense, bins=10, range=(low, high))[0]
    assert counts.sum() == len(set(compared)) == 100
    assert counts.min() >= 9 and counts.max() <= 11


def test_without_bins_or_bounds_they_would_gather(space):
    """Independent levels, drops among them, leave the ends of the range empty."""
    rng = np.random.default_rng(0)
    genomes = [repair(space, rng.integers(0, space.encoding.sizes), rng) for _ in range(100)]
    low, high = span(space, "params")
    costs = space.costs(np.stack(genomes))["params"]
    counts = np.histogram(costs, bins=10, range=(low, high))[0]
    assert counts.min() == 0 and counts.max() > 20


def test_the_front_is_measured_again_on_more_tokens(space):
    objective = contract.Separable.of(space)
    search = searcher(space)
    steps = contract.run(search, objective)
    compared, last, _ = run(space, searcher(space))
    assert len(last) == 6 and set(last) <= set(compared)
    points = np.stack([[objective.value(c) for c in last], shares(space, last)], axis=1)
    assert non_dominated(points).all()
    [few] = {request.micro_batches for requests, _ in steps[:-1] for request in requests}
    [many] = {request.micro_batches for request in steps[-1][0]}
    assert (len(few), len(many)) == (2, 8) and set(few) < set(many)
    assert search.incumbent().candidate in last


def test_tokens_are_used_up_but_not_exceeded(space):
    _, _, spent = run(space, searcher(space, tokens=10_000, batch=7))
    assert 10_000 - 128 < spent <= 10_000


def test_objectives_are_the_budgets_costs_or_params(space):
    assert searcher(space).objectives == ("params",)
    bounded = space_of(budget={"body_params": 0.6, "kv_bytes": 0.7})
    search = searcher(bounded)
    assert search.objectives == ("body_params", "kv_bytes")
    compared, _, _ = run(bounded, search)
    assert bounded.feasible(np.stack([bounded.genome(c) for c in compared])).all()
    assert shares(bounded, compared, "body_params").min() < 0.3


def test_a_range_is_where_candidates_lie(space):
    search = searcher(space, objectives=("flops",), range={"flops": (0.6, 0.8)})
    compared, _, _ = run(space, search)
    found = shares(space, compared, "flops")
    assert found.min() > 0.5 and found.max() <= 0.8 * (1 + 1e-9)


def test_a_small_space_is_drawn_to_its_end():
    small = space_of(width=None, drop={"units": ["block"], "protect": ["model.layers.[05]"]})
    compared, _, _ = run(small, searcher(small, candidates=500))
    assert len(compared) == len(set(compared)) == 2 ** len(small.encoding.units) - 1, "not dense"


def test_a_random_bound_is_kept_and_nearly_used_up(space):
    rng = np.random.default_rng(0)
    ends = (0.55 * space.cost_model.dense()["params"],) * 2
    genomes = np.stack([at_any_cost(space, "params", ends, rng) for _ in range(30)])
    used = space.costs(genomes)["params"] / ends[0]
    assert used.max() <= 1 + 1e-9 and used.min() > 0.95
    assert space.feasible(genomes).all()
    assert len(np.unique(genomes, axis=0)) > 25


def test_the_span_is_what_budget_and_floor_leave(space):
    dense = space.cost_model.dense()["params"]
    low, high = span(space, "params")
    ends = (space.encoding.sizes - 1, space.encoding.default)
    lowest, highest = shares(space, [space.candidate(genome) for genome in ends])
    assert (low / dense, high / dense) == pytest.approx((lowest, highest))
    bounded = space_of(budget={"params": 0.8})
    assert span(bounded, "params", 0.7 * dense) == pytest.approx((0.7 * dense, 0.8 * dense))
    assert span(bounded, "params", 0.9 * dense) == pytest.approx((0.8 * dense, 0.8 * dense))


def test_a_wrong_setting_is_one_clear_line(space):
    with pytest.raises(ConfigError, match=r"search.tokens or search.candidates; give one"):
        searcher(space, candidates=None)
    with pytest.raises(ConfigError, match=r"search.tokens: 3000 .* front_tokens or front_size"):
        searcher(space, tokens=3000)
