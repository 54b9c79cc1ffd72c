"""Lazy greedy removal, and what it is compared with: whole blocks, and sums of influence."""

import numpy as np
import pytest

from evocompress.core.config import SpaceConfig
from evocompress.core.requests import Evaluate
from evocompress.search.baselines.lazy_greedy import lazily_removed
from evocompress.search.baselines.removal import drop_harms, without_least_blocks
from evocompress.space.build import build_space
from evocompress.testing.decoders import Decoder
from evocompress.testing.searchers import Separable


def space_of(layers=8, budget=0.6, **drop):
    decoder = Decoder(layers=layers)
    config = SpaceConfig(drop={"protect": [], **drop}, budget={"body_params": budget})
    return build_space(decoder.units(), decoder.architecture(), config)


def finished(space, value, **options):
    """The genome, and what was measured round by round."""
    asked = []

    def measure(genomes):
        asked.append(genomes)
        return [value(Evaluate(space.candidate(genome), (0,))) for genome in genomes]
        yield

    steps = lazily_removed(space, measure, **options)
    try:
        next(steps)
    except StopIteration as end:
        return end.value, asked
    raise AssertionError("the measure never waits")


def greedy(space, objective):
    """Plain greedy: in every round all removals, the least harm per saving first."""
    genome = space.encoding.default.copy()
    while not space.feasible(genome[None])[0]:
        now, used = objective.value(space.candidate(genome)), space.budget_usage(genome[None])[0, 0]
        rates = {}
        for gene in np.flatnonzero(genome == 0):
            changed = genome.copy()
            changed[gene] = 1
            left = max(space.budget_usage(changed[None])[0, 0], 1)
            if space.encoding.keep_attention(changed[None])[0]:
                harm = objective.value(space.candidate(changed)) - now
                rates[gene] = harm / (used - left)
        genome[min(rates, key=rates.get)] = 1
    return genome


def test_where_effects_add_up_it_is_greedy_with_fewer_tries():
    space = space_of()
    objective = Separable.of(space)
    found, asked = finished(space, objective, tries=6, take=1)
    assert (found == greedy(space, objective)).all()
    assert len(asked[0]) == 1 + 16 + 8
    assert all(len(genomes) < len(asked[0]) for genomes in asked[1:])


def test_the_other_half_of_a_block_is_tried_again():
    space = space_of()
    found, asked = finished(space, Separable.of(space), tries=1, take=1)
    for before, after in zip(asked, asked[1:], strict=False):
        gone = np.flatnonzero(after[0] != before[0])
        blocks = {space.units[gene].block for gene in gone}
        left = [g for g in np.flatnonzero(after[0] == 0) if space.units[g].block in blocks]
        tried = {tuple(np.flatnonzero(genome != after[0])) for genome in after[1:]}
        assert {(gene,) for gene in left} <= tried
    assert space.feasible(found[None])[0]


def test_several_at_a_time_share_no_unit():
    space = space_of()
    found, asked = finished(space, Separable.of(space), tries=6, take=4)
    assert len(asked) <= 3
    assert space.feasible(found[None])[0]


def test_what_fails_is_not_removed():
    space = space_of()
    objective = Separable.of(space)
    failing = {unit.name for unit in space.units if unit.kind == "mlp" and unit.block < 4}

    def value(request):
        broken = any(name in failing for name, _ in request.candidate.levels)
        return objective(request) if not broken else _failed(objective(request))

    found, _ = finished(space, value, tries=20, take=1)
    dropped = {space.units[gene].name for gene in np.flatnonzero(found)}
    assert not dropped & failing
    assert space.feasible(found[None])[0]


def _failed(result):
    return type(result)(result.request, (), failed="made to fail")


@pytest.mark.parametrize("units", [["attention", "mlp"], ["block"]])
def test_blocks_of_least_influence_go_as_a_whole(units):
    space = space_of(budget=0.7, units=units)
    influence = {unit.name: (float((unit.block * 5) % 8),) for unit in space.encoding.tree}
    genome = without_least_blocks(space, influence)
    dropped = {space.units[gene].block for gene in np.flatnonzero(genome)}
    # 5, 2, 7, 4 ... are the multiples of 5 modulo 8 in their order: 30% are three of eight.
    assert dropped == {0, 5, 2}
    assert space.feasible(genome[None])[0]
    assert len(np.flatnonzero(genome)) == 3 * len(units)


def test_harm_of_a_drop_is_the_influence():
    space = space_of(layers=2, budget=0.9)
    influence = {unit.name: (0.25 * place,) for place, unit in enumerate(space.encoding.tree)}
    for unit, harm in zip(space.units, drop_harms(space, influence), strict=True):
        assert harm.tolist() == [0.0, influence[unit.name][0]]
