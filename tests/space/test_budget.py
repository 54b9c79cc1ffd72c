"""Bringing genomes below budgets in spaces whose levels are in no order."""

import itertools
import re

import numpy as np
import pytest

from evocompress.core.config import SpaceConfig
from evocompress.core.errors import BudgetError, ConfigError
from evocompress.space.budget import minimal_genomes, require
from evocompress.space.build import build_space
from evocompress.space.costs import CostTable
from evocompress.space.repair import fill_budget, repair
from evocompress.testing.decoders import SMOLLM2_135M, Decoder

DECODER = Decoder(layers=5, hidden=48, heads=12, kv_heads=4, ffn=96, window=16)


def space_of(budget, decoder=DECODER, **config):
    return build_space(
        decoder.units(), decoder.architecture(), SpaceConfig(**config, budget=budget)
    )


def rng(seed=0):
    return np.random.default_rng(seed)


def any_genomes(space, count, seed=0):
    return rng(seed).integers(0, space.encoding.sizes, size=(count, len(space.units)))


WIDTH = {"width": {"multiple_of": 8}}
SPACES = {
    "width": space_of({"body_params": 0.6}, **WIDTH),
    "width and drop": space_of(
        {"body_params": 0.6, "kv_bytes": 0.4, "flops": 0.7}, **WIDTH, drop={"protect": []}
    ),
    "tight": space_of({"body_params": 0.25, "kv_bytes": 0.2}, **WIDTH, drop={"protect": []}),
    "uniform": space_of(
        {"decode_flops": 0.6, "kv_bytes": 0.5},
        width={"multiple_of": 8, "uniform": True},
        drop={"units": ["block"], "protect": []},
    ),
    "everything": space_of(
        {"body_nonzeros": 0.35, "kv_bytes": 0.6, "weight_bytes": 0.75},
        **WIDTH,
        drop={"protect": []},
        sparsity={"target": 0.4, "levels": 3},
    ),
    "sparse widths": space_of(
        {"body_nonzeros": 0.4}, **WIDTH, sparsity={"target": 0.3, "levels": 2, "match": ["*mlp*"]}
    ),
    "last attention": space_of({"kv_bytes": 0.15}, drop={"units": ["attention"], "protect": []}),
}


# ---- repair


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_repair_ends_at_a_feasible_genome(space):
    for seed, genome in enumerate(any_genomes(space, 60)):
        before = genome.copy()
        repaired = repair(space, genome, rng(seed))
        assert space.feasible(repaired[None])[0]
        assert repaired.tolist() == space.deactivate(repaired[None])[0].tolist()
        assert genome.tolist() == before.tolist()
        assert repaired.tolist() == repair(space, genome, rng(seed)).tolist()
        if space.feasible(genome[None])[0]:
            assert repaired.tolist() == space.deactivate(genome[None])[0].tolist()


@pytest.mark.parametrize("name", ["width", "width and drop", "tight", "uniform", "everything"])
def test_repair_adds_to_no_bounded_cost(name):
    space = SPACES[name]
    genomes = any_genomes(space, 60, seed=1)
    for seed, genome in enumerate(genomes[space.encoding.keep_attention(genomes)]):
        repaired = repair(space, genome, rng(seed))
        assert (space.budget_usage(repaired[None]) <= space.budget_usage(genome[None])).all()


def test_repair_keeps_what_it_can():
    space = SPACES["width and drop"]
    kept = [0, 3]
    for seed, genome in enumerate(any_genomes(space, 40)):
        genome[kept] = 0
        assert (repair(space, genome, rng(seed), keep=kept)[kept] == 0).all()
    everything = range(len(space.units))
    dense = np.zeros(len(space.units), dtype=np.int64)
    assert space.feasible(repair(space, dense, rng(), keep=everything)[None])[0]


def test_the_last_move_of_a_repair_varies():
    """From one step above the budget each gene is at times the one that is compressed."""
    space = SPACES["width"]
    genome = fill_budget(space, repair(space, space.encoding.default, rng()), rng())
    above = genome.copy()
    wide = int(np.flatnonzero(genome > 0)[0])
    above[wide] -= 1
    movers = set()
    for seed in range(300):
        movers |= set(np.flatnonzero(repair(space, above, rng(seed), keep=[wide]) != above))
    compressible = set(np.flatnonzero(above < space.encoding.sizes - 1)) - {wide}
    assert movers == compressible


@pytest.mark.parametrize("seed", range(8))
def test_a_genome_without_attention_gets_one_back(seed):
    space = SPACES["width and drop"]
    lost = space.encoding.sizes - 1
    assert not space.feasible(lost[None])[0]
    assert (space.budget_usage(lost[None]) <= 1).all()
    assert space.feasible(repair(space, lost, rng(seed))[None])[0]


# ---- spend


@pytest.mark.parametrize("name", ["width", "width and drop", "everything", "sparse widths"])
def test_nothing_more_fits_after_spending(name):
    space = SPACES[name]
    for seed, genome in enumerate(any_genomes(space, 15)):
        spent = fill_budget(space, repair(space, genome, rng(seed)), rng(seed))
        assert space.feasible(spent[None])[0]
        for gene in np.flatnonzero(~space.encoding.inactive(spent[None])[0]):
            changed = np.tile(spent, (space.encoding.sizes[gene], 1))
            changed[:, gene] = np.arange(len(changed))
            if space.encoding.ordinal[gene]:
                changed = changed[max(spent[gene] - 1, 0) : spent[gene]]
            now, used = space.budget_usage(spent[None]), space.budget_usage(changed)
            more = (used >= now).all(axis=1) & (used > now).any(axis=1)
            assert not space.feasible(changed[more]).any()


def test_spending_keeps_what_it_must():
    space = SPACES["width and drop"]
    genome = repair(space, space.encoding.sizes - 1, rng())
    for gene in range(len(genome)):
        assert fill_budget(space, genome, rng(), keep=[gene])[gene] == genome[gene]


def test_spending_restores_what_can_only_be_dropped_at_last():
    space = space_of(
        {"body_params": 0.9}, drop={"protect": []}, width={"multiple_of": 8, "units": ["mlp"]}
    )
    genome = space.encoding.sizes - 1
    genome[space.encoding.by_kind["attention"][:2]] = 0
    spent = fill_budget(space, genome, rng())
    restored = space.encoding.dropped(genome[None]) & ~space.encoding.dropped(spent[None])
    again = np.flatnonzero(restored[0])
    assert set(space.encoding.by_kind["mlp"]) < set(again)
    for gene in np.flatnonzero(space.encoding.dropped(spent[None])[0]):
        more = spent.copy()
        more[gene] = 0
        assert not space.feasible(more[None])[0]


def test_what_no_bound_depends_on_is_not_spent():
    space = space_of({"kv_bytes": 0.5}, **WIDTH)
    mlps = space.encoding.by_kind["mlp"]
    genome = repair(space, any_genomes(space, 1)[0], rng())
    assert (fill_budget(space, genome, rng())[mlps] == genome[mlps]).all()


# ---- reachable budgets


def test_the_most_compressed_genomes_meet_whatever_can_be_met():
    decoder = Decoder(layers=2, hidden=16, heads=4, kv_heads=2, ffn=8, window=4)
    space = space_of(
        {"body_params": 1.0},
        decoder,
        width={"channels": [0.5], "group_heads": [0.5], "kv_groups": [0.5], "multiple_of": 1},
        drop={"protect": []},
    )
    every = np.array(list(itertools.product(*map(range, space.encoding.sizes))))
    every = every[space.encoding.keep_attention(every)]
    costs, least = space.costs(every), space.costs(minimal_genomes(space))
    for name in costs:
        assert least[name].min() == costs[name].min()
    # The two attentions differ in their windows: either may have to be the last one.
    below = [(costs["kv_bytes"] < kv).any() for kv in least["kv_bytes"]]
    assert below == [True, False]


def test_bounds_that_exclude_each_other_are_refused():
    decoder = Decoder(layers=2, window=4)
    config = {"drop": {"units": ["attention"], "protect": []}}
    windowed = 4 / (128 + 4)  # of the cache, where the second attention is the last
    space_of({"kv_bytes": windowed}, decoder, **config)
    with pytest.raises(BudgetError, match=r"kv_bytes: .* cannot be reached; .* spans .*3\.0%"):
        space_of({"kv_bytes": windowed / 2}, decoder, **config)


def test_a_missing_budget_is_refused_where_it_is_needed():
    space = space_of({}, **WIDTH)
    with pytest.raises(ConfigError, match="space.budget is missing: this search needs one"):
        require(space)
    require(SPACES["width"])


# ---- speed


def test_a_repair_prices_few_genomes(monkeypatch):
    space = space_of(
        {"body_params": 0.35, "kv_bytes": 0.5},
        SMOLLM2_135M,
        width={"channels": [count / 14 for count in range(1, 14)], "multiple_of": 32},
        drop={"protect": []},
    )
    assert len(space.units) == 60
    assert space.encoding.sizes.max() == 15
    counted, totals = [], CostTable.totals

    def counting(table, states, choices):
        counted.append(len(states))
        return totals(table, states, choices)

    monkeypatch.setattr(CostTable, "totals", counting)
    for seed, genome in enumerate(any_genomes(space, 15)):
        repair(space, genome, rng(seed))
    assert 0 < sum(counted) < 15 * 400


# ---- what asks for nothing

TYPES = {"bits": {"types": ["q8_0", "q4_0"]}}
TYPED_DECODER = Decoder(layers=3, hidden=64, heads=4, kv_heads=2, ffn=96, window=16)


@pytest.mark.parametrize(
    ("budget", "spans"),
    [
        ({"bits_per_weight": 8.6}, r"8.6 \(.*spans 4.5 \(28.1% of dense\) to 8.5 \("),
        ({"weight_bytes": 1.0}, r"0.2 MiB \(100.0% of dense\).* spans 0.1 MiB .* to 0.1 MiB"),
        ({"weight_bytes": 10**9, "bits_per_weight": 9}, "953.7 MiB"),
    ],
)
def test_a_bound_above_the_largest_candidate_is_refused_with_the_range(budget, spans):
    name = next(iter(budget))
    wanted = rf"space.budget.{name}: .* is met by every candidate; this space spans .*lower"
    with pytest.raises(BudgetError, match=wanted) as error:
        space_of(budget, TYPED_DECODER, **TYPES)
    assert re.search(spans, str(error.value)), error.value


def test_a_bound_that_only_the_largest_candidate_has_is_taken():
    """Also one of several that binds nothing, and those of other costs, as ever."""
    assert space_of({"bits_per_weight": 8.5}, TYPED_DECODER, **TYPES).budget
    assert space_of({"bits_per_weight": 9, "params": 0.99}, TYPED_DECODER, **TYPES, drop={}).budget
    assert space_of({"weight_bytes": 1.0}, TYPED_DECODER, drop={}).budget
    assert space_of({"bits_per_weight": 5}, TYPED_DECODER, bits={"types": ["q4_0"]}).budget
    assert space_of({"params": 10**9}, TYPED_DECODER, drop={}).budget
