import itertools

import numpy as np
import pytest

from evocompress.core.config import SpaceConfig
from evocompress.core.errors import ConfigError
from evocompress.core.requests import Pool
from evocompress.search.base import Problem
from evocompress.search.baselines.random_search import RandomSearch
from evocompress.search.evolution.evopress import EvoPress
from evocompress.space import sampling
from evocompress.space.build import build_space
from evocompress.space.repair import repair
from evocompress.testing.decoders import Decoder
from evocompress.testing.searchers import Separable, run

POOL = Pool((64,) * 32)
QUICK = {"generations": 3, "offspring": 8, "survivors": (3, 1), "stage_tokens": (128, 1024)}


def space_of(layers=6, **config):
    decoder = Decoder(layers=layers)
    return build_space(decoder.units(), decoder.architecture(), SpaceConfig(**config))


SPARSITY = space_of(sparsity={"target": 0.5, "levels": 3})
DEPTH = space_of(drop={}, budget={"body_params": 0.7})


def searcher(space, cls=EvoPress, pool=POOL, seed=0, **settings):
    return cls(Problem(space, pool), cls.Settings(**settings), np.random.default_rng(seed))


def shapes(steps):
    return [(len(requests), len(requests[0].micro_batches)) for requests, _ in steps]


WIDTHS = space_of(width={"multiple_of": 8}, drop={}, budget={"body_params": 0.7})


# ---- the course of a search


def test_stages_of_a_sparsity_search():
    steps = run(searcher(SPARSITY, **QUICK), Separable.of(SPARSITY))
    assert shapes(steps) == [(8, 2), (4, 16)] * 3


def test_stages_of_a_depth_search_begin_with_random_masks():
    quick = QUICK | {"initial": 20, "initial_tokens": 192}
    steps = run(searcher(DEPTH, **quick), Separable.of(DEPTH))
    assert shapes(steps) == [(20, 3)] + [(8, 2), (4, 16)] * 3


def test_candidates_of_a_stage_share_batches_and_stages_draw_anew():
    steps = run(searcher(SPARSITY, **QUICK), Separable.of(SPARSITY))
    drawn = [{request.micro_batches for request in requests} for requests, _ in steps]
    assert all(len(sets) == 1 for sets in drawn)
    assert len(set(map(frozenset, drawn))) == len(drawn)


def test_published_schedule_of_sparsity():
    search = searcher(SPARSITY, pool=Pool((1024,) * 512), generations=2)
    steps = run(search, Separable.of(SPARSITY))
    assert shapes(steps) == [(64, 2), (8, 16), (3, 64)] * 2


def test_published_schedule_of_depth():
    blocks = {"units": ["block"], "protect": []}
    space = space_of(layers=12, drop=blocks, budget={"body_params": 0.75})
    steps = run(searcher(space, pool=Pool((1024,) * 128)), Separable.of(space))
    generations = int(3 * 9 / 1.5)
    assert shapes(steps)[0] == (64, 2)
    assert len(steps) == 1 + 2 * generations
    assert {n for _, n in shapes(steps)[2::2]} == {32}


def test_published_tokens_are_cut_to_a_small_pool():
    steps = run(searcher(SPARSITY, pool=Pool((3000,) * 4), generations=1), Separable.of(SPARSITY))
    assert shapes(steps) == [(64, 1), (8, 4), (3, 4)]


def test_the_best_survives_each_stage():
    objective = Separable.of(SPARSITY)
    (first, results), (second, _), *_ = run(searcher(SPARSITY, **QUICK), objective)
    best = sorted(results, key=lambda result: result.mean)[:3]
    expected = [result.request.candidate for result in best]
    assert [request.candidate for request in second][:3] == expected
    assert second[3].candidate == SPARSITY.candidate(sampling.uniform(SPARSITY))


def test_noise_may_replace_the_parent():
    """The parent is measured anew in each last stage, so its value is the latest one."""
    search = searcher(SPARSITY, **QUICK | {"generations": 1})
    objective = Separable.of(SPARSITY)
    search.tell([objective(request) for request in search.ask()])
    finalists = [objective(request) for request in search.ask()]
    parent = finalists[-1]
    lucky = type(parent)(parent.request, tuple(_shifted(v, -100.0) for v in parent.values))
    search.tell([*finalists[:-1], lucky])
    assert search.incumbent().candidate == parent.request.candidate
    assert search.incumbent().value == lucky.mean


def _shifted(value, by):
    return type(value)(value.micro_batch, tuple(s + by for s in value.sums), value.counts)


def test_a_generation_that_fails_keeps_the_parent():
    search = searcher(SPARSITY, **QUICK)
    objective = Separable.of(SPARSITY)
    for _ in range(2):
        search.tell([objective(request) for request in search.ask()])
    before = search.incumbent()
    requests = search.ask()
    search.tell([type(objective(r))(r, (), failed="made to fail") for r in requests])
    assert [request.candidate for request in search.ask()] == [before.candidate]


def test_caps_on_levels():
    search = searcher(SPARSITY, **QUICK, max_level=1, max_total=4)
    for requests, _ in run(search, Separable.of(SPARSITY)):
        for request in requests:
            distance = np.abs(SPARSITY.genome(request.candidate) - SPARSITY.encoding.default)
            assert distance.max() <= 1
            assert distance.sum() <= 4


# ---- finding the optimum


def all_feasible(space):
    genomes = np.array(list(itertools.product(*(range(size) for size in space.encoding.sizes))))
    return genomes[space.feasible(genomes)]


@pytest.mark.parametrize(
    ("layers", "config"),
    [
        (12, {"drop": {"units": ["block"]}, "budget": {"body_params": 0.7}}),
        (6, {"drop": {}, "budget": {"body_params": 0.67}}),
        (2, {"sparsity": {"target": 0.5, "levels": 1, "match": ["*mlp*", "*o_proj"]}}),
    ],
)
def test_evopress_finds_the_enumerated_optimum(layers, config):
    space = space_of(layers=layers, **config)
    objective = Separable.of(space, seed=4)
    counts = {
        kind: sampling.uniform(space)[units].sum() for kind, units in space.encoding.by_kind.items()
    }
    reachable = [
        genome
        for genome in all_feasible(space)
        if all(
            genome[units].sum() == counts[kind] for kind, units in space.encoding.by_kind.items()
        )
    ]
    values = [objective.value(space.candidate(genome)) for genome in reachable]
    assert len(values) > 100
    settings = QUICK | {"generations": 40, "offspring": 16, "initial": 4}
    search = searcher(space, **settings)
    run(search, objective)
    assert search.incumbent().value == pytest.approx(min(values))


def test_evopress_beats_random_search_at_equal_tokens():
    objective = Separable.of(SPARSITY, noise=0.02)
    found = {}
    for cls in (EvoPress, RandomSearch):
        search = searcher(SPARSITY, cls, **QUICK | {"generations": 30})
        run(search, objective)
        found[cls] = objective.value(search.incumbent().candidate)
    assert found[EvoPress] < found[RandomSearch]


# ---- tiny spaces


def test_a_space_without_neighbours_measures_its_only_candidate_and_ends():
    space = space_of(sparsity={"target": 0.5, "pattern": "2:4"})
    search = searcher(space, **QUICK)
    steps = run(search, Separable.of(space))
    assert shapes(steps) == [(1, 16)]
    assert search.incumbent().candidate == space.candidate(sampling.uniform(space))


def test_a_tiny_space_gives_fewer_offspring():
    blocks = {"units": ["block"], "protect": []}
    space = space_of(layers=3, drop=blocks, budget={"body_params": 0.67})
    steps = run(searcher(space, **QUICK | {"initial": 0}), Separable.of(space))
    assert shapes(steps) == [(2, 2), (3, 16)] * 3


# ---- refused settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"stage_tokens": (128, 4096)},
            "search.stage_tokens asks for 4096 tokens, but the calibration pool has 2048",
        ),
        (
            {"stage_tokens": (128, 1000)},
            "1000 is no multiple of .* 64 tokens; give e.g. 960 or 1024",
        ),
        ({"stage_tokens": (30, 128)}, "give e.g. 64"),
        ({"initial_tokens": 100}, "search.initial_tokens: 100 is no multiple"),
        ({"survivors": (1,)}, "1 survivors but 2 stage_tokens"),
        ({"survivors": (3, 2)}, "must fall to 1"),
        ({"survivors": (2, 3, 1), "stage_tokens": (64, 64, 64)}, "must fall to 1"),
        ({"survivors": (9, 1)}, "9 of only 8 offspring"),
    ],
)
def test_refused_settings(settings, message):
    with pytest.raises(ConfigError, match=message):
        searcher(SPARSITY, **QUICK | settings)


def test_a_smaller_last_micro_batch_is_left_out():
    pool = Pool((64, 64, 64, 20))
    steps = run(
        searcher(SPARSITY, pool=pool, **QUICK | {"stage_tokens": (128, 192)}),
        Separable.of(SPARSITY),
    )
    used = {index for requests, _ in steps for r in requests for index in r.micro_batches}
    assert used == {0, 1, 2}


def test_what_a_favourable_drop_saves_is_spent_on_the_matrices():
    space = space_of(
        drop={},
        sparsity={"target": 0.5, "step": 64, "levels": 6},
        budget={"matrix_nonzeros": 0.45},
    )
    steps = run(searcher(space, initial=4, initial_tokens=128, **QUICK), Separable.of(space))
    genomes = np.array([space.genome(r.candidate) for requests, _ in steps for r in requests])
    slack = space.budget["matrix_nonzeros"] - space.costs(genomes)["matrix_nonzeros"]
    matrices = space.encoding.matrices
    relaxable = (genomes[:, matrices] > 0) & ~space.encoding.inactive(genomes)[:, matrices]
    assert (slack >= 0).all()
    assert ((slack < 64) | ~relaxable.any(axis=1)).all()


DEEP = space_of(layers=12, drop={}, budget={"body_params": 0.6})


@pytest.mark.parametrize("space", [SPARSITY, DEEP, WIDTHS], ids=["sparsity", "depth", "widths"])
def test_generations_take_turns_in_ever_later_windows(space):
    search = searcher(space, windows=3, **QUICK)
    blocks = np.array([unit.block for unit in space.encoding.units])
    parent = repair(
        space, sampling.random(space, np.random.default_rng(1)), np.random.default_rng(2)
    )
    third = (blocks.max() + 1) // 3
    first_changed = []
    for begin in (0, third, 2 * third) * 2:
        offspring = search._offspring(parent)
        assert offspring and space.feasible(np.stack(offspring)).all()
        changed = {blocks[np.flatnonzero(child != parent)].min() for child in offspring}
        assert min(changed) >= begin
        first_changed.append(min(changed))
    assert first_changed[0] < third <= first_changed[1] < 2 * third


def test_a_window_without_moves_gives_way_to_all_blocks():
    space = space_of(
        drop={"units": ["attention"], "protect": ["*.[345].*"]}, budget={"params": 0.9}
    )
    search = searcher(space, windows=2, **QUICK)
    parent = sampling.uniform(space)
    both = [search._offspring(parent) for _ in range(2)]
    assert all(both)
