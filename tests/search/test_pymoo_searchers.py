"""What NSGA-III and MOEA/D do; what they share with NSGA-II is tested there."""

import itertools

import numpy as np
import pytest

from evocompress.core.config import SpaceConfig
from evocompress.core.errors import ConfigError
from evocompress.core.pareto import hypervolume, non_dominated
from evocompress.core.requests import Evaluate, Result
from evocompress.search import SEARCHERS
from evocompress.search.base import Problem
from evocompress.search.evolution.evolved_front import EvolvedFront
from evocompress.search.evolution.genetic import ALGORITHMS, Evolution, reference_directions
from evocompress.search.evolution.moead import MOEAD
from evocompress.search.evolution.nsga3 import NSGA3
from evocompress.search.operators.mutation import vary
from evocompress.search.operators.pymoo_operators import feasible_first
from evocompress.space import sampling
from evocompress.space.build import build_space
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
both = pytest.mark.parametrize("cls", [NSGA3, MOEAD])


def space_of(**config):
    given = {"width": {"multiple_of": 8}, "drop": {}, **config}
    return build_space(DECODER.units(), DECODER.architecture(), SpaceConfig(**given))


@pytest.fixture(scope="module")
def space():
    return space_of()


@pytest.fixture(scope="module")
def objective(space):
    return contract.Separable.of(space)


def searcher(cls, space, seed=0, tokens=None, **settings):
    limit = {} if tokens else {"generations": 4}
    given = cls.Settings(**{**SETTINGS, **limit, **settings})
    return cls(Problem(space, contract.POOL, tokens), given, np.random.default_rng(seed))


def asks(steps):
    """For each ask the evaluated candidates; estimates left out."""
    asked = [[r.candidate for r in requests if isinstance(r, Evaluate)] for requests, _ in steps]
    return [candidates for candidates in asked if candidates]


def points(space, objective, candidates):
    dense = space.cost_model.dense()["params"]
    costs = space.cost_model.of(candidates)["params"] / dense
    return np.stack([[objective.value(c) for c in candidates], costs], axis=1)


def flaky(objective):
    """An oracle where every second candidate fails."""

    def answer(request):
        if isinstance(request, Evaluate) and int(request.candidate.id, 16) % 2:
            return Result(request, (), failed="made to fail")
        return objective(request)

    return answer


def test_every_algorithm_is_a_searcher_of_its_name():
    built_in = {name: SEARCHERS[name] for name in SEARCHERS.built_in}
    evolved = {name: cls for name, cls in built_in.items() if issubclass(cls, EvolvedFront)}
    assert evolved.keys() == ALGORITHMS.keys()
    assert all(cls.algorithm == name for name, cls in evolved.items())


@both
def test_finds_the_front_of_a_space_that_can_be_enumerated(cls, space, objective):
    genomes = np.array(list(itertools.product(*map(range, space.encoding.sizes))))
    genomes = np.unique(space.deactivate(genomes[space.feasible(genomes)]), axis=0)
    whole = points(space, objective, [space.candidate(genome) for genome in genomes])
    best = hypervolume(whole, whole.max(axis=0))
    steps = contract.run(searcher(cls, space, generations=15, population=30), objective)
    asked = {candidate for candidates in asks(steps) for candidate in candidates}
    assert len(asked) < len(genomes) / 6
    reached = hypervolume(points(space, objective, list(asked)), whole.max(axis=0))
    others = np.random.default_rng(0).choice(len(genomes), len(asked), replace=False)
    assert best - reached < 0.02 * best
    assert best - reached < 0.3 * (best - hypervolume(whole[others], whole.max(axis=0)))


@both
def test_the_last_ask_is_a_front_and_nothing_is_compared_twice(cls, space, objective):
    steps = contract.run(searcher(cls, space, generations=8), objective)
    *generations, last = asks(steps)
    compared = [candidate for candidates in generations for candidate in candidates]
    assert len(compared) == len(set(compared))
    assert set(last) <= set(compared) and len(last) == 8
    assert non_dominated(points(space, objective, last)).all()
    assert {len(request.micro_batches) for request in steps[-1][0]} == {8}


@both
def test_tokens_are_used_up_but_not_exceeded(cls, space, objective):
    steps = contract.run(searcher(cls, space, tokens=20_000), objective)
    spent = sum(contract.POOL.requested(r) for requests, _ in steps for r in requests)
    assert 20_000 - 128 < spent <= 20_000


@both
def test_failed_candidates_neither_win_nor_draw_without_the_seed(cls, space, objective):
    def run(seed):
        search = searcher(cls, space, seed, generations=8)
        return search, contract.run(search, flaky(objective))

    search, steps = run(0)
    assert int(search.incumbent().candidate.id, 16) % 2 == 0
    assert all(int(candidate.id, 16) % 2 == 0 for candidate in asks(steps)[-1])
    assert run(0)[1] == steps
    assert run(1)[1] != steps


@both
def test_a_first_population_of_failures_is_survived(cls, space, objective):
    search = searcher(cls, space, generations=6)
    asked = [search.ask(), search.ask()]
    search.tell([objective(request) for request in asked[0]])
    failing = {request.candidate for request in search.ask()}

    def answer(request):
        if isinstance(request, Evaluate) and request.candidate in failing:
            return Result(request, (), failed="made to fail")
        return objective(request)

    last = asks(contract.run(search, answer))[-1]
    assert len(last) == 8 and not failing & set(last)


@both
def test_a_small_space_is_searched_to_its_end(cls):
    small = space_of(width=None, drop={"units": ["block"]})
    steps = contract.run(searcher(cls, small, generations=None, tokens=200_000),
                         contract.Separable.of(small))  # fmt: skip
    compared = [candidate for candidates in asks(steps)[:-1] for candidate in candidates]
    assert len(compared) == len(set(compared)) == 2 ** len(small.encoding.units)


@both
@pytest.mark.parametrize("population", [2, 16])
def test_three_objectives(cls, space, objective, population):
    search = searcher(cls, space, objectives=("params", "kv_bytes"), population=population)
    *_, last = asks(contract.run(search, objective))
    assert search.objectives == ("params", "kv_bytes")
    assert len(last) == 8 or population == 2


@both
def test_units_of_the_objectives_do_not_matter(cls, space, objective):
    def generations(scale):
        rng = np.random.default_rng(0)
        seeds = np.unique(np.stack([sampling.random(space, rng) for _ in range(20)]), axis=0)
        evolution = Evolution(
            cls.algorithm,
            space,
            seeds,
            lambda genome, rng: vary(space, ("params",), genome, rng),
            objectives=2,
            population=len(seeds),
            offspring=len(seeds),
            rng=rng,
        )
        for _ in range(5):
            genomes = evolution.ask()
            yield [genome.tolist() for genome in genomes]
            found = points(space, objective, [space.candidate(genome) for genome in genomes])
            evolution.tell(found * [1.0, scale])

    assert list(generations(1.0)) == list(generations(2.0**30))


def test_moead_keeps_the_best_of_every_direction(space, objective):
    """After the first population it holds, for every weighting, the best of all candidates."""
    rng = np.random.default_rng(0)
    seeds = np.unique(np.stack([sampling.random(space, rng) for _ in range(30)]), axis=0)
    found = points(space, objective, [space.candidate(genome) for genome in seeds])
    low, high = found[non_dominated(found)].min(axis=0), found[non_dominated(found)].max(axis=0)
    directions = reference_directions(2, len(seeds))
    distances = ((found - low) / (high - low) * directions[:, None]).max(axis=2)
    evolution = Evolution(
        "moead",
        space,
        seeds,
        lambda genome, rng: genome,
        objectives=2,
        population=len(seeds),
        offspring=len(seeds),
        rng=rng,
    )
    assert [genome.tolist() for genome in evolution.ask()] == seeds.tolist()
    evolution.tell(found)
    held = evolution._algorithm.pop.get("F")
    weighted = ((held - low) / (high - low) * directions).max(axis=1)
    assert weighted == pytest.approx(distances.min(axis=1))


@pytest.mark.parametrize(("objectives", "most"), [(2, 2), (2, 40), (3, 1), (3, 40), (4, 40)])
def test_reference_directions_are_as_many_as_fit(objectives, most):
    directions = reference_directions(objectives, most)
    assert directions.sum(axis=1) == pytest.approx(1.0)
    assert objectives <= len(directions) <= max(most, objectives)
    if objectives == 2:
        assert len(directions) == most


def test_a_failed_parent_is_taken_only_beside_another_failed_one():
    class Judged:
        def get(self, _):
            return np.array([[0.0], [1.0], [0.0], [1.0]])

    pairs = np.array([[0, 1], [1, 0], [1, 3], [0, 2]] * 50)
    chosen = feasible_first(Judged(), pairs, np.random.default_rng(0))[:, 0].reshape(50, 4)
    assert set(chosen[:, 0]) == set(chosen[:, 1]) == {0}
    assert set(chosen[:, 2]) == {1, 3} and set(chosen[:, 3]) == {0, 2}


@pytest.mark.parametrize(
    ("cls", "settings", "message"),
    [
        (NSGA3, {"generations": None}, "nsga3 ends by search.tokens or search.generations"),
        (MOEAD, {"generations": None}, "moead ends by search.tokens or search.generations"),
        (MOEAD, {"offspring": 13}, "search.offspring: 13 is more than the population of 12"),
    ],
)
def test_a_wrong_setting_is_one_clear_line(space, cls, settings, message):
    with pytest.raises(ConfigError, match=message) as caught:
        searcher(cls, space, **settings)
    assert "\n" not in str(caught.value)
