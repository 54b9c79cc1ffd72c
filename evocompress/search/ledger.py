"""The one count of a search's tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import inf

from evocompress.core.errors import ConfigError
from evocompress.core.requests import Pool, Request


class TokenLedger:
    """Counts the tokens that a search has requested.

    Attributes:
        requested: Tokens of all requests so far, repeats and training included.
        limit: Tokens that may be requested, infinite where nothing limits them.

    Example:
        >>> from evocompress.core.requests import Evaluate, Pool
        >>> from evocompress.core.types import Candidate
        >>> ledger = TokenLedger(Pool((64, 64, 32)), limit=200)
        >>> ledger.charge([Evaluate(Candidate(), (0, 2))])
        >>> ledger.requested, ledger.left, ledger.affords([Evaluate(Candidate(), (0, 1))])
        (96, 104, False)
    """

    def __init__(self, pool: Pool, limit: int | None = None) -> None:
        self._pool = pool
        self.limit: int | float = inf if limit is None else limit
        self.requested = 0

    @property
    def left(self) -> int | float:
        """Tokens that may still be requested."""
        return self.limit - self.requested

    def check_ends(self, name: str, setting: str, given: int | None) -> None:
        """Refuses the search of a name that neither a limit nor its own setting ends.

        Raises:
            ConfigError: There is neither.
        """
        if self.limit == inf and given is None:
            raise ConfigError(f"search: {name} ends by search.tokens or search.{setting}; give one")

    def size(self, micro_batches: Sequence[int]) -> int:
        """Tokens of some micro-batches."""
        return sum(self._pool.tokens[index] for index in micro_batches)

    def after(self, requests: Iterable[Request]) -> int:
        """The requested tokens once some more requests are made."""
        return self.requested + sum(map(self._pool.requested, requests))

    def affords(self, requests: Iterable[Request]) -> bool:
        """Whether some more requests keep the limit."""
        return self.after(requests) <= self.limit

    def charge(self, requests: Iterable[Request]) -> None:
        """Counts requests."""
        self.requested = self.after(requests)
