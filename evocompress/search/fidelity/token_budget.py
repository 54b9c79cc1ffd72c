"""How the tokens of the default search are divided, and what is left of them.

Shares and lengths are settings that were tried out on language models (`benchmarks/search.py`);
each is given with what speaks for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from math import ceil, inf

import numpy as np

from evocompress.core.requests import Pool, Request
from evocompress.search.fidelity.rungs import Fidelity, Rung
from evocompress.search.ledger import TokenLedger

DEFAULT_TOKENS = 500_000

OFFSPRING = 16
"""Rivals of a race: as many as DarwinLM's generations have offspring."""

RETRIES = 8
"""Drops that are tried again in each round of a greedy removal."""

_START, _STEP = 32_768, 20_480
"""Tokens after which a second-order start, and a step along estimates, hardly get better."""

_START_SHARE, _STEP_SHARE = 0.45, 0.46
"""The most of all tokens that each of them may cost: half stays for comparisons."""

_MEASURED_SHARE = 0.15
"""The most of all tokens that single effects, or a greedy removal, may cost."""

_FINAL_SHARE = 0.06
"""Share of the tokens that is kept for the last comparison."""

EFFECT_ROUNDS = 3
"""The most rounds of measured effects: the budget is approached in as many steps."""

_ROUGHLY = 1024
"""Tokens on which many rivals are told apart roughly (DarwinLM's first stage)."""

_LONGEST_RUNG = 4 * _ROUGHLY
"""The most tokens of a first rung, however alike rivals are."""

_USUAL_RUNGS, _FEWEST_RUNGS = 400, 60
"""First rungs that all tokens pay for: at the beginning, and at least, however alike rivals are."""

_CLEAR, _UNCLEAR = 4.0, 1.5
"""Spread of rivals, in errors, at which the first rung is longer or shorter than it has to be."""

_RUNGS = ((1, 3), (3, 1), (8, 1))
"""For each rung of a race its length, in first rungs, and how many rivals survive it."""

_FEWEST_RIVALS = 4
"""With fewer the later rungs are left out."""

_RACE_AFTERWARDS = 32
"""First rungs that a race of three rivals costs, 3 + 6 + 5 and 8 for the incumbent, rounded up."""

_FIRST_TRIALS = 1.5
"""Trials of the first round of removals for each unit: it alone, and half of both of its block."""


def split_pool(pool: Pool, rng: np.random.Generator) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Micro-batches of estimates, a random two thirds, and those of comparisons, the rest.

    So nothing is chosen on what it was made from. A pool of one micro-batch is both.
    """
    order = rng.permutation(len(pool.tokens)).tolist()
    cut = min(ceil(2 * len(order) / 3), max(len(order) - 1, 1))
    return tuple(order[:cut]), tuple(order[cut:] or order)


class TokenBudget:
    """The tokens of one search, and how many each part of it may take.

    Example:
        >>> pool = Pool((64,) * 64)
        >>> budget = TokenBudget(pool, TokenLedger(pool, 100_000))
        >>> fidelity, rivals = budget.race(range(64))
        >>> budget.left, [rung.tokens for rung in fidelity.rungs], rivals
        (94000, [192, 704, 1984], 16)
    """

    def __init__(self, pool: Pool, ledger: TokenLedger) -> None:
        self._pool, self.ledger = pool, ledger
        self.limit = DEFAULT_TOKENS if ledger.limit == inf else int(ledger.limit)
        self._reserve = int(_FINAL_SHARE * self.limit)
        self._rung = max(min(_ROUGHLY, self.limit // _USUAL_RUNGS), min(pool.tokens))

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
        """Whether a share of all tokens is left once `count` candidates are measured."""
        return self.left - count * self.ledger.size(micro_batches) >= share * self.limit

    def start(self, micro_batches: Sequence[int], forwards: int) -> int:
        """How many of the micro-batches to use at the start, for estimates of `forwards` passes."""
        return self._estimated(micro_batches, _START, _START_SHARE, forwards)

    def step(self, micro_batches: Sequence[int], forwards: int) -> int:
        """How many to use for a step; 0 where the tokens are too few for it and its comparison."""
        return self._estimated(micro_batches, _STEP, _STEP_SHARE, forwards)

    def effects(
        self, micro_batches: Sequence[int], tries: int, most: int = EFFECT_ROUNDS
    ) -> tuple[int, tuple[int, ...]]:
        """The rounds in which to measure single changes, and the micro-batches to measure them on.

        There are as many rounds, each with `tries` candidates, as there can be on at least one
        micro-batch; maybe none.
        """
        for rounds in range(most, 0, -1):
            tokens = int(_MEASURED_SHARE * self.limit / (rounds * tries))
            if chosen := self._first(micro_batches, min(tokens, _ROUGHLY)):
                return rounds, chosen
        return 0, ()

    def removals(self, units: int, needed: int) -> tuple[int, int]:
        """The tokens of each trial of a greedy removal, and how many units a round drops.

        Of `units` that can go, about `needed` have to. A round drops one, or more where the tokens
        are few; both numbers are 0 where they are too few for that.
        """
        for take in range(1, needed + 1):
            trials = 1 + _FIRST_TRIALS * units + (needed / take - 1) * (1 + RETRIES)
            tokens = int(min(_MEASURED_SHARE * self.limit / trials, _ROUGHLY))
            if tokens >= min(self._pool.tokens):
                return tokens, take
        return 0, 0

    def some(self, order: Sequence[int], tokens: int) -> tuple[int, ...]:
        """The first micro-batches of an order with at most `tokens` together, or the very first."""
        return self._first(order, tokens) or tuple(order[:1])

    def rung(self, micro_batches: tuple[int, ...], survivors: int = 1) -> Rung:
        """The rung of some micro-batches, after which `survivors` rivals go on."""
        return Rung(self.ledger.size(micro_batches), survivors, micro_batches)

    def fidelity(self, order: Sequence[int]) -> Fidelity:
        """The rungs of a race on the first micro-batches of an order."""
        lengths = ((self.some(order, self._rung * length), kept) for length, kept in _RUNGS)
        return Fidelity(tuple(self.rung(*each) for each in lengths), resumed=True)

    def adapt(self, spread: float, error: float) -> None:
        """Makes the next races' first rung as long as it has to be to tell rivals apart.

        `spread` is the deviation of their gaps to the incumbent, and `error` that of one such gap.
        """
        if spread > _CLEAR * error:
            self._rung = max(self._rung // 2, min(self._pool.tokens))
        elif spread < _UNCLEAR * error:
            self._rung = min(2 * self._rung, _LONGEST_RUNG, self.limit // _FEWEST_RUNGS)

    def race(self, order: Sequence[int]) -> tuple[Fidelity, int]:
        """The rungs of the next race, on the first micro-batches of an order, and its rivals.

        With few tokens left the race ends on an earlier rung; without enough for that it has no
        rivals.
        """
        found = self.fidelity(order)
        while len(found.rungs) > 1 and self._rivals(found) < _FEWEST_RIVALS:
            found = replace(found, rungs=found.rungs[:-1])
        return found, self._rivals(found)

    def _rivals(self, fidelity: Fidelity) -> int:
        """How many rivals can be raced, the incumbent being measured on everything."""
        return min(OFFSPRING, fidelity.entrants(self.left - fidelity.rungs[-1].tokens))

    def final(self, order: Sequence[int], entrants: int) -> tuple[int, ...]:
        """The first micro-batches of an order on which the last `entrants` can be measured."""
        self._reserve = 0
        return self._first(order, self.left // entrants)

    def _estimated(
        self, micro_batches: Sequence[int], enough: int, share: float, forwards: int
    ) -> int:
        """How many micro-batches an estimate may use, a race being left for afterwards."""
        race = self._rung * _RACE_AFTERWARDS
        affordable = int(min(share * self.limit, self.left - race) // forwards)
        return len(self._first(micro_batches, min(enough, affordable)))

    def _first(self, micro_batches: Sequence[int], tokens: int) -> tuple[int, ...]:
        sums = accumulate(self._pool.tokens[index] for index in micro_batches)
        return tuple(i for i, total in zip(micro_batches, sums, strict=True) if total <= tokens)
