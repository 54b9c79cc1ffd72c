import itertools

import numpy as np
import pytest

from evocompress.core.config import SpaceConfig
from evocompress.core.requests import Evaluate, Pool
from evocompress.search.auto.sensitivity import applied, best_sum, changes
from evocompress.search.base import Problem
from evocompress.search.evolution.evopress import EvoPress
from evocompress.space import sampling
from evocompress.space.build import build_space
from evocompress.testing.decoders import Decoder
from evocompress.testing.searchers import Separable, run

POOL = Pool((64,) * 32)
WIDTH = {"channels": [0.25, 0.5, 0.75], "multiple_of": 8, "protect": []}


def space_of(layers, **budget):
    decoder = Decoder(layers=layers)
    config = SpaceConfig(width=WIDTH, drop={"protect": []}, budget=budget)
    return build_space(decoder.units(), decoder.architecture(), config)


def measured(space, genome, per_gene):
    """Changes with what the synthetic objective says of each alone."""
    objective = Separable.of(space)
    before = objective.value(space.candidate(genome))
    return [
        (change, objective.value(space.candidate(applied(genome, change))) - before)
        for change in changes(space, genome, per_gene)
    ]


def test_every_saving_level_is_tried_where_there_are_few():
    space = space_of(2, body_params=0.6)
    tried = {(change.gene, change.level) for change in changes(space, space.encoding.default, 99)}
    used = space.budget_usage(space.encoding.default[None]).sum()
    for gene, levels in enumerate(space.levels):
        for level in range(len(levels)):
            genome = space.encoding.default.copy()
            genome[gene] = level
            assert ((gene, level) in tried) == (space.budget_usage(genome[None]).sum() < used)


def test_few_tries_reach_from_small_to_the_largest_saving():
    space = space_of(2, body_params=0.6)
    for gene in range(len(space.units)):
        of_gene = [c for c in changes(space, space.encoding.default, 2) if c.gene == gene]
        everything = [c for c in changes(space, space.encoding.default, 99) if c.gene == gene]
        assert len(of_gene) == 2
        assert of_gene[-1].saving == max(change.saving for change in everything)
        assert 0 < of_gene[0].saving < of_gene[1].saving


@pytest.mark.parametrize("budget", [0.85, 0.6, 0.4])
def test_the_sum_is_close_to_the_best_of_all_genomes(budget):
    """Nothing feasible is better by more than what the unused rest of the budget could buy."""
    space = space_of(2, body_params=budget)
    objective = Separable.of(space)
    pairs = measured(space, space.encoding.default, 99)
    found = best_sum(space, space.encoding.default, pairs, np.ones(1))
    assert space.feasible(found[None])[0]
    every = np.array(list(itertools.product(*(range(len(levels)) for levels in space.levels))))
    feasible = every[space.feasible(every)]
    best = min(objective.value(space.candidate(genome)) for genome in feasible)
    steepest = max(effect / change.saving for change, effect in pairs)
    slack = 1 - space.budget_usage(found[None])[0, 0]
    assert objective.value(space.candidate(found)) <= best + steepest * slack + 1e-9


def test_a_large_change_that_harms_little_is_never_passed_over_for_a_smaller_one():
    space = space_of(2, body_params=0.5)
    pairs = [(change, 1.0) for change, _ in measured(space, space.encoding.default, 2)]
    found = best_sum(space, space.encoding.default, pairs, np.full(1, 0.6))
    moved = np.flatnonzero(found != space.encoding.default)
    largest = {change.gene: change.level for change, _ in pairs}
    assert all(found[gene] == largest[gene] for gene in moved)


def test_evopress_begins_at_the_sum_and_counts_its_probes():
    space = space_of(4, body_params=0.6)
    settings = {"effect_rounds": 2, "effect_levels": 2, "effect_tokens": 64}
    schedule = {"generations": 1, "offspring": 4, "survivors": (1,), "stage_tokens": (64,)}
    searcher = EvoPress(
        Problem(space, POOL),
        EvoPress.Settings(**settings, **schedule),
        np.random.default_rng(0),
    )
    steps = run(searcher, Separable.of(space))
    rounds = [requests for requests, _ in steps if requests[0].probe]
    assert len(rounds) == 2
    for requests in rounds:
        assert all(isinstance(request, Evaluate) and request.probe for request in requests)
        assert len({request.micro_batches for request in requests}) == 1
    assert space.feasible(space.genome(searcher.incumbent().candidate)[None])[0]


def test_the_measured_start_beats_the_even_one_and_several_bounds_are_met():
    space = space_of(6, body_params=0.6, kv_bytes=0.5)
    objective = Separable.of(space)
    searcher = EvoPress(
        Problem(space, POOL),
        EvoPress.Settings(
            effect_rounds=3,
            generations=1,
            offspring=1,
            survivors=(1,),
            stage_tokens=(64,),
            effect_tokens=64,
        ),  # fmt: skip
        np.random.default_rng(0),
    )
    run(searcher, objective)
    found = searcher.incumbent().candidate
    assert space.feasible(space.genome(found)[None])[0]
    assert objective.value(found) < objective.value(space.candidate(sampling.uniform(space)))
