"""What families have in common whose MLPs are mixtures of experts."""

from __future__ import annotations

from typing import ClassVar

from transformers import PreTrainedModel

from evocompress.core.errors import ModelError
from evocompress.models.families.base import Family
from evocompress.models.families.branches import Matrix, SubLayer
from evocompress.models.families.mixture import FIRST, Mixture


class MixtureFamily(Family):
    """Llama's attention, and an MLP that is a mixture of experts in every block."""

    mixture: ClassVar[Mixture]
    mlp: SubLayer = SubLayer(
        matrices=(
            Matrix(f"{FIRST}.gate_proj", "mlp", f"{FIRST}.in", rows=("channel",), expert=FIRST),
            Matrix(f"{FIRST}.up_proj", "mlp", f"{FIRST}.in", rows=("channel",), expert=FIRST),
            Matrix(f"{FIRST}.down_proj", "mlp", f"{FIRST}.out", columns=("channel",), expert=FIRST),
        ),
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
