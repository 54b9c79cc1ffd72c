"""ModernBERT as a decoder (Weller et al. 2025, 2507.11412): Ettin's language models."""

from torch import Tensor
from transformers import PreTrainedModel

from evocompress.models.families import Family, Matrix, SubLayer


class ModernBertDecoder(Family):
    """Derivation does not find its logits: its head has two layers."""

    model_type = "modernbert-decoder"
    norm_path = "model.final_norm"
    attention = SubLayer(
        matrices=(
            Matrix("attn.q_proj", "attention", "attention_in", rows=("query",)),
            Matrix("attn.k_proj", "attention", "attention_in", rows=("key",)),
            Matrix("attn.v_proj", "attention", "attention_in", rows=("value",)),
            Matrix("attn.Wo", "attention", "attention_out", columns=("query",)),
        ),
        identity_modules=("attn_norm",),
        zero_module="attn",
    )
    mlp = SubLayer(
        matrices=(
            Matrix("mlp.Wi", "mlp", "mlp_in", rows=("channel", "channel")),
            Matrix("mlp.Wo", "mlp", "mlp_out", columns=("channel",)),
        ),
        identity_modules=("mlp_norm",),
        zero_module="mlp",
    )

    def outputs(self, model: PreTrainedModel, hidden: Tensor) -> Tensor:
        """The logits of hidden states."""
        logits: Tensor = model.get_output_embeddings()(model.get_submodule("lm_head")(hidden))
        return logits


MODERNBERT_DECODER = ModernBertDecoder()
