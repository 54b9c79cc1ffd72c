"""Requests of the default search's parts: within the budget, and with their purpose in words."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from evocompress.core.arrays import Genome
from evocompress.core.requests import Estimate, Estimation, Result
from evocompress.core.types import Candidate
from evocompress.search.fidelity.token_budget import TokenBudget, split_pool
from evocompress.search.generator_searcher import AskTell, GeneratorSearcher, estimated

DENSE_MODEL = Candidate()


class EvaluationClient:
    """Asks for estimates and probes, and draws the micro-batches.

    Attributes:
        space: What is searched.
        rng: Source of randomness.
        budget: The tokens that are left.
        estimated: The micro-batches of estimates.
        doing: What is asked for, in a few words.
        failed: Which estimate has to be done without, if any.

    Examples:
        >>> from evocompress.search.auto.auto import Auto
        >>> from evocompress.testing.examples import searcher
        >>> client = EvaluationClient(searcher(Auto))
        >>> len(client.estimated), client.tokens(client.next(3))
        (43, '3,072 tokens')
    """

    def __init__(self, searcher: GeneratorSearcher) -> None:
        self.space, self.rng, self._searcher = searcher.space, searcher.rng, searcher
        self.estimated, self._compared = split_pool(searcher.pool, searcher.rng)
        self._to_estimate = itertools.cycle(self.estimated)
        self.budget = TokenBudget(searcher.pool, searcher.ledger)
        self.doing = ""
        self.failed = ""

    def estimate(
        self,
        doing: str,
        kind: str,
        micro_batches: tuple[int, ...],
        forwards: int,
        candidate: Candidate = DENSE_MODEL,
    ) -> AskTell[Estimation]:
        """An estimate of a kind, which may have failed; it costs `forwards` forward passes.

        `doing` says in a few words what the answer is for.
        """
        self.doing = f"{doing} on {self.tokens(micro_batches)}"
        answer = yield from estimated(Estimate(candidate, kind, micro_batches, forwards))
        if answer.failed is not None:
            self.failed = f"; the estimate {kind} failed: {answer.failed}"
        return answer

    def probe(
        self, genomes: Sequence[Genome], micro_batches: tuple[int, ...]
    ) -> AskTell[list[Result]]:
        """Results of genomes (U,) that count for nothing but what is learnt of them."""
        return self._searcher.evaluate(genomes, micro_batches, probe=True)

    def next(self, count: int) -> tuple[int, ...]:
        """The next `count` micro-batches for estimates: they take turns."""
        return tuple(itertools.islice(self._to_estimate, count))

    def shuffled(self) -> list[int]:
        """The micro-batches of comparisons in a new order."""
        return [int(index) for index in self.rng.permutation(self._compared)]

    def tokens(self, micro_batches: Sequence[int]) -> str:
        """The number of tokens of some micro-batches, in words."""
        return f"{self.budget.ledger.size(micro_batches):,} tokens"
