"""Even and random genomes of spaces with widths."""

import numpy as np
import pytest

from evocompress.core.config import SpaceConfig
from evocompress.space import sampling
from evocompress.space.build import build_space
from evocompress.testing.decoders import Decoder

DECODER = Decoder(layers=8, hidden=48, heads=12, kv_heads=4, ffn=96)
HALVES = {"channels": [0.75, 0.5, 0.25], "group_heads": [1.0], "multiple_of": 1, "protect": []}


def space_of(budget, **config):
    config = SpaceConfig(**config, budget=budget)
    return build_space(DECODER.units(), DECODER.architecture(), config)


def rng(seed=0):
    return np.random.default_rng(seed)


def test_the_even_genome_keeps_the_same_fraction_everywhere():
    space = space_of({"matrix_nonzeros": 0.5}, width=HALVES)
    even = sampling.uniform(space)
    kept = {(level.kv_groups, level.channels) for level in map_levels(space, even)}
    assert kept == {(2, None), (None, 48)}
    assert space.costs(even[None])["matrix_nonzeros"] == space.budget["matrix_nonzeros"]


def map_levels(space, genome):
    return [levels[index] for levels, index in zip(space.levels, genome, strict=True)]


def test_between_two_fractions_as_many_as_fit_are_wider():
    whole = space_of({"matrix_nonzeros": 1.0}, width={**HALVES, "units": ["mlp"]})
    half, wider = (
        whole.costs(np.full((1, 8), index))["matrix_nonzeros"].item() for index in (2, 1)
    )
    bound = half + (wider - half) * 3.5 / 8
    space = space_of({"matrix_nonzeros": bound}, width={**HALVES, "units": ["mlp"]})
    assert sampling.uniform(space).tolist() == [2, 1, 2, 2, 1, 2, 1, 2]


def test_what_a_bound_does_not_depend_on_stays_wide():
    space = space_of({"kv_bytes": 0.5}, width=HALVES)
    even = sampling.uniform(space)
    assert (even[space.encoding.by_kind["mlp"]] == 0).all()
    assert space.costs(even[None])["kv_bytes"] == space.budget["kv_bytes"]


def test_units_are_dropped_where_widths_are_not_enough():
    space = space_of({"body_params": 0.2}, width=HALVES, drop={"protect": []})
    even = sampling.uniform(space)
    dropped = space.encoding.dropped(even[None])[0]
    kinds = [dropped[genes].sum() for genes in space.encoding.by_kind.values()]
    assert kinds[0] == kinds[1] > 0
    assert (even[~dropped] == space.encoding.sizes[~dropped] - 2).all()


def test_the_even_genome_is_feasible_where_all_but_one_attention_must_go():
    space = space_of({"kv_bytes": 0.125}, drop={"units": ["attention"], "protect": []})
    assert space.feasible(sampling.uniform(space)[None])[0]


CONFIGS = {
    "width": {"width": {"multiple_of": 8}},
    "drop": {"width": {"multiple_of": 8}, "drop": {}},
    "uniform": {
        "width": {"multiple_of": 8, "uniform": True},
        "drop": {"units": ["block"]},
    },
    "sparse": {"width": {"multiple_of": 8}, "drop": {}, "sparsity": {"target": 0.3, "levels": 2}},
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("bound", [0.7, 0.5, 0.35])
def test_even_and_random_genomes_meet_the_budget_and_use_it(config, bound):
    name = "body_nonzeros" if "sparsity" in config else "body_params"
    space = space_of({name: bound}, **config)
    genomes = np.stack(
        [sampling.uniform(space), *(sampling.random(space, rng(seed)) for seed in range(20))]
    )
    assert space.feasible(genomes).all()
    assert sampling.random(space, rng(3)).tolist() == genomes[4].tolist()
    assert len(np.unique(genomes[1:], axis=0)) > 5
    if not config["width"].get("uniform"):  # tied layers come in large pieces
        assert (space.budget_usage(genomes) > 0.97).all()


def test_random_genomes_are_of_many_shapes():
    space = space_of({"body_params": 0.6}, **CONFIGS["drop"])
    genomes = np.stack([sampling.random(space, rng(seed)) for seed in range(200)])
    for gene, size in enumerate(space.encoding.sizes):
        assert len(np.unique(genomes[:, gene])) == size
    attention = genomes[:, space.encoding.by_kind["attention"]]
    assert attention.mean(axis=1).std() > 0.5


def test_random_genomes_without_a_budget_are_anywhere():
    space = space_of({}, drop={"protect": []})
    dropped = np.array([sampling.random(space, rng(seed)).sum() for seed in range(100)])
    assert dropped.min() < 6 < 10 < dropped.max()
    assert space.feasible(np.stack([sampling.random(space, rng(seed)) for seed in range(20)])).all()


def test_the_ladder_goes_from_the_start_to_the_smallest():
    space = space_of({"body_params": 0.99}, width=HALVES, drop={"protect": []})
    rungs = np.stack(sampling.ladder(space, 9))
    assert len(rungs) == 9
    assert (rungs[0] == 0).all()
    sizes = space.costs(rungs)["body_params"]
    assert (np.diff(sizes) < 0).all()
    assert space.encoding.keep_attention(rungs).all()
    everything = sampling.ladder(space, 1000)
    # The start, 3 fractions, then ever more sub-layers dropped but for the last attention.
    assert len(everything) == 1 + 3 + 7
