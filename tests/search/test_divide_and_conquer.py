"""Divide and conquer: what is tried of each range, how ranges are combined, and what it finds."""

from dataclasses import replace

import numpy as np
import pytest

from evocompress.core.config import SpaceConfig
from evocompress.core.errors import ConfigError
from evocompress.search.allocation.divide_and_conquer import DivideAndConquer, partitions
from evocompress.search.base import Problem
from evocompress.space import sampling
from evocompress.space.build import build_space
from evocompress.testing.decoders import Decoder
from evocompress.testing.searchers import POOL, Separable, run

DECODER = Decoder(layers=8)
WIDTH = {"channels": [0.25, 0.5, 0.75], "multiple_of": 4, "protect": []}
CONFIGS = {
    "depth": {"drop": {"protect": []}, "budget": {"body_params": 0.6}},
    "blocks": {"drop": {"units": ["block"]}, "budget": {"body_params": 0.6}},
    "shape": {"width": WIDTH, "drop": {}, "budget": {"body_params": 0.6, "kv_bytes": 0.8}},
    "sparsity": {"sparsity": {"target": 0.5, "levels": 2}},
    "joint": {
        "sparsity": {"target": 0.5, "levels": 1},
        "drop": {},
        "budget": {"matrix_nonzeros": 0.45, "body_params": 0.9},
    },
}
SPACES = {
    name: build_space(DECODER.units(), DECODER.architecture(), SpaceConfig(**config))
    for name, config in CONFIGS.items()
}


def searcher(space, tokens=None, **settings):
    given = {"ranges": 3, "candidate_tokens": 128, "final_tokens": 512} | settings
    problem = Problem(space, POOL, tokens)
    return DivideAndConquer(problem, DivideAndConquer.Settings(**given), np.random.default_rng(0))


def winner(space, oracle, **settings):
    search = searcher(space, **settings)
    run(search, oracle)
    return search.incumbent().candidate


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
@pytest.mark.parametrize("count", [1, 2, 5, 7, None])
def test_ranges_are_consecutive_blocks_that_hold_every_choice(space, count):
    parts = partitions(space, count)
    assert len(parts) == (count or 2)
    genes = np.concatenate([part.genes for part in parts])
    assert sorted(genes) == np.flatnonzero(space.encoding.sizes > 1).tolist()
    blocks = [[space.units[gene].block for gene in part.genes] for part in parts]
    for here, there in zip(blocks, blocks[1:], strict=False):
        assert max(here) < min(there)
    sizes = [len(set(of_part)) for of_part in blocks]
    assert max(sizes) - min(sizes) <= 1


def test_more_ranges_than_blocks_are_refused():
    with pytest.raises(ConfigError, match=r"search.ranges: 9, but only 7 blocks"):
        partitions(SPACES["blocks"], 9)


@pytest.mark.parametrize("kind", SPACES)
def test_ranges_are_first_tried_alone(kind):
    """From the least compressed candidate on, and never two of them in one trial."""
    space = SPACES[kind]
    steps = run(searcher(space, generations=1), Separable.of(space))
    first, way_down, offspring = (requests for requests, _ in steps[:3])
    base = np.zeros_like(space.encoding.default)
    assert [request.candidate for request in first] == [space.candidate(base)]
    homes = [set(part.genes.tolist()) for part in partitions(space, 3)]
    for requests in (way_down, offspring):
        assert len(requests) >= 3
        for request in requests:
            assert request.probe
            changed = {*np.flatnonzero(space.genome(request.candidate) != base).tolist()}
            changed -= {
                *np.flatnonzero(space.encoding.inactive(space.genome(request.candidate)[None])[0])
            }
            assert sum(bool(changed & home) for home in homes) == 1


@pytest.mark.parametrize("kind", ["depth", "sparsity", "shape"])
def test_separable_ranges_are_combined_alike_with_and_without_measuring(kind):
    """What one range impairs the whole is then what it distorts alone."""
    space = SPACES[kind]
    oracle = Separable.of(space, seed=2)
    plenty = run(searcher(space), oracle)
    explored = sum(POOL.requested(r) for requests, _ in plenty[:5] for r in requests)
    # Enough for all generations, but not for a single round of combining.
    finalists = explored // 2048 + 1
    reserved = {"finalists": finalists, "final_tokens": explored // finalists // 64 * 64}
    hurried = run(searcher(space, tokens=2 * explored, **reserved), oracle)
    assert len(hurried) == 6 < len(plenty)
    first, other = (steps[-1][0][0].candidate for steps in (plenty, hurried))
    assert first == other


@pytest.mark.parametrize("kind", SPACES)
def test_the_end_is_measured_on_more_tokens_and_the_best_wins(kind):
    space = SPACES[kind]
    search = searcher(space)
    *_, (requests, results) = run(search, Separable.of(space, noise=0.05))
    assert 1 <= len(requests) <= 4
    assert not any(request.probe for request in requests)
    assert {POOL.requested(request) for request in requests} == {512}
    assert search.incumbent().value == min(result.mean for result in results)


@pytest.mark.parametrize("kind", SPACES)
def test_it_is_better_than_even_and_most_random_candidates(kind):
    space = SPACES[kind]
    oracle = Separable.of(space, seed=5)
    rng = np.random.default_rng(1)
    even, *others = (
        oracle.value(space.candidate(genome))
        for genome in (sampling.uniform(space), *(sampling.random(space, rng) for _ in range(50)))
    )
    found = oracle.value(winner(space, oracle))
    assert found < even
    assert found < np.quantile(others, 0.1)


@pytest.mark.parametrize("kind", SPACES)
@pytest.mark.parametrize("tokens", [10_000, 14_000, 30_000])
def test_the_tokens_are_kept(kind, tokens):
    space = SPACES[kind]
    search = searcher(space, tokens=tokens)
    steps = run(search, Separable.of(space))
    assert sum(POOL.requested(r) for requests, _ in steps for r in requests) <= tokens
    assert search.incumbent() is not None


def test_too_few_tokens_are_refused():
    needed = (1 + 3 * 8) * 128 + 4 * 512
    steps = run(searcher(SPACES["depth"], tokens=needed), Separable.of(SPACES["depth"]))
    assert sum(POOL.requested(r) for requests, _ in steps for r in requests) <= needed
    with pytest.raises(ConfigError, match=f"is less than the {needed} that"):
        searcher(SPACES["depth"], tokens=needed - 1)


def test_a_configuration_that_fails_is_not_part_of_a_front():
    space = SPACES["depth"]
    oracle = Separable.of(space)
    usual = winner(space, oracle)
    asked = [r.candidate for requests, _ in run(searcher(space), oracle)[1:] for r in requests]
    failing = frozenset(candidate.id for candidate in asked[::2])
    found = winner(space, replace(oracle, failing=failing))
    assert found.id not in failing and found != usual
