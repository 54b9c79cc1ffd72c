"""Configs of types as they are by default, with what every checkpoint says and some leave open."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import CONFIG_MAPPING

NO_IMAGES = {"vocabulary_map": {"<image>": 4}}
"""The tokens of images by name, in which their classes look one up as they are made."""

ROTARY = {"rope_type": "default", "rope_theta": 10000.0}

SLIDING = {
    "layer_types": ["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"]
    * 10,
    "rope_parameters": {"sliding_attention": ROTARY, "full_attention": ROTARY},
}

INDEXER = {
    **{"indexer_n_heads": 16, "indexer_kv_heads": 1, "indexer_head_dim": 256},
    **{"indexer_budget": 2048, "indexer_compress_ratio": 16},
}

LEFT_OPEN: Mapping[str, Mapping[str, Any]] = {
    "chameleon": NO_IMAGES,
    # The class reads rotary settings by type of layer, and the config makes them for all at once.
    "cohere_compass": {"text_config": SLIDING},
    "cohere_compass_text": SLIDING,
    # The class reads a setting that the config of the attention does not have, and a bound.
    "dbrx": {"attn_config": {"rope_theta": 10000.0, "clip_qkv": 8, "kv_n_heads": 8}},
    # No type of MLP is told by default, and the class looks one up for each layer.
    "deepseek_ocr2": {
        "text_config": {"mlp_layer_types": ["dense"] + ["sparse"] * 31, "num_experts_per_tok": 6}
    },
    # The numbers of experts are open.
    "dots1": {"n_routed_experts": 128, "n_shared_experts": 2, "num_experts_per_tok": 6}
    | {"first_k_dense_replace": 1},
    "emu3": NO_IMAGES,
    # Height, width and time in an order of its own.
    "ernie4_5_vl_moe": {
        "text_config": {"rope_parameters": {**ROTARY, "mrope_section": [22, 22, 20]}}
    },
    # The number of amino acids and other tokens is open.
    "esm": {"vocab_size": 33, "pad_token_id": 1, "mask_token_id": 32},
    # Which layers read which states of the tower of images is open.
    "granite4_vision": {
        "deepstack_layer_map": [[-1, 0], [-2, 4], [-3, 8], [-4, 12]],
        "downsample_rate": "4/8",
    },
    # No type of layer is told by default, and the class looks one up for each.
    "lfm2_moe": {"layer_types": ["conv", "conv", "full_attention", "conv"] * 8},
    # Every full attention has an indexer, whose sizes are open.
    "qwen4_exp": {"text_config": INDEXER},
    "qwen4_exp_text": INDEXER,
    # Masks of windows are made, whose size is open.
    "step3p7": {"text_config": {"sliding_window": 512}},
}
"""By type what its class needs and its default config leaves open."""


def default_config(model_type: str, **settings: Any) -> Any:
    """The config of a type by default, but for what is told and what no model is made without."""
    return CONFIG_MAPPING[model_type](**{**LEFT_OPEN.get(model_type, {}), **settings})
