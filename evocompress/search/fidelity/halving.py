"""Successive halving: rungs of ever more tokens, and who comes from one to the next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from evocompress.core.errors import ConfigError
from evocompress.core.pareto import Points, layers
from evocompress.core.requests import Pool
from evocompress.search.fidelity import batches
from evocompress.search.objectives import Measured


@dataclass(frozen=True)
class Schedule:
    """What decides about the rungs.

    Attributes:
        eta: How many times as many tokens a rung has as the one before.
        grace: Tokens of the first one; about 2048 if ``None``.
        most: Tokens of the last one; as many as pool and limits allow if ``None``.
        tokens: Tokens of the whole search, if they are limited.
        configurations: Candidates of the first rung, if they are limited.
    """

    eta: int
    grace: int | None
    most: int | None
    tokens: int | None
    configurations: int | None


@dataclass
class Rung:
    """Candidates that were measured on the same tokens.

    Attributes:
        micro_batches: Among them those of every rung before.
        tokens: How many they hold.
        measured: What was measured.
        promoted: Ids of the candidates that have gone on to the next rung.
    """

    micro_batches: tuple[int, ...]
    tokens: int
    measured: list[Measured] = field(default_factory=list)
    promoted: set[str] = field(default_factory=set)


def ladder(pool: Pool, schedule: Schedule, rng: np.random.Generator) -> list[Rung]:
    """The rungs, from few tokens to many.

    Args:
        pool: The calibration pool.
        schedule: How many tokens they have.
        rng: Source of randomness.

    Raises:
        ConfigError: The pool cannot give the tokens, or the search is too short for anyone to
            come to the last rung.
    """
    grace = schedule.grace or batches.few(pool)
    sizes = [batches.check(pool, grace, "search.grace_tokens")]
    most = schedule.most or batches.fitting(pool, sum(pool.tokens))
    batches.check(pool, most, "search.max_tokens")
    if most < grace:
        raise ConfigError(f"search.max_tokens: {most} is less than the {grace} of the first rung")
    while sizes[-1] * schedule.eta <= most:
        sizes.append(sizes[-1] * schedule.eta)
    if schedule.most is None:
        while len(sizes) > 1 and _too_short(sizes, schedule):
            sizes.pop()
    elif sizes[-1] < most:
        sizes.append(most)
    if reason := _too_short(sizes, schedule):
        raise ConfigError(reason)
    order = batches.draw(pool, sizes[-1], rng)
    size = pool.tokens[order[0]]
    return [Rung(tuple(sorted(order[: tokens // size])), tokens) for tokens in sizes]


def price(sizes: Sequence[int], eta: int) -> float:
    """Tokens that a candidate takes on average, the share of the later rungs included.

    Args:
        sizes: Tokens of the rungs.
        eta: One of so many goes on.
    """
    return sum(tokens / float(eta**rung) for rung, tokens in enumerate(sizes))


def _too_short(sizes: Sequence[int], schedule: Schedule) -> str:
    """Why nobody can come to the last of the rungs; empty where somebody can."""
    first = schedule.eta ** (len(sizes) - 1)
    needed = round(first * price(sizes, schedule.eta))
    if schedule.configurations is not None and schedule.configurations < first:
        return (
            f"search.configurations: of {schedule.configurations} none comes to a rung of "
            f"{sizes[-1]} tokens; give at least {first}, or lower max_tokens"
        )
    if schedule.tokens is not None and schedule.tokens < needed:
        return (
            f"search.tokens: {schedule.tokens} is less than the {needed} that bring one of {first} "
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
