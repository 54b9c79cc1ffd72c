"""Gemma 2, and the text models of Gemma 3."""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from evocompress.families.base import Family
from evocompress.families.branches import llama_attention, llama_mlp


class Gemma2(Family):
    """Llama's matrices, a norm before and after each branch, and soft-capped logits.

    Blocks alternate between a window and full attention.
    """

    model_type = "gemma2"
    attention = llama_attention(around=("input_layernorm", "post_attention_layernorm"))
    mlp = llama_mlp(around=("pre_feedforward_layernorm", "post_feedforward_layernorm"))

    def outputs(self, model: PreTrainedModel, hidden: Tensor) -> Tensor:
        """The logits (..., V) of hidden states (..., H), soft-capped where the config says."""
        return _capped(model, super().outputs(model, hidden))

    def some_outputs(self, model: PreTrainedModel, hidden: Tensor, tokens: slice) -> Tensor:
        """The same of some tokens (..., v) only."""
        return _capped(model, super().some_outputs(model, hidden, tokens))


class Gemma3Text(Gemma2):
    """Gemma 2's layout; blocks with a window have rotary embeddings of their own."""

    model_type = "gemma3_text"


def _capped(model: PreTrainedModel, logits: Tensor) -> Tensor:
    cap = model.config.final_logit_softcapping
    return logits if cap is None else torch.tanh(logits / cap) * cap
