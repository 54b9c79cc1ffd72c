"""How many tokens a search takes before it has any result, found without measuring anything."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from evocompress.core.errors import ConfigError
from evocompress.core.requests import (
    Answer,
    Estimate,
    Estimation,
    MicroBatchValue,
    Request,
    Result,
)
from evocompress.search.base import Problem, Searcher, SearcherSettings
from evocompress.search.bisection import bisected
from evocompress.search.generator_searcher import GeneratorSearcher
from evocompress.space.space import SearchSpace

_MOST = 2**50
"""Tokens above which no number is looked for."""

_GOOD = 1e-6
"""A value that no threshold refuses."""


def check_tokens(
    factory: type[Searcher], problem: Problem, settings: SearcherSettings, seed: int
) -> None:
    """Refuses a number of tokens that ends the search before it has any result.

    Raises:
        ConfigError: With the smallest number that would do.
    """
    limit = problem.tokens
    if limit is None or not issubclass(factory, GeneratorSearcher) or factory.checks_tokens:
        return

    def needed(tokens: int) -> int | None:
        rng = np.random.default_rng(seed)
        return _until_first(factory(replace(problem, tokens=tokens), settings, rng), problem)

    def lasts(tokens: int) -> bool:
        found = needed(tokens)
        return found is not None and found <= tokens

    if lasts(limit):
        return
    smallest = _smallest(max(needed(limit) or 0, limit + 1), limit, lasts)
    keys = [k for k in ("candidate_tokens", "stage_tokens") if k in type(settings).model_fields]
    lower = "".join(f", or lower search.{key}" for key in keys)
    raise ConfigError(
        f"search.tokens: {limit} is less than the {smallest} that the first result of this search "
        f"takes; give at least {smallest}{lower}"
    )


def _smallest(guess: int, few: int, lasts: Callable[[int], bool]) -> int:
    """The smallest number of tokens that lasts.

    Guessed is what a search of few tokens takes: most take the same whatever they have, others
    come to a result with less the less they have.
    """
    enough = guess
    while enough < _MOST and not lasts(enough):
        few, enough = enough, 2 * enough
    if enough - 1 <= few or not lasts(enough - 1):
        return enough
    times = (enough - 1 - few).bit_length()
    return bisected(lasts, few, enough - 1, times, lambda low, high: (low + high + 1) // 2)[1]


def _until_first(searcher: GeneratorSearcher, problem: Problem) -> int | None:
    """Tokens that are requested until there is an incumbent, by made-up answers.

    All values are good, and the less a candidate uses of the budget, the better is its own: so a
    search that goes step by step takes the shortest way. Estimates are made up as failed ones;
    where the search ends without them, its result is still to be measured. ``None``: the search
    ends without any result.
    """
    asked = list[Request]()
    while searcher.incumbent() is None and (requests := searcher.ask()):
        asked = requests
        searcher.tell(_answers(problem.space, requests))
    if searcher.incumbent() is not None:
        return searcher.ledger.requested
    if asked and isinstance(asked[-1], Estimate):
        return searcher.ledger.requested + searcher.ledger.size(searcher.micro_batches)
    return None


def _answers(space: SearchSpace, requests: Sequence[Request]) -> list[Answer]:
    """Made-up answers to some requests."""
    candidates = [request.candidate for request in requests]
    costs = space.cost_model.of(candidates)
    bounds = space.budget or space.cost_model.dense()
    used = sum(costs[name] / bound for name, bound in bounds.items() if bound)
    values = (_GOOD * np.broadcast_to(used, len(requests))).tolist()
    return [_answer(request, value) for request, value in zip(requests, values, strict=True)]


def _answer(request: Request, value: float) -> Answer:
    if isinstance(request, Estimate):
        return Estimation(request, (), (), failed="made up")
    return Result(
        request, tuple(MicroBatchValue(index, (value,), (1,)) for index in request.micro_batches)
    )
