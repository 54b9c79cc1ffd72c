"""Model families: one interface (`base.Family`), one small file per family."""

from transformers import PreTrainedModel

from evocompress.errors import ModelError
from evocompress.families.base import Family, Matrix, SubLayer, SubLayerName
from evocompress.families.gemma import Gemma2, Gemma3Text
from evocompress.families.gpt2 import GPT2
from evocompress.families.llama import Llama
from evocompress.families.mistral import Mistral
from evocompress.families.opt import OPT
from evocompress.families.phi3 import Phi3
from evocompress.families.qwen2 import Qwen2
from evocompress.families.qwen3 import Qwen3

__all__ = [
    "FAMILIES",
    "Family",
    "Matrix",
    "SubLayer",
    "SubLayerName",
    "family_named",
    "family_of",
]

FAMILIES: dict[str, Family] = {
    "llama": Llama(),
    "mistral": Mistral(),
    "qwen2": Qwen2(),
    "qwen3": Qwen3(),
    "phi3": Phi3(),
    "gemma2": Gemma2(),
    "gemma3_text": Gemma3Text(),
    "gpt2": GPT2(),
    "opt": OPT(),
}


def family_of(model: PreTrainedModel) -> Family:
    """The family that serves a model.

    Raises:
        ModelError: No family serves the model's type, or not in this variant.
    """
    family = family_named(model.config.model_type)
    family.check(model)
    return family


def family_named(model_type: str) -> Family:
    """The family that serves a model type.

    Raises:
        ModelError: None does.
    """
    if model_type not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise ModelError(f"models of type {model_type!r} are not supported; supported: {known}")
    return FAMILIES[model_type]
