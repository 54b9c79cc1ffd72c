"""Dynamic programming over output errors and over measured distortions."""

import itertools

import numpy as np
import pytest

from evocompress.core.config import SpaceConfig
from evocompress.core.errors import ConfigError
from evocompress.core.requests import Estimate, Estimation
from evocompress.core.types import DENSE, Candidate
from evocompress.search.allocation.distortion_dp import (
    DistortionDP,
    WithDense,
    harms,
    targets,
    trials,
)
from evocompress.search.allocation.evopress_dp import EvoPressDP
from evocompress.search.allocation.evopress_dp import summed_errors as error_harms
from evocompress.search.base import Problem
from evocompress.space.build import build_space
from evocompress.testing.decoders import Decoder
from evocompress.testing.searchers import POOL, Separable, run

WIDTH = {"channels": [0.25, 0.5, 0.75], "multiple_of": 8, "protect": []}
MATCH = ["*v_proj", "*o_proj", "*gate_proj", "*down_proj"]
CONFIGS = {
    "sparsity": ({"layers": 2}, {"sparsity": {"target": 0.5, "levels": 1, "match": MATCH}}),
    "width": ({"layers": 2}, {"width": WIDTH, "budget": {"body_params": 0.6}}),
    "drop": ({"layers": 4}, {"drop": {}, "budget": {"body_params": 0.7}}),
    "shape": (
        {"layers": 1},
        {"width": WIDTH, "drop": {"protect": []}, "budget": {"body_params": 0.4}},
    ),
    "bits": (
        {"layers": 1, "hidden": 64, "heads": 2, "ffn": 64},
        {"bits": {"types": ["q8_0", "q5_0", "q4_0"]}, "budget": {"bits_per_weight": 6}},
    ),
}


def space_of(name):
    shape, config = CONFIGS[name]
    decoder = Decoder(**shape)
    return build_space(decoder.units(), decoder.architecture(), SpaceConfig(**config))


def searcher(cls, space, **settings):
    settings = cls.Settings(candidate_tokens=256, **settings)
    return cls(Problem(space, POOL), settings, np.random.default_rng(3))


def best_of(space, values):
    """The lowest value of all feasible genomes; `values` tells that of one."""
    every = np.array(list(itertools.product(*(range(n) for n in space.encoding.sizes))))
    every = every[space.feasible(every) & (space.deactivate(every) == every).all(axis=1)]
    return min(values(genome) for genome in every)


class TestEvoPressDP:
    @pytest.mark.parametrize("name", ["sparsity", "width", "shape"])
    def test_the_least_sum_of_errors(self, name):
        space = space_of(name)
        rng = np.random.default_rng(1)
        errors = {
            unit.name: np.append(0, rng.uniform(0, 1, len(levels) - 1).cumsum()).tolist()
            for unit, levels in zip(space.units, space.levels, strict=True)
        }
        objective = Separable.of(space)

        def answer(request):
            if isinstance(request, Estimate):
                assert request == Estimate(Candidate(), "output_error", ())
                return Estimation(request, tuple(errors), tuple(map(tuple, errors.values())))
            return objective(request)

        search = searcher(EvoPressDP, space)
        steps = run(search, answer)
        assert [len(requests) for requests, _ in steps] == [1, 1]
        found = space.genome(search.incumbent().candidate)

        def total(genome):
            return sum(errors[u.name][level] for u, level in zip(space.units, genome, strict=True))

        assert total(found) <= best_of(space, total) * 1.02 + 1e-9

    def test_a_drop_removes_all_that_lies_below(self):
        decoder = Decoder(layers=2)
        config = SpaceConfig(
            sparsity={"target": 0.5, "levels": 1},
            drop={"units": ["block"], "protect": []},
            budget={"matrix_nonzeros": 0.4},
        )
        space = build_space(decoder.units(), decoder.architecture(), config)
        errors = {
            unit.name: [float(level.drop) or 0.25 for level in levels]
            for unit, levels in zip(space.units, space.levels, strict=True)
        }
        found = error_harms(space, errors)
        for unit, row in zip(space.units, found, strict=True):
            assert row[-1] == (7 if unit.kind == "block" else 0.25)

    def test_tied_units_are_summed(self):
        decoder = Decoder(layers=3)
        config = SpaceConfig(width=WIDTH | {"uniform": True}, budget={"body_params": 0.6})
        space = build_space(decoder.units(), decoder.architecture(), config)
        errors = {
            unit.name: [place + unit.block for place in range(len(levels))]
            for members, levels in zip(space.encoding.members, space.levels, strict=True)
            for unit in members
        }
        for row in error_harms(space, errors):
            assert row.tolist() == [3 * place + 3 for place in range(len(row))]

    def test_errors_of_types_are_summed(self):
        space = space_of("bits")
        errors = {unit.name: [0.1, 0.2, 0.4] for unit in space.units}
        assert all(row.tolist() == [0.1, 0.2, 0.4] for row in error_harms(space, errors))

    def test_removals_alone_are_refused(self):
        with pytest.raises(ConfigError, match="needs? space.sparsity or space.width"):
            searcher(EvoPressDP, space_of("drop"))


class TestDistortionDP:
    @pytest.mark.parametrize("rounds", [1, 2])
    @pytest.mark.parametrize("name", CONFIGS)
    def test_the_least_sum_of_what_is_measured(self, name, rounds):
        space = space_of(name)
        objective = Separable.of(space)
        search = searcher(DistortionDP, space, rounds=rounds, levels=20)
        steps = run(search, objective)
        assert len(steps) == rounds + 1
        value = objective.value(search.incumbent().candidate)
        best = best_of(space, lambda genome: objective.value(space.candidate(genome)))
        # What is decided in a round is not taken back in the next.
        assert value <= best * (1.02 if rounds == 1 else 1.5) + 1e-9

    def test_one_unit_at_a_time_is_probed_at_the_dense_model(self):
        space = space_of("sparsity")
        search = searcher(DistortionDP, space, levels=2, probe_tokens=64)
        (probes, _), (final, _) = run(search, Separable.of(space))
        assert probes[0].candidate == Candidate()
        named = [request.candidate.levels for request in probes[1:]]
        expected = [
            ((unit.name, level),)
            for unit, levels in zip(space.units, space.levels, strict=True)
            for level in (next(one for one in levels if one != DENSE), levels[-1])
        ]
        assert named == expected
        assert all(request.probe and len(request.micro_batches) == 1 for request in probes)
        assert [(r.probe, len(r.micro_batches)) for r in final] == [(False, 4)]

    def test_later_rounds_are_probed_where_the_one_before_ended(self):
        space = space_of("width")
        search = searcher(DistortionDP, space, rounds=2, levels=1)
        (_, _), (second, _), (final, _) = run(search, Separable.of(space))
        middle = space.genome(second[0].candidate)
        assert (middle != 0).any()
        last = space.genome(final[0].candidate)
        assert (last >= middle).all() and (last != middle).any()
        for request in second[1:]:
            changed = space.genome(request.candidate)
            assert (changed != middle).sum() == 1 and (changed >= middle).all()

    def test_levels_in_no_order_are_refused(self):
        decoder = Decoder(layers=1, hidden=64, heads=2, ffn=64)
        config = SpaceConfig(bits={"types": ["q4_0", "iq4_nl"]}, budget={"bits_per_weight": 5})
        space = build_space(decoder.units(), decoder.architecture(), config)
        with pytest.raises(ConfigError, match="one curve for each matrix"):
            searcher(DistortionDP, space)

    def test_targets_leave_the_same_share_each_time(self):
        space = space_of("width")
        dense, bound = space.cost_model.dense()["body_params"], space.budget["body_params"]
        bounds = [target.budget["body_params"] for target in targets(space, 4)]
        ratios = np.array(bounds) / np.array([dense, *bounds[:-1]])
        np.testing.assert_allclose(ratios, (bound / dense) ** 0.25)
        assert bounds[-1] == pytest.approx(bound)

    def test_trials_are_spread_up_to_the_last_level(self):
        decoder = Decoder(layers=2)
        config = SpaceConfig(sparsity={"target": 0.5, "levels": 4, "step": 4})
        wide = WithDense.of(build_space(decoder.units(), decoder.architecture(), config))
        now = wide.genes.default.copy()
        assert {levels[0] for levels in wide.genes.levels} == {DENSE}
        now[1] = 9
        now[2] = 5
        found = trials(wide, now, 3)
        assert [level for gene, level in found if gene == 0] == [1, 5, 9]
        assert [level for gene, level in found if gene == 1] == []
        assert [level for gene, level in found if gene == 2] == [6, 7, 9]

    def test_the_last_attention_is_not_tried(self):
        decoder = Decoder(layers=2)
        config = SpaceConfig(drop={"protect": []}, budget={"body_params": 0.6})
        space = build_space(decoder.units(), decoder.architecture(), config)
        wide = WithDense.of(space)
        now = wide.genes.default.copy()
        attentions = space.encoding.by_kind["attention"]
        now[attentions[0]] = 1
        assert attentions[1] not in [gene for gene, _ in trials(wide, now, 4)]

    def test_curves_are_monotone_and_reach_as_far_as_was_measured(self):
        decoder = Decoder(layers=1, hidden=10, heads=2, kv_heads=1, ffn=20)
        config = SpaceConfig(sparsity={"target": 0.5, "levels": 2, "step": 5, "match": ["*o_proj"]})
        wide = WithDense.of(build_space(decoder.units(), decoder.architecture(), config))
        [row] = harms(wide, wide.genes.default, {0: [(1, 0.4), (3, 0.2), (4, 0.6)]})
        np.testing.assert_allclose(row, [0.2, 0.2, 0.2, 0.6, np.inf])
        [row] = harms(wide, np.array([2]), {0: [(5, 0.9), (4, -0.3)]})
        np.testing.assert_allclose(row, [np.inf, 0, 0, 0, 0.9])

    def test_what_fails_is_not_chosen(self):
        space = space_of("width")
        objective = Separable.of(space)
        (probes, _), _ = run(searcher(DistortionDP, space), objective)
        alone = probes[-1].candidate
        spoiled = Separable(**(vars(objective) | {"failing": frozenset({alone.id})}))
        search = searcher(DistortionDP, space)
        run(search, spoiled)
        [(unit, level)] = alone.levels
        assert search.incumbent().candidate.by_name.get(unit) != level
