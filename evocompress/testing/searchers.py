"""Contract suite of the searchers, on a synthetic objective: no model, no torch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from evocompress.search.base import Searcher
from evocompress.space import SearchSpace
from evocompress.types import Candidate, Evaluate, MicroBatchValue, Pool, Request, Result

Step = tuple[list[Request], list[Result]]
Answer = Callable[[Evaluate], Result]

POOL = Pool((64,) * 32)
_LONGEST = 1000


@dataclass(frozen=True)
class Separable:
    """An objective that is a sum over units, with noise that each micro-batch draws anew.

    A matrix with a share s of zeros costs weight * s**2, a removed sub-layer its weight.

    Attributes:
        sizes: {matrix: number of weights}.
        weights: {unit: weight}.
        noise: Standard deviation of a micro-batch's value around the true one.
        failing: Ids of candidates whose evaluation fails.
    """

    sizes: Mapping[str, int]
    weights: Mapping[str, float]
    noise: float = 0.0
    failing: frozenset[str] = field(default_factory=frozenset)

    @classmethod
    def of(cls, space: SearchSpace, seed: int = 0, noise: float = 0.0) -> Separable:
        """Random weights for all units of a space."""
        rng = np.random.default_rng(seed)
        return cls(
            sizes={unit.name: unit.numel for unit in space.genes.tree},
            weights={unit.name: float(rng.uniform(0.1, 1.0)) for unit in space.genes.tree},
            noise=noise,
        )

    def value(self, candidate: Candidate) -> float:
        """The true value."""
        return sum(
            self.weights[name] * (1.0 if level.drop else (level.zeros / self.sizes[name]) ** 2)
            for name, level in candidate.levels
        )

    def __call__(self, request: Evaluate) -> Result:
        """The result of a request; the same for the same candidate and micro-batch."""
        if request.candidate.id in self.failing:
            return Result(request, (), failed="made to fail")
        values = [self._measured(request.candidate, index) for index in request.micro_batches]
        return Result(request, tuple(values))

    def _measured(self, candidate: Candidate, index: int) -> MicroBatchValue:
        digest = hashlib.sha256(f"{candidate.id}/{index}".encode()).digest()
        noise = np.random.default_rng(list(digest)).normal(0.0, self.noise)
        return MicroBatchValue(index, ((self.value(candidate) + noise) * 10,), (10,))


def run(searcher: Searcher, answer: Answer) -> list[Step]:
    """Runs a searcher to its end and returns all asks with their results.

    Raises:
        AssertionError: It does not end within 1000 asks, or asks for estimates.
    """
    steps: list[Step] = []
    while requests := searcher.ask():
        results = [answer(request) for request in requests if isinstance(request, Evaluate)]
        assert len(results) == len(requests), "only evaluations can be answered here"
        searcher.tell(results)
        steps.append((requests, results))
        assert len(steps) < _LONGEST, "the search does not end"
    assert searcher.ask() == [], "a search that has ended asks again"
    return steps


def check_replays(make: Callable[[], Searcher], answer: Answer) -> None:
    """The same answers give the same asks, also when they come from a record."""
    first = run(make(), answer)
    record = {result.request: result for _, results in first for result in results}
    again = run(make(), record.__getitem__)
    assert [requests for requests, _ in again] == [requests for requests, _ in first]


def check_repeats_its_ask(make: Callable[[], Searcher]) -> None:
    """Asking twice without telling gives the same requests and changes nothing."""
    searcher = make()
    assert searcher.ask() == searcher.ask() == make().ask()


def check_requests(make: Callable[[], Searcher], space: SearchSpace, answer: Answer) -> None:
    """Every candidate that can win is feasible; one ask names no candidate twice."""
    for requests, _ in run(make(), answer):
        evaluations = [request for request in requests if isinstance(request, Evaluate)]
        winnable = [request.candidate for request in evaluations if not request.probe]
        assert not winnable or space.feasible(_genomes(space, winnable)).all()
        assert len({request.candidate for request in evaluations}) == len(evaluations)
        for request in evaluations:
            assert len(set(request.micro_batches)) == len(request.micro_batches) > 0


def check_incumbent(make: Callable[[], Searcher], space: SearchSpace, answer: Answer) -> None:
    """The incumbent is feasible, was asked for outside probes, and has its measured value."""
    searcher = make()
    assert searcher.incumbent() is None
    steps = run(searcher, answer)
    best = searcher.incumbent()
    assert best is not None
    assert space.feasible(_genomes(space, [best.candidate])).all()
    means = [
        result.mean
        for _, results in steps
        for result in results
        if result.request.candidate == best.candidate and not result.request.probe
    ]
    assert best.value in means


def check_failures_never_win(make: Callable[[], Searcher], objective: Separable) -> None:
    """What fails never becomes the incumbent: neither the former winner nor anything at all."""
    searcher = make()
    run(searcher, objective)
    best = searcher.incumbent()
    assert best is not None
    without = make()
    run(without, replace(objective, failing=frozenset({best.candidate.id})))
    second = without.incumbent()
    assert second is None or second.candidate != best.candidate
    for spoiled in (_failed, _censored):
        hopeless = make()
        run(hopeless, spoiled)
        assert hopeless.incumbent() is None


def check_rejects_other_answers(make: Callable[[], Searcher], answer: Answer) -> None:
    """Results that do not answer the ask are refused."""
    searcher = make()
    results = [answer(request) for request in searcher.ask() if isinstance(request, Evaluate)]
    try:
        searcher.tell(results[:-1])
    except ValueError:
        return
    raise AssertionError("results that do not answer the ask were accepted")


def _failed(request: Evaluate) -> Result:
    return Result(request, (), failed="made to fail")


def _censored(request: Evaluate) -> Result:
    values = tuple(MicroBatchValue(index, (-1.0,), (1,)) for index in request.micro_batches)
    return Result(request, values, censored=True)


def _genomes(space: SearchSpace, candidates: Sequence[Candidate]) -> np.ndarray:
    return np.stack([space.genome(candidate) for candidate in candidates])
