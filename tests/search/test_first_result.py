"""Too few tokens for any result are refused with the smallest number that would do."""

import re
from dataclasses import replace

import numpy as np
import pytest
from test_searcher_contract import FIRST_OF, Answering, objective

from evocompress.core.errors import ConfigError, RunError
from evocompress.core.requests import Estimate, MicroBatchValue, Result
from evocompress.pipeline.journal import Journal
from evocompress.pipeline.loop import search
from evocompress.search.base import Problem
from evocompress.search.first_result import check_tokens
from evocompress.testing import searchers as contract


class Thrifty:
    """An oracle by which the best candidate is the one that uses the least of the budget."""

    def __init__(self, space):
        self._space, self._estimates = space, objective(space)

    def __call__(self, request):
        if isinstance(request, Estimate):
            return self._estimates(request)
        costs = self._space.cost_model.of([request.candidate])
        used = sum(costs[name][0] / bound for name, bound in self._space.budget.items())
        values = (MicroBatchValue(index, (used / 1e4,), (1,)) for index in request.micro_batches)
        return Result(request, tuple(values))


@pytest.mark.parametrize(("cls", "settings", "space"), FIRST_OF.values())
def test_the_named_number_of_tokens_gives_a_result_and_one_less_does_not(
    cls, settings, space, tmp_path
):
    given = cls.Settings(**{key: each for key, each in settings.items() if key != "configurations"})
    problem = Problem(space, contract.POOL, 1)

    def check(tokens):
        try:
            make(tokens)
        except ConfigError as error:
            return str(error)
        with pytest.raises(ConfigError) as caught:
            check_tokens(cls, replace(problem, tokens=tokens), given, 7)
        return str(caught.value)

    def make(tokens):
        return cls(replace(problem, tokens=tokens), given, np.random.default_rng(7))

    def run(tokens, name):
        with Journal(tmp_path / name, {}) as journal:
            oracle = Answering(Thrifty(space))
            return search(make(tokens), oracle, journal, contract.POOL, tokens=tokens)

    said = check(1)
    assert "search.tokens: 1 is less than the" in said and "\n" not in said
    smallest = int(re.search(r"less than the (\d+)", said)[1])
    check_tokens(cls, replace(problem, tokens=smallest), given, 7)
    assert run(smallest, "enough").best is not None
    assert re.search(rf"less than the {smallest}\b", check(smallest - 1))
    if not cls.checks_tokens:
        with pytest.raises(RunError, match="search .*without a valid candidate"):
            run(smallest - 1, "few")
