"""GPT-2 and its distillations."""

from functools import partial

from torch import nn
from transformers import PreTrainedModel

from evocompress.core.errors import ModelError
from evocompress.core.widths import Widths
from evocompress.models.families.base import Family
from evocompress.models.families.branches import Attributes, Matrix, SubLayer, SubLayerName

_matrix = partial(Matrix, transposed=True)


class GPT2(Family):
    """Matrices stored as (in, out) with biases; query, key and value are one."""

    model_type = "gpt2"
    layers_path = "transformer.h"
    norm_path = "transformer.ln_f"
    attention = SubLayer(
        matrices=(
            _matrix("attn.c_attn", "attention", "attention_in", rows=("query", "key", "value")),
            _matrix("attn.c_proj", "attention", "attention_out", columns=("query",)),
        ),
        identity_modules=("ln_1",),
        zero_module="attn",
    )
    mlp = SubLayer(
        matrices=(
            _matrix("mlp.c_fc", "mlp", "mlp_in", rows=("channel",)),
            _matrix("mlp.c_proj", "mlp", "mlp_out", columns=("channel",)),
        ),
        identity_modules=("ln_2",),
        zero_module="mlp",
    )

    def check(self, model: PreTrainedModel) -> None:
        """Refuse blocks with a third branch, cross-attention."""
        if model.config.add_cross_attention:
            raise ModelError(
                "this gpt2 model has cross-attention, which is not supported: "
                "use a decoder-only checkpoint (add_cross_attention false)"
            )

    def narrowing(self, block: nn.Module, sublayer: SubLayerName, widths: Widths) -> Attributes:
        """``Conv1D`` knows its outputs, and the attention where to cut them."""
        if sublayer == "mlp":
            return {("mlp.c_fc", "nf"): widths.channels}
        queries = widths.heads * widths.head_dim
        return {("attn", "split_size"): queries, ("attn.c_attn", "nf"): 3 * queries}
