"""Qwen2 and Qwen2.5."""

from evocompress.models.families.base import Family
from evocompress.models.families.headless import DecoderClassifier, DecoderEmbedding


class Qwen2(Family):
    """Llama's layout with biases on query, key and value; upper blocks may use a window."""

    model_type = "qwen2"


class Qwen2Classifier(DecoderClassifier, Qwen2):
    """The same body below a classifier: reward models and rerankers."""


class Qwen2Embedding(DecoderEmbedding, Qwen2):
    """The body alone, for embeddings."""
