"""Qwen2 and Qwen2.5."""

from evocompress.models.families.base import Family


class Qwen2(Family):
    """Llama's layout with biases on query, key and value; upper blocks may use a window."""

    model_type = "qwen2"
