"""The logits of a causal language model: its head, and what some models bound them by."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


def logits_of(
    model: PreTrainedModel, hidden: Tensor, cap_key: str = "", tokens: slice | None = None
) -> Tensor:
    """The logits (..., V) of final hidden states (..., H), or (..., v) those of some tokens only.

    `cap_key` is the key of the model's config with the bound towards which logits are soft-capped;
    empty where there is none.
    """
    head = model.get_output_embeddings()
    if tokens is None:
        logits: Tensor = head(hidden)
    else:
        bias = None if head.bias is None else head.bias[tokens]
        logits = nn.functional.linear(hidden, head.weight[tokens], bias)
    cap = getattr(model.config, cap_key) if cap_key else None
    return logits if cap is None else torch.tanh(logits / cap) * cap
