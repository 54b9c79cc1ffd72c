"""Qwen3, the dense models."""

from evocompress.models.families.base import Family


class Qwen3(Family):
    """Llama's layout with norms on query and key, and a head size of its own."""

    model_type = "qwen3"
