"""Llama 1 to 3, SmolLM2 and everything else that calls itself ``llama``."""

from evocompress.models.families.base import Family


class Llama(Family):
    """The layout that `Family` describes (transformers ``LlamaForCausalLM``)."""

    model_type = "llama"
