"""Contract suite of the cost models: additive over sub-layers, and never raised by compression."""

from __future__ import annotations

import numpy as np

from evocompress.costs import COSTS, CostModel
from evocompress.space import SearchSpace, canonical
from evocompress.types import DROP, Candidate, Unit


def check_names(model: CostModel) -> None:
    """Every described cost is there, positive for the dense model."""
    dense = model.dense()
    assert list(dense) == list(COSTS)
    assert all(value > 0 for value in dense.values())


def check_drops_are_additive(model: CostModel, units: list[Unit]) -> None:
    """Removing several sub-layers saves the sum of what each saves alone."""
    names = [unit.name for unit in units if unit.kind in ("attention", "mlp")]
    alone = [canonical({name: DROP}, units) for name in names]
    together = canonical(dict.fromkeys(names[::2], DROP), units)
    for name, values in model.of([Candidate(), together, *alone]).items():
        savings = values[0] - values[2:]
        assert values[1] == values[0] - savings[::2].sum(), name


def check_levels_never_cost_more(space: SearchSpace, rng: np.random.Generator) -> None:
    """Raising any one unit of a random genome by a level raises no cost."""
    genes = space.genes
    genome = genes.settle(rng.integers(0, genes.sizes)[None])[0]
    raisable = np.flatnonzero(genome < genes.sizes - 1)
    raised = genome + np.eye(len(genome), dtype=np.int64)[raisable]
    before = space.costs(genome[None])
    for name, values in space.costs(raised).items():
        assert (values <= before[name]).all(), name


def check_genomes_cost_as_candidates(space: SearchSpace, rng: np.random.Generator) -> None:
    """The costs of genomes are those of their candidates, counted one by one."""
    genomes = rng.integers(0, space.genes.sizes, size=(8, len(space.units)))
    counted = space.cost_model.of([space.candidate(genome) for genome in genomes])
    for name, values in space.costs(genomes).items():
        np.testing.assert_array_equal(values, counted[name], err_msg=name)
