"""The logits of a causal language model: its head, and what some models scale or bound them by."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from evocompress.models.families.uneven import text_config


class LogitKeys(NamedTuple):
    """Keys of a model's config with what its class makes of the products of the head.

    Attributes:
        cap: Of the bound towards which logits are soft-capped; empty where there is none.
        factors: Of what they are multiplied with before that.
        divisors: Of what they are divided by before that.
    """

    cap: str = ""
    factors: tuple[str, ...] = ()
    divisors: tuple[str, ...] = ()


def logits_of(
    model: PreTrainedModel,
    hidden: Tensor,
    keys: LogitKeys | None = None,
    tokens: slice | None = None,
) -> Tensor:
    """The logits (..., V) of final hidden states (..., H), or (..., v) those of some tokens only.

    Without `keys` they are what the head yields.
    """
    head = model.get_output_embeddings()
    if tokens is None:
        logits: Tensor = head(hidden)
    else:
        bias = None if head.bias is None else head.bias[tokens]
        logits = nn.functional.linear(hidden, head.weight[tokens], bias)
    keys, config = keys or LogitKeys(), text_config(model.config)
    for key in keys.factors:
        logits = logits * getattr(config, key)
    for key in keys.divisors:
        logits = logits / getattr(config, key)
    cap = getattr(config, keys.cap) if keys.cap else None
    return logits if cap is None else torch.tanh(logits / cap) * cap
