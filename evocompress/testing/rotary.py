"""Tiny models whose rotary embeddings have another base than 10,000, and every kind of scaling."""

from __future__ import annotations

from typing import Any

from evocompress.models.families.uneven import head_shape
from evocompress.models.loading import LoadedModel, loaded
from evocompress.testing.tiny import DECODERS, stock_model, tiny_tokenizer

BASE = 5000.0
FULL, WINDOWED = 70000.0, 3000.0
"""Bases of layers with full attention and of those with a window, where they differ."""

LENGTH = 16
"""The length that models with scaled embeddings were first trained with."""

KINDS: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": LENGTH,
    },
    "yarn": {
        "rope_type": "yarn",
        "factor": 4.0,
        "beta_fast": 4.0,
        "original_max_position_embeddings": LENGTH,
    },
    "longrope": {
        "rope_type": "longrope",
        "short_factor": [1.0 + 0.25 * place for place in range(8)],
        "long_factor": [2.0 + 0.5 * place for place in range(8)],
        "original_max_position_embeddings": LENGTH,
    },
}
"""The kinds of transformers, by name; factors are those of heads of 16."""


def rotary_families() -> tuple[str, ...]:
    """The decoders with rotary embeddings."""
    return tuple(name for name in DECODERS if name not in ("gpt2", "opt"))


def kinds_of(name: str) -> tuple[str, ...]:
    """The kinds that a family takes: Phi-3 knows only one of scaling."""
    return ("default", "longrope") if name == "phi3" else tuple(KINDS)


def rotary_loaded(name: str, kind: str, *, layers: int = 2) -> LoadedModel:
    """A random model of a family with rotary embeddings of a kind.

    Qwen2-MoE has no attention windows: transformers 4 knows only one for all layers.
    """
    model: Any = stock_model(name, layers=layers)
    config = model.config
    parameters = {"rope_theta": BASE} | KINDS[kind]
    pairs = head_shape(config, 0)[2] // 2
    for key in {"short_factor", "long_factor"} & parameters.keys():
        parameters[key] = [*parameters[key], *[8.0] * 8][:pairs]
    if "sliding_attention" in config.rope_parameters:
        parameters = {
            "full_attention": parameters | {"rope_theta": FULL},
            "sliding_attention": {"rope_type": "default", "rope_theta": WINDOWED},
        }
    settings = config.to_dict() | {"rope_parameters": parameters}
    if "head_dim" in settings:
        settings["head_dim"] = head_shape(config, 0)[2]
    if name == "qwen2_moe":
        windows = {"use_sliding_window": False, "sliding_window": None}
        settings |= windows | {"layer_types": ["full_attention"] * layers}
    if kind == "longrope":
        settings["original_max_position_embeddings"] = LENGTH
    rebuilt = type(model)(type(config).from_dict(settings))
    rebuilt.load_state_dict(model.state_dict())
    rebuilt.eval().requires_grad_(False)
    return loaded(rebuilt, tiny_tokenizer(), f"tiny:{name}")
