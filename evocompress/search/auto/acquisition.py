"""Which changes of a genome are worth measuring, as far as estimates can tell."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import erf

import numpy as np

from evocompress.core.arrays import Floats, Genome
from evocompress.search.operators.mutation import (
    different,
    distinct,
    exchange,
    mutate,
    transpose,
)
from evocompress.space.repair import fill_budget, repair
from evocompress.space.space import SearchSpace

Predict = Callable[[Genome], Floats]
"""The predicted values (N,) of genomes (N, U), on any scale: lower is better."""

_TRIED = 12
"""Moves that are drawn for each that is proposed."""

_FLOOR = 0.125
"""Share of the proposals that are drawn without regard to any prediction."""

_TOWARDS = 0.5
"""Share of the proposals that go towards targets, where there are any."""

_TRANSPOSED = 0.5
"""Share of the moves in which two blocks change places, where units can be dropped."""

_CLIMBED = 0.4
"""Share of the proposals that follow the prediction for several exchanges."""

_CHOICES = 32
"""Exchanges of which the best is the next step of a climb."""


@dataclass(frozen=True)
class Acquisition:
    """What guides proposals.

    Attributes:
        predict: Expected values.
        error: The typical error of a prediction, on their scale; ``None``: not known, and taken
            for half of what lies between different proposals.

    Examples:
        >>> guide = Acquisition(lambda genomes: genomes.sum(axis=1) / 2, error=0.1)
        >>> guide.predict(np.array([[0, 1], [2, 3]])).tolist()
        [0.5, 2.5]
    """

    predict: Predict
    error: float | None = None


def propose(
    space: SearchSpace,
    parent: Genome,
    guide: Acquisition | None,
    count: int,
    rng: np.random.Generator,
    *,
    steps: int = 3,
    targets: Sequence[Genome] = (),
) -> list[Genome]:
    """Up to `count` different feasible genomes (U,) near a parent, none of them the parent.

    Many are made by exchanges and by steps towards the targets. Most of those proposed are drawn
    in proportion to their expected improvement on the parent (Mockus 1975), or climb from there
    as long as the prediction falls; the rest are drawn evenly, so that nothing within reach is
    excluded.

    Up to `steps` exchanges make one. Without a guide all are drawn evenly. Targets are other
    genomes (U,) that may be good.
    """

    def child() -> Genome:
        if targets and rng.random() < _TOWARDS:
            return blend(space, parent, targets[int(rng.integers(len(targets)))], rng)
        genome = parent
        for _ in range(int(rng.integers(1, steps + 1))):
            genome = _moved(space, genome, rng)
        return genome

    pool = distinct(child, count * (_TRIED if guide else 1), excluded=parent)
    if guide is None or len(pool) <= count:
        return pool[:count]
    guided = count - round(_FLOOR * count)
    before, *values = guide.predict(np.stack([parent, *pool]))
    weights = _weights(np.array(values) - before, guide.error)
    picked = rng.choice(
        len(pool), size=min(guided, int((weights > 0).sum())), replace=False, p=weights
    )
    rest = rng.permutation(np.setdiff1d(np.arange(len(pool)), picked))
    climbing = [pool[index] for index in picked[: round(_CLIMBED * count)]]
    climbed = [climb(space, genome, guide.predict, steps, rng) for genome in climbing]
    chosen = [*climbed, *(pool[index] for index in [*picked[len(climbed) :], *rest])]
    return [genome for genome in different(chosen) if (genome != parent).any()][:count]


def climb(
    space: SearchSpace, genome: Genome, predict: Predict, steps: int, rng: np.random.Generator
) -> Genome:
    """A feasible genome (U,) after up to `steps` exchanges, each the best predicted of several."""
    value = predict(genome[None])[0]
    for _ in range(steps):
        choices = np.stack([_moved(space, genome, rng) for _ in range(_CHOICES)])
        values = predict(choices)
        best = int(values.argmin())
        if not values[best] < value:
            break
        genome, value = choices[best], values[best]
    return genome


def blend(space: SearchSpace, genome: Genome, other: Genome, rng: np.random.Generator) -> Genome:
    """A genome (U,) with a random share of the genes of the `other` (U,), brought to the budget."""
    share = rng.uniform(0.1, 1.0)
    taken = rng.random(len(genome)) < share
    child = space.deactivate(np.where(taken, other, genome)[None])[0]
    return fill_budget(space, repair(space, child, rng), rng)


def _moved(space: SearchSpace, genome: Genome, rng: np.random.Generator) -> Genome:
    """A feasible genome (U,) after one exchange of levels, or of two whole blocks.

    Blocks change places where units can be dropped: else all their levels are close to each
    other. Zeros of matrices alone are swapped, which takes much less time, where that keeps the
    budget.
    """
    if space.encoding.droppable.size and rng.random() < _TRANSPOSED:
        return transpose(space, genome, rng)
    if space.encoding.ordinal.all() and not space.typed:
        swapped = mutate(space, genome, rng)
        if space.feasible(swapped[None])[0]:
            return swapped
    return exchange(space, genome, rng)


def _weights(predicted: Floats, error: float | None) -> Floats:
    """Chances (N,) in proportion to the expected improvement; even where all are alike.

    The error is the standard deviation of what is measured around the predicted changes (N,).
    """
    deviation = error if error is not None else float(predicted.std()) / 2
    if deviation <= 0:
        gains = np.maximum(-predicted, 0.0)
    else:
        depth = -predicted / deviation
        density = np.exp(-(depth**2) / 2) / np.sqrt(2 * np.pi)
        # SciPy's differs in the last digit, by which a draw may be another one.
        below = (1 + np.vectorize(erf)(depth / np.sqrt(2))) / 2
        gains = np.maximum(deviation * (density + depth * below), 0.0)
    total = gains.sum()
    return gains / total if total > 0 else np.full(len(gains), 1 / len(gains))
