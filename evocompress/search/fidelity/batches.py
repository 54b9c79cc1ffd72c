"""Choosing micro-batches so that they add up to an exact number of tokens."""

from __future__ import annotations

from collections import Counter

import numpy as np

from evocompress.core.errors import ConfigError
from evocompress.core.requests import Pool

FEW_TOKENS = 2048
"""Tokens on which good candidates are told from bad ones: EvoPress's first stage (2410.14649)."""


def chosen(pool: Pool, tokens: int | None, key: str, rng: np.random.Generator) -> tuple[int, ...]:
    """Micro-batches of exactly `tokens` tokens, or the whole pool.

    Raises:
        ConfigError: The pool cannot give exactly as many; `key` names the setting.
    """
    if tokens is None:
        return tuple(range(len(pool.tokens)))
    return draw(pool, checked_tokens(pool, tokens, key), rng)


def draw(pool: Pool, tokens: int, rng: np.random.Generator) -> tuple[int, ...]:
    """Random micro-batches without repetition that hold exactly `tokens` tokens."""
    size, usable = _usable(pool)
    return tuple(rng.permutation(usable)[: tokens // size].tolist())


def checked_tokens(pool: Pool, tokens: int, key: str) -> int:
    """The `tokens` themselves, if the pool can give exactly as many.

    Raises:
        ConfigError: The pool is too small, or its micro-batches do not add up to `tokens`.
    """
    size, usable = _usable(pool)
    most = size * len(usable)
    if tokens > most:
        raise ConfigError(
            f"{key} asks for {tokens} tokens, but the calibration pool has {most}: lower it or "
            "raise calibration.search_sequences"
        )
    if tokens % size:
        low = tokens // size * size
        near = f"{low} or {low + size}" if low else f"{size}"
        raise ConfigError(
            f"{key}: {tokens} is no multiple of a micro-batch's {size} tokens; give e.g. {near}"
        )
    return tokens


def rounded_up(pool: Pool, tokens: int) -> int:
    """The nearest number of tokens, upwards, that the pool can give; at most all of them."""
    size, usable = _usable(pool)
    return size * min(-(-tokens // size), len(usable))


def few(pool: Pool) -> int:
    """About `FEW_TOKENS`, as the pool can give them."""
    return rounded_up(pool, FEW_TOKENS)


def _usable(pool: Pool) -> tuple[int, list[int]]:
    """The commonest size of a micro-batch in tokens, and the micro-batches of that size.

    The last micro-batch of a pool may be smaller; it is left out, so that sums are exact.
    """
    size = Counter(pool.tokens).most_common(1)[0][0]
    return size, [index for index, tokens in enumerate(pool.tokens) if tokens == size]
