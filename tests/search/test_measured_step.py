"""Exchanges of drops along measured effects, against all exchanges of small spaces."""

import itertools

import numpy as np
import pytest

from evocompress.config import SpaceConfig
from evocompress.search.measured_step import harms_around, neighbours, steps
from evocompress.space import build_space
from evocompress.testing.decoders import Decoder
from evocompress.testing.searchers import Separable
from evocompress.types import DROP

WIDTH = {"channels": [0.5], "multiple_of": 8, "protect": []}


def space_of(layers=8, **config):
    decoder = Decoder(layers=layers)
    config = {"drop": {"protect": []}, "budget": {"body_params": 0.7}} | config
    return build_space(decoder.units(), decoder.architecture(), SpaceConfig(**config))


def around(space, genome, objective, rng):
    """What is tried around a genome, and the harms of all that was measured."""
    tried = neighbours(space, genome, None, rng)
    values = [objective.value(space.candidate(other)) for other in [genome, *tried]]
    return tried, harms_around(space, genome, tried, [value - values[0] for value in values[1:]])


@pytest.mark.parametrize("width", [None, WIDTH])
def test_neighbours_differ_in_one_drop(width):
    space = space_of(width=width) if width else space_of()
    rng = np.random.default_rng(1)
    genome = space.random(rng)
    dropped = space.genes.dropped(genome[None])[0]
    tried = neighbours(space, genome, None, rng)
    gone = [space.genes.dropped(other[None])[0] for other in tried]
    changes = [np.flatnonzero(now != dropped).tolist() for now in gone]
    assert all(len(change) == 1 for change in changes)
    restored = [change for change, now in zip(changes, gone, strict=True) if not now[change[0]]]
    assert sorted(gene for [gene] in restored) == np.flatnonzero(dropped).tolist()
    assert len(tried) - len(restored) == int(np.ceil(1.5 * len(restored)))


def test_drops_of_the_lowest_prediction_are_tried():
    space = space_of()
    rng = np.random.default_rng(0)
    genome = space.uniform()
    harm = rng.random(len(space.units))
    tried = neighbours(space, genome, lambda rows: (rows == 1) @ harm, rng)
    dropped = np.flatnonzero(genome)
    added = {int(np.flatnonzero(other > genome)[0]) for other in tried if (other > genome).any()}
    present = [gene for gene in np.argsort(harm) if gene not in dropped]
    assert added == set(present[: len(added)])


def test_the_best_single_exchange_is_found():
    space = space_of()
    objective, rng = Separable.of(space), np.random.default_rng(2)
    genome = space.random(rng)
    _, harms = around(space, genome, objective, rng)
    found = steps(space, genome, harms)
    assert all(space.feasible(pick[None])[0] for pick in found.values())
    first = found[1]
    gains = {}
    measured = [np.flatnonzero(np.isfinite(harm)) for harm in harms]
    for one, other in itertools.combinations(range(len(genome)), 2):
        changed = genome.copy()
        changed[[one, other]] = 1 - changed[[one, other]]
        known = changed[one] in measured[one] and changed[other] in measured[other]
        if known and space.feasible(changed[None])[0]:
            gains[changed.tobytes()] = objective.value(space.candidate(changed))
    assert objective.value(space.candidate(first)) <= min(gains.values()) + 1e-9


def test_more_exchanges_are_predicted_to_be_better():
    space = space_of(12)
    objective, rng = Separable.of(space), np.random.default_rng(4)
    genome = space.random(rng)
    _, harms = around(space, genome, objective, rng)
    values = [
        objective.value(space.candidate(pick)) for pick in steps(space, genome, harms).values()
    ]
    assert len(values) >= 2
    assert values == sorted(values, reverse=True)


def test_nothing_is_exchanged_at_the_optimum():
    space = space_of(4)
    objective, rng = Separable.of(space), np.random.default_rng(5)
    every = np.array(list(itertools.product((0, 1), repeat=len(space.units))))
    every = every[space.feasible(every)]
    best = min(every, key=lambda genome: objective.value(space.candidate(genome)))
    _, harms = around(space, best, objective, rng)
    for pick in steps(space, best, harms).values():
        assert objective.value(space.candidate(pick)) >= objective.value(space.candidate(best))


def test_failed_tries_are_no_option():
    space = space_of(4)
    genome = space.uniform()
    tried = neighbours(space, genome, None, np.random.default_rng(0))
    harms = harms_around(space, genome, tried, [np.inf] * len(tried))
    assert sum(np.isfinite(harm).sum() for harm in harms) == len(genome)
    assert steps(space, genome, harms) == {}


def test_without_anything_dropped_there_is_nothing_to_exchange():
    space = space_of(4)
    assert neighbours(space, space.genes.start, None, np.random.default_rng(0)) == []
    assert DROP in space.levels[0]
