import itertools
from math import ceil

import numpy as np
import pytest

from evocompress.core.canonical import canonical
from evocompress.core.config import SpaceConfig
from evocompress.core.errors import BudgetError, ConfigError
from evocompress.core.types import DENSE, DROP, Candidate, Level
from evocompress.space import sampling
from evocompress.space.build import build_space
from evocompress.space.repair import repair
from evocompress.testing.decoders import Decoder

DECODER = Decoder(layers=4)
UNITS = DECODER.units()

SPARSITY = SpaceConfig(sparsity={"target": 0.5, "levels": 3})
DEPTH = SpaceConfig(drop={"protect": []}, budget={"body_params": 0.6})
BLOCKS = SpaceConfig(drop={"units": ["block"], "protect": []}, budget={"body_params": 0.6})
JOINT = SpaceConfig(
    sparsity={"target": 0.5, "levels": 3},
    drop={"protect": []},
    budget={"matrix_nonzeros": 0.4},
)
JOINT_BLOCKS = SpaceConfig(
    sparsity={"target": 0.5, "levels": 3},
    drop={"units": ["block"], "protect": []},
    budget={"matrix_nonzeros": 0.4, "body_params": 0.8},
)
CONFIGS = [SPARSITY, DEPTH, BLOCKS, JOINT, JOINT_BLOCKS]


def space_of(config, decoder=DECODER):
    return build_space(decoder.units(), decoder.architecture(), config)


def rng(seed=0):
    return np.random.default_rng(seed)


def any_genomes(space, count, seed=0):
    return rng(seed).integers(0, space.encoding.sizes, size=(count, len(space.units)))


def has_attention(candidate):
    named = candidate.by_name
    return any(named.get(f"model.layers.{i}.attention") != DROP for i in range(DECODER.layers))


# ---- levels


def test_sparsity_levels_are_the_target_and_equal_steps_within_the_matrix():
    space = space_of(SpaceConfig(sparsity={"target": 0.3, "step": 60, "levels": 3}))
    assert len(space.units) == 7 * DECODER.layers
    for unit, levels, start in zip(space.units, space.levels, space.encoding.default, strict=True):
        target = ceil(0.3 * unit.numel - 1e-6)
        wanted = [target + k * 60 for k in range(-3, 4) if 0 <= target + k * 60 <= unit.numel]
        assert [level.zeros for level in levels] == wanted
        assert levels[start].zeros == target


def test_level_without_zeros_is_the_dense_level():
    space = space_of(SpaceConfig(sparsity={"target": 0.5, "step": 64, "levels": 2}))
    narrow = [u.role for u in space.units].index("k_proj")
    assert [level.key for level in space.levels[narrow]] == ["dense", "zeros=64", "zeros=128"]
    assert space.levels[narrow][0] == DENSE


def test_target_is_not_raised_by_rounding_of_floats():
    decoder = Decoder(hidden=20, heads=2, kv_heads=1, ffn=50)
    space = space_of(SpaceConfig(sparsity={"target": 0.7, "levels": 0}), decoder)
    assert space.levels[[u.role for u in space.units].index("gate_proj")][0].zeros == 700


@pytest.mark.parametrize("target", [0.3, 0.5, 0.8])
def test_automatic_step(target):
    space = space_of(SpaceConfig(sparsity={"target": target, "levels": 4}))
    step = int(0.5 * min(target, 1 - target) / 4 * DECODER.hidden**2)
    for levels in space.levels:
        assert set(np.diff([level.zeros for level in levels])) == {step}


def test_pattern_has_only_its_target():
    space = space_of(SpaceConfig(sparsity={"target": 0.5, "pattern": "2:4"}))
    assert {len(levels) for levels in space.levels} == {1}
    assert space.levels[0][0] == Level(zeros=space.units[0].numel // 2, pattern="2:4")


def test_protected_blocks_and_sublayers_have_no_gene():
    drop = {"protect": ["model.layers.0", "model.layers.3.mlp"]}
    space = space_of(SpaceConfig(drop=drop, budget={"body_params": 0.9}))
    names = {unit.name for unit in space.units}
    assert names == {
        *(f"model.layers.{i}.{kind}" for i in (1, 2) for kind in ("attention", "mlp")),
        "model.layers.3.attention",
    }
    blocks = space_of(SpaceConfig(drop=drop | {"units": ["block"]}, budget={"body_params": 0.9}))
    assert [unit.name for unit in blocks.units] == ["model.layers.1", "model.layers.2"]


# ---- refused configurations


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        ({}, ConfigError, "give 'sparsity', 'width', 'drop', 'bits', 'cache' or"),
        (
            {"sparsity": {"target": 0.5, "match": ["*.fc1"]}},
            ConfigError,
            r"'\*.fc1' matches no unit; names look like 'model.layers.0.self_attn.q_proj'",
        ),
        (
            {"drop": {"protect": ["layer.0"]}, "budget": {"params": 0.9}},
            ConfigError,
            "'layer.0' matches no unit; names look like 'model.layers.0'",
        ),
        (
            {"drop": {"protect": ["*"]}, "budget": {"params": 0.9}},
            ConfigError,
            "no attention or mlp to remove",
        ),
        ({"sparsity": {"target": 0.5, "pattern": "3:6"}}, ConfigError, "is no multiple of 6"),
        (
            {"drop": {"protect": []}, "budget": {"body_parms": 0.9}},
            ConfigError,
            "unknown cost 'body_parms'; did you mean 'body_params'",
        ),
        (
            {"sparsity": {"target": 0.5}, "budget": {"params": 0.9}},
            BudgetError,
            r"3038.4 \(90.0% of dense\) cannot be reached; .* spans 3376 \(100.0% of dense\) to",
        ),
        (
            {"drop": {"protect": []}, "budget": {"params": 0.01}},
            BudgetError,
            "raise the bound",
        ),
    ],
)
def test_refused(config, error, message):
    decoder = Decoder(layers=1, vocabulary=64)
    with pytest.raises(error, match=message):
        space_of(SpaceConfig(**config), decoder)


# ---- candidates and genomes


def test_canonical_form():
    block = {"model.layers.1": DROP, "model.layers.1.mlp.up_proj": Level(zeros=9)}
    both = {"model.layers.1.attention": DROP, "model.layers.1.mlp": DROP}
    dense = {"model.layers.2.mlp.up_proj": DENSE}
    expected = Candidate((("model.layers.1.attention", DROP), ("model.layers.1.mlp", DROP)))
    assert canonical(block, UNITS) == canonical(both | dense, UNITS) == expected


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        ({"model.layers.9": DROP}, "unit 'model.layers.9' is not in this model"),
        ({"model.layers.1.mlp.up_proj": DROP}, "drop 'model.layers.1.mlp'"),
    ],
)
def test_canonical_refuses(levels, message):
    with pytest.raises(ConfigError, match=message):
        canonical(levels, UNITS)


@pytest.mark.parametrize("config", CONFIGS)
def test_genome_is_the_inverse_of_candidate(config):
    space = space_of(config)
    for genome in any_genomes(space, 30):
        settled = space.deactivate(genome[None])[0]
        assert space.genome(space.candidate(genome)).tolist() == settled.tolist()
        assert space.candidate(settled) == space.candidate(genome)


def test_settled_genomes_differ_exactly_where_candidates_differ():
    space = space_of(JOINT)
    genomes = space.deactivate(any_genomes(space, 50))
    genomes = np.concatenate([genomes, space.deactivate(genomes)])
    assert len({g.tobytes() for g in genomes}) == len({space.candidate(g) for g in genomes}) == 50


@pytest.mark.parametrize(
    ("config", "levels", "message"),
    [
        (DEPTH, {"model.layers.0.mlp.up_proj": Level(zeros=3)}, "not one that this search space"),
        (BLOCKS, {"model.layers.0.mlp": DROP}, "not one that this search space"),
        (SPARSITY, {}, "has no level 'dense'"),
    ],
)
def test_foreign_candidates_are_refused(config, levels, message):
    with pytest.raises(ConfigError, match=message):
        space_of(config).genome(canonical(levels, UNITS))


# ---- budget


def test_sparsity_is_bounded_by_the_uniform_candidate():
    space = space_of(SPARSITY)
    assert sampling.uniform(space).tolist() == space.encoding.default.tolist()
    assert space.budget == {"matrix_nonzeros": sum(u.numel for u in space.units) / 2}


def test_fractions_and_absolute_bounds():
    dense = space_of(DEPTH).cost_model.dense()
    assert space_of(DEPTH).budget == {"body_params": 0.6 * dense["body_params"]}
    absolute = SpaceConfig(drop={}, budget={"body_params": 5000})
    assert space_of(absolute).budget == {"body_params": 5000.0}


@pytest.mark.parametrize("config", CONFIGS)
def test_feasible_compares_each_cost_with_its_bound(config):
    space = space_of(config)
    genomes = any_genomes(space, 200)
    costs = space.costs(genomes)
    expected = [
        all(costs[name][i] <= bound * (1 + 1e-9) for name, bound in space.budget.items())
        and has_attention(space.candidate(genome))
        for i, genome in enumerate(genomes)
    ]
    assert space.feasible(genomes).tolist() == expected
    assert 0 < sum(expected) < len(expected)


@pytest.mark.parametrize("config", CONFIGS)
def test_repair_meets_the_budget_by_compressing_only(config):
    space = space_of(config)
    genomes = space.deactivate(any_genomes(space, 40))
    for seed, genome in enumerate(genomes[space.encoding.keep_attention(genomes)]):
        repaired = repair(space, genome, rng(seed))
        assert space.feasible(repaired[None])[0]
        live = ~space.encoding.inactive(repaired[None])[0]
        assert (repaired >= genome)[live].all()
        if space.feasible(genome[None])[0]:
            assert repaired.tolist() == genome.tolist()


@pytest.mark.parametrize("config", [SPARSITY, DEPTH, BLOCKS])
def test_repair_overshoots_no_more_than_its_last_move(config):
    space = space_of(config)
    least = np.zeros(len(space.units), dtype=np.int64)
    for seed in range(10):
        repaired = repair(space, least, rng(seed))
        relaxed = repaired - np.eye(len(least), dtype=np.int64)[repaired > 0]
        assert not space.feasible(relaxed).all()


@pytest.mark.parametrize("config", CONFIGS)
def test_random_genomes_are_feasible_and_varied(config):
    space = space_of(config)
    genomes = np.stack([sampling.random(space, rng(seed)) for seed in range(30)])
    assert space.feasible(genomes).all()
    assert len(np.unique(genomes, axis=0)) > 3
    assert sampling.random(space, rng(3)).tolist() == genomes[3].tolist()


def test_random_sparsities_waste_nothing_of_the_budget():
    space = space_of(SPARSITY)
    genomes = np.stack([sampling.random(space, rng(seed)) for seed in range(30)])
    assert (space.costs(genomes)["matrix_nonzeros"] == space.budget["matrix_nonzeros"]).all()


def test_random_masks_are_equally_likely():
    space = space_of(BLOCKS)
    source = rng(1)
    masks = [tuple(sampling.random(space, source).tolist()) for _ in range(1200)]
    expected = [mask for mask in itertools.product((0, 1), repeat=4) if sum(mask) == 2]
    counts = np.array([masks.count(mask) for mask in expected])
    assert counts.sum() == 1200
    assert ((counts - 200) ** 2 / 200).sum() < 20.5  # 0.999 quantile, 5 degrees of freedom


def test_random_masks_of_unequal_units_waste_nothing_of_the_budget():
    config = SpaceConfig(drop={"protect": []}, budget={"flops": 0.5, "params": 0.7})
    space = space_of(config, Decoder(layers=4, hidden=48, heads=12, kv_heads=4, ffn=96))
    source, every = rng(2), np.array(list(itertools.product((0, 1), repeat=8)))
    feasible = every[space.feasible(every)]
    full = {
        tuple(genome)
        for genome in feasible
        if not any((other <= genome).all() and (other < genome).any() for other in feasible)
    }
    drawn = {tuple(sampling.random(space, source).tolist()) for _ in range(400)}
    assert drawn <= full
    assert len(drawn) > 20


def test_uniform_depth_is_even_over_kinds_and_depth():
    config = SpaceConfig(drop={"protect": []}, budget={"body_params": 0.75})
    space = space_of(config, Decoder(layers=8))
    removed = {
        unit.name for unit, gene in zip(space.units, sampling.uniform(space), strict=True) if gene
    }
    assert removed == {f"model.layers.{i}.{kind}" for i in (2, 6) for kind in ("attention", "mlp")}


def test_uniform_of_a_joint_space_drops_as_little_as_the_budget_allows():
    space = space_of(JOINT)
    uniform = sampling.uniform(space)
    assert space.feasible(uniform[None])[0]
    assert uniform[space.encoding.droppable].sum() == 2
    assert (
        uniform[space.encoding.matrices] == space.encoding.default[space.encoding.matrices]
    ).all()


def test_uniform_raises_all_matrices_together_for_a_tighter_budget():
    config = SpaceConfig(sparsity={"target": 0.5, "levels": 3}, budget={"matrix_nonzeros": 0.45})
    space = space_of(config)
    offsets = sampling.uniform(space) - space.encoding.default
    assert space.feasible(sampling.uniform(space)[None])[0]
    assert len(set(offsets.tolist())) == 1
    assert not space.feasible((sampling.uniform(space) - 1)[None])[0]
