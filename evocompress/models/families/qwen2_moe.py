"""Qwen's mixtures of experts with a shared one: Qwen1.5-MoE-A2.7B and Qwen2-57B-A14B."""

from dataclasses import replace

from evocompress.models.families.branches import Matrix
from evocompress.models.families.mixture import Mixture
from evocompress.models.families.mixture_family import MixtureFamily

SHARED = "mlp.shared_expert"
"""The expert that every token passes."""


class Qwen2Moe(MixtureFamily):
    """Qwen2's attention, and a mixture in each block beside an expert that every token passes."""

    model_type = "qwen2_moe"
    mixture = Mixture("num_experts", shared_gate="mlp.shared_expert_gate")
    mlp = replace(
        MixtureFamily.mlp,
        matrices=(
            Matrix(f"{SHARED}.gate_proj", "mlp", "mlp_in", rows=("shared",)),
            Matrix(f"{SHARED}.up_proj", "mlp", "mlp_in", rows=("shared",)),
            Matrix(f"{SHARED}.down_proj", "mlp", "shared_out", columns=("shared",)),
            *MixtureFamily.mlp.matrices,
        ),
    )
