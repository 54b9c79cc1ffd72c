"""Every searcher against the contract, on every kind of space."""

import numpy as np
import pytest

from evocompress.config import SpaceConfig
from evocompress.search import SEARCHERS
from evocompress.search.base import Problem
from evocompress.space import build_space
from evocompress.testing import searchers as contract
from evocompress.testing.decoders import Decoder

DECODER = Decoder(layers=6)
STAGED = {"generations": 4, "offspring": 8, "survivors": (3, 1), "stage_tokens": (128, 512)}
SETTINGS = {
    "evopress": STAGED,
    "random": STAGED,
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
    "nsga2": {
        "population": 6,
        "generations": 3,
        "candidate_tokens": 128,
        "front_tokens": 512,
        "front_size": 4,
        "rungs": 3,
        "reference": ("uniform",),
    },
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
DROPS = {"depth", "blocks", "joint", "merge", "shape"}
SUITED = {
    "shortgpt": DROPS,
    "window": {"blocks", "merge"},
    "shortened_llama": DROPS,
    "sleb": {"blocks", "merge"},
    "blockpruner": DROPS,
    "finercut": {"depth", "joint", "shape"},
    "laco": {"merge"},
    "multipruner": {"width", "shape"},
    "flap": {"width", "shape"},
}
CASES = [
    pytest.param(SEARCHERS[name], SETTINGS[name], space, id=f"{name}-{kind}")
    for name in SEARCHERS
    for kind, space in SPACES.items()
    if kind in SUITED.get(name, SPACES)
]


def maker(cls, settings, space):
    def make():
        problem = Problem(space, contract.POOL)
        return cls(problem, cls.Settings(**settings), np.random.default_rng(7))

    return make


@pytest.mark.parametrize(("cls", "settings", "space"), CASES)
class TestContract:
    def test_replays(self, cls, settings, space):
        contract.check_replays(maker(cls, settings, space), objective(space))

    def test_repeats_its_ask(self, cls, settings, space):
        contract.check_repeats_its_ask(maker(cls, settings, space))

    def test_requests(self, cls, settings, space):
        contract.check_requests(maker(cls, settings, space), space, objective(space))

    def test_incumbent(self, cls, settings, space):
        contract.check_incumbent(maker(cls, settings, space), space, objective(space))

    def test_failures_never_win(self, cls, settings, space):
        contract.check_failures_never_win(maker(cls, settings, space), objective(space))

    def test_rejects_other_answers(self, cls, settings, space):
        contract.check_rejects_other_answers(maker(cls, settings, space), objective(space))


def objective(space):
    return contract.Separable.of(space, noise=0.05)


def test_every_searcher_is_covered():
    assert SETTINGS.keys() == SEARCHERS.keys()
