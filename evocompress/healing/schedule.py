"""Learning rate and order of the micro-batches: pure functions of the step."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from evocompress.core.arrays import Integers
from evocompress.core.config import HealConfig

FINAL_FRACTION = 0.1


def learning_rate(step: int, config: HealConfig) -> float:
    """The rate of a step, from 0: linear warm-up, then a cosine to a tenth at the last step."""
    warmup = round(config.warmup * config.steps)
    if step < warmup:
        return config.learning_rate * (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1, config.steps - 1 - warmup)
    cosine = (1 + math.cos(math.pi * progress)) / 2
    return config.learning_rate * (FINAL_FRACTION + (1 - FINAL_FRACTION) * cosine)


def micro_batch_indices(step: int, micro_batches: int, config: HealConfig) -> list[int]:
    """Which micro-batches a step uses: each epoch goes through all of them in a new order."""
    first = step * config.accumulate
    indices = []
    for position in range(first, first + config.accumulate):
        epoch, place = divmod(position, micro_batches)
        indices.append(int(_order(config.seed, epoch, micro_batches)[place]))
    return indices


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, micro_batches: int) -> Integers:
    return np.random.default_rng([seed, epoch]).permutation(micro_batches)
