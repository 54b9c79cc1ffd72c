"""Successive halving: rungs of ever more tokens, and who comes from one to the next."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from evocompress.core.errors import ConfigError
from evocompress.core.pareto import Points, layers
from evocompress.core.requests import Pool
from evocompress.search.fidelity import batches
from evocompress.search.fidelity.rungs import Fidelity, Rung


def halving(
    pool: Pool,
    rng: np.random.Generator,
    *,
    eta: int,
    grace: int | None = None,
    most: int | None = None,
    tokens: int | None = None,
    configurations: int | None = None,
) -> Fidelity:
    """Nested rungs, of which each has `eta` times the tokens of the one before.

    Survivors are counted for the fewest candidates of whom one comes to the last rung.

    Args:
        pool: The calibration pool.
        rng: Source of randomness.
        eta: One of so many candidates goes on.
        grace: Tokens of the first rung; about 2048 if left out.
        most: Tokens of the last one; as many as pool and limits allow if left out.
        tokens: Tokens of the whole search, if they are limited.
        configurations: Candidates of the first rung, if they are limited.

    Raises:
        ConfigError: The pool cannot give the tokens, or the search is too short for anyone to
            come to the last rung.
    """
    first = grace or batches.few(pool)
    sizes = [batches.check(pool, first, "search.grace_tokens")]
    last = most or batches.rounded_up(pool, sum(pool.tokens))
    batches.check(pool, last, "search.max_tokens")
    if last < first:
        raise ConfigError(f"search.max_tokens: {last} is less than the {first} of the first rung")
    while sizes[-1] * eta <= last:
        sizes.append(sizes[-1] * eta)
    if most is None:
        while len(sizes) > 1 and _too_short(sizes, eta, tokens, configurations):
            sizes.pop()
    elif sizes[-1] < most:
        sizes.append(most)
    if reason := _too_short(sizes, eta, tokens, configurations):
        raise ConfigError(reason)
    order = batches.draw(pool, sizes[-1], rng)
    return _with_survivors(sizes, eta, order, pool.tokens[order[0]])


def _with_survivors(
    sizes: Sequence[int], eta: int, order: Sequence[int] = (), length: int = 1
) -> Fidelity:
    """Rungs of some sizes, on the first micro-batches of an order that have one length each."""
    kept = [eta**later for later in reversed(range(len(sizes) - 1))] + [1]
    return Fidelity(
        tuple(
            Rung(size, survivors, tuple(sorted(order[: size // length])))
            for size, survivors in zip(sizes, kept, strict=True)
        )
    )


def _too_short(
    sizes: Sequence[int], eta: int, tokens: int | None, configurations: int | None
) -> str:
    """Why nobody can come to the last of the rungs; empty where somebody can."""
    first = eta ** (len(sizes) - 1)
    needed = _with_survivors(sizes, eta).cost(first)
    if configurations is not None and configurations < first:
        return (
            f"search.configurations: of {configurations} none comes to a rung of "
            f"{sizes[-1]} tokens; give at least {first}, or lower max_tokens"
        )
    if tokens is not None and tokens < needed:
        return (
            f"search.tokens: {tokens} is less than the {needed} that bring one of {first} "
            f"candidates to a rung of {sizes[-1]} tokens; raise it or lower max_tokens"
        )
    return ""


def priority(points: Points, count: int) -> list[int]:
    """Indices of the `count` best of the points (N, M), the best one first.

    Layer after layer of non-dominated points; within one the order of an epsilon-net: first the
    point of the least first coordinate, then always the one that is farthest from those before
    (Clarkson 2006, "Nearest-neighbor searching and metric space dimensions"), every coordinate
    being scaled to the layer's range. Points that failed have no priority.
    """
    if points.shape[1] == 1:
        best = np.argsort(points[:, 0], kind="stable")[:count]
        return [int(index) for index in best if np.isfinite(points[index, 0])]
    order: list[int] = []
    found = layers(points)
    for number in range(int(found.max(initial=-1)) + 1):
        if len(order) >= count:
            break
        layer = np.flatnonzero(found == number)
        order += layer[epsilon_net(points[layer])].tolist()
    return order[:count]


def epsilon_net(points: Points) -> list[int]:
    """All of the points (N, M), each one far from those before; see `priority`."""
    length = points.max(axis=0) - points.min(axis=0)
    scaled = points / np.where(length > 0, length, 1.0)
    order = [int(points[:, 0].argmin())]
    nearest = np.full(len(points), np.inf)
    while len(order) < len(points):
        away = np.linalg.norm(scaled - scaled[order[-1]], axis=1)
        nearest = np.minimum(nearest, away)
        nearest[order] = -1.0
        order.append(int(nearest.argmax()))
    return order
