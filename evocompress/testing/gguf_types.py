"""Tiny models of the types that llama.cpp knows, with the settings that it was tried with."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from evocompress.core.types import DROP, Level
from evocompress.export.gguf_architectures import ARCHITECTURES, UNEVEN, LlamaCpp, architecture_of
from evocompress.export.gguf_language import language_type
from evocompress.export.gguf_latent import is_latent
from evocompress.models.families.uneven import text_config
from evocompress.models.loading import LoadedModel
from evocompress.models.tasks import CAUSAL
from evocompress.testing.derived import typical_config, typical_loaded
from evocompress.testing.formats import LevelsByEnd

LAYERS = 5
"""Of a model; more where every fourth layer computes otherwise."""

WINDOW = 8
"""Tokens of attention windows: fewer than in the prompts."""

LINEAR, FULL = "linear_attention", "full_attention"

GRANITE = {
    "embedding_multiplier": 6.0,
    "logits_scaling": 3.0,
    "residual_multiplier": 0.4,
    "attention_multiplier": 0.15,
}

YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}
YARN |= {"original_max_position_embeddings": 64, "mscale": 0.7, "mscale_all_dim": 0.7}

NEMOTRON_MIXTURE = {
    "layers_block_type": [LINEAR, "moe", FULL, "moe", LINEAR, FULL, "moe"],
    "time_step_min": 1e-6,
    "routed_scaling_factor": 2.5,
}

GROWING = YARN | {"original_max_position_embeddings": 8, "mscale": 1.0, "mscale_all_dim": 1.0}
GROWING |= {"llama_4_scaling_beta": 0.3}

SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "dbrx": {"attn_config.clip_qkv": 0.5, "ffn_config.moe_top_k": 2},
    "mpt clipped": {"attn_config.clip_qkv": 0.5},
    "ministral3": {"rope_parameters": GROWING},
    "deepseek_v2 lite": {"num_hidden_layers": 27, "q_lora_rank": None},
    "deepseek_v3 yarn": {"rope_parameters": YARN},
    "falcon_h1": {
        **{"embedding_multiplier": 5.0, "lm_head_multiplier": 0.3, "key_multiplier": 2.0},
        **{"attention_in_multiplier": 0.7, "attention_out_multiplier": 0.8},
        **{"ssm_in_multiplier": 1.2, "ssm_out_multiplier": 0.6, "mlp_multipliers": [0.9, 0.4]},
        **{"ssm_multipliers": [0.5, 0.6, 0.7, 0.8, 0.9], "mamba_n_groups": 2},
    },
    "granite": GRANITE,
    "granitemoehybrid": GRANITE | {"layer_types": [LINEAR, LINEAR, FULL, LINEAR, FULL]},
    **dict.fromkeys(("lfm2", "lfm2_moe"), {"layer_types": ["conv", "conv", FULL, "conv", FULL]}),
    "gemma4_text mixture": {
        **{"num_kv_shared_layers": 0, "attention_k_eq_v": True, "hidden_size_per_layer_input": 0},
        **{"enable_moe_block": True, "moe_intermediate_size": 24},
        **{"num_experts": 4, "top_k_experts": 2, "final_logit_softcapping": 20.0},
    },
    "exaone4": {"sliding_window": None},
    "exaone4 windowed": {
        "sliding_window": WINDOW,
        "layer_types": (["sliding_attention"] * 3 + [FULL]) * 16,
    },
    "glm4_moe": {"head_dim": 16, "use_qk_norm": True},
    **dict.fromkeys(("glm4_moe plain", "glm4v_moe_text"), {"head_dim": 16}),
    **dict.fromkeys(
        ("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text"),
        {"layer_types": [LINEAR, FULL, LINEAR, FULL, LINEAR]},
    ),
    "mamba2": {"n_groups": 1},
    "nemotron_h": {
        "layers_block_type": [LINEAR, "mlp", FULL, "mlp", LINEAR, FULL, LINEAR],
        "time_step_min": 1e-6,  # shorter ones are lengthened in prompts, and not by llama.cpp
    },
    "nemotron_h mixture": NEMOTRON_MIXTURE | {"moe_latent_size": None},
    "nemotron_h latent mixture": NEMOTRON_MIXTURE | {"moe_latent_size": 64},
    "qwen3": {"tie_word_embeddings": True},
}
"""What makes models of a type as they are published, or writable with layers that differ.

Behind the name of a type may stand what a variant of it does.
"""

TYPICAL = {name: f"{name} sharing" for name in ("gemma4_text", "gemma4_unified_text")}
"""Variants of `evocompress.testing.derived` that are taken."""

NUMBERED = ("qwen3_omni_moe_text", "qwen3_vl_moe_text", "qwen3_vl_text")
"""Types to whose first blocks by number parts of images are added."""

WITHOUT_CHANNELS = ("bloom", "dbrx", "llama4_text", "mpt", "hunyuan_v1_moe")
"""Types whose configs do not say how many channels there are."""

ALONE = tuple(name for name in ARCHITECTURES if name in CAUSAL.classes)
"""Types of language models that have a class of their own."""

WHOLES = (
    *("aya_vision", "exaone4_5", "gemma3", "gemma4", "gemma4_unified", "glm4v", "glm4v_moe"),
    *("glm_ocr", "granite_speech", "idefics2", "internvl", "kimi_k25", "lfm2_vl"),
    *("lighton_ocr", "llama4", "llava", "mistral3", "paddleocr_vl", "qwen2_5_omni_thinker"),
    *("qwen2_5_vl", "qwen2_vl", "qwen3_5", "qwen3_5_moe", "qwen3_omni_moe_thinker", "qwen3_vl"),
)
"""Types of models of several parts, one at least for each type of language model within."""

VARIANTS = tuple(name for name in SETTINGS if " " in name)


def gguf_loaded(name: str, **settings: Any) -> LoadedModel:
    """A model in float32 that can be written as a GGUF file, unless other settings prevent it."""
    model_type = name.split()[0]
    config: Any = typical_config(TYPICAL.get(model_type, model_type))
    whole = text_config(config) is not config
    loaded = _whole(config, settings) if whole else _alone(name, config, settings)
    loaded.model.float()
    # llama.cpp wants certain tokens of a model in whose name there is "phi3".
    return replace(loaded, source="tiny")


def _whole(config: Any, settings: Mapping[str, Any]) -> LoadedModel:
    """A model of several parts, whose language model is one that can be written."""
    own = text_config(config)
    part = next(key for key in config.sub_configs if getattr(config, key) is own)
    name = own.model_type
    text = typical_config(TYPICAL.get(name, name))
    layers = _set(name, text, settings)
    setattr(config, part, text)
    return typical_loaded(config, None if name in TYPICAL else layers)


def _alone(name: str, config: Any, settings: Mapping[str, Any]) -> LoadedModel:
    """A language model."""
    layers = _set(name, config, settings)
    return typical_loaded(config, None if name.split()[0] in TYPICAL else layers)


def _set(name: str, config: Any, settings: Mapping[str, Any]) -> int:
    """Gives a config of a language model what makes it writable; returns how many layers it has."""
    model_type = name.split()[0]
    known = ARCHITECTURES.get(model_type, LlamaCpp(model_type))
    layers = 2 * known.unrotated or LAYERS
    for setting, value in known.settings.items():
        setattr(config, setting, value)
    kinds = getattr(config, "layer_types", None)
    if known.unrotated:
        config.num_hidden_layers = layers
        config.no_rope_layers = [int((i + 1) % known.unrotated > 0) for i in range(layers)]
        config.layer_types = ["full_attention"] * layers
    elif kinds and known.windowed:
        config.sliding_window = WINDOW
    elif kinds and "sliding_attention" in kinds:
        config.layer_types = ["full_attention"] * len(kinds)
    for setting, value in {**SETTINGS.get(name, {}), **settings}.items():
        path, _, key = setting.rpartition(".")
        setattr(getattr(config, path) if path else config, key, value)
        if setting in ("layer_types", "layers_block_type"):
            layers = config.num_hidden_layers = len(value)
        elif setting == "num_hidden_layers":
            layers = value
    return layers


def every_gguf_levels(loaded: LoadedModel) -> list[LevelsByEnd]:
    """None, and those with which layers are alike and differ, where a type can be written so."""
    kind = language_type(loaded)
    alike = [gguf_levels(loaded)] if kind in ARCHITECTURES else []
    return [{}, *alike, *([uneven_gguf_levels(loaded)] if kind in UNEVEN else [])]


def gguf_levels(loaded: LoadedModel) -> LevelsByEnd:
    """A block less and a third of a matrix zero; one width for all MLPs where its class can."""
    known = ARCHITECTURES[language_type(loaded)]
    mixed = known.dense_first  # such layers have MLPs of two kinds
    last = len(loaded.family.blocks(loaded.model)) - 1
    gone = {last if known.unrotated else 1 + mixed}
    if language_type(loaded) in NUMBERED or known.windowed_at == last + 1:
        gone = set()
    levels = _droppable(loaded, {str(index): DROP for index in gone})
    if is_latent(text_config(loaded.model.config)):
        levels |= {f"{i}.attention": Level(kv_groups=2, group_heads=1) for i in range(last + 1)}
    if language_type(loaded) not in WITHOUT_CHANNELS and not mixed:
        mlps = (i for i in range(last + 1) if "mlp" in loaded.family.at(i).sublayers)
        # With 16 two of Gemma 4's logits are as near to each other as half precision, in which
        # llama.cpp computes GELU.
        width = 20 if getattr(loaded.model.config, "enable_moe_block", False) else 16
        levels |= {f"{i}.mlp": Level(channels=width) for i in mlps}
    return levels


def uneven_gguf_levels(loaded: LoadedModel) -> LevelsByEnd:
    """Heads, groups and channels that differ; each sub-layer missing once, and a block."""
    architecture = loaded.family.architecture(loaded.model)
    own = ARCHITECTURES.get(language_type(loaded))
    if own is not None and own.differing:
        return _differing_levels(loaded, architecture_of(loaded, alike=True).differing)
    within = architecture.heads[0] // architecture.kv_heads[0]
    levels = {
        "0.mlp": DROP,
        "1.attention": Level(kv_groups=1, group_heads=within),
        "1.mlp": Level(channels=24),
        "2": DROP,
        "3.attention": DROP,
        "4.mlp": Level(channels=40),
    }
    if within > 1:
        levels["4.attention"] = Level(kv_groups=architecture.kv_heads[0], group_heads=1)
    return _droppable(loaded, levels)


def _droppable(loaded: LoadedModel, levels: LevelsByEnd) -> LevelsByEnd:
    """The levels without drops of what cannot be dropped."""
    units, path = loaded.family.units(loaded.model), loaded.family.layers_path
    able = {unit.name for unit in units if unit.droppable}
    return {
        name: level for name, level in levels.items() if not level.drop or f"{path}.{name}" in able
    }


def _differing_levels(loaded: LoadedModel, differing: Collection[str]) -> LevelsByEnd:
    """Of a hybrid, a block less, and all sub-layers that may differ narrowed otherwise."""
    each = [loaded.family.at(i) for i in range(len(loaded.family.blocks(loaded.model)))]
    levels: LevelsByEnd = {"0": DROP}
    attentions = [i for i, block in enumerate(each) if block.attends]
    for keys, i in enumerate(attentions, start=1):
        levels[f"{i}.attention"] = Level(kv_groups=keys, group_heads=1)
    mlps = [i for i, block in enumerate(each) if "mlp" in block.sublayers]
    if "mlp" in differing:
        levels |= {f"{i}.mlp": Level(channels=16 * n) for n, i in enumerate(mlps, start=1)}
    return levels
