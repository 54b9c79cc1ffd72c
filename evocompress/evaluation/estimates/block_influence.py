"""Block influence: how much a block or sub-layer turns the residual stream."""

from __future__ import annotations

from collections import defaultdict

import torch.nn.functional as F
from torch import Tensor

from evocompress.evaluation.estimates.base import Rows, Subject, block_states


def block_influence(subject: Subject) -> Rows:
    """ShortGPT's block influence, 1 - mean over tokens of cos(input, output) (2403.03853).

    Returns:
        One value for every block, and, from the stream around its branch alone, for every
        attention and MLP; 0 for what the candidate drops.
    """
    live = subject.live
    live.apply(subject.candidate)
    family = live.loaded.family
    totals: defaultdict[str, float] = defaultdict(float)
    tokens = 0
    for ids in subject.micro_batches:
        tokens += ids.numel()
        for index, states in enumerate(block_states(live, ids)):
            name = family.block_names[index]
            totals[name] += _turn(states.before, states.after)
            kinds = family.at(index).sublayers
            if "attention" in kinds:
                totals[f"{name}.attention"] += _turn(states.before, states.between)
            if "mlp" in kinds:
                totals[f"{name}.mlp"] += _turn(states.between, states.after)
    return {name: (total / tokens,) for name, total in totals.items() if name in live.units}


def _turn(before: Tensor, after: Tensor) -> float:
    """The sum over tokens, or positions of feature maps, of one minus the cosine.

    A block that changes the shape of its input cannot be removed: it has the largest there is.
    """
    if before.shape != after.shape:
        return 2.0 * (before.numel() // before.shape[1])
    dim = 1 if before.ndim == 4 else -1
    cosines = F.cosine_similarity(before.float(), after.float(), dim=dim)
    return float((1 - cosines.double()).sum())
