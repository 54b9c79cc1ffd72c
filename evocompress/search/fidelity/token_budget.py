"""How the tokens of a search are divided, and what is left of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import inf

import numpy as np

from evocompress.core.requests import Pool, Request
from evocompress.search.fidelity.racing import Rung
from evocompress.search.ledger import TokenLedger

DEFAULT_TOKENS = 500_000

_START, _STEP = 32_768, 20_480
"""Tokens after which a second-order start, and a step along estimates, hardly get better."""

_START_SHARE, _STEP_SHARE = 0.45, 0.46
"""The most of all tokens that each of them may cost."""

_FIRST_RUNG = 1024
"""Tokens on which many rivals are told apart roughly (EvoPress's first stage, for depth)."""

_LONGEST_RUNG = 4096

_CLEAR, _UNCLEAR = 4.0, 1.5
"""Spread of rivals, in errors, at which the first rung is longer or shorter than it has to be."""

_USUAL_RUNGS = 400
"""First rungs that a search can pay for at the beginning; later ones are as long as they must."""

_FEWEST_RUNGS = 60
"""First rungs that a search must be able to pay for: so many evaluations that theirs is shorter."""

RETRIES = 8
"""Drops that are tried again in each round of a greedy removal."""

_EFFECT_ROUNDS = 3

_FINAL_SHARE = 0.06
"""Share of the tokens that is kept for the last comparison."""

_MEASURED_SHARE = 0.15
"""The most of all tokens that single effects, or a greedy removal, may cost."""

_RUNGS = ((1, 3), (3, 1), (8, 1))
"""For each rung of a race its length, in first rungs, and how many rivals it leaves."""

OFFSPRING = 16

_FEWEST_RIVALS = 4
"""With fewer the later rungs are left out."""

_FEW_RIVALS_COST = 32
"""First rungs that a race of three rivals costs, rounded up."""


@dataclass(frozen=True)
class Parts:
    """The calibration pool in two parts, so that nothing is chosen on what it was made from.

    Attributes:
        estimated: Micro-batches of estimates, two thirds of the pool.
        compared: Micro-batches of comparisons.
    """

    estimated: tuple[int, ...]
    compared: tuple[int, ...]


def parts(pool: Pool, rng: np.random.Generator) -> Parts:
    """The pool in two random parts; a pool of one micro-batch is both."""
    order = rng.permutation(len(pool.tokens)).tolist()
    cut = min(-(-2 * len(order) // 3), max(len(order) - 1, 1))
    return Parts(tuple(order[:cut]), tuple(order[cut:] or order))


class TokenBudget:
    """The tokens of one search.

    Args:
        pool: Sizes of the micro-batches.
        ledger: What is requested, and the limit; `DEFAULT_TOKENS` where it has none.
    """

    def __init__(self, pool: Pool, ledger: TokenLedger) -> None:
        self._pool, self.ledger = pool, ledger
        self.limit = DEFAULT_TOKENS if ledger.limit == inf else int(ledger.limit)
        self._reserve = int(_FINAL_SHARE * self.limit)
        self._rung = max(min(_FIRST_RUNG, self.limit // _USUAL_RUNGS), min(pool.tokens))

    @property
    def left(self) -> int:
        """Tokens that are left before the last comparison, whose share is kept apart."""
        return self.limit - self._reserve - self.ledger.requested

    def affords(self, requests: Sequence[Request]) -> bool:
        """Whether there are tokens left for requests."""
        return self.ledger.after(requests) <= self.limit - self._reserve

    @property
    def shortest(self) -> tuple[int]:
        """The shortest micro-batch."""
        return (int(np.argmin(self._pool.tokens)),)

    def leaves(self, count: int, micro_batches: Sequence[int], share: float) -> bool:
        """Whether so many candidates can be measured, and a share of all tokens is left then."""
        return self.left - count * self.ledger.size(micro_batches) >= share * self.limit

    def start(self, micro_batches: Sequence[int], forwards: int) -> int:
        """How many of the micro-batches an estimated start should use."""
        tokens = min(_START, self._affordable(_START_SHARE, forwards))
        return len(self._first(micro_batches, tokens))

    def step(self, micro_batches: Sequence[int], forwards: int) -> int:
        """The same for a step; 0 where the tokens are too few for one and its comparison."""
        tokens = min(_STEP, self._affordable(_STEP_SHARE, forwards))
        return len(self._first(micro_batches, tokens))

    def effects(self, micro_batches: Sequence[int], tries: int) -> tuple[int, tuple[int, ...]]:
        """In how many rounds to measure single changes, and on which of the micro-batches.

        Args:
            micro_batches: Where they may be measured.
            tries: How many are tried in a round.

        Returns:
            As many rounds as there can be on at least one micro-batch; 0 where there is none.
        """
        for rounds in range(_EFFECT_ROUNDS, 0, -1):
            tokens = int(_MEASURED_SHARE * self.limit / (rounds * tries))
            if chosen := self._first(micro_batches, min(tokens, _FIRST_RUNG)):
                return rounds, chosen
        return 0, ()

    def removals(self, units: int, needed: int) -> tuple[int, int]:
        """How to drop units one after the other.

        Args:
            units: How many can be dropped, two of each block.
            needed: How many have to be, about.

        Returns:
            The tokens of each trial, and how many units a round drops: one, or more where the
            tokens are few; no tokens where they are too few for that, too.
        """
        smallest = min(self._pool.tokens)
        for take in range(1, needed + 1):
            trials = 1 + 1.5 * units + (needed / take - 1) * (1 + RETRIES)
            tokens = int(min(_MEASURED_SHARE * self.limit / trials, _FIRST_RUNG))
            if tokens >= smallest:
                return tokens, take
        return 0, 0

    def some(self, order: Sequence[int], tokens: int) -> tuple[int, ...]:
        """The first of some micro-batches that have together at most so many tokens, or one."""
        return self._first(order, tokens) or tuple(order[:1])

    def rungs(self, order: Sequence[int]) -> tuple[Rung, ...]:
        """The rungs of a race on the first of some micro-batches."""
        lengths = [self._first(order, self._rung * length) for length, _ in _RUNGS]
        return tuple(
            Rung(length or tuple(order[:1]), keep)
            for length, (_, keep) in zip(lengths, _RUNGS, strict=True)
        )

    def adapt(self, spread: float, error: float) -> None:
        """Makes the next races' first rung as long as it has to be to tell rivals apart.

        Args:
            spread: Standard deviation of the rivals' gaps to the incumbent there.
            error: Typical standard error of these gaps.
        """
        if spread > _CLEAR * error:
            self._rung = max(self._rung // 2, min(self._pool.tokens))
        elif spread < _UNCLEAR * error:
            self._rung = min(2 * self._rung, _LONGEST_RUNG, self.limit // _FEWEST_RUNGS)

    def race(self, order: Sequence[int]) -> tuple[tuple[Rung, ...], int]:
        """The rungs of the next race, and how many rivals can be in it.

        With few tokens left it ends on an earlier rung; without enough for that there are none.
        """
        rungs = self.rungs(order)
        while len(rungs) > 1 and self._rivals(rungs) < _FEWEST_RIVALS:
            rungs = rungs[:-1]
        return rungs, self._rivals(rungs)

    def _rivals(self, rungs: Sequence[Rung]) -> int:
        """How many rivals can be raced over rungs, the incumbent measured on everything."""
        last = self.ledger.size(rungs[-1].micro_batches)
        later = sum(
            before.keep
            * (self.ledger.size(rung.micro_batches) - self.ledger.size(before.micro_batches))
            for before, rung in zip(rungs, rungs[1:], strict=False)
        )
        first = self.ledger.size(rungs[0].micro_batches)
        return max(min(OFFSPRING, (self.left - last - later) // first), 0)

    def final(self, order: Sequence[int], entrants: int) -> tuple[int, ...]:
        """The first of some micro-batches on which everybody can be measured at the end."""
        self._reserve = 0
        return self._first(order, self.left // entrants)

    def _affordable(self, share: float, forwards: int) -> int:
        """Tokens of micro-batches that an estimate may use, a race being left for afterwards."""
        race = self._rung * _FEW_RIVALS_COST
        return int(min(share * self.limit, self.left - race) // forwards)

    def _first(self, micro_batches: Sequence[int], tokens: int) -> tuple[int, ...]:
        sums = accumulate(self._pool.tokens[index] for index in micro_batches)
        return tuple(i for i, total in zip(micro_batches, sums, strict=True) if total <= tokens)
