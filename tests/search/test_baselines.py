"""The searchers that others are compared with."""

import numpy as np
import pytest

from evocompress.core.config import SpaceConfig
from evocompress.search.base import Problem
from evocompress.search.baselines.random_search import RandomSearch
from evocompress.search.baselines.uniform import Uniform
from evocompress.space import sampling
from evocompress.space.build import build_space
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
    assert [request.candidate for request in requests] == [
        SPARSITY.candidate(sampling.uniform(SPARSITY))
    ]
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
