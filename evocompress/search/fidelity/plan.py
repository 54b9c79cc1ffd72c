"""Which tokens a search for a front is measured on, and how many it may ask for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

import numpy as np

from evocompress.core.errors import ConfigError
from evocompress.core.requests import Pool
from evocompress.search.fidelity import batches
from evocompress.search.ledger import TokenLedger


@dataclass(frozen=True)
class Plan:
    """Two nested sets of micro-batches and what the tokens allow.

    Attributes:
        search: On which all candidates are compared: none is measured again before the end,
            so that they must always be the same.
        front: On which the front is measured at the end; `search` is among them.
        search_tokens: Tokens of `search`.
        front_tokens: Tokens of `front`.
    """

    search: tuple[int, ...]
    front: tuple[int, ...]
    search_tokens: int
    front_tokens: int

    def affordable(self, ledger: TokenLedger, finalists: int) -> int | None:
        """How many candidates can still be compared; ``None``: any number.

        Args:
            ledger: The tokens that are left.
            finalists: How many candidates must be measured at the end.
        """
        if ledger.left == inf:
            return None
        return int(max(ledger.left - finalists * self.front_tokens, 0) // self.search_tokens)


def plan(
    pool: Pool,
    limit: int | None,
    rng: np.random.Generator,
    *,
    candidate_tokens: int | None,
    front_tokens: int | None,
    finalists: int,
    first: int,
    estimates: int,
    levers: Sequence[str],
) -> Plan:
    """Draws the micro-batches and checks that the tokens suffice.

    Args:
        pool: The calibration pool.
        limit: Tokens of the whole search, or ``None``.
        rng: Source of randomness.
        candidate_tokens: Tokens of `Plan.search`; about 2048 if left out.
        front_tokens: Tokens of `Plan.front`; the whole pool if left out.
        finalists: How many candidates are measured at the end, at most.
        first: Candidates of the start, first population included.
        estimates: Estimates that are made at the start, each on `Plan.front`.
        levers: Settings that make start or end smaller, for the message.

    Raises:
        ConfigError: The pool cannot give the tokens, or the limit does not allow for the start
            and the end.
    """
    front = tuple(sorted(batches.chosen(pool, front_tokens, "search.front_tokens", rng)))
    inner = Pool(tuple(pool.tokens[index] for index in front))
    whole = sum(inner.tokens)
    if candidate_tokens is not None and candidate_tokens > whole:
        raise ConfigError(
            f"search.candidate_tokens: {candidate_tokens} is more than the {whole} tokens on "
            "which the front is measured; lower it or raise search.front_tokens"
        )
    wanted = candidate_tokens or batches.few(inner)
    tokens = batches.check(inner, wanted, "search.candidate_tokens")
    search = tuple(sorted(front[index] for index in batches.draw(inner, tokens, rng)))
    needed = (finalists + estimates) * whole + first * tokens
    if limit is not None and limit < needed:
        raise ConfigError(
            f"search.tokens: {limit} is less than the {needed} that the start of {first} "
            f"candidates on {tokens} tokens and the end of {finalists} on {whole} take; raise it "
            f"or lower {', '.join(levers[:-1])} or {levers[-1]}"
        )
    return Plan(search, front, tokens, whole)
