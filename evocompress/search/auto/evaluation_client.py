"""What the parts of the default search share: asking within the budget, and saying what for."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from evocompress.core.arrays import Genome
from evocompress.core.requests import Estimate, Estimation, Evaluate, Pool, Result
from evocompress.core.types import Candidate
from evocompress.search.fidelity.token_budget import TokenBudget, parts
from evocompress.search.generator_searcher import AskTell
from evocompress.search.ledger import TokenLedger
from evocompress.space.space import SearchSpace


class Asking:
    """Asks for estimates and probes, and draws the micro-batches.

    Args:
        space: What is searched.
        ledger: Charged with what is answered.
        pool: Sizes of the micro-batches.
        rng: Source of randomness.

    Attributes:
        budget: The tokens that are left.
        doing: What is asked for, in a few words.
        failed: Which estimate has to be done without, if any.
    """

    def __init__(
        self, space: SearchSpace, ledger: TokenLedger, pool: Pool, rng: np.random.Generator
    ) -> None:
        self._space, self._ledger, self._rng = space, ledger, rng
        self._parts = parts(pool, rng)
        self._to_estimate = itertools.cycle(self._parts.estimated)
        self.budget = TokenBudget(pool, ledger)
        self.doing = ""
        self.failed = ""

    def estimate(
        self, candidate: Candidate, kind: str, micro_batches: tuple[int, ...], forwards: int
    ) -> AskTell[Estimation]:
        """An estimate, which may have failed; it counts as so many forward passes."""
        request = Estimate(candidate, kind, micro_batches, forwards)
        [answer] = yield [request]
        assert isinstance(answer, Estimation)
        if answer.failed is not None:
            self.failed = f"; the estimate {kind} failed: {answer.failed}"
        return answer

    def probe(
        self, genomes: Sequence[Genome], micro_batches: tuple[int, ...]
    ) -> AskTell[list[Result]]:
        """Results of genomes (U,) that count for nothing but what is learnt of them."""
        requests = [
            Evaluate(self._space.candidate(genome), micro_batches, probe=True) for genome in genomes
        ]
        answers = yield requests
        return [answer for answer in answers if isinstance(answer, Result)]

    @property
    def estimated(self) -> tuple[int, ...]:
        """The micro-batches of estimates."""
        return self._parts.estimated

    def next(self, count: int) -> tuple[int, ...]:
        """The next micro-batches for estimates, in turn: other ones each time while there are."""
        return tuple(itertools.islice(self._to_estimate, count))

    def shuffled(self) -> list[int]:
        """The micro-batches of comparisons in a new order."""
        return [int(index) for index in self._rng.permutation(self._parts.compared)]

    def tokens(self, micro_batches: Sequence[int]) -> str:
        """How many tokens some micro-batches have, in words."""
        return f"{self._ledger.size(micro_batches):,} tokens"
