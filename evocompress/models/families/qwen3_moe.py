"""Qwen3's mixtures of experts, such as Qwen3-30B-A3B."""

from evocompress.models.families.mixture import Mixture
from evocompress.models.families.mixture_family import MixtureFamily


class Qwen3Moe(MixtureFamily):
    """Qwen3's attention, and a mixture of many narrow experts in each block."""

    model_type = "qwen3_moe"
    mixture = Mixture("num_experts")
