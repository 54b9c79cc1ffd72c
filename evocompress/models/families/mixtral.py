"""Mixtral 8x7B and its relatives."""

from evocompress.models.families.mixture import Mixture
from evocompress.models.families.mixture_family import MixtureFamily


class Mixtral(MixtureFamily):
    """Mistral's attention, and a mixture of experts in each block."""

    model_type = "mixtral"
    mixture = Mixture(
        "num_local_experts",
        stored_mlp="block_sparse_moe",
        stored={"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"},
    )
