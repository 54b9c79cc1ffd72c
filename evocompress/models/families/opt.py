"""OPT, except its 350m model."""

from torch import nn
from transformers import PreTrainedModel

from evocompress.core.errors import ModelError
from evocompress.core.widths import Widths
from evocompress.models.families.base import Family
from evocompress.models.families.branches import (
    Attributes,
    Matrix,
    SubLayer,
    SubLayerName,
    llama_attention,
)


class OPT(Family):
    """Biases everywhere, and an MLP without a module of its own: it lies in the block."""

    model_type = "opt"
    layers_path = "model.decoder.layers"
    norm_path = "model.decoder.final_layer_norm"
    attention = SubLayer(
        matrices=(
            *llama_attention().matrices[:3],
            Matrix("self_attn.out_proj", "attention", "attention_out", columns=("query",)),
        ),
        identity_modules=("self_attn_layer_norm",),
        zero_module="self_attn",
    )
    mlp = SubLayer(
        matrices=(
            Matrix("fc1", "mlp", "mlp_in", rows=("channel",)),
            Matrix("fc2", "mlp", "mlp_out", columns=("channel",)),
        ),
        identity_modules=("final_layer_norm", "fc1", "activation_fn"),
        zero_module="fc2",
    )

    def check(self, model: PreTrainedModel) -> None:
        """Refuse OPT-350m's layout: norms after the sum, and a projected embedding."""
        config = model.config
        projected = config.word_embed_proj_dim != config.hidden_size
        if not config.do_layer_norm_before or config._remove_final_layer_norm or projected:
            raise ModelError(
                "this opt model has norms after its sub-layers, no final norm or a projected "
                "embedding (as opt-350m), which is not supported: use another size of OPT"
            )

    def narrowing(self, block: nn.Module, sublayer: SubLayerName, widths: Widths) -> Attributes:
        """The attention knows its number of heads."""
        return {("self_attn", "num_heads"): widths.heads} if sublayer == "attention" else {}
