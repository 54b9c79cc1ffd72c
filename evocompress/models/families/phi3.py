"""Phi-3 and Phi-4-mini."""

from copy import copy
from typing import Any

from torch import nn

from evocompress.core.widths import Widths
from evocompress.models.families.base import Family
from evocompress.models.families.branches import Attributes, Matrix, SubLayer, SubLayerName


class Phi3(Family):
    """Query, key and value are one matrix, and so are the MLP's gate and up projections."""

    model_type = "phi3"
    attention = SubLayer(
        matrices=(
            Matrix(
                "self_attn.qkv_proj", "attention", "attention_in", rows=("query", "key", "value")
            ),
            Matrix("self_attn.o_proj", "attention", "attention_out", columns=("query",)),
        ),
        identity_modules=("input_layernorm",),
        zero_module="self_attn",
    )
    mlp = SubLayer(
        matrices=(
            Matrix("mlp.gate_up_proj", "mlp", "mlp_in", rows=("channel", "channel")),
            Matrix("mlp.down_proj", "mlp", "mlp_out", columns=("channel",)),
        ),
        identity_modules=("post_attention_layernorm",),
        zero_module="mlp",
    )

    def narrowing(self, block: nn.Module, sublayer: SubLayerName, widths: Widths) -> Attributes:
        """The attention cuts its fused projection by the heads that its config names."""
        attributes = super().narrowing(block, sublayer, widths)
        if sublayer == "attention":
            core = self.attention.zero_module
            config: Any = copy(block.get_submodule(core).config)
            config.num_attention_heads = widths.heads
            attributes |= {(core, "config"): config, (core, "num_key_value_heads"): widths.kv_heads}
        return attributes
