"""Llama 1 to 3, SmolLM2 and everything else that calls itself ``llama``."""

from evocompress.models.families.base import Family
from evocompress.models.families.headless import DecoderClassifier, DecoderEmbedding


class Llama(Family):
    """The layout that `Family` describes (transformers ``LlamaForCausalLM``)."""

    model_type = "llama"


class LlamaClassifier(DecoderClassifier, Llama):
    """The same body below a classifier: reward models and rerankers."""


class LlamaEmbedding(DecoderEmbedding, Llama):
    """The body alone, for embeddings."""
