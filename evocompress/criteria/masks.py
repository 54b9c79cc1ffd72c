"""Masks with exact counts; equal scores are decided by position, the first ones masked."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def parse_pattern(pattern: str) -> tuple[int, int]:
    """(zeros, group) of a pattern ``"N:M"``."""
    zeros, group = pattern.split(":")
    return int(zeros), int(group)


def shares(total: int, ends: Sequence[int]) -> list[int]:
    """Split a count over consecutive parts in proportion to their sizes.

    Args:
        total: What to split.
        ends: End of each part, rising; the parts begin at 0 and abut.

    Returns:
        One integer per part; they sum to `total`, and every leading run of parts is within
        one of its exact share.
    """
    reached = [total * end // ends[-1] for end in ends]
    return [after - before for before, after in zip([0, *reached], reached, strict=False)]


def ranks(scores: Tensor) -> Tensor:
    """Rank of each score along the last dimension, from 0 for the smallest."""
    order = scores.argsort(dim=-1, stable=True)
    positions = torch.arange(scores.shape[-1], device=scores.device).expand_as(order)
    return torch.empty_like(order).scatter_(-1, order, positions)


def group_ranks(scores: Tensor, group: int) -> Tensor:
    """Rank of each score (rows, columns) among each `group` consecutive columns of its row."""
    return ranks(scores.reshape(len(scores), -1, group)).flatten(1)


def smallest(scores: Tensor, counts: Sequence[int]) -> Tensor:
    """Mask of the smallest scores of each row.

    Args:
        scores: (rows, n), without NaN.
        counts: How many to mask in each row.

    Returns:
        Boolean (rows, n) with exactly ``counts[i]`` true values in row i.
    """
    mask = torch.zeros_like(scores, dtype=torch.bool)
    for row, count, chosen in zip(scores, counts, mask, strict=True):
        if count:
            threshold = _kth_smallest(row, count)
            torch.lt(row, threshold, out=chosen)
            ties = (row == threshold).nonzero().flatten()
            chosen[ties[: count - int(chosen.sum())]] = True
    return mask


def _kth_smallest(values: Tensor, k: int) -> float:
    """The k-th smallest value, counted from 1."""
    if values.device.type == "cpu":
        # Several times as fast as torch.kthvalue on a CPU.
        return float(np.partition(values.numpy(), k - 1)[k - 1])
    return float(values.kthvalue(k).values)
