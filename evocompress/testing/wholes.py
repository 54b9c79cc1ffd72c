"""Tiny models of several parts, which read text and images, and what they are called with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel

from evocompress.models.families.derivation.from_config import language_class
from evocompress.models.loading import LoadedModel, loaded
from evocompress.testing.tiny import tiny_tokenizer

IMAGE_TOKEN = 250
"""Stands for a part of an image; an image of these models has four."""

_TEXT = {
    **{"vocab_size": 256, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16},
    **{"max_position_embeddings": 128, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
}
_VISION = {
    **{"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "patch_size": 4},
    **{"num_attention_heads": 2, "image_size": 16},
}
_GRID = {
    **{"hidden_size": 32, "intermediate_size": 48, "depth": 2, "num_heads": 2, "patch_size": 4},
    **{"out_hidden_size": 64, "num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1]},
}
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "gemma3": {
        "text_config": _TEXT | {"sliding_window": 8, "query_pre_attn_scalar": 16},
        "vision_config": {"model_type": "siglip_vision_model"} | _VISION,
        "mm_tokens_per_image": 4,
        "image_token_index": IMAGE_TOKEN,
    },
    "qwen3_vl": {
        "text_config": _TEXT
        | {
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e4,
                "mrope_section": [4, 2, 2],
            }
        },
        "vision_config": _GRID,
        "image_token_id": IMAGE_TOKEN,
        **{"video_token_id": 251, "vision_start_token_id": 252, "vision_end_token_id": 253},
    },
    "mistral3": {
        "text_config": {"model_type": "mistral", "sliding_window": None} | _TEXT,
        "vision_config": {"model_type": "pixtral", "head_dim": 16} | _VISION,
        "image_token_index": IMAGE_TOKEN,
        "tie_word_embeddings": False,
    },
}
"""By model type."""


def tiny_whole(model_type: str) -> LoadedModel:
    """A random model of several parts in float32 on the CPU, with a tokenizer.

    Its language model has four blocks with 4 heads, 2 key-value heads and 128 channels.
    """
    return loaded(whole_model(model_type), tiny_tokenizer(), f"tiny:{model_type}")


def whole_model(model_type: str) -> PreTrainedModel:
    """The model alone, as transformers makes it."""
    config = AutoConfig.for_model(model_type, **SETTINGS[model_type])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: PreTrainedModel = language_class(config)(config).float().eval()
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.2)
    return model


def with_image(model_type: str) -> dict[str, Tensor]:
    """Arguments of such a model: text around one random image of 16 x 16 pixels."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 244, (1, 16), generator=generator)
    ids[0, 4:8] = IMAGE_TOKEN
    kinds = (ids == IMAGE_TOKEN).long()
    if model_type == "qwen3_vl":
        ids[0, 3] = 252
        patches = torch.randn(16, 96, generator=generator)
        grid = torch.tensor([[1, 4, 4]])
        return {
            **{"input_ids": ids, "pixel_values": patches, "image_grid_thw": grid},
            "mm_token_type_ids": kinds,
        }
    pixels = torch.randn(1, 3, 16, 16, generator=generator)
    own = {
        "gemma3": {"token_type_ids": kinds},
        "mistral3": {"image_sizes": torch.tensor([[16, 16]])},
    }
    return {"input_ids": ids, "pixel_values": pixels} | own[model_type]
