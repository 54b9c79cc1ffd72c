"""The interface of a searcher: it asks for candidates and is told results. No torch here."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self, final

import numpy as np

from evocompress.core.fields import Strict, Tokens
from evocompress.core.finetuning import Recipe
from evocompress.core.requests import UNTREATED, Answer, Pool, Request, Result
from evocompress.core.types import Candidate
from evocompress.search.fidelity import batches
from evocompress.search.ledger import TokenLedger
from evocompress.space.budget import require
from evocompress.space.space import SearchSpace


class SearcherSettings(Strict):
    """Base of every searcher's settings: immutable, unknown keys are errors.

    Examples:
        >>> SearcherSettings().recipes, SearcherSettings().needs_next_token
        ((), False)
    """

    @property
    def recipes(self) -> tuple[Recipe, ...]:
        """How candidates are fine-tuned before some requests are answered: not at all."""
        return ()

    @property
    def needs_next_token(self) -> bool:
        """Whether something rests on the loss of the next token, which only decoders have."""
        return bool(self.recipes)

    @property
    def needs_output_errors(self) -> bool:
        """Whether it reads the output errors that the level library may have."""
        return False

    def tokens_of_comparison(self, pool: Pool) -> int | None:
        """On how many tokens candidates are compared; ``None``: the whole pool.

        It is the setting ``candidate_tokens`` of a class that has one.
        """
        tokens: int | None = getattr(self, "candidate_tokens", None)
        return tokens


class CandidateSettings(SearcherSettings):
    """Settings of a searcher that measures everything on the same tokens.

    Attributes:
        candidate_tokens: Tokens on which candidates are measured, always the same ones; the
            whole pool if left out.

    Examples:
        >>> CandidateSettings(candidate_tokens=2048).tokens_of_comparison(Pool((512,) * 16))
        2048
    """

    candidate_tokens: Tokens | None = None


@dataclass(frozen=True)
class Problem:
    """All that a searcher may know.

    Attributes:
        space: Units, levels, constraints, costs and budget.
        pool: Sizes of the calibration micro-batches.
        tokens: Requested tokens after which the run stops, or ``None``.

    Examples:
        >>> from evocompress.testing.examples import space
        >>> Problem(space(body_params=0.9), Pool((512,) * 16), tokens=20_000).space.budget
        {'body_params': 99878.4...}
    """

    space: SearchSpace
    pool: Pool
    tokens: int | None = None


@dataclass(frozen=True)
class Incumbent:
    """The best feasible candidate so far, and the comparison that made it so.

    Attributes:
        candidate: The candidate.
        value: Its mean proxy value over `micro_batches`.
        micro_batches: On which it was compared last.
        treatment: The one that it was measured after.

    Examples:
        >>> Incumbent(Candidate(), value=0.25, micro_batches=(0, 3)).treatment
        'none'
    """

    candidate: Candidate
    value: float
    micro_batches: tuple[int, ...]
    treatment: str = UNTREATED

    @classmethod
    def of(cls, result: Result) -> Self:
        """The candidate of a result that was the best of a comparison."""
        request = result.request
        return cls(request.candidate, result.mean, request.micro_batches, request.treatment)


class Searcher(ABC):
    """Asks for evaluations and estimates and is told the answers, in the order asked.

    The same problem, settings and generator give the same sequence of asks for the same
    answers, so that a run is resumed by replay. Nothing may depend on time or on who
    computed a result.

    Every searcher is made in the same way: `check` refuses what it cannot work with, the
    micro-batches of comparisons are drawn, and `prepare` sets up the rest. A class overrides
    these two where it needs to, and never `__init__`.

    Args:
        problem: What is searched.
        settings: An instance of the class's `Settings`.
        rng: The only source of randomness.

    Attributes:
        space: The units, their levels, the budget and the costs.
        pool: Sizes of the calibration micro-batches.
        ledger: The tokens that were requested, and how many there may be.
        settings: The settings.
        rng: The only source of randomness.
        needs_budget: Whether a space without a budget is refused.
        checks_tokens: Whether making a searcher refuses tokens that are too few for a result.
        micro_batches: The part of the pool on which candidates are compared unless another one
            is named: exactly as many tokens as the settings say, or all.

    Examples:
        >>> from evocompress.search.baselines.uniform import Uniform
        >>> from evocompress.testing.examples import searcher
        >>> [request] = (even := searcher(Uniform)).ask()
        >>> len(request.micro_batches), even.incumbent()
        (64, None)
    """

    Settings: ClassVar[type[SearcherSettings]] = SearcherSettings
    needs_budget: ClassVar[bool] = True
    checks_tokens: ClassVar[bool] = False
    settings: SearcherSettings

    @final
    def __init__(
        self, problem: Problem, settings: SearcherSettings, rng: np.random.Generator
    ) -> None:
        self.space, self.pool = problem.space, problem.pool
        self.settings, self.rng = settings, rng
        self.ledger = TokenLedger(problem.pool, problem.tokens)
        self._best: Incumbent | None = None
        if self.needs_budget:
            require(problem.space)
        self.check()
        tokens = settings.tokens_of_comparison(problem.pool)
        self.micro_batches = batches.chosen(problem.pool, tokens, "search.candidate_tokens", rng)
        self.prepare()

    def chosen(self, tokens: int | None, key: str) -> tuple[int, ...]:
        """Random micro-batches of a number of tokens; those of comparisons for ``None``.

        Raises:
            ConfigError: The pool cannot give exactly as many; `key` names the setting.
        """
        if tokens is None:
            return self.micro_batches
        return batches.chosen(self.pool, tokens, key, self.rng)

    def check(self) -> None:  # noqa: B027  (most have nothing to refuse)
        """Refuses, by a `ConfigError`, a space or settings before anything is drawn."""

    def prepare(self) -> None:  # noqa: B027  (most have nothing to prepare)
        """Sets up once what `search` begins with, and refuses tokens that do not suffice."""

    @property
    def objectives(self) -> tuple[str, ...]:
        """Costs beside those of the budget that span the front with the proxy's value: none."""
        return ()

    @abstractmethod
    def ask(self) -> list[Request]:
        """The next requests; an empty list when the search has ended."""

    @abstractmethod
    def tell(self, answers: list[Answer]) -> None:
        """The answers to the last `ask`, in its order."""

    def incumbent(self) -> Incumbent | None:
        """The best candidate so far; ``None`` before the first comparison is complete."""
        return self._best

    def origins(self) -> Mapping[str, str]:
        """{candidate id: what it stands for} of the candidates that are known by a name: none."""
        return {}

    def phase(self) -> str:
        """What the last ask is for, in a few words; empty where there is nothing to be said."""
        return ""
