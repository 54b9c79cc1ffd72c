"""StarCoder2."""

from evocompress.models.families.base import Family
from evocompress.models.families.branches import Matrix, SubLayer


class Starcoder2(Family):
    """Llama's layout with biases, norms of mean and variance, and an MLP without a gate."""

    model_type = "starcoder2"
    mlp = SubLayer(
        matrices=(
            Matrix("mlp.c_fc", "mlp", "mlp_in", rows=("channel",)),
            Matrix("mlp.c_proj", "mlp", "mlp_out", columns=("channel",)),
        ),
        identity_modules=("post_attention_layernorm",),
        zero_module="mlp",
    )
