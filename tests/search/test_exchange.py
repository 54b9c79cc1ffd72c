"""Moves that exchange cost between any units, and EvoPress with them."""

import itertools

import numpy as np
import pytest

from evocompress.core.config import SpaceConfig
from evocompress.core.errors import ConfigError
from evocompress.search.base import Problem
from evocompress.search.baselines.random_search import RandomSearch
from evocompress.search.baselines.uniform import Uniform
from evocompress.search.evolution.evopress import EvoPress, uses_exchange
from evocompress.search.fidelity.staged import PUBLISHED, StagedSettings, published
from evocompress.search.operators.mutation import exchange
from evocompress.space import sampling
from evocompress.space.build import build_space
from evocompress.space.costs import CostTable
from evocompress.testing.decoders import SMOLLM2_135M, Decoder
from evocompress.testing.searchers import POOL, Separable, run

WIDTH = {"width": {"multiple_of": 8}}


def space_of(decoder=None, **config):
    decoder = decoder or Decoder(layers=6, hidden=48, heads=12, kv_heads=4, ffn=96)
    return build_space(decoder.units(), decoder.architecture(), SpaceConfig(**config))


SPACES = {
    "width": space_of(**WIDTH, budget={"body_params": 0.6}),
    "shape": space_of(**WIDTH, drop={}, budget={"body_params": 0.6, "kv_bytes": 0.5}),
    "uniform": space_of(
        width={"multiple_of": 8, "uniform": True},
        drop={"units": ["block"]},
        budget={"body_params": 0.6},
    ),
    "joint": space_of(sparsity={"target": 0.5}, drop={}, budget={"matrix_nonzeros": 0.4}),
    "everything": space_of(
        **WIDTH, sparsity={"target": 0.4}, drop={}, budget={"body_nonzeros": 0.35}
    ),
}


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_children_are_feasible_settled_and_reproducible(space):
    parent = sampling.uniform(space)
    before = parent.copy()
    children = np.stack([exchange(space, parent, np.random.default_rng(s)) for s in range(60)])
    assert space.feasible(children).all()
    assert (children == space.deactivate(children)).all()
    assert (children != parent).any(axis=1).mean() > 0.8
    assert parent.tolist() == before.tolist()
    again = exchange(space, parent, np.random.default_rng(7))
    assert again.tolist() == children[7].tolist()


def test_cost_moves_between_units_of_different_kinds():
    space = SPACES["width"]
    rng = np.random.default_rng(0)
    parent = sampling.random(space, rng)
    wider, narrower = set(), set()
    for _ in range(100):
        change = exchange(space, parent, rng) - parent
        for kind, genes in space.encoding.by_kind.items():
            if (change[genes] < 0).any() and not (change[genes] > 0).any():
                wider.add(kind)
            if (change[genes] > 0).any() and not (change[genes] < 0).any():
                narrower.add(kind)
    assert wider == narrower == {"attention", "mlp"}


def test_exchanges_reach_every_genome_that_uses_the_budget_and_no_other():
    decoder = Decoder(layers=2, hidden=16, heads=4, kv_heads=2, ffn=16)
    width = {"channels": [0.75, 0.5, 0.25], "multiple_of": 1, "protect": []}
    drop = {"protect": []}
    space = space_of(decoder, width=width, drop=drop, budget={"body_params": 0.6})
    every = np.array(list(itertools.product(*map(range, space.encoding.sizes))))
    used = space.budget_usage(every)[:, 0]
    feasible = space.feasible(every)
    full = {tuple(g) for g in every[feasible] if not fits_more(space, g, every[feasible])}
    assert len(full) > 50
    rng = np.random.default_rng(0)
    genome, seen = sampling.uniform(space), set()
    for _ in range(4000):
        genome = exchange(space, genome, rng)
        seen.add(tuple(genome))
    assert used.max() > 1
    assert seen == full


UNEVEN = Decoder(layers=4, hidden=16, heads=4, kv_heads=2, ffn=40)
DROPPED = {
    "depth": space_of(UNEVEN, drop={"protect": []}, budget={"body_params": 0.6}),
    "experts": space_of(
        Decoder(layers=2, experts=3, active=1),
        drop={"units": ["expert", "attention"], "protect": []},
        budget={"body_params": 0.7},
    ),
    "joint": space_of(
        Decoder(layers=2, hidden=16, heads=4, kv_heads=2, ffn=40),
        sparsity={"target": 0.5, "levels": 1, "match": ["*o_proj", "*down_proj"]},
        drop={"protect": []},
        budget={"body_nonzeros": 0.5},
    ),
}


@pytest.mark.parametrize("space", DROPPED.values(), ids=DROPPED)
def test_what_can_only_be_dropped_is_restored_where_it_fits(space):
    every = np.array(list(itertools.product(*map(range, space.encoding.sizes))))
    every = every[(every == space.deactivate(every)).all(axis=1)]
    feasible = every[space.feasible(every)]
    full = {tuple(g) for g in feasible if not fits_more(space, g, feasible)}
    assert len(full) >= 5
    rng = np.random.default_rng(0)
    genome, seen = sampling.uniform(space), set()
    for _ in range(60 * len(full)):
        genome = exchange(space, genome, rng)
        seen.add(tuple(genome))
    assert seen == full


def test_dropped_units_change_places_although_matrices_could_take_in_what_is_freed():
    space = SPACES["joint"]
    rng, dropped = np.random.default_rng(0), space.encoding.droppable
    parent = sampling.uniform(space)
    assert parent[dropped].sum() > 1
    changes = [exchange(space, parent, rng)[dropped] - parent[dropped] for _ in range(300)]
    swaps = [change for change in changes if sorted(change[change != 0]) == [-1, 1]]
    assert len(swaps) > 40


def fits_more(space, genome, feasible):
    """Whether one gene could be relaxed, or restored, within the budget."""
    one = feasible[(feasible != genome).sum(axis=1) == 1]
    return (space.budget_usage(one) > space.budget_usage(genome[None])).any()


def test_without_a_budget_any_gene_changes_alone():
    space = space_of(**WIDTH, drop={})
    rng = np.random.default_rng(0)
    changed = [(exchange(space, sampling.uniform(space), rng) != 0).sum() for _ in range(200)]
    assert set(changed) == {0, 1, 2, 3}  # a later change may undo an earlier one


def test_an_exchange_prices_few_genomes(monkeypatch):
    space = space_of(
        SMOLLM2_135M,
        width={"channels": [count / 14 for count in range(1, 14)], "multiple_of": 32},
        drop={},
        budget={"body_params": 0.7},
    )
    counted, totals = [], CostTable.totals

    def counting(table, states, choices):
        counted.append(len(states))
        return totals(table, states, choices)

    rng = np.random.default_rng(0)
    genome = sampling.uniform(space)
    monkeypatch.setattr(CostTable, "totals", counting)
    for _ in range(20):
        genome = exchange(space, genome, rng)
    # The genes have about 800 other levels, and an exchange looks several times at all of them.
    assert 0 < sum(counted) < 20 * 400


# ---- EvoPress


@pytest.mark.parametrize(
    ("config", "automatic"),
    [
        ({"sparsity": {"target": 0.5}}, False),
        ({"drop": {}, "budget": {"body_params": 0.7}}, False),
        ({**WIDTH, "budget": {"body_params": 0.7}}, True),
        ({"sparsity": {"target": 0.5}, "drop": {}, "budget": {"matrix_nonzeros": 0.4}}, True),
    ],
)
def test_which_moves_are_made(config, automatic):
    space = space_of(**config)
    for moves, expected in (("auto", automatic), ("swap", False), ("exchange", True)):
        assert uses_exchange(EvoPress.Settings(moves=moves), space) is expected


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        ({"sparsity": {"target": 0.5}, **WIDTH, "budget": {"body_nonzeros": 0.3}}, "sparsity"),
        ({"drop": {}, "budget": {"body_params": 0.7}}, "depth"),
        ({**WIDTH, "drop": {}, "budget": {"body_params": 0.7}}, "width"),
    ],
)
def test_whose_published_schedule_is_taken(config, kind):
    space = space_of(**config)
    assert published(StagedSettings(), space) == PUBLISHED[kind]
    assert published(StagedSettings(kind="depth"), space) == PUBLISHED["depth"]


QUICK = {"generations": 40, "offspring": 16, "survivors": (3, 1), "stage_tokens": (128, 1024)}


def test_evopress_finds_the_enumerated_optimum_of_a_width_space():
    decoder = Decoder(layers=3, hidden=16, heads=4, kv_heads=2, ffn=16)
    width = {"channels": [0.75, 0.5, 0.25], "group_heads": [1.0], "multiple_of": 1, "protect": []}
    space = space_of(decoder, width=width, budget={"body_params": 0.6})
    every = np.array(list(itertools.product(*map(range, space.encoding.sizes))))
    objective = Separable.of(space, seed=3)
    values = [objective.value(space.candidate(g)) for g in every[space.feasible(every)]]
    search = EvoPress(Problem(space, POOL), EvoPress.Settings(**QUICK), np.random.default_rng(0))
    run(search, objective)
    assert search.incumbent().value == pytest.approx(min(values))


@pytest.mark.parametrize("name", ["width", "shape", "everything"])
def test_exchanges_beat_random_search_at_equal_tokens(name):
    space = SPACES[name]
    objective = Separable.of(space, noise=0.02)
    found = {}
    for cls in (EvoPress, RandomSearch):
        search = cls(Problem(space, POOL), cls.Settings(**QUICK), np.random.default_rng(0))
        run(search, objective)
        found[cls] = objective.value(search.incumbent().candidate)
    assert found[EvoPress] < 0.95 * found[RandomSearch]


@pytest.mark.parametrize("cls", [EvoPress, RandomSearch, Uniform])
def test_a_budget_is_needed(cls):
    space = space_of(**WIDTH)
    with pytest.raises(ConfigError, match="space.budget is missing"):
        cls(Problem(space, POOL), cls.Settings(), np.random.default_rng(0))
