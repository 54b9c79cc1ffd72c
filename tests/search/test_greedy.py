"""Greedy compression against its plainest form, and against the optimum where that is known."""

from dataclasses import replace

import numpy as np
import pytest

from evocompress.core.config import SpaceConfig
from evocompress.core.errors import ConfigError
from evocompress.core.storage import STORAGE
from evocompress.core.types import DENSE, DROP, Level
from evocompress.search.allocation.knapsack import knapsack
from evocompress.search.base import Problem
from evocompress.search.baselines.greedy import Greedy
from evocompress.search.baselines.steps import next_levels
from evocompress.space import sampling
from evocompress.space.build import build_space
from evocompress.testing.decoders import Decoder
from evocompress.testing.searchers import POOL, Separable, run

DECODER = Decoder(layers=4, heads=6, hidden=24, kv_heads=3)
WIDTH = {"channels": [0.25, 0.5, 0.75], "multiple_of": 4, "protect": []}
CONFIGS = {
    "depth": {"drop": {"protect": []}, "budget": {"body_params": 0.6}},
    "blocks": {"drop": {"units": ["block"], "protect": []}, "budget": {"body_params": 0.6}},
    "width": {"width": WIDTH, "budget": {"body_params": 0.6}},
    "cache": {"width": WIDTH, "drop": {}, "budget": {"body_params": 0.7, "kv_bytes": 0.5}},
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
TYPES = {
    "types": {"types": ["q8_0", "q5_0", "iq4_nl", "q4_0"]},
    "types and zeros": {"types": ["q8_0", "q4_0"]},
}
LARGER = Decoder(layers=2, hidden=64, heads=2, ffn=64)
SPACES |= {
    name: build_space(
        LARGER.units(),
        LARGER.architecture(),
        SpaceConfig(
            bits=bits,
            sparsity={"target": 0.25, "levels": 1} if "zeros" in name else None,
            budget={"bits_per_weight": 5.1},
        ),
    )
    for name, bits in TYPES.items()
}
# Equal steps from no zeros on: eight to the target of large matrices, four to that of small ones.
CONVEX = build_space(
    DECODER.units(),
    DECODER.architecture(),
    SpaceConfig(sparsity={"match": ["*.self_attn.*"], "target": 0.25, "step": 18, "levels": 8}),
)


def searcher(space, tokens=None, **settings):
    settings = Greedy.Settings(**({"candidate_tokens": 128} | settings))
    return Greedy(Problem(space, POOL, tokens), settings, np.random.default_rng(0))


def winner(space, oracle, **settings):
    search = searcher(space, **settings)
    run(search, oracle)
    return search.incumbent().candidate


def spelled_out(space, oracle):
    """One step a round, every further level of every gene being looked through."""
    genome = np.zeros_like(space.encoding.default)
    while not space.feasible(genome[None])[0]:
        before = space.budget_usage(genome[None])[0]
        best = (np.inf, None)
        for gene in range(len(genome)):
            for level in range(genome[gene] + 1, len(space.levels[gene])):
                tried = genome.copy()
                tried[gene] = level
                tried = space.deactivate(tried[None])[0]
                after = space.budget_usage(tried[None])[0]
                saved = sum(
                    max(old, 1) - max(new, 1) for old, new in zip(before, after, strict=True)
                )
                near = one_step(space.levels[gene], genome[gene], level)
                if not near or saved <= 0 or not space.encoding.keep_attention(tried[None])[0]:
                    continue
                harm = oracle.value(space.candidate(tried)) - oracle.value(space.candidate(genome))
                best = min(best, (max(harm, 1e-6) / saved, tuple(tried.tolist())))
        genome = np.array(best[1])
    return space.candidate(genome)


def one_step(levels, now, then):
    """Whether no other level lies between two, in none of their dimensions."""
    old, new = levels[now], levels[then]
    if new.drop or not (new.narrow or old.narrow):
        between = [level for level in levels if stores_less(level, old) and stores_less(new, level)]
        return new.drop or (stores_less(new, old) and not between)
    bounds = sizes(old, levels), sizes(new, levels)
    below = [sizes(level, levels) for level in levels if level.narrow]
    if not all(b <= a for a, b in zip(*bounds, strict=True)):
        return False
    return not any(
        other not in bounds and all(b <= o <= a for a, b, o in zip(*bounds, other, strict=True))
        for other in below
    )


def stores_less(level, other):
    """Whether a level of a matrix has more zeros or fewer bits, and less of neither."""
    bits = [STORAGE[one.bits].bits_per_weight if one.bits else 99 for one in (level, other)]
    no_more = level.zeros >= other.zeros and bits[0] <= bits[1]
    return no_more and (level.zeros > other.zeros or bits[0] < bits[1])


def sizes(level, levels):
    """What a level leaves; the dense one leaves more than any other."""
    if level.dense:
        return (99, 99)
    return (level.channels, 0) if level.channels else (level.kv_groups, level.group_heads)


@pytest.mark.parametrize("kind", SPACES)
def test_one_step_a_round_is_plain_greedy(kind):
    space = SPACES[kind]
    oracle = Separable.of(space, seed=3)
    assert winner(space, oracle, take=1) == spelled_out(space, oracle)


def test_a_single_round_finds_the_optimum_of_harms_that_grow_like_squares():
    oracle = Separable.of(CONVEX, seed=1)
    harms = []
    for gene, levels in enumerate(CONVEX.levels):
        name = CONVEX.units[gene].name
        share = np.array([level.zeros / oracle.sizes[name] for level in levels])
        harms.append(oracle.weights[name] * share**2)
    assert all(levels[0].dense for levels in CONVEX.levels)
    best = knapsack(CONVEX, harms, sampling.uniform(CONVEX))
    found = winner(CONVEX, oracle, take=10_000)
    assert oracle.value(found) == pytest.approx(oracle.value(CONVEX.candidate(best)))
    assert len(run(searcher(CONVEX, take=10_000), oracle)) == 2


def test_no_more_rounds_than_are_paid_for():
    oracle = Separable.of(CONVEX, seed=1)
    tries = len(CONVEX.units) + 1
    for rounds in (1, 2, 5, 11):
        tokens = (rounds * tries + 1) * 128
        assert 1 <= len(run(searcher(CONVEX, tokens=tokens), oracle)) - 1 <= rounds
    with pytest.raises(ConfigError, match=f"is less than the {(tries + 1) * 128} that a round"):
        searcher(CONVEX, tokens=(tries + 1) * 128 - 1)


@pytest.mark.parametrize("kind", SPACES)
@pytest.mark.parametrize("take", [None, 1])
def test_the_tokens_are_kept(kind, take):
    space = SPACES[kind]
    for tokens in (15_000, 20_000, 50_000):
        search = searcher(space, tokens=tokens, take=take)
        steps = run(search, Separable.of(space))
        assert sum(POOL.requested(r) for requests, _ in steps for r in requests) <= tokens
        assert search.incumbent() is not None


@pytest.mark.parametrize("kind", SPACES)
def test_few_rounds_suffice_without_a_number_of_tokens(kind):
    steps = run(searcher(SPACES[kind]), Separable.of(SPACES[kind]))
    assert len(steps) <= 20
    *rounds, (conclusion, _) = steps
    assert all(request.probe for requests, _ in rounds for request in requests)
    assert [request.probe for request in conclusion] == [False]


def test_a_round_does_not_take_what_fails():
    space = SPACES["depth"]
    oracle = Separable.of(space)
    search = searcher(space, take=1)
    _, *tries = search.ask()
    cheapest = min(tries, key=lambda request: oracle.value(request.candidate))
    failing = replace(oracle, failing=frozenset({cheapest.candidate.id}))
    search.tell([failing(request) for request in search.ask()])
    now = search.ask()[0].candidate
    assert now.levels and now != cheapest.candidate


def test_only_what_lowers_an_exceeded_cost_is_tried():
    config = SpaceConfig(width=WIDTH, drop={}, budget={"kv_bytes": 0.7})
    space = build_space(DECODER.units(), DECODER.architecture(), config)
    steps = run(searcher(space), Separable.of(space))
    named = {name for requests, _ in steps for r in requests for name, _ in r.candidate.levels}
    assert all(name.endswith(".attention") for name in named)


def test_the_next_levels_of_an_attention_are_its_neighbours_in_both_directions():
    pairs = [(3, 1), (2, 2), (2, 1), (1, 2), (1, 1)]
    heads = [Level(kv_groups=g, group_heads=q) for g, q in pairs]
    levels = (DENSE, *heads, DROP)
    drop = len(levels) - 1
    assert next_levels(levels, 0, stepped=False) == [1, 2, drop]
    assert next_levels(levels, 1, stepped=False) == [3, drop]
    assert next_levels(levels, 2, stepped=False) == [3, 4, drop]
    assert next_levels(levels, 5, stepped=False) == [drop]
    assert next_levels(levels, drop, stepped=False) == []
