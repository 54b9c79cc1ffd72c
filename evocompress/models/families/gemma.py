"""Gemma 2, and the text models of Gemma 3."""

from evocompress.models.families.base import Family
from evocompress.models.families.branches import llama_attention, llama_mlp


class Gemma2(Family):
    """Llama's matrices, a norm before and after each branch, and soft-capped logits.

    Blocks alternate between a window and full attention.
    """

    model_type = "gemma2"
    attention = llama_attention(identity_modules=("input_layernorm", "post_attention_layernorm"))
    mlp = llama_mlp(identity_modules=("pre_feedforward_layernorm", "post_feedforward_layernorm"))
    cap_key = "final_logit_softcapping"


class Gemma3Text(Gemma2):
    """Gemma 2's layout; blocks with a window have rotary embeddings of their own."""

    model_type = "gemma3_text"
    two_way_key = "use_bidirectional_attention"
