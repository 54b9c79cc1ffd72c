"""The searchers whose candidates Optuna proposes."""

import subprocess
import sys

import numpy as np
import optuna
import pytest
from optuna.samplers import RandomSampler
from optuna.trial import TrialState

from evocompress.core.config import SpaceConfig
from evocompress.core.errors import ConfigError
from evocompress.search import SEARCHERS
from evocompress.search.base import Problem
from evocompress.search.bayesian import sampled
from evocompress.search.bayesian.optuna_study import GenomeStudy
from evocompress.space import sampling
from evocompress.space.build import build_space
from evocompress.space.repair import repair
from evocompress.testing import searchers as contract
from evocompress.testing.decoders import Decoder


def space_of(layers=6, **config):
    decoder = Decoder(layers=layers)
    return build_space(decoder.units(), decoder.architecture(), SpaceConfig(**config))


DEPTH = space_of(drop={}, budget={"body_params": 0.7})
SPARSITY = space_of(sparsity={"target": 0.5, "levels": 3})
SHAPE = space_of(width={"multiple_of": 4}, drop={})
FEW = {"startup": 4, "candidate_tokens": 128, "final_tokens": 512, "finalists": 3}


def make(name, space=DEPTH, tokens=None, seed=0, **settings):
    cls = SEARCHERS[name]
    problem = Problem(space, contract.POOL, tokens)
    return cls(problem, cls.Settings(**settings), np.random.default_rng(seed))


def found(searcher, space):
    """The true value of what a searcher chooses."""
    objective = contract.Separable.of(space, noise=0.02)
    contract.run(searcher, objective)
    return objective.value(searcher.incumbent().candidate)


@pytest.mark.parametrize(
    ("name", "space", "count", "settings"),
    [
        ("tpe", SPARSITY, 60, {"startup": 10}),
        ("gp", DEPTH, 24, {"startup": 10}),
        ("optuna_nsga2", SPARSITY, 160, {"startup": 20, "population": 20}),
    ],
)
def test_finds_better_than_random_search_with_as_many(name, space, count, settings):
    random = {"generations": 1, "offspring": count, "survivors": (3, 1), "stage_tokens": (128, 512)}
    own = {**FEW, **settings, "candidates": count}
    others = [found(make("random", space, seed=seed, **random), space) for seed in range(4)]
    assert found(make(name, space, **own), space) < np.mean(others)


@pytest.mark.parametrize("name", ["tpe", "optuna_nsga2"])
def test_asks_the_same_in_another_process(name):
    code = (
        "import test_optuna_searchers as t\n"
        f"searcher = t.make('{name}', t.SPARSITY, **t.FEW, candidates=24)\n"
        "steps = t.contract.run(searcher, t.contract.Separable.of(t.SPARSITY, noise=0.02))\n"
        "print([r.candidate.id for requests, _ in steps for r in requests])"
    )
    outputs = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert outputs[0] == outputs[1]
    assert outputs[0].count(",") > 24


LIMIT = 6000


@pytest.fixture(scope="module")
def steps():
    searcher = make("tpe", SPARSITY, LIMIT, **FEW, batch=5)
    return contract.run(searcher, contract.Separable.of(SPARSITY))


class TestTokens:
    def test_are_used_up_but_not_exceeded(self, steps):
        used = sum(
            contract.POOL.requested(request) for requests, _ in steps for request in requests
        )
        assert LIMIT - 128 < used <= LIMIT

    def test_are_the_same_ones_for_all_candidates(self, steps):
        *search, last = steps
        assert len({request.micro_batches for requests, _ in search for request in requests}) == 1

    def test_of_the_finalists_hold_those_of_the_search(self, steps):
        [first, *_], _ = steps[0]
        finals, _ = steps[-1]
        assert len(finals) == FEW["finalists"]
        for request in finals:
            assert set(first.micro_batches) < set(request.micro_batches)
            assert contract.POOL.requested(request) == FEW["final_tokens"]

    def test_finalists_are_the_best_of_the_search(self, steps):
        results = [result for _, answers in steps[:-1] for result in answers]
        best = sorted(results, key=lambda result: result.mean)[: FEW["finalists"]]
        finals, _ = steps[-1]
        assert {request.candidate for request in finals} == {r.request.candidate for r in best}

    def test_of_the_finalists_take_a_quarter_where_none_are_given(self):
        searcher = make("tpe", DEPTH, 5000, **{**FEW, "final_tokens": None})
        finals, _ = contract.run(searcher, contract.Separable.of(DEPTH))[-1]
        assert sum(map(contract.POOL.requested, finals)) == 5000 // 4 // 3 // 128 * 128 * 3


class Watched(RandomSampler):
    """A sampler through which a test sees the study."""

    study: optuna.Study

    def before_trial(self, study, trial):
        self.study = study


class TestStudy:
    @pytest.fixture
    def sampler(self):
        return Watched(seed=0)

    @staticmethod
    def parameters(space, genome):
        return dict(zip((unit.name for unit in space.units), genome.tolist(), strict=True))

    def test_a_repaired_genome_is_a_trial_of_its_own(self, sampler):
        rng = np.random.default_rng(0)
        study = GenomeStudy(DEPTH, sampler, [], lambda genome: repair(DEPTH, genome, rng))
        genomes = study.ask(12)
        proposed = [trial.params for trial in sampler.study.trials]
        repaired = [g for g in genomes if self.parameters(DEPTH, g) not in proposed]
        assert 0 < len(repaired) < len(genomes)
        values = np.arange(len(genomes), dtype=np.float64)
        study.tell(genomes, values[:, None])
        trials = sampler.study.trials
        complete = {trial.value: trial.params for trial in trials if trial.values}
        assert complete == {
            value: self.parameters(DEPTH, genome)
            for value, genome in zip(values.tolist(), genomes, strict=True)
        }
        failed = [trial for trial in trials if trial.state == TrialState.FAIL]
        assert len(failed) == len(trials) - len(genomes) == len(repaired)

    def test_what_could_not_be_measured_has_failed(self, sampler):
        study = GenomeStudy(DEPTH, sampler, [sampling.uniform(DEPTH)], lambda genome: genome)
        study.tell(study.ask(3), np.full((3, 1), np.inf))
        assert {trial.state for trial in sampler.study.trials} == {TrialState.FAIL}
        assert len(sampler.study.trials) == 3

    def test_gives_out_every_genome_of_a_small_space_once_and_ends(self, sampler):
        small = space_of(layers=3, drop={"units": ["block"]}, budget={"body_params": 0.9})
        study = GenomeStudy(
            small, sampler, [], lambda g: repair(small, g, np.random.default_rng(0))
        )
        seen = []
        while genomes := study.ask(2):
            seen += [genome.tobytes() for genome in genomes]
            study.tell(genomes, np.ones((len(genomes), 1)))
        assert len(seen) == len(set(seen)) == 3

    def test_gives_out_the_first_genomes_before_it_proposes(self, sampler):
        first = [sampling.random(SPARSITY, np.random.default_rng(seed)) for seed in range(3)]
        study = GenomeStudy(SPARSITY, sampler, first, lambda genome: genome)
        assert np.array_equal(study.ask(3), first)


class TestFront:
    SETTINGS = {
        **FEW,
        "candidates": 60,
        "population": 10,
        "startup": 10,
        "objectives": ("params",),
        "range": {"params": (0.4, 0.9)},
    }

    def test_begins_at_even_candidates_of_all_sizes(self):
        searcher = make("optuna_nsga2", SHAPE, **self.SETTINGS)
        first, _ = contract.run(searcher, contract.Separable.of(SHAPE))[0]
        genomes = np.stack([SHAPE.genome(request.candidate) for request in first])
        shares = SHAPE.costs(genomes)["params"] / SHAPE.cost_model.dense()["params"]
        assert shares[:3].max() > 0.8 and shares[:5].min() < 0.5

    def test_finalists_are_the_front_and_the_winner_its_knee(self):
        searcher = make("optuna_nsga2", SHAPE, **self.SETTINGS)
        assert searcher.objectives == ("params",)
        steps = contract.run(searcher, contract.Separable.of(SHAPE))
        _, finals = steps[-1]
        best = searcher.incumbent()
        assert best.candidate in [result.request.candidate for result in finals]
        points = [
            (result.mean, SHAPE.costs(SHAPE.genome(result.request.candidate)[None])["params"][0])
            for result in finals
        ]
        for value, params in points:
            assert not any(v < value and p < params for v, p in points)

    def test_stays_within_its_range(self):
        steps = contract.run(
            make("optuna_nsga2", SHAPE, **self.SETTINGS), contract.Separable.of(SHAPE)
        )
        candidates = [request.candidate for requests, _ in steps for request in requests]
        genomes = np.stack([SHAPE.genome(candidate) for candidate in candidates])
        assert (SHAPE.costs(genomes)["params"] <= 0.9 * SHAPE.cost_model.dense()["params"]).all()


class TestRefusals:
    def test_of_the_gp_name_the_number_of_units(self):
        with pytest.raises(ConfigError, match="at most 20 .* has 42: use tpe"):
            make("gp", SPARSITY, **FEW, candidates=20)

    def test_without_a_budget(self):
        for name in ("tpe", "gp", "optuna_nsga2"):
            with pytest.raises(ConfigError, match="budget"):
                make(name, SHAPE, **FEW, candidates=20)

    def test_without_an_end(self):
        with pytest.raises(ConfigError, match="tpe ends by"):
            make("tpe", **FEW)

    def test_of_fewer_tokens_than_start_and_end_take(self):
        with pytest.raises(ConfigError, match="2047 is less than the 2048"):
            make("tpe", tokens=2047, **FEW)

    def test_of_finalists_on_fewer_tokens(self):
        with pytest.raises(ConfigError, match="search.candidate_tokens: 128 is more than the 64"):
            make("tpe", **{**FEW, "final_tokens": 64}, candidates=20)

    def test_without_optuna_name_what_to_install(self, monkeypatch):
        monkeypatch.setattr(sampled, "find_spec", lambda name: None)
        with pytest.raises(ConfigError, match=r"pip install 'evocompress\[optuna\]'"):
            make("tpe", **FEW, candidates=20)
