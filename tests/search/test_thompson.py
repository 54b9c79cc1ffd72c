"""Drops by a model of interactions, on an objective that has them."""

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest

from evocompress.core.config import SpaceConfig
from evocompress.core.requests import Estimate, Estimation, Evaluate, MicroBatchValue, Pool, Result
from evocompress.search.auto.auto import Auto
from evocompress.search.base import Problem
from evocompress.search.surrogates.pairwise_model import Effects
from evocompress.space.build import build_space
from evocompress.testing.decoders import Decoder
from evocompress.testing.searchers import run


def depth():
    decoder, config = Decoder(layers=12), {"drop": {"protect": []}, "budget": {"body_params": 0.7}}
    return build_space(decoder.units(), decoder.architecture(), SpaceConfig(**config))


def searched(space, objective, seed=0, batches=64, **settings):
    problem = Problem(space, Pool((64,) * batches), 16_000)
    searcher = Auto(problem, Auto.Settings(**settings), np.random.default_rng(seed))
    return searcher, run(searcher, objective)


@dataclass(frozen=True)
class Interacting:
    """A divergence whose logarithm is a sum over dropped units and each two of them, and noise."""

    names: list[str]
    effects: Effects

    @classmethod
    def of(cls, space, seed):
        rng, count = np.random.default_rng(100 + seed), len(space.units)
        above = np.triu(rng.normal(0, 0.06, (count, count)), 1)
        effects = Effects(rng.uniform(0.02, 0.5, count), above + above.T)
        return cls([unit.name for unit in space.units], effects)

    def value(self, searcher):
        """The true logarithm of what a searcher found."""
        return self._value(searcher.incumbent().candidate)

    def __call__(self, request):
        if isinstance(request, Estimate):
            distortion = np.exp(np.random.default_rng(9).normal(0, 0.5, len(self.names)))
            influence = dict(zip(self.names, self.effects.singles * distortion, strict=True))
            for name in list(influence):
                block = name.rpartition(".")[0]
                influence[block] = influence.get(block, 0.0) + influence[name]
            rows = tuple((float(value),) for value in influence.values())
            return Estimation(request, tuple(influence), rows)
        values = []
        for index in request.micro_batches:
            rng = np.random.default_rng([index, int(request.candidate.id[:8], 16)])
            text = 0.1 * np.sin(index)
            value = np.exp(self._value(request.candidate) + text + rng.normal(0, 0.07))
            values.append(MicroBatchValue(index, (64 * float(value),), (64,)))
        return Result(request, tuple(values))

    def _value(self, candidate):
        dropped = {name for name, _ in candidate.levels}
        gone = np.array([[name in dropped for name in self.names]], dtype=float)
        return float(self.effects.values(gone)[0])


@pytest.mark.long
def test_a_model_of_interactions_beats_greedy_removal():
    space, gaps = depth(), []
    for seed in range(3):
        objective = Interacting.of(space, seed)
        found = [
            objective.value(searched(space, objective, seed, surrogate=by_model)[0])
            for by_model in (True, False)
        ]
        gaps.append(found[1] - found[0])
    assert np.mean(gaps) > 0


def test_nothing_is_measured_twice_on_the_same_text():
    space = depth()
    _, steps = searched(space, Interacting.of(space, 0), batches=3)
    probes = Counter(
        (request.candidate.id, request.micro_batches)
        for requests, _ in steps
        for request in requests
        if isinstance(request, Evaluate) and request.probe
    )
    assert len(probes) > 48
    assert max(probes.values()) == 1
