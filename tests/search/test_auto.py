"""The default search and its parts, on the synthetic objective."""

import numpy as np
import pytest

from evocompress.core.config import SpaceConfig
from evocompress.core.requests import Estimate, Evaluate, MicroBatchValue, Pool, Result
from evocompress.core.types import DROP, Candidate
from evocompress.search.allocation.flap import Flap
from evocompress.search.auto.acquisition import Acquisition, blend, climb, propose
from evocompress.search.auto.auto import ARCHIVE, Auto
from evocompress.search.base import Problem
from evocompress.search.fidelity.racing import Scoreboard, race
from evocompress.search.fidelity.rungs import Rung
from evocompress.search.surrogates.second_order import (
    Expansion,
    expansion,
    isotonic,
    quadratic,
    step,
)
from evocompress.space import sampling
from evocompress.space.build import build_space
from evocompress.testing.decoders import Decoder
from evocompress.testing.searchers import Separable, run

POOL = Pool((64,) * 64)
TOKENS = 60_000


def space_of(layers=4, **config):
    decoder = Decoder(layers=layers)
    return build_space(decoder.units(), decoder.architecture(), SpaceConfig(**config))


@pytest.fixture
def sparse():
    return space_of(sparsity={"target": 0.5, "levels": 3})


@pytest.fixture
def depth():
    return space_of(8, drop={}, budget={"body_params": 0.7})


def searched(space, objective, tokens=TOKENS, seed=0, pool=POOL, **settings):
    searcher = Auto(
        Problem(space, pool, tokens), Auto.Settings(**settings), np.random.default_rng(seed)
    )
    return searcher, run(searcher, objective)


def requested(steps):
    return sum(POOL.requested(request) for requests, _ in steps for request in requests)


class TestExpansion:
    def test_predicts_the_true_change_from_anywhere(self, sparse):
        objective = Separable.of(sparse)
        rng = np.random.default_rng(1)
        here, there = sampling.random(sparse, rng), sampling.random(sparse, rng)
        request = Estimate(sparse.candidate(here), "linearised", (0,))
        found = expansion(sparse, objective(request))
        predicted = quadratic(sparse, here, found, 0.0).values(there[None])[0]
        values = [objective.value(sparse.candidate(genome)) for genome in (here, there)]
        assert predicted == pytest.approx(values[1] - values[0])

    def test_scores_are_carried_to_another_genome(self, sparse):
        objective = Separable.of(sparse)
        genome = sampling.random(sparse, np.random.default_rng(2))
        at_dense = expansion(sparse, objective(Estimate(Candidate(), "curvature", (0,))))
        here = expansion(sparse, objective(Estimate(sparse.candidate(genome), "curvature", (0,))))
        for carried, direct in zip(at_dense.scores_around(genome), here.scores, strict=True):
            np.testing.assert_allclose(carried, direct)

    def test_a_step_finds_the_optimum_within_reach(self, sparse):
        objective = Separable.of(sparse)
        genome = sampling.uniform(sparse)
        request = Estimate(sparse.candidate(genome), "linearised", (0,))
        found = expansion(sparse, objective(request))
        near = step(sparse, genome, found, radius=1)
        assert np.abs(near - genome).max() == 1
        far = step(
            sparse,
            near,
            expansion(sparse, objective(Estimate(sparse.candidate(near), "linearised", (0,)))),
        )
        values = [objective.value(sparse.candidate(g)) for g in (genome, near, far)]
        assert values[0] > values[1] > values[2]
        rng = np.random.default_rng(3)
        others = [
            objective.value(sparse.candidate(sampling.random(sparse, rng))) for _ in range(300)
        ]
        assert values[2] < min(others)

    def test_more_scores_are_averaged(self):
        found = Expansion((np.zeros((2, 1)),), (np.array([[0.0], [2.0]]),))
        joined = found.with_scores((np.array([[0.0], [4.0]]),))
        np.testing.assert_allclose(joined.harms()[0], [0.0, (2.0 + 8.0) / 2])


def test_drops_begin_alike_whether_parameters_or_bytes_are_bounded():
    kinds = []
    for name in ("body_params", "weight_bytes"):
        space = space_of(8, drop={}, budget={name: 0.9})
        _, steps = searched(space, Separable.of(space))
        kinds.append(
            [request.kind for ask, _ in steps for request in ask if hasattr(request, "kind")]
        )
    assert kinds[0] == kinds[1] and "curvature" not in kinds[0]


def test_monotone_harms_are_the_closest_that_never_fall():
    [found] = isotonic([np.array([0.0, 3.0, 1.0, 2.0, 5.0])])
    np.testing.assert_allclose(found, [0.0, 2.0, 2.0, 2.0, 5.0])


class TestScoreboard:
    def result(self, name, values):
        request = Evaluate(Candidate(((name, level()),)), tuple(range(len(values))))
        return Result(request, tuple(MicroBatchValue(i, v, (10, 10)) for i, v in enumerate(values)))

    def test_gaps_are_paired(self):
        board, rng = Scoreboard(), np.random.default_rng(0)
        text = rng.uniform(10, 90, (8, 2))
        first = self.result("a", [tuple(row) for row in text])
        second = self.result("b", [tuple(row + 1) for row in text])
        board.add([first, second])
        gap = board.gap(second.request.candidate, first.request.candidate, range(8))
        assert gap.mean == pytest.approx(0.1)
        assert gap.error < 1e-9
        assert gap.hopeless

    def test_what_failed_is_hopeless(self):
        board = Scoreboard()
        good = self.result("a", [(1.0, 2.0)])
        bad = Result(Evaluate(Candidate((("b", level()),)), (0,)), (), failed="nan")
        board.add([good, bad])
        assert board.mean(bad.request.candidate, (0,)) == np.inf
        assert board.gap(bad.request.candidate, good.request.candidate, (0,)).hopeless

    def test_only_new_micro_batches_are_missing(self):
        board = Scoreboard()
        board.add([result := self.result("a", [(1.0, 2.0)])])
        assert board.missing(result.request.candidate, (0, 3)) == (3,)


def level():
    return DROP


class TestRace:
    RUNGS = (Rung(4, 3, (0, 1, 2, 3)), Rung(12, 1, tuple(range(12))))

    def go(self, objective, incumbent, rivals, tokens=10**9, **options):
        """The winner, and which micro-batches each candidate was asked for.

        There are tokens as long as some are left: one for each micro-batch.
        """
        asked, spent = {}, []

        def affords(requests):
            return len(spent) + sum(len(each.micro_batches) for each in requests) <= tokens

        steps = race(Scoreboard(), affords, incumbent, rivals, self.RUNGS, **options)
        answers = None
        while True:
            try:
                requests = steps.send(answers)
            except StopIteration as end:
                return *end.value, asked
            for request in requests:
                asked.setdefault(request.candidate.id, []).extend(request.micro_batches)
                spent.extend(request.micro_batches)
            answers = [objective(request) for request in requests]

    def test_the_best_wins_and_pays_only_for_what_is_new(self, sparse):
        objective = Separable.of(sparse)
        rng = np.random.default_rng(0)
        rivals = [sparse.candidate(sampling.random(sparse, rng)) for _ in range(6)]
        incumbent = sparse.candidate(sampling.random(sparse, rng))
        winner, seen, asked = self.go(objective, incumbent, rivals)
        assert seen == tuple(range(12))
        assert winner == min([*rivals, incumbent], key=objective.value)
        assert all(len(found) == len(set(found)) for found in asked.values())

    def test_what_is_certainly_worse_leaves_at_once(self, sparse):
        objective = Separable.of(sparse)
        ordered = sorted(
            (sparse.candidate(sampling.random(sparse, np.random.default_rng(s))) for s in range(5)),
            key=objective.value,
        )
        winner, _, asked = self.go(objective, ordered[0], ordered[1:])
        assert winner == ordered[0]
        assert all(len(asked[rival.id]) == 4 for rival in ordered[1:])
        _, _, patient = self.go(objective, ordered[0], ordered[1:], by_chance=False)
        assert sorted(len(patient[rival.id]) for rival in ordered[1:]) == [4, 12, 12, 12]

    def test_without_tokens_for_a_rung_the_one_before_decides(self, sparse):
        objective = Separable.of(sparse)
        rng = np.random.default_rng(0)
        rivals = [sparse.candidate(sampling.random(sparse, rng)) for _ in range(6)]
        incumbent = max(rivals, key=objective.value)
        others = [rival for rival in rivals if rival is not incumbent]
        winner, seen, _ = self.go(objective, incumbent, others, tokens=24)
        assert (winner, seen) == (min(rivals, key=objective.value), (0, 1, 2, 3))
        winner, seen, asked = self.go(objective, incumbent, others, tokens=23)
        assert (winner, seen, asked) == (incumbent, (), {})


class TestProposals:
    def test_guided_ones_are_better_on_average(self, sparse):
        objective = Separable.of(sparse)
        parent = sampling.uniform(sparse)

        def predict(genomes):
            return np.array([objective.value(sparse.candidate(genome)) for genome in genomes])

        def mean(guide):
            found = propose(sparse, parent, guide, 16, np.random.default_rng(0))
            assert len({genome.tobytes() for genome in found} - {parent.tobytes()}) == 16
            assert sparse.feasible(np.stack(found)).all()
            return predict(found).mean()

        assert mean(Acquisition(predict)) < mean(None) - 1e-3

    def test_a_sure_gain_is_always_among_them(self, sparse):
        objective = Separable.of(sparse)
        parent = sampling.uniform(sparse)

        def gain(genomes):
            values = [objective.value(sparse.candidate(genome)) for genome in genomes]
            return np.array(values)

        before = gain(parent[None])[0]
        for seed in range(5):
            guide = Acquisition(gain, error=1e-9)
            found = propose(sparse, parent, guide, 8, np.random.default_rng(seed))
            values = np.sort(gain(np.stack(found)))
            # All but the one that is drawn evenly are improvements, where there are enough.
            assert (values[:7] < before).all()

    def test_a_climb_ends_lower_and_feasible(self, depth):
        objective = Separable.of(depth)

        def predict(genomes):
            return np.array([objective.value(depth.candidate(genome)) for genome in genomes])

        start = sampling.random(depth, np.random.default_rng(1))
        found = climb(depth, start, predict, 6, np.random.default_rng(0))
        assert predict(found[None]) < predict(start[None])
        assert depth.feasible(found[None])[0]
        assert (climb(depth, start, predict, 0, np.random.default_rng(0)) == start).all()

    def test_a_blend_has_genes_of_both(self, depth):
        rng = np.random.default_rng(0)
        for _ in range(20):
            one, other = sampling.random(depth, rng), sampling.random(depth, rng)
            child = blend(depth, one, other, rng)
            assert depth.feasible(child[None])[0]


class TestAuto:
    @pytest.mark.parametrize(
        "limit", [25_000, 60_000, pytest.param(200_000, marks=pytest.mark.long)]
    )
    def test_keeps_to_its_tokens_and_uses_them(self, sparse, limit):
        _, steps = searched(sparse, Separable.of(sparse, noise=0.05), limit)
        assert 0.6 * limit < requested(steps) <= limit

    def test_finds_what_random_search_does_not(self, sparse):
        objective = Separable.of(sparse, noise=0.02)
        searcher, _ = searched(sparse, objective)
        rng = np.random.default_rng(5)
        others = [
            objective.value(sparse.candidate(sampling.random(sparse, rng))) for _ in range(500)
        ]
        assert objective.value(searcher.incumbent().candidate) < min(others)

    @pytest.mark.parametrize(
        ("surrogate", "name"),
        [
            (True, "2 by a model of interactions"),
            pytest.param(False, "greedy removal", marks=pytest.mark.long),
        ],
    )
    def test_drops_are_measured(self, depth, surrogate, name):
        objective = Separable.of(depth)
        searcher, steps = searched(depth, objective, 30_000, surrogate=surrogate)
        estimates = [r.kind for requests, _ in steps for r in requests if isinstance(r, Estimate)]
        assert estimates == ["block_influence"]
        assert {name, "blocks of least influence"} <= set(searcher.origins().values())
        rng = np.random.default_rng(5)
        others = [objective.value(depth.candidate(sampling.random(depth, rng))) for _ in range(500)]
        assert objective.value(searcher.incumbent().candidate) <= min(others)

    @pytest.mark.parametrize("drop", [{}, None])
    def test_widths_start_from_the_ranking_of_flap_too(self, drop):
        parts = {"width": {"channels": [0.25, 0.5, 0.75], "multiple_of": 8}, "drop": drop}
        space = space_of(
            budget={"body_params": 0.7}, **{k: v for k, v in parts.items() if v is not None}
        )
        objective = Separable.of(space)
        searcher, _ = searched(space, objective)
        by_name = {name: key for key, name in searcher.origins().items()}
        assert "least fluctuation" in by_name
        flap = Flap(Problem(space, POOL), Flap.Settings(), np.random.default_rng(0))
        run(flap, objective)
        # Its own threshold leaves some of the budget unused; here the rest is spent as well.
        alone = flap.incumbent().candidate
        ours, theirs = (objective.value(c) for c in (searcher.incumbent().candidate, alone))
        assert ours <= theirs

    def test_drops_beside_widths_start_from_influence(self):
        width = {"channels": [0.25, 0.5, 0.75], "multiple_of": 8}
        space = space_of(8, width=width, drop={}, budget={"body_params": 0.7})
        searcher, steps = searched(space, Separable.of(space))
        names = searcher.origins()
        assert {"blocks of least influence", "units of least influence"} <= set(names.values())
        by_id = {r.candidate.id: r.candidate for requests, _ in steps for r in requests}
        units = next(key for key, name in names.items() if name.startswith("units of least"))
        assert by_id[units].levels
        assert all(level.drop for _, level in by_id[units].levels)

    @pytest.mark.parametrize("part", ["estimates", "guided", "surrogate", "racing"])
    def test_each_part_can_be_taken_out(self, sparse, part):
        objective = Separable.of(sparse, noise=0.02)
        searcher, steps = searched(sparse, objective, **{part: False})
        assert searcher.incumbent() is not None
        asked = any(isinstance(r, Estimate) for requests, _ in steps for r in requests)
        assert asked == (part != "estimates")

    def test_says_what_it_began_with(self, sparse):
        searcher, _ = searched(sparse, Separable.of(sparse))
        names = set(searcher.origins().values())
        assert {"uniform", "second order"} <= names
        assert "" not in names

    @pytest.mark.long
    def test_ends_with_its_last_incumbents_on_the_same_sequences(self, sparse):
        pool, ends = Pool((64,) * 1024), []
        for seed in range(6):
            objective = Separable.of(sparse, noise=1.0)
            searcher, steps = searched(sparse, objective, 60_000, seed, pool)
            last, _ = steps[-1]
            if searcher.phase().startswith("the last"):
                assert 2 <= len(last) <= ARCHIVE
                assert searcher.phase().startswith(f"the last {len(last)} incumbents once more")
                assert searcher.incumbent().candidate.id in {r.candidate.id for r in last}
                ends.append(seed)
        assert ends

    def test_says_what_it_does(self, sparse):
        searcher = Auto(Problem(sparse, POOL, TOKENS), Auto.Settings(), np.random.default_rng(0))
        objective, phases = Separable.of(sparse, noise=0.02), []
        while requests := searcher.ask():
            phases.append(searcher.phase())
            searcher.tell([objective(request) for request in requests])
        heads = list(dict.fromkeys(phase.split()[0] for phase in phases))
        assert heads[:4] == ["second-order", "comparing", "step", "races"]
        assert any("guided by" in phase for phase in phases)

    def test_goes_on_where_estimates_fail(self, sparse):
        objective = Separable.of(sparse, noise=0.02)

        def failing(request):
            answer = objective(request)
            if isinstance(request, Estimate):
                return type(answer)(request, (), (), failed="out of memory")
            return answer

        searcher, _ = searched(sparse, failing)
        assert searcher.incumbent() is not None
        assert searcher.phase().endswith("; the estimate linearised failed: out of memory")

    def test_drops_go_on_without_their_influence(self, depth):
        objective = Separable.of(depth)

        def failing(request):
            answer = objective(request)
            if isinstance(request, Estimate):
                return type(answer)(request, (), (), failed="out of memory")
            return answer

        searcher, _ = searched(depth, failing, 8_000)
        assert searcher.incumbent() is not None
        assert searcher.phase().endswith("; the estimate block_influence failed: out of memory")
