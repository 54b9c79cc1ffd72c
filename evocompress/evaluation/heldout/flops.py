"""Floating-point operations that a model's forward pass really makes, counted by torch."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from evocompress.models.dummy_inputs import random_batch
from evocompress.models.tasks import CAUSAL, Task

_ATEN = torch.ops.aten

FUSED_ATTENTION = (
    _ATEN._scaled_dot_product_flash_attention_for_cpu,
    _ATEN._scaled_dot_product_flash_attention,
    _ATEN._scaled_dot_product_efficient_attention,
    _ATEN._scaled_dot_product_cudnn_attention,
)


def count_flops(model: PreTrainedModel, length: int, task: Task = CAUSAL) -> int:
    """Operations of a prefill of one sequence with all its outputs.

    A multiplication with its addition counts as two. Fused causal attention counts the pairs
    that are attended to; attention that is computed with an explicit mask counts all pairs.

    Args:
        model: The model as it is used.
        length: Tokens of the sequence; an image has as many as its size says.
        task: What the model is for.
    """
    batch = random_batch(task, model, 1, length)
    mapping = {kernel: _attention_flops for kernel in FUSED_ATTENTION}
    with torch.inference_mode(), FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        task.run(model, batch)
    return int(counter.get_total_flops())


def _attention_flops(
    query: torch.Size, key: torch.Size, value: torch.Size, *rest: Any, **_: Any
) -> int:
    """Of shapes (B, h, S, e): two products of S x S, or half of their pairs where causal."""
    batch, heads, queries, width = query
    keys = key[2]
    causal = any(flag is True for flag in rest)
    pairs = queries * (queries + 1) // 2 if causal else queries * keys
    return int(2 * batch * heads * pairs * (width + value[3]))
