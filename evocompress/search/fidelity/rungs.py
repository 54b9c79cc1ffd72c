"""Rungs of a multi-fidelity search: many candidates on few tokens, the best of them on more."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from evocompress.core.errors import ConfigError
from evocompress.core.finetuning import Recipe
from evocompress.core.requests import Pool
from evocompress.search.fidelity import batches


@dataclass(frozen=True)
class Rung:
    """One comparison of candidates on the same tokens.

    Attributes:
        tokens: On which each candidate is measured.
        survivors: How many candidates go on, at most.
        micro_batches: Where these tokens are; empty where each comparison draws them anew.
        recipe: How each candidate is fine-tuned before it is measured, if at all.

    Example:
        >>> Rung(tokens=192, micro_batches=(0, 3, 4)).survivors
        1
    """

    tokens: int
    survivors: int = 1
    micro_batches: tuple[int, ...] = ()
    recipe: Recipe | None = None


@dataclass(frozen=True)
class Fidelity:
    """The rungs of a search, from few tokens to many.

    Attributes:
        rungs: In order.
        resumed: Whether a survivor is measured only on what the rung before did not have.

    Example:
        >>> halving = Fidelity((Rung(64, survivors=3), Rung(192)))
        >>> halving.cost(9), halving.entrants(2000)
        (1152, 22)
    """

    rungs: tuple[Rung, ...]
    resumed: bool = False

    @property
    def _later(self) -> int:
        """Tokens of all rungs but the first one."""
        pairs = zip(self.rungs, self.rungs[1:], strict=False)
        return sum(low.survivors * (up.tokens - self.resumed * low.tokens) for low, up in pairs)

    def cost(self, entrants: int) -> int:
        """Tokens of a whole comparison where `entrants` candidates enter the first rung."""
        return entrants * self.rungs[0].tokens + self._later

    def entrants(self, tokens: float) -> int:
        """How many candidates may enter the first rung where there are some tokens for all."""
        most = max(tokens - self._later, 0) / self.rungs[0].tokens
        return int(min(most, sys.maxsize))


class Reserve(NamedTuple):
    """What the tokens of a search must suffice for, beside its finalists.

    Attributes:
        first: Candidates of the start.
        references: Others that are measured at the end.
        estimates: Estimates that are made at the start, each on the last rung.

    Examples:
        >>> Reserve(first=40).references
        0
    """

    first: int = 1
    references: int = 0
    estimates: int = 0


def search_and_final(
    pool: Pool,
    limit: int | float,
    rng: np.random.Generator,
    *,
    candidate_tokens: int | None,
    final_tokens: int | None,
    key: str,
    finalists: int,
    reserve: Reserve,
    levers: Sequence[str],
) -> Fidelity:
    """Two nested rungs: all candidates are compared on one, and the best again on the other.

    No candidate is measured again before the end, so that the tokens must always be the same.

    Args:
        pool: The calibration pool.
        limit: Tokens of the whole search.
        rng: Source of randomness.
        candidate_tokens: Tokens of the first rung; about 2048 if left out.
        final_tokens: Tokens of the last one; the whole pool if left out.
        key: The setting that gives these.
        finalists: How many candidates are measured at the end, at most.
        reserve: What start and end take beside these.
        levers: Settings that make start or end smaller, for the message.

    Raises:
        ConfigError: The pool cannot give the tokens, or their limit does not allow for the start
            and the end.
    """
    final = tuple(sorted(batches.chosen(pool, final_tokens, f"search.{key}", rng)))
    inner = Pool(tuple(pool.tokens[index] for index in final))
    whole = sum(inner.tokens)
    if candidate_tokens is not None and candidate_tokens > whole:
        raise ConfigError(
            f"search.candidate_tokens: {candidate_tokens} is more than the {whole} tokens of the "
            f"last comparison; lower it or raise search.{key}"
        )
    wanted = candidate_tokens or batches.few(inner)
    tokens = batches.checked_tokens(inner, wanted, "search.candidate_tokens")
    search = tuple(sorted(final[index] for index in batches.draw(inner, tokens, rng)))
    found = Fidelity((Rung(tokens, finalists, search), Rung(whole, 1, final)))
    first, references, estimates = reserve
    needed = found.cost(first) + (references + estimates) * whole
    if limit < needed:
        raise ConfigError(
            f"search.tokens: {limit} is less than the {needed} that the start of {first} "
            f"candidates on {tokens} tokens and the end of {finalists + references} on {whole} "
            f"take; raise it or lower {', '.join(levers[:-1])} or {levers[-1]}"
        )
    return found
