import itertools
from dataclasses import replace

import numpy as np
import pytest

from evocompress.core.config import SpaceConfig
from evocompress.core.errors import BudgetError, ConfigError
from evocompress.core.pareto import hypervolume, non_dominated
from evocompress.core.requests import Estimate, Estimation, Evaluate
from evocompress.search.base import Problem
from evocompress.search.evolution.initial_population import rungs
from evocompress.search.evolution.nsga2 import NSGA2
from evocompress.search.objectives import choose
from evocompress.search.operators.mutation import vary
from evocompress.space import sampling
from evocompress.space.build import build_space
from evocompress.space.repair import repair
from evocompress.testing import searchers as contract
from evocompress.testing.decoders import Decoder

DECODER = Decoder(layers=3)
SETTINGS = {
    "objectives": ("params",),
    "population": 12,
    "candidate_tokens": 128,
    "front_tokens": 512,
    "front_size": 8,
    "rungs": 4,
}


def space_of(**config):
    given = {"width": {"multiple_of": 8}, "drop": {}, **config}
    return build_space(DECODER.units(), DECODER.architecture(), SpaceConfig(**given))


@pytest.fixture(scope="module")
def space():
    return space_of()


@pytest.fixture(scope="module")
def objective(space):
    return contract.Separable.of(space)


def searcher(space, seed=0, tokens=None, **settings):
    given = NSGA2.Settings(**{**SETTINGS, **({} if tokens else {"generations": 4}), **settings})
    return NSGA2(Problem(space, contract.POOL, tokens), given, np.random.default_rng(seed))


def evaluations(steps):
    """For each ask its evaluations; estimates left out."""
    asked = [[r for r in requests if isinstance(r, Evaluate)] for requests, _ in steps]
    return [requests for requests in asked if requests]


def points(space, objective, candidates):
    dense = space.cost_model.dense()["params"]
    costs = space.cost_model.of(candidates)["params"] / dense
    return np.stack([[objective.value(c) for c in candidates], costs], axis=1)


def test_finds_the_front_of_a_space_that_can_be_enumerated(space, objective):
    genomes = np.array(list(itertools.product(*map(range, space.encoding.sizes))))
    genomes = np.unique(space.deactivate(genomes[space.feasible(genomes)]), axis=0)
    whole = points(space, objective, [space.candidate(genome) for genome in genomes])
    reference = whole.max(axis=0)
    search = searcher(space, generations=15, population=30)
    asked = {r.candidate for asks in evaluations(contract.run(search, objective)) for r in asks}
    assert len(asked) < len(genomes) / 6
    reached = hypervolume(points(space, objective, list(asked)), reference)
    others = np.random.default_rng(0).choice(len(genomes), len(asked), replace=False)
    missed, missed_by_chance = (
        hypervolume(whole, reference) - volume
        for volume in (reached, hypervolume(whole[others], reference))
    )
    assert missed < 0.02 * hypervolume(whole, reference)
    assert missed < 0.3 * missed_by_chance


def test_the_last_ask_is_a_front_on_more_tokens(space, objective):
    *generations, last = evaluations(contract.run(searcher(space), objective))
    [few] = {request.micro_batches for requests in generations for request in requests}
    [many] = {request.micro_batches for request in last}
    assert (len(few), len(many)) == (2, 8) and set(few) < set(many)
    measured = {r.candidate for requests in generations for r in requests}
    assert {request.candidate for request in last} <= measured
    assert len(last) == 8
    assert non_dominated(points(space, objective, [r.candidate for r in last])).all()
    assert all(request.candidate.levels for request in last), "the dense model is known"


def test_no_candidate_is_compared_twice(space, objective):
    *generations, _ = evaluations(contract.run(searcher(space, generations=8), objective))
    asked = [request.candidate for requests in generations for request in requests]
    assert len(asked) == len(set(asked))
    assert [len(requests) for requests in generations[1:]] == [12] * 7


def test_the_seed_alone_decides(space, objective):
    def asks(seed):
        return [requests for requests, _ in contract.run(searcher(space, seed), objective)]

    np.random.seed(1)
    first = asks(0)
    before = np.random.get_state()[1].tolist()
    np.random.random(1000)
    assert asks(0) == first
    np.random.seed(1)
    assert asks(1) != first
    assert np.random.get_state()[1].tolist() == before, "nobody else is disturbed"


@pytest.mark.parametrize(
    ("reference", "rounds"), [((), 0), (("uniform", "flap"), 0), (("uniform",), 2)]
)
def test_tokens_are_used_up_but_not_exceeded(space, objective, reference, rounds):
    limit = 20_000
    search = searcher(space, tokens=limit, reference=reference, effect_rounds=rounds)
    steps = contract.run(search, objective)
    spent = sum(contract.POOL.requested(r) for requests, _ in steps for r in requests)
    # A reference can be on the front as well, and is measured once.
    assert limit - len(reference) * 4 * 512 - 128 < spent <= limit


def test_references_are_measured_with_the_front_and_named(space, objective):
    search = searcher(space, reference=("uniform", "flap"))
    last = evaluations(contract.run(search, objective))[-1]
    names = search.origins()
    assert set(names.values()) == {"uniform width", "FLAP"}
    assert names.keys() <= {request.candidate.id for request in last}
    assert len(last) <= 8 + len(names)


def test_ladders_are_among_the_first_candidates(space, objective):
    search = searcher(space, reference=("uniform", "flap"))
    first = evaluations(contract.run(search, objective))[0]
    assert search.origins().keys() <= {request.candidate.id for request in first}


def test_a_failed_estimate_costs_only_its_ladder(space, objective):
    def without_scores(request):
        if isinstance(request, Estimate):
            return Estimation(request, (), (), failed="NaN")
        return objective(request)

    search = searcher(space, reference=("uniform", "flap"))
    contract.run(search, without_scores)
    assert set(search.origins().values()) == {"uniform width"}
    assert search.incumbent() is not None


def test_measured_effects_give_better_starts(space, objective):
    worst = np.array([objective.value(space.candidate(space.encoding.sizes - 1)), 1.0])

    def first_population(**settings):
        steps = contract.run(searcher(space, population=16, **settings), objective)
        asks = [[r for r in requests if not r.probe] for requests in evaluations(steps)]
        first = next(requests for requests in asks if requests)
        volume = hypervolume(points(space, objective, [r.candidate for r in first]), worst)
        return volume, [r for requests in evaluations(steps) for r in requests if r.probe]

    plain, no_probes = first_population()
    measured, probes = first_population(effect_rounds=2, effect_levels=2)
    movable = len(np.union1d(space.encoding.widths, space.encoding.droppable))
    assert not no_probes and 2 < len(probes) <= 2 * (1 + 2 * movable)
    assert measured > 1.03 * plain


def test_a_range_bounds_the_cost_and_ends_the_gain(space, objective):
    search = searcher(space, range={"params": (0.7, 0.9)}, generations=8)
    asked = [r.candidate for requests in evaluations(contract.run(search, objective))
             for r in requests]  # fmt: skip
    shares = points(space, objective, asked)[:, 1]
    assert shares.max() <= 0.9 * (1 + 1e-9)
    narrowed, objectives = choose(space, ("params",), {"params": (0.7, 0.9)})
    genomes = [space.genome(candidate) for candidate in asked]
    costs = objectives.points(narrowed, genomes, [0.0] * len(genomes))[:, 1]
    dense = space.cost_model.dense()["params"]
    assert costs == pytest.approx(np.maximum(shares, 0.7) * dense)


def test_a_budget_is_kept_and_is_the_objective_where_none_is_named(objective):
    bounded = space_of(budget={"body_params": 0.6, "kv_bytes": 0.7})
    search = searcher(bounded, objectives=())
    assert search.objectives == ("body_params", "kv_bytes")
    for requests in evaluations(contract.run(search, objective)):
        genomes = np.stack([bounded.genome(request.candidate) for request in requests])
        assert bounded.feasible(genomes).all()


def test_the_incumbent_is_balanced(space, objective):
    search = searcher(space, generations=8)
    last = evaluations(contract.run(search, objective))[-1]
    best = search.incumbent()
    assert best is not None
    shares = points(space, objective, [request.candidate for request in last])
    mine = points(space, objective, [best.candidate])[0]
    assert (shares.min(axis=0) < mine).all() and (mine < shares.max(axis=0)).all()


def test_half_of_the_mutations_keep_the_cost(space):
    rng = np.random.default_rng(0)
    kept, above = 0, 0
    for _ in range(100):
        parent = repair(space, rng.integers(0, space.encoding.sizes), rng)
        child = vary(space, ("params",), parent, rng)
        bound, cost = space.costs(np.stack([parent, child]))["params"]
        kept, above = kept + (cost <= bound), above + (cost > bound)
        assert space.deactivate(child[None])[0].tolist() == child.tolist()
    assert above > 10 and kept > 50, "those without a budget go up half of the time"


def test_a_crossing_that_lost_every_attention_can_mutate():
    space = space_of(width=None, drop={"protect": []})
    rng = np.random.default_rng(0)
    lost = space.encoding.sizes - 1
    assert not space.encoding.keep_attention(lost[None])[0]
    for _ in range(50):
        child = vary(space, ("params",), lost, rng)
        assert space.encoding.keep_attention(child[None])[0]


def test_rungs_are_even_and_within_the_range(space):
    narrowed, objectives = choose(space, ("params",), {"params": (0.6, 0.95)})
    ladder = rungs(narrowed, objectives, sampling.ladder(space, 100), 4)
    dense = space.cost_model.dense()["params"]
    shares = space.costs(np.stack(ladder))["params"] / dense
    assert 2 <= len(ladder) <= 4
    assert shares.max() <= 0.95 and shares.min() >= 0.6
    assert rungs(replace(space, budget={"params": 1.0}), objectives, ladder, 4) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objectives": ("parms",)}, "search.objectives: unknown cost 'parms'; .*'params'"),
        ({"objectives": ("latency",)}, "latency table"),
        ({"objectives": ()}, "name the costs of the front"),
        ({"range": {"flops": (0.4, 1.0)}}, "search.range: 'flops' is no objective"),
        ({"range": {"params": (0.9, 0.4)}}, "search.range.params: 0.9 is not below 0.4"),
        ({"candidate_tokens": 1024}, "more than the 512 tokens of the last"),
        ({"generations": None}, "search.tokens or search.generations"),
    ],
)
def test_a_wrong_setting_is_one_clear_line(space, settings, message):
    with pytest.raises(ConfigError, match=message) as caught:
        searcher(space, **settings)
    assert "\n" not in str(caught.value)


def test_too_few_tokens_for_the_end_are_refused(space):
    with pytest.raises(ConfigError, match=r"search.tokens: 5000 is less than the 6144"):
        searcher(space, tokens=5000)


def test_flap_needs_widths():
    drops = space_of(width=None)
    with pytest.raises(ConfigError, match=r"flap ranks heads and channels: give space.width"):
        searcher(drops, reference=("flap",))


def test_a_range_that_cannot_be_reached_is_refused(space):
    with pytest.raises(BudgetError, match="cannot be reached"):
        searcher(space, range={"params": (0.0, 0.01)})
