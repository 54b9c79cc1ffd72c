"""Angular distance over windows of blocks (Gromov et al. 2024, 2403.17887)."""

from __future__ import annotations

from math import pi

import torch
import torch.nn.functional as F
from torch import Tensor

from evocompress.compression.live_model import LiveModel
from evocompress.core.errors import ModelError
from evocompress.evaluation.estimates.base import Rows, Subject, block_states


def angular_distance(subject: Subject) -> Rows:
    """arccos(cos(input of block l, input of block l + n)) / pi, mean over all tokens.

    Returns:
        For every block l the values of n = 1, 2, ... up to the last block's output, which
        stands for the input of a block behind it; so the rows grow shorter.
    """
    return _distances(subject, slice(None))


def last_angular_distance(subject: Subject) -> Rows:
    """As `angular_distance`, but on the last token of each sequence alone, as published."""
    return _distances(subject, slice(-1, None))


def _distances(subject: Subject, tokens: slice) -> Rows:
    live = subject.live
    live.apply(subject.candidate)
    family = live.loaded.family
    layers = len(family.blocks(live.loaded.model))
    totals = torch.zeros(layers, layers, dtype=torch.float64)
    positions = 0
    for ids in subject.micro_batches:
        stream = _stream(live, ids, tokens)
        positions += stream.shape[1]
        for n in range(1, layers + 1):
            totals[: layers + 1 - n, n - 1] += _angles(stream[:-n], stream[n:])
    means = (totals / positions).tolist()
    return {
        family.block_names[index]: tuple(row[: layers - index]) for index, row in enumerate(means)
    }


def _stream(live: LiveModel, ids: Tensor, tokens: slice) -> Tensor:
    """Directions of the residual stream before every block and after the last (L + 1, N, H)."""
    states = list(block_states(live, ids))
    if any(state.before.shape != state.after.shape for state in states):
        raise ModelError(
            f"angular distances need a state of one shape, but the blocks of {live.loaded.source} "
            "change it: use another searcher"
        )
    stream = torch.stack([*(state.before for state in states), states[-1].after])
    return F.normalize(stream[:, :, tokens].flatten(1, 2).float(), dim=-1)


def _angles(one: Tensor, other: Tensor) -> Tensor:
    """Sums (L,) over N of the angles between unit vectors (L, N, H), as fractions of pi.

    By the half chord: an arccos of a cosine near one would lose half of the digits.
    """
    chords: Tensor = torch.linalg.vector_norm(one - other, dim=-1).double()
    angles = 2 / pi * (chords / 2).clamp(max=1).asin()
    return angles.sum(-1).cpu()
