"""Contract suite of the searchers, on a synthetic objective: no model, no torch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isclose

import numpy as np

from evocompress.core.requests import (
    Answer,
    Estimate,
    Estimation,
    Evaluate,
    MicroBatchValue,
    Pool,
    Request,
    Result,
)
from evocompress.core.storage import stored_bits
from evocompress.core.types import DENSE, Candidate, Level
from evocompress.search.base import Searcher
from evocompress.space.space import SearchSpace

AskAndTell = tuple[list[Request], list[Answer]]
Oracle = Callable[[Request], Answer]

POOL = Pool((64,) * 32)
EXPANSIONS = ("curvature", "slope", "linearised")
_LONGEST = 1000


@dataclass(frozen=True)
class Separable:
    """An objective that is a sum over units, with noise that each micro-batch draws anew.

    A matrix with a share s of zeros, or a sub-layer without a share s of its heads or channels,
    costs weight * s**2; a removed sub-layer its weight. A type of b bits adds 2**-b to s.

    Attributes:
        sizes: {matrix: number of weights}.
        weights: {unit: weight}.
        noise: Standard deviation of a micro-batch's value around the true one.
        items: {sub-layer: its query heads or channels}.
        levels: {unit of the space: its levels}.
        failing: Ids of candidates whose evaluation fails.

    Examples:
        >>> from evocompress.testing.examples import space
        >>> small = space()
        >>> Separable.of(small).value(small.candidate(small.encoding.default))
        0
    """

    sizes: Mapping[str, int]
    weights: Mapping[str, float]
    items: Mapping[str, int] = field(default_factory=dict)
    levels: Mapping[str, Sequence[Level]] = field(default_factory=dict)
    noise: float = 0.0
    failing: frozenset[str] = field(default_factory=frozenset)

    @classmethod
    def of(cls, space: SearchSpace, seed: int = 0, noise: float = 0.0) -> Separable:
        """Random weights for all units of a space."""
        rng = np.random.default_rng(seed)
        return cls(
            sizes={unit.name: unit.numel for unit in space.encoding.tree},
            weights={unit.name: float(rng.uniform(0.1, 1.0)) for unit in space.encoding.tree},
            items={
                part.unit.name: part.channels or part.kv_heads * part.group_heads
                for part in space.cost_model.parts
            },
            levels={
                unit.name: levels
                for members, levels in zip(space.encoding.members, space.levels, strict=True)
                for unit in members
            },
            noise=noise,
        )

    def value(self, candidate: Candidate) -> float:
        """The true value."""
        return sum(
            self.weights[name] * self._removed(name, level) ** 2 for name, level in candidate.levels
        )

    def _removed(self, name: str, level: Level) -> float:
        """The share of a unit that a level removes; a merge removes nothing itself."""
        if level.dense or level.drop or level.merge:
            return float(level.drop)
        if level.narrow:
            left = level.channels or (level.kv_groups or 0) * (level.group_heads or 0)
            return 1 - left / self.items[name]
        return float(level.zeros / self.sizes[name] + 2.0 ** -stored_bits(level.bits))

    def __call__(self, request: Request) -> Answer:
        """The answer to a request; the same for the same candidate and micro-batch."""
        if isinstance(request, Estimate):
            expanded = request.kind in EXPANSIONS
            rows = self._expanded(request) if expanded else self._estimated(request.kind)
            return Estimation(request, tuple(rows), tuple(rows.values()))
        if request.candidate.id in self.failing:
            return Result(request, (), failed="made to fail")
        values = [self._measured(request.candidate, index) for index in request.micro_batches]
        return Result(request, tuple(values))

    def _expanded(self, request: Estimate) -> dict[str, tuple[float, ...]]:
        """Slopes and scores of all levels on four sequences: together the true change."""
        rows = {}
        for name, levels in self.levels.items():
            now = self._removed(name, request.candidate.by_name.get(name, DENSE))
            moves = [self._removed(name, level) - now for level in levels]
            slopes = [2 * self.weights[name] * now * move for move in moves for _ in range(4)]
            root = (2 * self.weights[name]) ** 0.5
            scores = [sign * root * move for move in moves for sign in (1, -1, -1, 1)]
            parts = {"slope": slopes, "curvature": scores}
            rows[name] = tuple(parts.get(request.kind, slopes + scores))
        return rows

    def _estimated(self, kind: str) -> dict[str, tuple[float, ...]]:
        """Rows in the form of the estimates; one value a unit is its weight."""
        if kind == "fluctuation":
            return {
                name: tuple(_generator(name).normal(size=count).tolist())
                for name, count in self.items.items()
            }
        if kind == "output_error":
            return {
                name: tuple(self._removed(name, level) ** 2 for level in levels)
                for name, levels in self.levels.items()
            }
        if kind in ("magnitude", "lamp", "tail_exponent", "perturbation", "pq_index"):
            return {
                name: tuple(np.sort(_generator(name).uniform(0, self.weights[name], 32)).tolist())
                for name, size in self.sizes.items()
                if size
            }
        if kind == "outliers":
            return {name: (weight,) * 10 for name, weight in self.weights.items()}
        rows: dict[str, tuple[float, ...]] = {
            name: (weight,) for name, weight in self.weights.items() if not self.sizes[name]
        }
        if kind.endswith("angular_distance"):
            blocks = [name for name in rows if f"{name}.mlp" in rows]
            return {
                name: tuple(np.cumsum([self.weights[later] for later in blocks[place:]]).tolist())
                for place, name in enumerate(blocks)
            }
        return rows

    def _measured(self, candidate: Candidate, index: int) -> MicroBatchValue:
        noise = _generator(f"{candidate.id}/{index}").normal(0.0, self.noise)
        return MicroBatchValue(index, ((self.value(candidate) + noise) * 10,), (10,))


def run(searcher: Searcher, answer: Oracle) -> list[AskAndTell]:
    """Runs a searcher to its end and returns all asks with their answers.

    Raises:
        AssertionError: It does not end within 1000 asks.
    """
    steps: list[AskAndTell] = []
    while requests := searcher.ask():
        answers = [answer(request) for request in requests]
        searcher.tell(answers)
        steps.append((requests, answers))
        assert len(steps) < _LONGEST, "the search does not end"
    assert searcher.ask() == [], "a search that has ended asks again"
    return steps


@dataclass(frozen=True)
class Trace:
    """One whole run of a searcher.

    Attributes:
        make: Makes the searcher.
        space: What it searched.
        answer: What answered it.
        steps: What it asked and was told.
        searcher: The one that ran.

    Examples:
        >>> import numpy as np
        >>> from evocompress.search.base import Problem
        >>> from evocompress.search.baselines.uniform import Uniform
        >>> from evocompress.testing.examples import space
        >>> small = space(body_params=0.9)
        >>> def make():
        ...     return Uniform(Problem(small, POOL), Uniform.Settings(), np.random.default_rng(0))
        >>> len(Trace.of(make, small, Separable.of(small)).steps)
        1
    """

    make: Callable[[], Searcher]
    space: SearchSpace
    answer: Oracle
    steps: Sequence[AskAndTell]
    searcher: Searcher

    @classmethod
    def of(cls, make: Callable[[], Searcher], space: SearchSpace, answer: Oracle) -> Trace:
        """Runs a new searcher to its end."""
        searcher = make()
        assert searcher.incumbent() is None
        return cls(make, space, answer, run(searcher, answer), searcher)


def check(trace: Trace) -> None:
    """All that a searcher must do, of one recorded run and of others that it implies."""
    check_replays(trace)
    check_requests(trace)
    check_incumbent(trace)
    check_failures_never_win(trace)


def check_replays(trace: Trace) -> None:
    """The same answers give the same asks, also when they come from a record."""
    record: dict[Request, Answer] = {
        answer.request: answer for _, answers in trace.steps for answer in answers
    }
    again = run(trace.make(), record.__getitem__)
    assert [requests for requests, _ in again] == [requests for requests, _ in trace.steps]


def check_repeats_its_ask(make: Callable[[], Searcher]) -> None:
    """Asking twice without telling gives the same requests and changes nothing."""
    searcher = make()
    assert searcher.ask() == searcher.ask() == make().ask()


def check_requests(trace: Trace) -> None:
    """Every candidate that can win is feasible; one ask names no candidate twice."""
    for requests, _ in trace.steps:
        evaluations = [request for request in requests if isinstance(request, Evaluate)]
        winnable = [request.candidate for request in evaluations if not request.probe]
        assert not winnable or trace.space.feasible(_genomes(trace.space, winnable)).all()
        assert len({request.candidate for request in evaluations}) == len(evaluations)
        for request in evaluations:
            assert len(set(request.micro_batches)) == len(request.micro_batches) > 0


def check_incumbent(trace: Trace) -> None:
    """The incumbent is feasible, was asked for outside probes, and says what its value is of.

    It is the mean of its results on the micro-batches that it names.
    """
    best = trace.searcher.incumbent()
    assert best is not None
    assert trace.space.feasible(_genomes(trace.space, [best.candidate])).all()
    results = [
        result
        for _, results in trace.steps
        for result in results
        if isinstance(result, Result)
        and (result.request.candidate, result.request.treatment) == (best.candidate, best.treatment)
    ]
    assert any(not result.request.probe for result in results)
    known = {value.micro_batch: value for result in results for value in result.values}
    named = Evaluate(best.candidate, best.micro_batches, best.treatment)
    mean = Result(named, tuple(known[index] for index in best.micro_batches)).mean
    assert isclose(best.value, mean, rel_tol=1e-12)


def check_failures_never_win(trace: Trace) -> None:
    """What fails never becomes the incumbent: neither the former winner nor anything at all."""
    best = trace.searcher.incumbent()
    assert best is not None

    def without_the_best(request: Request) -> Answer:
        own = isinstance(request, Evaluate) and request.candidate == best.candidate
        return _failed(request) if own else trace.answer(request)

    without = trace.make()
    run(without, without_the_best)
    second = without.incumbent()
    assert second is None or second.candidate != best.candidate
    for spoiled in (_failed, _censored):
        hopeless = trace.make()
        run(hopeless, spoiled)
        assert hopeless.incumbent() is None


def check_rejects_other_answers(make: Callable[[], Searcher], answer: Oracle) -> None:
    """Results that do not answer the ask are refused."""
    searcher = make()
    try:
        searcher.tell([answer(request) for request in searcher.ask()][:-1])
    except ValueError:
        return
    raise AssertionError("results that do not answer the ask were accepted")


def _generator(text: str) -> np.random.Generator:
    """Randomness that is the same for the same text."""
    return np.random.default_rng(list(hashlib.sha256(text.encode()).digest()))


def _failed(request: Request) -> Answer:
    if isinstance(request, Estimate):
        return Estimation(request, (), (), failed="made to fail")
    return Result(request, (), failed="made to fail")


def _censored(request: Request) -> Answer:
    if isinstance(request, Estimate):
        return _failed(request)
    values = tuple(MicroBatchValue(index, (-1.0,), (1,)) for index in request.micro_batches)
    return Result(request, values, censored=True)


def _genomes(space: SearchSpace, candidates: Sequence[Candidate]) -> np.ndarray:
    return np.stack([space.genome(candidate) for candidate in candidates])
