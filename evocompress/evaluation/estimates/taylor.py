"""First-order Taylor importance of blocks and sub-layers (Shortened-LLaMA, 2402.02834)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from evocompress.compression.live_model import LiveModel
from evocompress.evaluation.estimates.base import Rows, Subject
from evocompress.evaluation.estimates.matrices import kept_matrices
from evocompress.models.gradients import summed_gradients
from evocompress.models.loading import require_next_token


def taylor(subject: Subject) -> Rows:
    """The sum of |weight times gradient| over the matrices of a unit.

    The gradient is that of the mean negative log-likelihood of the next token over all
    micro-batches, so it is summed with its sign before the magnitude is taken. One backward
    pass a sequence; gradients are summed in float32.

    Returns:
        One value for every block, attention and MLP; 0 for what the candidate drops.
    """
    live, candidate = subject.live, subject.candidate
    require_next_token(live.loaded, "the estimate 'taylor'")
    kept: dict[str, list[nn.Parameter]] = {}
    for matrix in kept_matrices(live, candidate):
        kept.setdefault(matrix.sublayer, []).append(matrix.parameter)
    family = live.loaded.family
    rows: Rows = {}
    saliences = _saliences(live, subject.micro_batches, kept)
    for index in range(len(family.blocks(live.loaded.model))):
        name = family.block_names[index]
        attention, mlp = (saliences.get(f"{name}.{part}", 0.0) for part in ("attention", "mlp"))
        rows |= {name: (attention + mlp,), f"{name}.attention": (attention,), f"{name}.mlp": (mlp,)}
    return {name: row for name, row in rows.items() if name in live.units}


def _saliences(
    live: LiveModel, micro_batches: Sequence[Tensor], kept: dict[str, list[nn.Parameter]]
) -> dict[str, float]:
    """{sub-layer: the sum of |weight times gradient| over its matrices}."""
    weights = [weight for of_sublayer in kept.values() for weight in of_sublayer]
    positions = sum(ids[:, 1:].numel() for ids in micro_batches)
    gradients = summed_gradients(live.loaded, weights, micro_batches, scale=1 / positions)
    products = (
        float((weight.float() * gradient).abs().sum(dtype=torch.float64))
        for weight, gradient in zip(weights, gradients, strict=True)
    )
    return {name: sum(next(products) for _ in of_sublayer) for name, of_sublayer in kept.items()}
