"""Types of stored weights in a space: which levels there are, and what they cost."""

import numpy as np
import pytest

from evocompress.core.config import SpaceConfig
from evocompress.core.errors import BudgetError, ConfigError
from evocompress.core.storage import STORAGE
from evocompress.core.types import DENSE, DROP, Candidate, Level
from evocompress.export.formats import type_rules_of
from evocompress.models.families.outer import every_unit
from evocompress.space import sampling
from evocompress.space.budget import minimal_genomes
from evocompress.space.build import build_space
from evocompress.testing.tiny import tiny_loaded

MLP = "model.layers.1.mlp"
UP, DOWN = f"{MLP}.up_proj", f"{MLP}.down_proj"


def spaced(model_type="llama", **config):
    loaded = tiny_loaded(model_type)
    units = list(every_unit(loaded.family, loaded.model))
    architecture = loaded.family.architecture(loaded.model)
    return build_space(units, architecture, SpaceConfig.model_validate(config))


def matrices(space):
    return [unit for unit in space.encoding.tree if unit.kind == "matrix"]


def test_levels_go_from_most_bits_to_fewest():
    space = spaced(bits={"types": ["q4_0", "q8_0", "dense", "q5_1"]})
    names = ["", "q8_0", "q5_1", "q4_0"]
    assert all(levels == tuple(Level(bits=n) for n in names) for levels in space.levels)
    assert len(space.levels) == len(matrices(space))
    assert not space.encoding.default.any()


def test_bytes_are_those_of_the_stored_rows():
    space = spaced(bits={"types": ["q8_0", "q4_0", "q4_1"]})
    dense = space.cost_model.dense()["weight_bytes"]
    rng = np.random.default_rng(0)
    genomes = rng.integers(0, space.encoding.sizes, (20, len(space.units)))
    found = space.costs(genomes)["weight_bytes"]
    for genome, weight_bytes in zip(genomes, found, strict=True):
        named = space.candidate(genome).by_name
        saved = sum(
            4 * unit.numel - STORAGE[named[unit.name].bits].bytes(*unit.shape)
            for unit in matrices(space)
        )
        assert weight_bytes == dense - saved
    each = space.cost_model.of([space.candidate(genome) for genome in genomes])
    assert np.array_equal(each["weight_bytes"], found)
    assert np.array_equal(each["params"], np.full(20, space.cost_model.dense()["params"]))


def test_bits_per_weight_are_those_of_the_dense_weights():
    space = spaced(
        bits={"types": ["dense", "q8_0", "q4_0"]},
        drop={"units": ["mlp"]},
        budget={"bits_per_weight": 7},
    )
    rng = np.random.default_rng(3)
    for _ in range(20):
        genome = sampling.random(space, rng)
        named, tree = space.candidate(genome).by_name, space.encoding.tree
        stored = weights = 0
        for unit in matrices(space):
            weights += unit.numel
            level = named.get(unit.name, DENSE)
            if not any(named.get(each.name) == DROP for each in tree.above(unit)):
                stored += STORAGE[level.bits].bytes(*unit.shape) if level.bits else 4 * unit.numel
        found = space.costs(genome[None])["bits_per_weight"].item()
        assert found == pytest.approx(8 * stored / weights) and found <= 7


def test_a_narrowed_matrix_takes_the_bytes_of_what_is_left():
    space = spaced(
        bits={"types": ["dense", "q4_0"]},
        width={"units": ["mlp"], "channels": [0.5], "multiple_of": 32},
        drop={"units": ["attention", "mlp"]},
    )
    narrow, coarse = {MLP: Level(channels=64)}, {UP: Level(bits="q4_0")}
    costs = [
        space.cost_model.of([Candidate(tuple(sorted(levels.items())))])["weight_bytes"].item()
        for levels in (narrow, narrow | coarse, {MLP: DROP})
    ]
    assert costs[0] - costs[1] == 4 * 64 * 64 - STORAGE["q4_0"].bytes(64, 64)
    rng = np.random.default_rng(1)
    genomes = np.stack([sampling.random(space, rng) for _ in range(30)])
    each = space.cost_model.of([space.candidate(genome) for genome in genomes])
    assert np.array_equal(each["weight_bytes"], space.costs(genomes)["weight_bytes"])


def test_changes_of_one_gene_cost_what_the_changed_genomes_do():
    space = spaced(
        bits={"types": ["q8_0", "q4_0", "q4_1"]},
        width={"units": ["mlp"], "channels": [0.25, 0.5, 0.75], "multiple_of": 32},
        drop={},
        budget={"weight_bytes": 0.25},
    )
    genome = sampling.random(space, np.random.default_rng(2))
    genes, levels = space.encoding.options
    after = space.budget_usage_after(genome, genes, levels)
    for gene, level, used in zip(genes, levels, after, strict=True):
        changed = genome.copy()
        changed[gene] = level
        assert used == pytest.approx(space.budget_usage(changed[None])[0])


def test_zeros_come_in_every_type():
    space = spaced(
        sparsity={"target": 0.5, "pattern": "2:4", "match": ["*.mlp.*"]},
        bits={"types": ["q8_0", "q4_0"]},
    )
    index = [unit.name for unit in space.units].index(UP)
    zeros = 64 * 128 // 2
    assert space.levels[index] == tuple(Level(zeros, "2:4", bits=n) for n in ("q8_0", "q4_0"))
    assert space.levels[0] == (Level(bits="q8_0"), Level(bits="q4_0"))


def test_even_and_random_genomes_meet_a_budget_of_bytes():
    space = spaced(bits={"types": ["q8_0", "q5_0", "q4_0"]}, budget={"weight_bytes": 0.35})
    even = sampling.uniform(space)
    assert set(even.tolist()) == {0, 1} and space.feasible(even[None])[0]
    assert space.budget_usage(even[None])[0] > 0.98
    genomes = [sampling.random(space, np.random.default_rng(seed)) for seed in range(20)]
    assert space.feasible(np.stack(genomes)).all()
    assert len({genome.tobytes() for genome in genomes}) == 20
    assert space.genome(space.candidate(genomes[0])).tolist() == genomes[0].tolist()


def test_types_stay_where_the_budget_is_not_about_them():
    space = spaced(
        width={"multiple_of": 32, "units": ["mlp"]},
        bits={"types": ["dense", "q8_0", "q4_0"]},
        budget={"params": 0.8},
    )
    named = space.candidate(sampling.uniform(space)).by_name
    assert named and not any(level.bits for level in named.values())
    assert spaced(bits={"types": ["q8_0"]}, budget={"weight_bytes": 0.5}).bounds_bytes


def test_a_ladder_has_coarse_types_of_whole_models_and_of_cut_ones():
    space = spaced(width={"multiple_of": 32, "units": ["mlp"]}, bits={"types": ["q8_0", "q4_0"]})
    rungs = [space.candidate(genome).by_name for genome in sampling.ladder(space, 100)]
    kinds = {
        (
            frozenset(level.bits for level in named.values() if level.bits),
            any(level.narrow for level in named.values()),
        )
        for named in rungs
    }
    assert kinds == {(frozenset([kind]), cut) for kind in ("q8_0", "q4_0") for cut in (False, True)}


def test_matrices_without_types_in_a_format_keep_the_models_own():
    loaded = tiny_loaded()
    units = list(loaded.family.units(loaded.model))
    architecture = loaded.family.architecture(loaded.model)
    config = SpaceConfig.model_validate({"bits": {"types": ["q8_0"]}, "fits": "gguf"})
    space = build_space(units, architecture, config, untyped=[UP])
    assert UP not in {unit.name for unit in space.units} and len(space.units) == 20
    with pytest.raises(ConfigError, match="format 'gguf' can hold none of the 21 matrices"):
        build_space(units, architecture, config, untyped=[u.name for u in matrices(space)])


def test_an_even_genome_keeps_the_zeros_of_its_matrices():
    space = spaced(
        sparsity={"target": 0.5, "levels": 2},
        bits={"types": ["q8_0", "q5_0", "q4_0"]},
        budget={"bits_per_weight": 5.5},
    )
    named = space.candidate(sampling.uniform(space)).by_name
    assert {named[unit.name].bits for unit in matrices(space)} == {"q5_0"}
    assert all(2 * named[unit.name].zeros == unit.numel for unit in matrices(space))


def test_matrices_whose_levels_have_no_order_are_moved_to_any_level():
    assert spaced(bits={"types": ["q8_0", "q4_0"]}).encoding.ordinal.all()
    assert not spaced(bits={"types": ["q8_0", "iq4_nl", "q4_0"]}).encoding.ordinal.any()
    zeros = {"target": 0.5, "levels": 1}
    both = spaced(sparsity=zeros, bits={"types": ["q8_0", "q4_0"]}, budget={"bits_per_weight": 6})
    assert not both.encoding.ordinal.any() and both.encoding.matrices.size == len(both.units)
    rng = np.random.default_rng(0)
    genomes = np.stack([sampling.random(both, rng) for _ in range(40)])
    assert both.feasible(genomes).all()
    assert {level for level in genomes.ravel().tolist()} == set(range(6))


def test_tied_matrices_have_one_gene_and_cost_what_all_of_them_do():
    loaded = tiny_loaded("qwen2_moe")
    units = list(loaded.family.units(loaded.model))
    architecture = loaded.family.architecture(loaded.model)
    words = type_rules_of("gguf", loaded, uneven=True).tied
    config = SpaceConfig.model_validate(
        {
            "drop": {"units": ["expert"]},
            "bits": {"types": ["q8_0", "q5_0", "q4_0"]},
            "budget": {"weight_bytes": 0.3},
        }
    )
    space = build_space(units, architecture, config, tied=words)
    experts = sum(unit.kind == "expert" for unit in units)
    blocks = sum(unit.kind == "block" for unit in units)
    free = build_space(units, architecture, config)
    assert len(free.units) - len(space.units) == 3 * (experts - blocks)
    rng = np.random.default_rng(4)
    genomes = np.stack([sampling.random(space, rng) for _ in range(20)])
    # The first expert of a tie may be the one that is dropped.
    first = [g for g, unit in enumerate(space.units) if unit.name.endswith("experts.0")]
    genomes[:10, first[0]] = space.encoding.drop_index[first[0]]
    genomes = space.deactivate(genomes)
    genomes = genomes[space.encoding.enough_experts(genomes)]
    assert space.encoding.dropped(genomes)[:, first[0]].any()
    candidates = [space.candidate(genome) for genome in genomes]
    assert all(
        space.genome(c).tolist() == g.tolist() for c, g in zip(candidates, genomes, strict=True)
    )
    assert np.array_equal(
        space.costs(genomes)["weight_bytes"], space.cost_model.of(candidates)["weight_bytes"]
    )
    genes, levels = space.encoding.options
    after = space.budget_usage_after(genomes[0], genes, levels)
    for gene, level, used in zip(genes, levels, after, strict=True):
        changed = genomes[0].copy()
        changed[gene] = level
        assert used == pytest.approx(space.budget_usage(changed[None])[0])


def test_tied_matrices_with_levels_of_their_own_are_refused():
    loaded = tiny_loaded("llama")
    units = list(loaded.family.units(loaded.model))
    config = {"sparsity": {"target": 0.5}, "bits": {"types": ["q8_0"]}, "fits": "gguf"}
    words = {f"model.layers.0.self_attn.{name}_proj": "qkv" for name in "qk"}
    with pytest.raises(ConfigError, match="gguf stores .*q_proj' and .*k_proj' in one type"):
        build_space(
            units,
            loaded.family.architecture(loaded.model),
            SpaceConfig.model_validate(config),
            tied=words,
        )


def test_the_experts_that_stay_are_those_of_the_coarsest_types():
    loaded = tiny_loaded("qwen2_moe")
    units = list(loaded.family.units(loaded.model))
    architecture = loaded.family.architecture(loaded.model)
    experts = [unit.name for unit in units if unit.kind == "expert" and unit.block == 0]
    least = next(unit for unit in units if unit.active).least
    coarse = experts[-least:]
    config = {
        "drop": {"units": ["expert"]},
        "bits": {"types": ["dense", "q4_0"], "match": [f"{name}.*" for name in coarse]},
    }
    space = build_space(units, architecture, SpaceConfig.model_validate(config))
    found = minimal_genomes(space)
    smallest = found[int(space.costs(found)["weight_bytes"].argmin())]
    named = space.candidate(smallest).by_name
    assert [name for name in experts if named.get(name) != DROP] == coarse


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        ({"bits": {"types": ["q4_k"]}}, ConfigError, "can have 64 inputs, no multiple of 256"),
        (
            {
                "bits": {"types": ["q4_0"]},
                "width": {"units": ["mlp"], "channels": [0.3], "multiple_of": 8},
            },
            ConfigError,
            r"'model.layers.1.mlp.down_proj' can have 40 inputs|inputs, no multiple of 32",
        ),
        (
            {"bits": {"types": ["q4_1"]}, "sparsity": {"target": 0.5}},
            ConfigError,
            "zeros of .* would not stay zero in q4_1",
        ),
        (
            {"bits": {"types": ["q4_0"], "match": ["*.nothing"]}},
            ConfigError,
            r"space.bits.match: '\*.nothing' matches no unit",
        ),
        (
            {"bits": {"types": ["q8_0", "q4_0"]}, "budget": {"weight_bytes": 0.1}},
            BudgetError,
            r"space.budget.weight_bytes: .* cannot be reached; this space spans",
        ),
        (
            {"bits": {"types": ["q4_0"]}, "drop": {"units": ["block"], "merge": True}},
            ConfigError,
            "merged blocks can be neither narrowed nor given zeros nor stored or cached coarser",
        ),
        (
            {"drop": {}, "budget": {"bits_per_weight": 4}},
            ConfigError,
            "'bits_per_weight' is a cost of types of stored weights",
        ),
    ],
)
def test_refused(config, error, message):
    with pytest.raises(error, match=message):
        spaced(**config)


@pytest.mark.parametrize(
    ("types", "message"),
    [
        (["q4_0", "w4g32"], "q4_0 and w4g32|w4g32 and q4_0"),
        (["q4"], "there is no type of weights 'q4'"),
        (["dense"], "'dense' alone changes nothing"),
        (["dense", "f16", "q4_0"], "'f16' and 'dense', the model's own type, hardly differ"),
    ],
)
def test_refused_types(types, message):
    with pytest.raises(ValueError, match=message):
        SpaceConfig.model_validate({"bits": {"types": types}})


TIED, APART = "llama", "qwen3"
"""Models whose head is the embedding, and is not."""

EMBEDDING, HEAD = "model.embed_tokens", "lm_head"


@pytest.mark.parametrize(
    ("model_type", "scope", "named"),
    [
        (TIED, ["embeddings"], [EMBEDDING]),
        (TIED, ["head"], [EMBEDDING]),
        (TIED, ["matrices", "head", "embeddings"], [EMBEDDING]),
        (APART, ["embeddings", "head"], [EMBEDDING, HEAD]),
        (APART, ["matrices", "head"], [HEAD]),
        (APART, ["matrices"], []),
    ],
)
def test_what_is_in_scope_has_levels(model_type, scope, named):
    space = spaced(model_type, bits={"types": ["dense", "q8_0", "q4_0"], "scope": scope})
    names = [unit.name for unit in space.units]
    inside = [unit.name for unit in matrices(space)] if "matrices" in scope else []
    assert names == inside + named
    rng, dense = np.random.default_rng(5), space.cost_model.dense()
    genomes = rng.integers(0, space.encoding.sizes, (20, len(names)))
    found = space.costs(genomes)
    sizes = {unit.name: unit.shape for unit in space.encoding.tree if unit.shape}
    for genome, weight_bytes, bits in zip(
        genomes, found["weight_bytes"], found["bits_per_weight"], strict=True
    ):
        candidate = space.candidate(genome)
        assert np.array_equal(space.genome(candidate), genome)
        kinds = {name: STORAGE[level.bits] for name, level in candidate.by_name.items()}
        saved = {n: 4 * np.prod(sizes[n]) - k.bytes(*sizes[n]) for n, k in kinds.items()}
        assert weight_bytes == dense["weight_bytes"] - sum(saved.values())
        ours = 8 * sum(saved[n] for n in inside if n in saved)
        weights = dense["matrix_nonzeros"]
        assert bits == pytest.approx(dense["bits_per_weight"] - ours / weights)
        usage = space.cost_model.of([candidate])
        assert usage["weight_bytes"].item() == weight_bytes


def test_an_embedding_is_there_whatever_is_dropped():
    space = spaced(
        bits={"types": ["dense", "q4_0"], "scope": ["matrices", "embeddings"]},
        drop={"protect": []},
        budget={"weight_bytes": 0.4},
    )
    gene = [unit.name for unit in space.units].index(EMBEDDING)
    rng = np.random.default_rng(0)
    drawn = np.stack([sampling.random(space, rng) for _ in range(40)])
    assert {*drawn[:, gene].tolist()} == {0, 1}
    for genome in drawn:
        assert (EMBEDDING in space.candidate(genome).by_name) == bool(genome[gene])
    usage = space.budget_usage_by_part(drawn).sum(1) * space.budget["weight_bytes"]
    base = space.table.only(["weight_bytes"]).base
    assert np.allclose(usage[:, 0] + base, space.costs(drawn)["weight_bytes"])


def test_what_a_model_does_not_have_is_no_scope():
    bits = {"types": ["q4_0"], "scope": ["head"]}
    with pytest.raises(ConfigError, match="'head' is for models that tell the next token and"):
        spaced("bert", bits=bits)
    with pytest.raises(ConfigError, match="'model.embed_tokens' can have 64 inputs, no multiple"):
        spaced(bits={"types": ["q4_k"], "scope": ["embeddings"]})
    with pytest.raises(ValueError, match="scope"):
        spaced(bits=bits | {"scope": ["heads"]})
    with pytest.raises(ValueError, match="match is about the blocks' matrices"):
        spaced(bits=bits | {"match": ["*.mlp.*"]})
    loaded = tiny_loaded()
    inside = loaded.family.units(loaded.model)
    config = SpaceConfig.model_validate({"bits": bits})
    with pytest.raises(ConfigError, match="this model has no embedding that is a plain matrix"):
        build_space(inside, loaded.family.architecture(loaded.model), config)
    config = config.model_copy(update={"fits": "gguf"})
    units = every_unit(loaded.family, loaded.model)
    with pytest.raises(ConfigError, match="format 'gguf' cannot hold 'model.embed_tokens' in a"):
        build_space(units, loaded.family.architecture(loaded.model), config, untyped=[EMBEDDING])
