"""The searchers that others are compared with."""

from dataclasses import replace

import numpy as np
import pytest

from evocompress.config import SpaceConfig
from evocompress.errors import ConfigError
from evocompress.search.base import Problem
from evocompress.search.blockpruner import BlockPruner
from evocompress.search.random_search import RandomSearch
from evocompress.search.uniform import Uniform
from evocompress.space import build_space
from evocompress.testing.decoders import Decoder
from evocompress.testing.searchers import POOL, Separable, run


def space_of(layers=4, **config):
    decoder = Decoder(layers=layers)
    return build_space(decoder.units(), decoder.architecture(), SpaceConfig(**config))


SPARSITY = space_of(sparsity={"target": 0.5, "levels": 3})
DEPTH = space_of(drop={}, budget={"body_params": 0.7})


def searcher(cls, space, **settings):
    return cls(Problem(space, POOL), cls.Settings(**settings), np.random.default_rng(0))


def test_uniform_asks_once_for_the_whole_pool():
    search = searcher(Uniform, SPARSITY)
    ((requests, results),) = run(search, Separable.of(SPARSITY))
    assert [request.candidate for request in requests] == [SPARSITY.candidate(SPARSITY.uniform())]
    assert requests[0].micro_batches == tuple(range(32))
    assert search.incumbent().value == results[0].mean


def test_random_keeps_the_best_and_measures_it_anew_beside_each_generation():
    settings = {"generations": 3, "offspring": 5, "survivors": (1,), "stage_tokens": (128,)}
    search = searcher(RandomSearch, DEPTH, **settings)
    objective = Separable.of(DEPTH)
    steps = run(search, objective)
    assert [len(requests) for requests, _ in steps] == [5, 6, 6]
    everything = {r.candidate for requests, _ in steps for r in requests}
    assert search.incumbent().value == pytest.approx(min(map(objective.value, everything)))


def greedy(space, objective):
    """The published algorithm in its simplest form."""
    removed = []
    names = [space.units[index].name for index in space.genes.droppable]
    genome = space.genes.start.copy()
    while not space.feasible(genome[None])[0]:
        left = [name for name in names if name not in removed]
        removed.append(min(left, key=lambda name: objective.weights[name]))
        genome[[unit.name for unit in space.units].index(removed[-1])] = 1
    return space.candidate(genome), len(removed)


@pytest.mark.parametrize("units", [["attention", "mlp"], ["mlp"]])
def test_blockpruner_is_the_greedy_algorithm(units):
    space = space_of(layers=6, drop={"units": units}, budget={"body_params": 0.7})
    objective = Separable.of(space, seed=2)
    search = searcher(BlockPruner, space, candidate_tokens=128)
    steps = run(search, objective)
    expected, rounds = greedy(space, objective)
    assert search.incumbent().candidate == expected
    assert [len(r) for r, _ in steps] == [*(len(space.units) - i for i in range(rounds)), 1]
    assert [r.probe for requests, _ in steps for r in requests].count(False) == 1
    assert len({r.micro_batches for requests, _ in steps for r in requests}) == 1


def test_blockpruner_never_chooses_what_failed():
    objective = Separable.of(DEPTH)
    search = searcher(BlockPruner, DEPTH)
    first = search.ask()
    least, second, *_ = sorted(first, key=lambda request: objective.value(request.candidate))
    failing = replace(objective, failing=frozenset({least.candidate.id}))
    search.tell([failing(request) for request in first])
    (removed, _) = second.candidate.levels[0]
    assert all(removed in request.candidate.by_name for request in search.ask())


def test_blockpruner_needs_units_to_remove():
    with pytest.raises(ConfigError, match="needs space.drop"):
        searcher(BlockPruner, SPARSITY)
