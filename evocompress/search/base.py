"""The interface of a searcher: it asks for candidates and is told results. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol, Self

import numpy as np

from evocompress.core.fields import Strict
from evocompress.core.finetuning import Recipe
from evocompress.core.types import UNTREATED, Answer, Candidate, Pool, Request, Result
from evocompress.space.space import SearchSpace


class SearcherSettings(Strict):
    """Base of every searcher's settings: immutable, unknown keys are errors."""

    @property
    def recipes(self) -> tuple[Recipe, ...]:
        """How candidates are fine-tuned before some requests are answered: not at all."""
        return ()

    @property
    def needs_next_token(self) -> bool:
        """Whether something rests on the loss of the next token, which only decoders have."""
        return bool(self.recipes)


@dataclass(frozen=True)
class Problem:
    """All that a searcher may know.

    Attributes:
        space: Units, levels, constraints, costs and budget.
        pool: Sizes of the calibration micro-batches.
        tokens: Requested tokens after which the run stops, or ``None``.
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


class Searcher(Protocol):
    """Asks for evaluations and estimates and is told the answers, in the order asked.

    The same problem, settings and generator give the same sequence of asks for the same
    answers, so that a run is resumed by replay. Nothing may depend on time or on who
    computed a result.
    """

    Settings: ClassVar[type[SearcherSettings]]

    @property
    def objectives(self) -> tuple[str, ...]:
        """Costs beside those of the budget that span the front with the proxy's value."""
        ...

    def __init__(
        self, problem: Problem, settings: SearcherSettings, rng: np.random.Generator
    ) -> None: ...

    def ask(self) -> list[Request]:
        """The next requests; an empty list when the search has ended."""
        ...

    def tell(self, answers: list[Answer]) -> None:
        """The answers to the last `ask`, in its order."""
        ...

    def incumbent(self) -> Incumbent | None:
        """The best candidate so far; ``None`` before the first comparison is complete."""
        ...

    def origins(self) -> Mapping[str, str]:
        """{candidate id: what it stands for} of the candidates that are known by a name."""
        ...

    def phase(self) -> str:
        """What the last ask is for, in a few words; empty where there is nothing to be said."""
        ...
