"""Masks with exact counts; equal scores are decided by position, the first ones masked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evocompress.compression.criteria.compiled import compiled, in_threads

Array = np.ndarray[Any, Any]


def parse_pattern(pattern: str) -> tuple[int, int]:
    """(zeros, group) of a pattern ``"N:M"``."""
    zeros, group = pattern.split(":")
    return int(zeros), int(group)


def shares(total: int, ends: Sequence[int]) -> list[int]:
    """Split a count over consecutive parts, from 0 to rising ends, in proportion to their sizes.

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

    Returns:
        Boolean (rows, n) with exactly ``counts[i]`` true values in row i.
    """
    if scores.device.type != "cpu":
        return ranks(scores) < torch.tensor(counts, device=scores.device)[:, None]
    mask = torch.empty_like(scores, dtype=torch.bool)
    in_threads(_mark_smallest, zip(scores.numpy(), counts, mask.numpy(), strict=True))
    return mask


def _mark_smallest(scores: Array, count: int, mask: Array) -> None:
    # Several times as fast as torch.kthvalue.
    threshold = np.partition(scores, count - 1)[count - 1] if count else np.float32(-np.inf)
    _mark(scores, threshold, count, mask)


@compiled
def _mark(scores: Array, threshold: float, count: int, mask: Array) -> None:
    """Mask what is below the threshold, and as many of the values equal to it as are missing."""
    missing = count
    for index in range(len(scores)):
        mask[index] = scores[index] < threshold
        missing -= scores[index] < threshold
    index = 0
    while missing > 0 and index < len(scores):  # nothing equals NaN, and bounds are not checked
        if scores[index] == threshold:
            mask[index] = True
            missing -= 1
        index += 1
