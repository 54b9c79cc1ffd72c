"""What programs ask of a model that they run as a Llama whose layers differ."""

from __future__ import annotations

from evocompress.export.layout import Layout, second_round
from evocompress.models.families.shapes import attention_windows
from evocompress.models.families.uneven import text_config
from evocompress.models.loading import LoadedModel

LLAMA_LIKE = ("llama", "mistral", "qwen2", "ministral", "internlm3", "iquestcoder")
"""Types with Llama's blocks, biases apart. Others have norms of queries and keys, more norms or
other activations."""


def unlike_llama(loaded: LoadedModel, language: str) -> str | None:
    """The obstacle of a model that has other blocks than Llama's; `language` is its type."""
    family, config = loaded.family.model_type, text_config(loaded.model.config)
    if compressed := second_round(loaded):
        return compressed
    if not loaded.family.task.causal:
        return f"cannot hold {family} models for {loaded.family.task.name}, only language models"
    if language not in LLAMA_LIKE:
        return f"cannot hold {family} models, only {', '.join(LLAMA_LIKE)}"
    if config.hidden_act != "silu":
        return f"cannot hold this {family} model, whose activation is {config.hidden_act}"
    windows = attention_windows(config, config.num_hidden_layers)
    narrowest = min((window for window in windows if window), default=None)
    if narrowest is not None and narrowest < config.max_position_embeddings:
        return f"cannot hold this {family} model, whose attention window is {narrowest} tokens"
    return None


def first_without_attention(left: Layout, program: str) -> str | None:
    """The obstacle of a model whose first layer would have no attention."""
    first = left.kept[0]
    if "attention" not in first.dropped:
        return None
    name = f"{left.path}.{first.index}.attention"
    return f"cannot leave out {name}, because {program} needs one in the first layer"
