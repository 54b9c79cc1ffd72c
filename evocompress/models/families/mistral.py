"""Mistral 7B and its relatives."""

from evocompress.models.families.base import Family


class Mistral(Family):
    """Llama's layout; where the config has a sliding window, every block uses it."""

    model_type = "mistral"
