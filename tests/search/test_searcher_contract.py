"""Every searcher against the contract, on every kind of space."""

import numpy as np
import pytest

from evocompress.core.config import SpaceConfig
from evocompress.pipeline.journal import Journal
from evocompress.pipeline.loop import search
from evocompress.pipeline.results import front_rows
from evocompress.search import SEARCHERS
from evocompress.search.base import Problem, Searcher
from evocompress.space.build import build_space
from evocompress.testing import searchers as contract
from evocompress.testing.decoders import Decoder
from evocompress.testing.searchers import Separable

DECODER = Decoder(layers=6)
LARGER = Decoder(layers=3, hidden=64, heads=2, ffn=128)
MIXTURE = Decoder(layers=3, experts=5, active=2)
TOKENS = {SEARCHERS["auto"]: 8_000}
STAGED = {"generations": 4, "offspring": 8, "survivors": (3, 1), "stage_tokens": (128, 512)}
OPTUNA = {
    "candidates": 14,
    "startup": 8,
    "batch": 4,
    "candidate_tokens": 128,
    "final_tokens": 512,
    "finalists": 3,
}
FRONT = {"candidate_tokens": 128, "front_tokens": 512, "front_size": 4}
EVOLVED = {**FRONT, "population": 6, "generations": 3, "rungs": 3, "reference": ("uniform",)}
SETTINGS = {
    "auto": {},
    "evopress": STAGED,
    "random": STAGED,
    "stratified_random": {**FRONT, "candidates": 12, "batch": 5},
    "moasha": {"configurations": 18, "batch": 9, "grace_tokens": 128},
    "darwinlm": {**STAGED, "tuning_tokens": (100, 300)},
    "greedy": {"candidate_tokens": 256},
    "divide_and_conquer": {"candidate_tokens": 128, "final_tokens": 512, "kept": 4},
    "uniform": {"candidate_tokens": 256},
    "shortgpt": {"candidate_tokens": 256},
    "window": {"candidate_tokens": 256},
    "shortened_llama": {"candidate_tokens": 256},
    "sleb": {"candidate_tokens": 256},
    "blockpruner": {"candidate_tokens": 256},
    "finercut": {"candidate_tokens": 256},
    "laco": {"candidate_tokens": 256, "blocks": 2, "threshold": 0.2},
    "multipruner": {"candidate_tokens": 256, "width_tokens": 128},
    "flap": {"candidate_tokens": 256},
    "routing_frequency": {"candidate_tokens": 256},
    "expert_output_error": {"candidate_tokens": 256},
    "allocation": {"method": "lamp", "candidate_tokens": 256},
    "evopress_dp": {"candidate_tokens": 256},
    "distortion_dp": {"rounds": 2, "levels": 2, "probe_tokens": 128, "candidate_tokens": 256},
    "fisher_knapsack": {"candidate_tokens": 256, "estimate_tokens": 128},
    "llama_cpp_mix": {"candidate_tokens": 256},
    "nsga2": EVOLVED,
    "nsga3": EVOLVED,
    "moead": EVOLVED,
    "optuna_nsga2": {**OPTUNA, "population": 6, "startup": 6},
    "tpe": OPTUNA,
    "gp": OPTUNA,
}
SPACES = {
    name: build_space(DECODER.units(), DECODER.architecture(), SpaceConfig(**config))
    for name, config in {
        "sparsity": {"sparsity": {"target": 0.5, "levels": 3}},
        "depth": {"drop": {}, "budget": {"body_params": 0.7}},
        "blocks": {"drop": {"units": ["block"]}, "budget": {"flops": 0.7}},
        "joint": {
            "sparsity": {"target": 0.5, "levels": 3},
            "drop": {},
            "budget": {"matrix_nonzeros": 0.4, "body_params": 0.8},
        },
        "merge": {"drop": {"units": ["block"], "merge": True}, "budget": {"body_params": 0.6}},
        "width": {"width": {"multiple_of": 4}, "budget": {"body_params": 0.6}},
        "shape": {"width": {"multiple_of": 4}, "drop": {}, "budget": {"body_params": 0.5}},
    }.items()
}
EXPERTS = {
    "experts": {"drop": {"units": ["expert"]}, "budget": {"body_params": 0.6}},
    "mixed": {
        "drop": {"units": ["expert", "mlp"]},
        "width": {"multiple_of": 8, "units": ["mlp"]},
        "budget": {"params": 0.6, "active_params": 0.9},
    },
}
TYPED = {
    "bits": {"bits": {"types": ["q8_0", "q5_0", "q4_0", "iq4_nl"]}},
    "every": {
        "sparsity": {"target": 0.5, "levels": 1},
        "bits": {"types": ["q8_0", "q4_0"]},
        "width": {"multiple_of": 32},
        "drop": {},
    },
}
SPACES |= {
    name: build_space(
        LARGER.units(),
        LARGER.architecture(),
        SpaceConfig(**config, budget={"bits_per_weight": 5.2}),
    )
    for name, config in TYPED.items()
}
SPACES |= {
    name: build_space(MIXTURE.units(), MIXTURE.architecture(), SpaceConfig(**config))
    for name, config in EXPERTS.items()
}
DROPS = {"depth", "blocks", "joint", "merge", "shape", "every"}
SUITED = {
    "shortgpt": DROPS,
    "window": {"blocks", "merge"},
    "shortened_llama": DROPS,
    "sleb": {"blocks", "merge"},
    "blockpruner": DROPS,
    "finercut": {"depth", "joint", "shape", "every"},
    "laco": {"merge"},
    "multipruner": {"width", "shape", "every"},
    "flap": {"width", "shape", "mixed", "every"},
    "allocation": {"sparsity", "joint"},
    "evopress_dp": {"sparsity", "joint", "width", "shape"},
    "gp": {"blocks", "width"},
    "fisher_knapsack": {"sparsity", "width", "bits"},
    "llama_cpp_mix": {"bits"},
    "distortion_dp": SPACES.keys() - TYPED.keys(),
    "routing_frequency": {"experts"},
    "expert_output_error": {"experts"},
}
TRIED_WITH_EXPERTS = {"auto", "evopress", "greedy", "uniform", "nsga2", "distortion_dp", "flap"}
TRIED_WITH_EXPERTS |= {"routing_frequency", "expert_output_error"}
SHORT = {"auto": {"sparsity", "blocks", "bits"}, "gp": {"blocks"}}
"""The spaces on which slow searchers are tried in the short tests as well."""

CASES = [
    pytest.param(
        SEARCHERS[name],
        SETTINGS[name],
        space,
        id=f"{name}-{kind}",
        marks=[] if kind in SHORT.get(name, SPACES) else pytest.mark.long,
    )
    for name in SEARCHERS.built_in
    for kind, space in SPACES.items()
    if kind in SUITED.get(name, SPACES) and (kind not in EXPERTS or name in TRIED_WITH_EXPERTS)
]


def maker(cls, settings, space):
    def make():
        problem = Problem(space, contract.POOL, TOKENS.get(cls))
        return cls(problem, cls.Settings(**settings), np.random.default_rng(7))

    return make


@pytest.mark.parametrize(("cls", "settings", "space"), CASES)
def test_contract(cls, settings, space):
    contract.check(contract.Trace.of(maker(cls, settings, space), space, objective(space)))


OWN_ASKS = {
    cls.ask: pytest.param(
        cls, SETTINGS[name], SPACES[next(iter(SUITED.get(name, SPACES)))], id=name
    )
    for name, cls in ((name, SEARCHERS[name]) for name in SEARCHERS.built_in)
}


@pytest.mark.parametrize(("cls", "settings", "space"), OWN_ASKS.values())
class TestAsk:
    """Once for each class that asks in its own way: nearly all inherit that."""

    def test_repeats_its_ask(self, cls, settings, space):
        contract.check_repeats_its_ask(maker(cls, settings, space))

    def test_rejects_other_answers(self, cls, settings, space):
        contract.check_rejects_other_answers(maker(cls, settings, space), objective(space))


def objective(space):
    return contract.Separable.of(space, noise=0.05)


def test_every_searcher_is_covered():
    assert SETTINGS.keys() == {*SEARCHERS.built_in}


def test_no_searcher_has_an_init_of_its_own():
    made = {cls for name in SEARCHERS.built_in for cls in SEARCHERS[name].__mro__}
    assert [cls for cls in made if issubclass(cls, Searcher) and "__init__" in vars(cls)] == [
        Searcher
    ]


class Answering:
    """An executor that asks an oracle."""

    def __init__(self, oracle):
        self._oracle = oracle

    def map(self, requests):
        return map(self._oracle, requests)


FIRST_OF = {case.values[0]: case for case in reversed(CASES)}


@pytest.mark.parametrize(("cls", "settings", "space"), FIRST_OF.values())
def test_the_winner_is_on_its_front_and_all_are_measured_alike(cls, settings, space, tmp_path):
    searcher = maker(cls, settings, space)()
    noisy = Separable.of(space, noise=0.3)
    with Journal(tmp_path / "j", {}) as journal:
        outcome = search(searcher, Answering(noisy), journal, contract.POOL, tokens=TOKENS.get(cls))
        rows = front_rows(space, journal, outcome, objectives=searcher.objectives)
    best = outcome.best
    [own] = [row for row in rows if row["id"] == best.candidate.id]
    assert own["non_dominated"]
    assert own["value"] == pytest.approx(best.value)
    assert {row["tokens"] for row in rows} == {10 * len(best.micro_batches)}
