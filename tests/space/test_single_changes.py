"""What single changes cost, against the changed genomes themselves."""

import numpy as np
import pytest

from evocompress.core.config import SpaceConfig
from evocompress.core.requests import Pool
from evocompress.search import SEARCHERS
from evocompress.search.base import Problem
from evocompress.space import sampling
from evocompress.space.build import build_space
from evocompress.space.costs import CostTable
from evocompress.space.single_changes import single_changes
from evocompress.testing.decoders import Decoder

DENSE = Decoder(layers=4, hidden=48, heads=12, kv_heads=4, ffn=96, window=16)
MIXTURE = Decoder(layers=3, experts=5, active=2)
SHARED = Decoder(layers=3, experts=5, active=2, shared=16)
WIDTH = {"width": {"multiple_of": 8, "protect": []}}
ALL = {"protect": []}


def space_of(decoder, budget, **config):
    return build_space(
        decoder.units(), decoder.architecture(), SpaceConfig(**config, budget=budget)
    )


SPACES = {
    "sparsity": space_of(DENSE, {"nonzeros": 0.6}, sparsity={"target": 0.5}),
    "depth": space_of(DENSE, {"flops": 0.5, "params": 0.7}, drop=ALL),
    "shape": space_of(DENSE, {"body_params": 0.6, "kv_bytes": 0.5}, **WIDTH, drop=ALL),
    "tied": space_of(
        DENSE,
        {"body_params": 0.6},
        width={"multiple_of": 8, "uniform": True},
        drop={"units": ["block"], "protect": []},
    ),
    "everything": space_of(
        DENSE,
        {"body_nonzeros": 0.3, "kv_bytes": 0.6, "weight_bytes": 0.75},
        **WIDTH,
        sparsity={"target": 0.4, "levels": 3},
        drop={"units": ["block"], "protect": []},
    ),
    "experts": space_of(
        MIXTURE,
        {"active_params": 0.9, "nonzeros": 0.45},
        width={"units": ["mlp"], "channels": [0.5, 0.25], "multiple_of": 4, "protect": []},
        sparsity={"target": 0.5, "levels": 1},
        drop={"units": ["expert", "mlp"], "protect": []},
    ),
    "shared experts": space_of(
        SHARED,
        {"nonzeros": 0.4},
        sparsity={"target": 0.5, "levels": 2},
        drop={"units": ["expert", "attention"], "protect": []},
    ),
}


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_costs_and_admissibility_are_those_of_the_changed_genomes(space):
    rng = np.random.default_rng(0)
    drawn = space.deactivate(rng.integers(0, space.encoding.sizes, size=(12, len(space.units))))
    for genome in (
        *drawn[space.encoding.admissible(drawn)],
        space.encoding.default,
        sampling.uniform(space),
    ):
        for step in (1, -1):
            keep = rng.choice(len(genome), 2, replace=False)
            changes = single_changes(space, genome, keep, step)
            rows = np.array([changes.changed(index) for index in range(len(changes.genes))])
            assert changes.usage.shape == (len(rows), len(space.budget))
            if len(rows):
                np.testing.assert_allclose(changes.usage, space.budget_usage(rows), rtol=1e-12)
                assert (changes.admissible() == space.encoding.admissible(rows)).all()
            free = ~space.encoding.inactive(genome[None])[0]
            free[keep] = False
            expected = {
                (gene, level)
                for gene in np.flatnonzero(free)
                for level in range(space.encoding.sizes[gene])
                if (level - genome[gene] == step if space.encoding.ordinal[gene] else True)
                and level != genome[gene]
            }
            assert set(zip(changes.genes, changes.levels, strict=True)) == expected


@pytest.mark.parametrize("name", ["random", "nsga2"])
def test_a_first_ask_of_many_genes_looks_at_few_genomes(name, monkeypatch):
    decoder = Decoder(layers=150)
    space = space_of(decoder, {}, sparsity={"target": 0.5})
    counted = 0
    totals = CostTable.totals

    def counting(table, states, choices):
        nonlocal counted
        counted += len(states)
        return totals(table, states, choices)

    monkeypatch.setattr(CostTable, "totals", counting)
    factory = SEARCHERS[name]
    settings = factory.Settings.model_validate({})
    problem = Problem(space, Pool((64,) * 64), 10**6)
    asked = factory(problem, settings, np.random.default_rng(0)).ask()
    # A whole way to the least of 1,050 genes has more than six thousand.
    assert len(space.units) == 1050 and len(asked) > 30
    assert counted < 200 * len(asked), counted
