"""What families have in common whose MLPs are mixtures of experts."""

from __future__ import annotations

from transformers import PreTrainedModel

from evocompress.core.errors import ModelError
from evocompress.models.families.base import Family
from evocompress.models.families.branches import SubLayer
from evocompress.models.families.mixture import Mixture, expert_matrices


class MixtureFamily(Family):
    """Llama's attention, and an MLP that is a mixture of experts in every block.

    Such families are written by hand because format ``stock`` writes experts under the names that
    checkpoints of the type have for them (`Mixture.stored`), which its modules do not tell.
    """

    mixture: Mixture
    mlp: SubLayer = SubLayer(
        matrices=expert_matrices("mlp.experts.0"),
        identity_modules=("post_attention_layernorm",),
        zero_module="mlp",
    )

    def check(self, model: PreTrainedModel) -> None:
        """Refuse a model with an ordinary MLP among its mixtures."""
        for index, block in enumerate(self.blocks(model)):
            if hasattr(block.get_submodule(self.mlp.zero_module), "down_proj"):
                raise ModelError(
                    f"block {index} of this {self.model_type} model has an MLP without experts "
                    "(mlp_only_layers, decoder_sparse_step), which is not supported: all blocks "
                    "must be mixtures"
                )
