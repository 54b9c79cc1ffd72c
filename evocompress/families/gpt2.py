"""GPT-2 and its distillations."""

from transformers import PreTrainedModel

from evocompress.errors import ModelError
from evocompress.families.base import Family, Matrix, SubLayer


class GPT2(Family):
    """Matrices stored as (in, out) with biases; query, key and value are one."""

    model_type = "gpt2"
    layers_path = "transformer.h"
    norm_path = "transformer.ln_f"
    attention = SubLayer(
        matrices=(
            Matrix("attn.c_attn", "attention", "attention_in", transposed=True),
            Matrix("attn.c_proj", "attention", "attention_out", transposed=True),
        ),
        around=("ln_1",),
        core="attn",
    )
    mlp = SubLayer(
        matrices=(
            Matrix("mlp.c_fc", "mlp", "mlp_in", transposed=True),
            Matrix("mlp.c_proj", "mlp", "mlp_out", transposed=True),
        ),
        around=("ln_2",),
        core="mlp",
    )

    def check(self, model: PreTrainedModel) -> None:
        """Refuse blocks with a third branch, cross-attention."""
        if model.config.add_cross_attention:
            raise ModelError(
                "this gpt2 model has cross-attention, which is not supported: "
                "use a decoder-only checkpoint (add_cross_attention false)"
            )
