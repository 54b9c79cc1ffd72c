"""Which changes of a genome are worth measuring, as far as estimates can tell."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from evocompress.repair import repair, spend
from evocompress.search.moves import exchange
from evocompress.space import Genome, SearchSpace

Predict = Callable[[Genome], NDArray[np.float64]]
"""The predicted values (N,) of genomes (N, U), on any scale: lower is better."""

_TRIED = 6
"""Moves that are drawn for each that is proposed."""

_FLOOR = 0.25
"""Share of the proposals that are drawn without regard to any prediction."""

_MOST_EXCHANGES = 3


def propose(
    space: SearchSpace,
    parent: Genome,
    predict: Predict | None,
    count: int,
    rng: np.random.Generator,
    targets: Sequence[Genome] = (),
) -> list[Genome]:
    """Different feasible genomes (U,) near a parent, none of them the parent.

    Many are made by exchanges and by steps towards the targets. Most of those proposed are drawn
    in proportion to their predicted gain over the mean of all; the rest evenly, so that nothing
    within reach is excluded.

    Args:
        space: The space.
        parent: A feasible genome (U,).
        predict: What is expected of genomes; without it all are drawn evenly.
        count: How many are wanted, at most.
        rng: Source of randomness.
        targets: Genomes (U,) that may be better than the parent, or other good ones.
    """
    pool = _pool(space, parent, count * (_TRIED if predict else 1), rng, targets)
    if predict is None or len(pool) <= count:
        return pool[:count]
    guided = count - round(_FLOOR * count)
    weights = _weights(predict(np.stack(pool)))
    picked = rng.choice(
        len(pool), size=min(guided, int((weights > 0).sum())), replace=False, p=weights
    )
    rest = rng.permutation(np.setdiff1d(np.arange(len(pool)), picked))
    chosen = [*picked.tolist(), *rest.tolist()][:count]
    return [pool[index] for index in chosen]


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
    targets: Sequence[Genome],
) -> list[Genome]:
    """Up to `size` different genomes, in the order in which they were made."""
    found = {parent.tobytes(): parent}
    for _ in range(2 * size):
        if targets and rng.random() < 0.5:
            child = blend(space, parent, targets[int(rng.integers(len(targets)))], rng)
        else:
            child = parent
            for _ in range(int(rng.integers(1, _MOST_EXCHANGES + 1))):
                child = exchange(space, child, rng)
        found.setdefault(child.tobytes(), child)
        if len(found) > size:
            break
    return list(found.values())[1:]


def _weights(predicted: NDArray[np.float64]) -> NDArray[np.float64]:
    """Chances (N,) in proportion to the predicted gain over the mean; even where all are alike."""
    gains = np.maximum(predicted.mean() - predicted, 0.0)
    total = gains.sum()
    return gains / total if total > 0 else np.full(len(gains), 1 / len(gains))
