"""Phi-3 and Phi-4-mini."""

from evocompress.families.base import Family, Matrix, SubLayer


class Phi3(Family):
    """Query, key and value are one matrix, and so are the MLP's gate and up projections."""

    model_type = "phi3"
    attention = SubLayer(
        matrices=(
            Matrix("self_attn.qkv_proj", "attention", "attention_in"),
            Matrix("self_attn.o_proj", "attention", "attention_out"),
        ),
        around=("input_layernorm",),
        core="self_attn",
    )
    mlp = SubLayer(
        matrices=(
            Matrix("mlp.gate_up_proj", "mlp", "mlp_in"),
            Matrix("mlp.down_proj", "mlp", "mlp_out"),
        ),
        around=("post_attention_layernorm",),
        core="mlp",
    )
