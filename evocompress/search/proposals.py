"""Which changes of a genome are worth measuring, as far as estimates can tell."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evocompress.repair import repair, spend
from evocompress.search.moves import exchange, transpose
from evocompress.space import Genome, SearchSpace

Predict = Callable[[Genome], NDArray[np.float64]]
"""The predicted values (N,) of genomes (N, U), on any scale: lower is better."""

_TRIED = 6
"""Moves that are drawn for each that is proposed."""

_FLOOR = 0.25
"""Share of the proposals that are drawn without regard to any prediction."""

_TRANSPOSED = 0.5
"""Share of the moves in which two blocks change places, where units can be dropped."""

_CLIMBED = 0.25
"""Share of the proposals that follow the prediction for several exchanges."""

_CHOICES = 24
"""Exchanges of which the best is the next step of a climb."""


@dataclass(frozen=True)
class Reach:
    """How far proposals go.

    Attributes:
        exchanges: The most exchanges that make one.
        targets: Genomes (U,) towards which some go: others that may be good.
    """

    exchanges: int = 3
    targets: Sequence[Genome] = ()


def propose(
    space: SearchSpace,
    parent: Genome,
    predict: Predict | None,
    count: int,
    rng: np.random.Generator,
    reach: Reach = Reach(),  # noqa: B008  (frozen)
) -> list[Genome]:
    """Different feasible genomes (U,) near a parent, none of them the parent.

    Many are made by exchanges and by steps towards the targets. Most of those proposed are drawn
    in proportion to their predicted gain over the mean of all, or climb from there as long as
    the prediction falls; the rest are drawn evenly, so that nothing within reach is excluded.

    Args:
        space: The space.
        parent: A feasible genome (U,).
        predict: What is expected of genomes; without it all are drawn evenly.
        count: How many are wanted, at most.
        rng: Source of randomness.
        reach: How far they may go.
    """
    pool = _pool(space, parent, count * (_TRIED if predict else 1), rng, reach)
    if predict is None or len(pool) <= count:
        return pool[:count]
    guided = count - round(_FLOOR * count)
    weights = _weights(predict(np.stack(pool)))
    picked = rng.choice(
        len(pool), size=min(guided, int((weights > 0).sum())), replace=False, p=weights
    )
    rest = rng.permutation(np.setdiff1d(np.arange(len(pool)), picked))
    climbing = [pool[index] for index in picked[: round(_CLIMBED * count)]]
    climbed = [climb(space, genome, predict, reach.exchanges, rng) for genome in climbing]
    chosen = [*climbed, *(pool[index] for index in [*picked[len(climbed) :], *rest])]
    different = {genome.tobytes(): genome for genome in chosen}
    different.pop(parent.tobytes(), None)
    return list(different.values())[:count]


def climb(
    space: SearchSpace, genome: Genome, predict: Predict, steps: int, rng: np.random.Generator
) -> Genome:
    """A feasible genome (U,) after up to so many exchanges, each the best predicted of several."""
    value = predict(genome[None])[0]
    for _ in range(steps):
        choices = np.stack([exchange(space, genome, rng) for _ in range(_CHOICES)])
        values = predict(choices)
        best = int(values.argmin())
        if not values[best] < value:
            break
        genome, value = choices[best], values[best]
    return genome


def blend(space: SearchSpace, genome: Genome, other: Genome, rng: np.random.Generator) -> Genome:
    """The genome with a random share of the genes of another one, brought to the budget."""
    share = rng.uniform(0.1, 1.0)
    taken = rng.random(len(genome)) < share
    child = space.settle(np.where(taken, other, genome)[None])[0]
    return spend(space, repair(space, child, rng), rng)


def _pool(
    space: SearchSpace,
    parent: Genome,
    size: int,
    rng: np.random.Generator,
    reach: Reach,
) -> list[Genome]:
    """Up to `size` different genomes, in the order in which they were made."""
    found, targets = {parent.tobytes(): parent}, reach.targets
    # Where levels are close to each other blocks differ little, and in much.
    transposed = _TRANSPOSED if space.genes.droppable.size else 0.0
    for _ in range(2 * size):
        if targets and rng.random() < 0.5:
            child = blend(space, parent, targets[int(rng.integers(len(targets)))], rng)
        else:
            child = parent
            for _ in range(int(rng.integers(1, reach.exchanges + 1))):
                move = transpose if rng.random() < transposed else exchange
                child = move(space, child, rng)
        found.setdefault(child.tobytes(), child)
        if len(found) > size:
            break
    return list(found.values())[1:]


def _weights(predicted: NDArray[np.float64]) -> NDArray[np.float64]:
    """Chances (N,) in proportion to the predicted gain over the mean; even where all are alike."""
    gains = np.maximum(predicted.mean() - predicted, 0.0)
    total = gains.sum()
    return gains / total if total > 0 else np.full(len(gains), 1 / len(gains))
