"""FLAP's ranking and MultiPruner's stages against the plainest form of each."""

import numpy as np
import pytest

from evocompress.core.config import SpaceConfig
from evocompress.core.errors import ConfigError
from evocompress.core.types import DENSE, DROP, Candidate, Level
from evocompress.search.allocation.flap import Flap, thresholds, trajectory
from evocompress.search.base import Problem
from evocompress.search.baselines.multipruner import MultiPruner
from evocompress.space.build import build_space
from evocompress.testing.decoders import Decoder
from evocompress.testing.searchers import POOL, Separable, run

DECODER = Decoder(layers=5, hidden=48, heads=6, kv_heads=3, ffn=64)
WIDTH = {"channels": [0.75, 0.5, 0.25], "multiple_of": 8, "protect": []}


def space_of(budget=0.6, width=WIDTH, **config):
    space = SpaceConfig(width=width, budget={"body_params": budget}, **config)
    return build_space(DECODER.units(), DECODER.architecture(), space)


def searcher(cls, space, **settings):
    settings = cls.Settings(candidate_tokens=128, **settings)
    return cls(Problem(space, POOL), settings, np.random.default_rng(0))


def scores_of(space, seed=0):
    rng = np.random.default_rng(seed)
    parts = space.cost_model.parts
    return {p.unit.name: rng.normal(size=p.channels or 6).tolist() for p in parts}


def removed(scores, level):
    """The scores of the heads or channels that a level cuts."""
    if level == DROP:
        return list(scores)
    if level == DENSE:
        return []
    if level.channels:
        return sorted(scores)[: len(scores) - level.channels]
    groups = sorted(np.reshape(scores, (3, 2)).tolist(), key=sum, reverse=True)
    kept = [max(group) for group in groups[: level.kv_groups]]
    if level.group_heads == 2:
        kept = [score for group in groups[: level.kv_groups] for score in group]
    return [score for score in scores if score not in kept]


class TestFlap:
    @pytest.mark.parametrize("drop", [{}, {"drop": {"protect": []}}])
    def test_a_level_takes_nothing_above_the_threshold(self, drop):
        space = space_of(**drop)
        scores = scores_of(space)
        for gene, table in thresholds(space, scores).items():
            own = scores[space.units[gene].name]
            expected = [max(removed(own, level), default=-np.inf) for level in space.levels[gene]]
            assert table.tolist() == expected

    @pytest.mark.parametrize("budget", [0.9, 0.7, 0.5])
    def test_the_lowest_threshold_that_suffices(self, budget):
        space = space_of(budget, drop={"protect": []})
        search = searcher(Flap, space)
        objective = Separable.of(space)
        (estimate, [scores]), (final, _) = run(search, objective)
        assert [(r.kind, r.candidate) for r in estimate] == [("fluctuation", Candidate())]
        assert [request.probe for request in final] == [False]
        found = []
        for threshold in sorted(score for row in scores.rows for score in row):
            genome = space.encoding.default.copy()
            for gene, levels in enumerate(space.levels):
                own = scores.by_unit[space.units[gene].name]
                within = [
                    index
                    for index, level in enumerate(levels)
                    if all(score <= threshold for score in removed(own, level))
                ]
                genome[gene] = within[-1]
            if space.feasible(genome[None])[0]:
                found.append(space.candidate(genome))
        assert search.incumbent().candidate == found[0]

    def test_the_trajectory_begins_dense_and_shrinks_to_the_end(self):
        space = space_of()
        path = trajectory(space, thresholds(space, scores_of(space)))
        costs = space.costs(path)["body_params"]
        assert (path[0] == 0).all()
        assert (path[-1] == space.encoding.sizes - 1).all()
        assert (np.diff(costs) < 0).all()

    def test_tied_layers_share_their_highest_threshold(self):
        width = {**WIDTH, "uniform": True, "protect": None}
        tied, free = space_of(width=width), space_of()
        scores = scores_of(free)
        alone = thresholds(free, scores)
        for gene, table in thresholds(tied, scores).items():
            names = {unit.name for unit in tied.encoding.members[gene]}
            members = [alone[g] for g, unit in enumerate(free.units) if unit.name in names]
            assert len(members) == DECODER.layers
            # A tied space may offer fewer widths, the first of which is dense in both.
            assert set(table) <= set(np.max(members, axis=0))


def costs(space, genome):
    return space.costs(genome[None])["body_params"][0]


def staged(space, objective, split):
    """MultiPruner with its stages written out."""
    genome = space.encoding.default.copy()
    dense, bound = costs(space, genome), space.budget["body_params"]

    def steps(kind):
        for gene, unit in enumerate(space.units):
            level = space.levels[gene][genome[gene]]
            if kind == "drop" and gene in space.encoding.droppable and level != DROP:
                yield gene, space.encoding.drop_index[gene]
            elif unit.kind == kind and level != DROP:
                later = enumerate(space.levels[gene])
                narrower = [i for i, other in later if i > genome[gene] and within(other, level)]
                if narrower:
                    yield gene, narrower[0]

    def changed(gene, index):
        other = genome.copy()
        other[gene] = index
        return other

    given = 0
    for part, kind in zip(split, ("drop", "mlp", "attention"), strict=True):
        given += part
        target = dense - given / sum(split) * (dense - bound)
        while costs(space, genome) > target * (1 + 1e-9):
            tries = [changed(*step) for step in steps(kind)]
            if not tries:
                break
            genome = min(tries, key=lambda other: objective.value(space.candidate(other)))
    return space.candidate(genome)


def within(level, wider):
    if level in (DROP, DENSE):
        return False
    return (
        wider == DENSE
        or bool(level.channels)
        or (level.kv_groups <= wider.kv_groups and level.group_heads <= wider.group_heads)
    )


class TestMultiPruner:
    @pytest.mark.parametrize("seed", range(2))
    @pytest.mark.parametrize("split", [(44, 52, 4), (20, 50, 30), (0, 0, 1), (1, 0, 0)])
    @pytest.mark.parametrize("units", [["attention", "mlp"], ["block"]])
    def test_stages_follow_each_other(self, units, split, seed):
        space = space_of(0.7, drop={"units": units, "protect": []})
        objective = Separable.of(space, seed=seed)
        search = searcher(MultiPruner, space, split=split)
        run(search, objective)
        expected = staged(space, objective, split)
        if space.feasible(space.genome(expected)[None])[0]:
            assert search.incumbent().candidate == expected
        else:
            assert split == (0, 0, 1)
            assert search.incumbent() is not None

    def test_widths_are_compared_on_their_own_tokens(self):
        space = space_of(0.7, drop={"protect": []})
        search = searcher(MultiPruner, space, width_tokens=64)
        steps = run(search, Separable.of(space))
        sizes = [len(requests[0].micro_batches) for requests, _ in steps]
        assert sizes == sorted(sizes[:-1], reverse=True) + [2]
        assert set(sizes) == {1, 2}

    def test_heads_of_a_group_and_groups_only_ever_go(self):
        space = space_of(0.5)
        steps = run(searcher(MultiPruner, space, split=(0, 0, 1)), Separable.of(space))
        seen = {}
        for requests, _ in steps[:-1]:
            for name, level in requests[0].candidate.levels:
                before = seen.get(name, Level(kv_groups=3, group_heads=2))
                if level.kv_groups is not None:
                    assert level.kv_groups <= before.kv_groups
                    assert level.group_heads <= before.group_heads

    def test_a_split_of_nothing_is_refused(self):
        with pytest.raises(ValueError, match="above 0"):
            MultiPruner.Settings(split=(0, 0, 0))


@pytest.mark.parametrize("cls", [Flap, MultiPruner])
def test_no_budget_is_refused(cls):
    space = build_space(DECODER.units(), DECODER.architecture(), SpaceConfig(width=WIDTH))
    with pytest.raises(ConfigError, match="budget"):
        searcher(cls, space)
