"""Whether a model's head is its embedding: what its tensors say, not what its config claims."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel

from evocompress.models.families.uneven import text_config


def settle_tying(model: PreTrainedModel) -> None:
    """Has a config say of the head what the model computes, since checkpoints are written by it.

    A checkpoint with a head of its own is computed with that head by transformers 5 even where the
    config says that head and embedding are one, as files of merged adapters do; and a head can be
    replaced in memory. A head that is equal to the embedding is made one with it where the config
    says so, and one that is the embedding is called tied. Without a head nothing is done.
    """
    head: Any = model.get_output_embeddings()
    if head is None:
        return
    embedding: Any = model.get_input_embeddings()
    # A model of several parts may say so in either, and other programs read either.
    configs = (model.config, text_config(model.config))
    tied = any(getattr(config, "tie_word_embeddings", False) for config in configs)
    if tied and torch.equal(head.weight, embedding.weight):
        head.weight = embedding.weight
    for config in configs:
        config.tie_word_embeddings = head.weight is embedding.weight
