"""Tiny random models of any type, as their configs are by default."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedModel

from evocompress.models.families import family_of
from evocompress.models.families.base import prepare
from evocompress.models.families.derivation.defaults import default_config
from evocompress.models.families.derivation.from_config import class_for, language_class
from evocompress.models.families.derivation.purpose import tiny_batch
from evocompress.models.families.derivation.shrink import SHARED_LAYERS, TRIES, random_model, shrunk
from evocompress.models.families.uneven import text_config
from evocompress.models.loading import LoadedModel, loaded
from evocompress.models.tasks import CAUSAL, Task
from evocompress.testing.tiny import tiny_tokenizer

LAYERS = 3
"""Of a model; one whose first layers are of fewer kinds than it has needs more."""

SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "albert": {"num_hidden_groups": 4, "num_hidden_layers": 6},
    "deberta-v2": {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
    "deepseek_v3": {"first_k_dense_replace": 1},
    "zamba": {
        "layers_block_type": ["hybrid", "linear_attention", "hybrid"],
        "num_hidden_layers": 3,
    },
    "zamba2": {
        "layers_block_type": ["hybrid", "linear_attention", "hybrid"],
        "num_hidden_layers": 3,
        "num_mem_blocks": 1,
    },
    "bamba": {"attn_layer_indices": [1]},
    "granitemoehybrid": {"layer_types": ["mamba", "attention", "mamba"]},
    "lfm2": {"layer_types": ["conv", "full_attention", "conv"]},
    "nemotron_h": {"layers_block_type": ["linear_attention", "mlp", "full_attention"]},
    "nemotron_h with experts": {
        "layers_block_type": ["full_attention", "moe", "mlp", "moe"],
        "moe_latent_size": 64,
    },
    "gemma4_text": {"layer_types": ["sliding_attention", "full_attention", "full_attention"]},
    **dict.fromkeys(
        ("gemma4_text sharing", "gemma4_unified_text sharing"),
        {
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 2,
            "num_kv_shared_layers": 3,
            "use_double_wide_mlp": True,
        },
    ),
    "gemma4_text sharing one head": {
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "num_key_value_heads": 1,
        "num_kv_shared_layers": 2,
    },
    "gemma4_text with experts": {
        "layer_types": ["sliding_attention", "full_attention", "full_attention"],
        **{"enable_moe_block": True, "moe_intermediate_size": 24},
        **{"num_experts": 4, "top_k_experts": 2},
    },
    "laguna": {"num_attention_heads_per_layer": [48, 64, 48], "num_hidden_layers": 3},
    "mimo_v2_flash": {"layer_types": ["full_attention", "sliding_attention", "full_attention"]},
    "recurrent_gemma sharing one head": {"num_key_value_heads": 1},
    "smollm3": {"no_rope_layers": [1, 0, 1], "num_hidden_layers": 3},
    "qwen3_next": {"layer_types": ["linear_attention", "full_attention", "linear_attention"]},
}
"""What the configs of some types are told, so that few layers are of all kinds.

Behind the name of a type may stand what a variant of it does.
"""


def typical_config(name: str) -> Any:
    """The config of a type by default, but for `SETTINGS`."""
    settings: dict[str, Any] = {**SETTINGS.get(name, {})}
    if "layer_types" in settings:
        settings["num_hidden_layers"] = len(settings["layer_types"])
    return default_config(name.split()[0], **settings)


def typical_model(
    config: Any, layers: int | None = None, task: Task | None = None
) -> PreTrainedModel:
    """A random model in float64 on the CPU, prepared and ready to be run.

    Args:
        config: Of its type, perhaps of a model of several parts.
        layers: Number of layers, the first ones of the config's; by default a few, but all where
            the last ones read what others hand on, or several are one block.
        task: What the model is for; ``None``: to tell the next token.
    """
    model = running_model(config, layers, task)
    prepare(family_of(model), model)
    return model


def running_model(
    config: Any, layers: int | None = None, task: Task | None = None
) -> PreTrainedModel:
    """The same as its class makes it: the first of the small models that runs."""
    if layers is None:
        own = text_config(config)
        shared = any(getattr(own, key, 0) for key in (SHARED_LAYERS, "num_hidden_groups"))
        layers = own.num_hidden_layers if shared else LAYERS
    for heads, narrow_heads in TRIES:
        small = shrunk(config, layers, heads=heads, narrow_heads=narrow_heads)
        try:
            type(small).from_dict(small.to_dict())  # as it would be read from a checkpoint
            cls = class_for(config, task) if task else language_class(config)
            model = random_model(cls, small)
            model(**(task or CAUSAL).inputs(tiny_batch(task or CAUSAL, model)))
        except (RuntimeError, StrictDataclassError, TypeError, ValueError) as error:
            failure = error
        else:
            return model
    raise failure


def typical_loaded(config: Any, layers: int | None = None, task: Task | None = None) -> LoadedModel:
    """The same with a tokenizer, as `evocompress.models.loading.load` would give both."""
    model = typical_model(config, layers, task)
    tokenizer = tiny_tokenizer() if task is None or task.reads_text else None
    return loaded(model, tokenizer, f"tiny:{config.model_type}")
