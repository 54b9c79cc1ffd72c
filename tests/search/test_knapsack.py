import itertools

import numpy as np
import pytest

from evocompress.core.config import SpaceConfig
from evocompress.search.allocation import knapsack as module
from evocompress.search.allocation.knapsack import knapsack, separable
from evocompress.space.build import build_space
from evocompress.testing.decoders import Decoder

WIDTH = {"channels": [0.25, 0.5, 0.75], "multiple_of": 8, "protect": []}
MATCH = ["*v_proj", "*o_proj", "*gate_proj", "*down_proj"]
SPACES = {
    "sparsity": (2, {"sparsity": {"target": 0.5, "levels": 1, "match": MATCH}}),
    "width": (2, {"width": WIDTH, "budget": {"body_params": 0.6}}),
    "drop": (4, {"drop": {}, "budget": {"body_params": 0.7}}),
    "last attention": (4, {"drop": {"protect": []}, "budget": {"body_params": 0.3}}),
    "blocks and widths": (
        2,
        {
            "drop": {"units": ["block"], "protect": []},
            "width": WIDTH,
            "budget": {"body_params": 0.5},
        },
    ),
    "two bounds": (2, {"width": WIDTH, "budget": {"body_params": 0.7, "kv_bytes": 0.6}}),
    "joint": (
        1,
        {"sparsity": {"target": 0.5, "levels": 1}, "width": WIDTH, "budget": {"nonzeros": 0.6}},
    ),
}
EXACT = {"sparsity", "drop"}


def space_of(name):
    layers, config = SPACES[name]
    decoder = Decoder(layers=layers)
    return build_space(decoder.units(), decoder.architecture(), SpaceConfig(**config))


def harms_of(space, seed):
    """Random harms that mostly grow with the level; the first level has none."""
    rng = np.random.default_rng(seed)
    steps = [np.append(0.0, rng.uniform(-0.3, 1, len(levels) - 1)) for levels in space.levels]
    return [step.cumsum() for step in steps]


def sums_of(space, harms, genomes):
    """The sums of harms of genomes (N, U), one gene after the other; void genes have none."""
    void = space.encoding.inactive(genomes)
    return np.array(
        [
            sum(harm[level] for harm, level, no in zip(harms, row, out, strict=True) if not no)
            for row, out in zip(genomes, void, strict=True)
        ]
    )


def every_genome(space):
    every = np.array(list(itertools.product(*(range(len(levels)) for levels in space.levels))))
    return every[space.feasible(every) & (space.deactivate(every) == every).all(axis=1)]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", SPACES)
def test_no_genome_is_much_better(name, seed):
    space = space_of(name)
    harms = harms_of(space, seed)
    found = knapsack(space, harms, space.encoding.default)
    assert space.feasible(found[None])[0]
    values = np.sort(sums_of(space, harms, every_genome(space)))
    value = sums_of(space, harms, found[None])[0]
    if name in EXACT:
        assert value == pytest.approx(values[0])
    else:
        assert (values < value - 1e-9).sum() <= 0.06 * len(values)


@pytest.mark.parametrize("name", SPACES)
def test_which_genes_stand_alone(name):
    space = space_of(name)
    assert separable(space) == (name in {"sparsity", "width", "drop", "two bounds"})


def test_forbidden_levels_are_not_chosen():
    space = space_of("sparsity")
    harms = harms_of(space, 0)
    first = knapsack(space, harms, space.encoding.default)
    moved = int(np.flatnonzero(first != space.encoding.default)[0])
    harms[moved][first[moved]] = np.inf
    assert knapsack(space, harms, space.encoding.default)[moved] != first[moved]


def test_a_budget_that_allowed_levels_do_not_meet_gives_nothing():
    space = space_of("width")
    harms = [np.where(np.arange(len(levels)) == 0, 0.0, np.inf) for levels in space.levels]
    assert knapsack(space, harms, np.zeros_like(space.encoding.default)) is None


def test_coarse_buckets_keep_the_budget(monkeypatch):
    space = space_of("width")
    monkeypatch.setattr(module, "BUCKETS", 50)
    for seed in range(5):
        found = knapsack(space, harms_of(space, seed), space.encoding.default)
        assert space.feasible(found[None])[0]
