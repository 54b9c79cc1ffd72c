"""Qwen3, the dense models."""

from evocompress.models.families.base import Family
from evocompress.models.families.headless import DecoderClassifier, DecoderEmbedding


class Qwen3(Family):
    """Llama's layout with norms on query and key, and a head size of its own."""

    model_type = "qwen3"


class Qwen3Classifier(DecoderClassifier, Qwen3):
    """The same body below a classifier: reward models and rerankers."""


class Qwen3Embedding(DecoderEmbedding, Qwen3):
    """The body alone, for embeddings."""
