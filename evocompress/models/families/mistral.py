"""Mistral 7B and its relatives."""

from evocompress.models.families.base import Family
from evocompress.models.families.headless import DecoderClassifier, DecoderEmbedding


class Mistral(Family):
    """Llama's layout; where the config has a sliding window, every block uses it."""

    model_type = "mistral"


class MistralClassifier(DecoderClassifier, Mistral):
    """The same body below a classifier: reward models and rerankers."""


class MistralEmbedding(DecoderEmbedding, Mistral):
    """The body alone, for embeddings."""
