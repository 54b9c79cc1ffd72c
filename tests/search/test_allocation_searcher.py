"""Allocation heuristics: their formulas, and the levels that come nearest to them."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from evocompress.core.config import SpaceConfig
from evocompress.core.errors import ConfigError
from evocompress.core.requests import Estimate
from evocompress.core.types import Candidate, Unit
from evocompress.pipeline.journal import Journal
from evocompress.pipeline.loop import search
from evocompress.search.allocation.allocation import Allocation, allocated
from evocompress.search.allocation.sparsity_allocation import METHODS, Known, proportional
from evocompress.search.base import Problem
from evocompress.search.generator_searcher import GeneratorSearcher
from evocompress.space import sampling
from evocompress.space.build import build_space
from evocompress.testing import searchers as contract
from evocompress.testing.decoders import Decoder
from evocompress.testing.searchers import POOL, Separable, run

DECODER = Decoder(layers=4, hidden=32, heads=4, kv_heads=2, ffn=96)
SHAPES = [(32, 32), (16, 32), (96, 32), (32, 96)]
UNITS = tuple(
    Unit(f"b{block}.m{index}", "matrix", None, block, f"m{index}", shape)
    for block in range(3)
    for index, shape in enumerate(SHAPES)
)
BLOCKS = tuple(f"b{unit.block}" for unit in UNITS)
SIZES = np.array([unit.numel for unit in UNITS])


def known(rows, spread=0.1):
    return Known(UNITS, BLOCKS, rows, spread)


def rows_of(values):
    return {unit.name: (value,) for unit, value in zip(UNITS, values, strict=True)}


def mean(densities):
    return (densities * SIZES).sum() / SIZES.sum()


def by_block(densities):
    """The density of each block, the same in all of its matrices."""
    table = densities.reshape(3, 4)
    assert (table == table[:, :1]).all()
    return table[:, 0]


def weights_of(seed):
    rng = np.random.default_rng(seed)
    return [rng.normal(0, rng.uniform(0.5, 2), unit.numel) for unit in UNITS]


def quantiles(scores):
    ordered = np.sort(scores)
    return ordered[np.ceil(np.arange(1, 257) * len(ordered) / 256).astype(int) - 1]


def kept_of_highest(scores, overall):
    """The share of each matrix among the highest scores of all."""
    pooled = np.sort(np.concatenate(scores))
    threshold = pooled[round((1 - overall) * len(pooled))]
    return np.array([(own >= threshold).mean() for own in scores])


class TestFormulas:
    @pytest.mark.parametrize("overall", [0.2, 0.5, 0.8, 0.95])
    def test_erk_makes_the_worst_dense_until_none_is_above_one(self, overall):
        scores = np.array([sum(unit.shape) / unit.numel for unit in UNITS])
        dense = np.zeros(len(UNITS), dtype=bool)
        while True:
            factor = (overall * SIZES.sum() - SIZES[dense].sum()) / (scores * SIZES)[~dense].sum()
            expected = np.where(dense, 1.0, factor * scores)
            if expected.max() <= 1:
                break
            dense |= expected >= expected.max()
        found = METHODS["erk"].densities(known({}), overall)
        np.testing.assert_allclose(found, expected)
        assert mean(found) == pytest.approx(overall)

    @pytest.mark.parametrize("overall", [0.3, 0.6])
    def test_lamp_keeps_the_highest_scores(self, overall):
        scores = []
        for weights in weights_of(0):
            squares = np.sort(weights**2)
            scores.append(squares / squares[::-1].cumsum()[::-1])
        rows = {u.name: quantiles(own).tolist() for u, own in zip(UNITS, scores, strict=True)}
        found = METHODS["lamp"].densities(known(rows), overall)
        np.testing.assert_allclose(found, kept_of_highest(scores, overall), atol=0.005)
        assert np.ptp(found) > 0.1

    @pytest.mark.parametrize("overall", [0.3, 0.6])
    def test_global_magnitude_keeps_the_largest(self, overall):
        scores = [np.abs(weights) for weights in weights_of(1)]
        rows = {u.name: quantiles(own).tolist() for u, own in zip(UNITS, scores, strict=True)}
        found = METHODS["global_magnitude"].densities(known(rows), overall)
        np.testing.assert_allclose(found, kept_of_highest(scores, overall), atol=0.005)

    def test_some_weights_stay_in_every_matrix(self):
        rows = {unit.name: np.linspace(1, 2, 256).tolist() for unit in UNITS}
        rows["b1.m1"] = np.linspace(1e-3, 2e-3, 256).tolist()
        found = METHODS["global_magnitude"].densities(known(rows), 0.3)
        assert found[5] * SIZES[5] == int(0.0005 * SIZES.sum()) == 11
        assert mean(found) == pytest.approx(0.3, abs=1e-6)

    def test_owl(self):
        rows = {f"b{i}": (9.0, 9.0, 9.0, 9.0, ratio, 9.0) for i, ratio in enumerate([1, 4, 2])}
        found = by_block(METHODS["owl"].densities(known(rows, 0.08), 0.6))
        offsets = np.array([0, 1, 1 / 3]) * 0.16
        np.testing.assert_allclose(found, offsets - offsets.mean() + 0.6)

    def test_alpha(self):
        exponents = np.array([2.0, 4.0, 3.5]).repeat(4) + np.tile([-0.2, 0.2, 0.4, -0.4], 3)
        found = by_block(METHODS["alpha"].densities(known(rows_of(exponents), 0.3), 0.4))
        ratios = np.array([0.7, 1.3, 0.7 + 0.75 * 0.6])
        np.testing.assert_allclose((1 - found) / ratios, 0.6 / ratios.mean())

    def test_ecoflap_deals_out_what_is_above_the_floor(self):
        slopes = np.array([1, 2, 3, 4, 2, 2, 2, 2, 12, 8, 12, 8], dtype=float)
        found = by_block(METHODS["ecoflap"].densities(known(rows_of(slopes), 0.1), 0.5))
        np.testing.assert_allclose(found, 0.4 + 0.3 * np.array([10, 8, 40]) / 58)

    def test_ecoflap_clips_full_blocks(self):
        slopes = np.array([0.001] * 4 + [0.002] * 4 + [1.0] * 4)
        found = by_block(METHODS["ecoflap"].densities(known(rows_of(slopes), 0.5), 0.6))
        np.testing.assert_allclose(found, [0.1 + 0.6 / 3, 0.1 + 1.2 / 3, 1.0])

    def test_pq(self):
        indices = np.linspace(0.1, 0.7, len(UNITS))
        found = METHODS["pq"].densities(known(rows_of(indices)), 0.4)
        assert np.ptp(found / (1 - indices)) == pytest.approx(0)
        assert mean(found) == pytest.approx(0.4)

    @pytest.mark.parametrize("name", ["owl", "alpha", "ecoflap"])
    def test_blocks_that_are_alike_are_as_dense(self, name):
        rows = rows_of([0.5] * 12) | {f"b{i}": (1.0,) * 10 for i in range(3)}
        found = METHODS[name].densities(known(rows), 0.6)
        np.testing.assert_allclose(found, 0.6)

    def test_nothing_in_proportion_to_nothing_is_even(self):
        np.testing.assert_allclose(proportional(np.zeros(3), np.array([1.0, 2, 3]), 0.4), 0.4)
        np.testing.assert_allclose(proportional(np.array([0.0, 1, 2]), np.ones(3), 1.0), 1.0)


def space_of(levels=4, step="auto", **config):
    sparsity = {"target": 0.5, "levels": levels, "step": step}
    space = SpaceConfig(**({"sparsity": sparsity} | config))
    return build_space(DECODER.units(), DECODER.architecture(), space)


def searcher(space, method, **settings):
    settings = Allocation.Settings(method=method, candidate_tokens=256, **settings)
    return Allocation(Problem(space, POOL), settings, np.random.default_rng(5))


@pytest.mark.parametrize("method", METHODS)
class TestEveryMethod:
    def test_contract(self, method):
        space = space_of()

        def make():
            return searcher(space, method)

        objective = Separable.of(space, noise=0.05)
        contract.check(contract.Trace.of(make, space, objective))

    @pytest.mark.parametrize("step", ["auto", 37])
    def test_equal_steps_end_at_the_budget(self, method, step):
        space = space_of(step=step)
        search = searcher(space, method)
        run(search, Separable.of(space))
        genome = space.genome(search.incumbent().candidate)
        nonzeros = space.costs(genome[None])["matrix_nonzeros"].item()
        assert nonzeros == space.budget["matrix_nonzeros"]
        even = sampling.uniform(space)
        assert (genome == even).all() if method == "uniform" else (genome != even).any()

    def test_the_estimate_is_about_the_dense_model(self, method):
        space = space_of()
        search = searcher(space, method, estimate_tokens=128)
        asks = [request for requests, _ in run(search, Separable.of(space)) for request in requests]
        estimates = [request for request in asks if isinstance(request, Estimate)]
        if METHODS[method].kind is None:
            assert estimates == []
            return
        [estimate] = estimates
        assert (estimate.candidate, estimate.kind) == (Candidate(), METHODS[method].kind)
        price = {"owl": 128, "ecoflap": 128 * 2 * 7 * DECODER.layers}
        assert POOL.requested(estimate) == price.get(method, 0)

    def test_what_is_no_matrix_is_even(self, method):
        space = space_of(drop={}, budget={"matrix_nonzeros": 0.4})
        search = searcher(space, method)
        run(search, Separable.of(space))
        genome, even = space.genome(search.incumbent().candidate), sampling.uniform(space)
        assert (genome[space.encoding.droppable] == even[space.encoding.droppable]).all()
        assert 0.99 < space.budget_usage(genome[None])[0, 0] <= 1


class TestLevels:
    @pytest.mark.parametrize("method", ["erk", "pq", "alpha"])
    def test_no_genome_of_the_same_cost_is_nearer(self, method):
        decoder = Decoder(layers=2, hidden=8, heads=2, kv_heads=1, ffn=24)
        match = ["*k_proj", "*o_proj", "*up_proj", "*down_proj"]
        config = SpaceConfig(sparsity={"target": 0.5, "levels": 1, "step": 10, "match": match})
        space = build_space(decoder.units(), decoder.architecture(), config)
        search = searcher(space, method)
        objective = Separable.of(space)
        steps = run(search, objective)
        genome = space.genome(search.incumbent().candidate)
        rows = {} if method == "erk" else steps[0][1][0].by_unit
        blocks = tuple(f"model.layers.{unit.block}" for unit in space.units)
        about = Known(space.units, blocks, rows, METHODS[method].spread or 0.0)
        every = np.array(list(itertools.product(*(range(n) for n in space.encoding.sizes))))
        every = every[space.feasible(every)]
        sizes = np.array([unit.numel for unit in space.units])
        zeros = np.array([[level.zeros for level in levels] for levels in space.levels])
        used = space.budget_usage(every)[:, 0]
        every = every[used == used.max()]

        def distances(genomes, overall):
            wanted = 1 - np.clip(METHODS[method].densities(about, overall), 0, 1)
            own = zeros[np.arange(len(sizes)), genomes] / sizes
            return (sizes * (own - wanted) ** 2).sum(axis=1)

        # The overall density is the searcher's choice: it is the best one for some of them.
        gaps = [
            distances(genome[None], overall)[0] - distances(every, overall).min()
            for overall in np.linspace(0.3, 0.7, 401)
        ]
        assert min(gaps) < 1e-9

    def test_a_loose_budget_leaves_the_densest_levels(self):
        space = space_of(drop={}, budget={"matrix_nonzeros": 0.99})
        search = searcher(space, "erk")
        run(search, Separable.of(space))
        assert (space.genome(search.incumbent().candidate)[space.encoding.matrices] == 0).all()

    def test_the_block_with_outliers_is_densest(self):
        space = space_of()
        search = searcher(space, "owl")
        objective = Separable.of(space)
        run(search, objective)
        genome = space.genome(search.incumbent().candidate)
        blocks = np.array([unit.block for unit in space.units])
        dense = max(range(4), key=lambda index: objective.weights[f"model.layers.{index}"])
        levels = [genome[blocks == index].mean() for index in range(4)]
        assert levels[dense] == min(levels) < 4


class TestUse:
    def test_another_procedure_begins_with_a_method(self):
        space = space_of()

        class Other(GeneratorSearcher):
            def search(self):
                self.genome = yield from allocated(self.space, "pq", (0, 1))
                yield from self.select([self.genome], (0,))

        problem, rng = Problem(space, POOL), np.random.default_rng(0)
        other, alone = Other(problem, Other.Settings(), rng), searcher(space, "pq")
        for one in (other, alone):
            run(one, Separable.of(space))
        assert (other.genome == space.genome(alone.incumbent().candidate)).all()

    def test_no_genome_where_the_estimate_failed(self):
        space = space_of()
        procedure = allocated(space, "lamp", (0,))
        [request] = next(procedure)
        with pytest.raises(StopIteration) as end:
            procedure.send([contract._failed(request)])
        assert end.value.value is None

    def test_an_estimate_of_weights_costs_no_tokens_and_is_recorded(self, tmp_path: Path):
        space, header = space_of(), {"seed": 0}
        objective = Separable.of(space)
        asked = []

        class Executor:
            def map(self, requests):
                for request in requests:
                    asked.append(request)
                    yield objective(request)

            def close(self):
                pass

        outcomes = []
        for _ in range(2):
            with Journal(tmp_path / "journal.jsonl", header) as journal:
                outcomes.append(search(searcher(space, "lamp"), Executor(), journal, POOL))
                assert [step.requested for step in journal.steps] == [0, 256]
        assert outcomes[0] == outcomes[1]
        assert [type(request).__name__ for request in asked] == ["Estimate", "Evaluate"]

    @pytest.mark.parametrize(
        "config",
        [
            {"sparsity": None, "width": {"multiple_of": 4}, "budget": {"body_params": 0.6}},
            {"sparsity": None, "drop": {}, "budget": {"body_params": 0.6}},
            {"sparsity": {"target": 0.5, "pattern": "2:4"}},
        ],
    )
    def test_spaces_without_a_choice_of_sparsities_are_refused(self, config):
        with pytest.raises(ConfigError, match="needs space.sparsity"):
            searcher(space_of(**config), "owl")

    def test_a_setting_that_a_method_has_not(self):
        with pytest.raises(ConfigError, match="erk has no such setting"):
            searcher(space_of(), "erk", spread=0.2)

    def test_a_wider_spread_strays_further(self):
        space = space_of(levels=8)
        strays = []
        for spread in (0.02, 0.2):
            search = searcher(space, "owl", spread=spread)
            run(search, Separable.of(space))
            genome = space.genome(search.incumbent().candidate)
            strays.append(np.abs(genome - sampling.uniform(space)).sum())
        assert strays[0] < strays[1]
