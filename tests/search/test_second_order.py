"""The best step of a quadratic, against all genomes of small spaces."""

import numpy as np
import pytest
from test_knapsack import SPACES, every_genome, space_of

from evocompress.search.surrogates.second_order import (
    Expansion,
    best_coupling,
    least,
    quadratic,
    step,
)
from evocompress.space import sampling

SEQUENCES = 16


def expansion_of(space, seed, sequences=SEQUENCES, shared=0.0):
    """Random scores that grow with the level; `shared` of them is common, up to its sign."""
    rng = np.random.default_rng(seed)
    common = rng.normal(size=sequences)
    slopes, scores = [], []
    for levels in space.levels:
        depth = np.sqrt(np.arange(len(levels)))[:, None]
        own = rng.normal(size=(len(levels), sequences))
        sign = rng.choice([-1, 1])
        scores.append(depth * ((1 - shared) * own + shared * sign * common))
        slopes.append(-0.1 * depth * rng.uniform(size=(1, sequences)))
    return Expansion(tuple(slopes), tuple(scores))


def value_of(space, found, genome, coupling):
    """Straight from the definition, one sequence after the other."""
    live = np.flatnonzero(~space.encoding.inactive(genome[None])[0])
    total = 0.0
    for sequence in range(SEQUENCES):
        scores = [found.scores[gene][genome[gene], sequence] for gene in live]
        alone = sum(score**2 for score in scores)
        total += 0.5 * (coupling * sum(scores) ** 2 + (1 - coupling) * alone)
        total += sum(found.slopes[gene][genome[gene], sequence] for gene in live)
    return total / SEQUENCES


@pytest.mark.parametrize("coupling", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("name", ["sparsity", "width", "blocks and widths"])
def test_values_and_changes_are_the_definition_s(name, coupling):
    space = space_of(name)
    found = expansion_of(space, 0)
    genomes = every_genome(space)[:: max(len(every_genome(space)) // 20, 1)]
    function = quadratic(space, space.encoding.default, found, coupling)
    values = function.values(genomes, space.encoding.inactive(genomes))
    expected = [value_of(space, found, genome, coupling) for genome in genomes]
    np.testing.assert_allclose(values, expected)
    genome = genomes[0]
    for gene, level in zip(*space.encoding.options, strict=True):
        changed = genome.copy()
        changed[gene] = level
        difference = function.values(changed[None]) - function.values(genome[None])
        assert function.changes(genome)[gene, level] == pytest.approx(difference[0])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", ["sparsity", "width", "two bounds"])
def test_no_genome_is_much_better(name, seed):
    space = space_of(name)
    found = expansion_of(space, seed, shared=0.5)
    function = quadratic(space, space.encoding.default, found, 0.5)
    pick = least(space, function, space.encoding.default)
    assert space.feasible(pick[None])[0]
    every = every_genome(space)
    values = function.values(every)
    value = function.values(pick[None])[0]
    assert (values < value - 1e-9).sum() <= 0.03 * len(values)
    additive = step(space, space.encoding.default, found, 0.0)
    assert value <= function.values(additive[None])[0] + 1e-9


def test_a_step_stays_within_its_radius():
    space = space_of("width")
    genome = sampling.uniform(space)
    pick = step(space, genome, expansion_of(space, 3, shared=0.5), 0.5, 1)
    assert np.abs(pick - genome).max() == 1
    assert space.feasible(pick[None])[0]


def test_nothing_feasible_within_the_radius_is_no_step():
    space = space_of("width")
    assert step(space, space.encoding.default, expansion_of(space, 0), 0.5, 0) is None


class TestBestCoupling:
    def test_changes_that_make_up_for_each_other_are_coupled(self):
        space = space_of("sparsity")
        chosen = [
            best_coupling(space, space.encoding.default, expansion_of(space, seed, 400, shared=0.9))
            for seed in range(4)
        ]
        assert np.mean(chosen) > 0.2

    def test_noise_is_not(self):
        space = space_of("drop")
        chosen = [
            best_coupling(space, space.encoding.default, expansion_of(space, seed, sequences=12))
            for seed in range(8)
        ]
        assert np.mean(chosen) < 0.2

    def test_few_sequences_say_nothing(self):
        space = space_of("sparsity")
        assert best_coupling(space, space.encoding.default, expansion_of(space, 1, 7, 0.8)) == 0.0


def test_the_spaces_are_those_of_the_knapsack():
    assert {"sparsity", "width", "two bounds", "drop"} <= SPACES.keys()
