"""A tiny random model of the class of a large one, with the same kinds of layers."""

from __future__ import annotations

import contextlib
import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from evocompress.models.config_keys import name_stages
from evocompress.models.families.derivation.parts import DEPTH, SIZE, USUAL_TOKENS, whole_of
from evocompress.models.families.uneven import HEADS_BY_LAYER, text_config

HEADS = 6
"""Query heads of a tiny model: all its sizes differ, so that a number tells its meaning."""

KV_HEADS = 2
"""Key-value heads of a tiny model whose query heads share them."""

CHANNELS = 88
"""Channels of its MLPs."""

EXPERTS = 4
"""Experts of its mixtures."""

GROUPED_EXPERTS = 10
"""The same where a router chooses a group of them first, in which some can be left out."""

EXPERT_CHANNELS = 24
"""Channels of an expert."""

VOCABULARY = 320
"""Tokens that it knows."""

CONTEXT = 256
"""Its longest sequence."""

PLAIN_HEADS = 8
"""The same where a model's classes split them into parts."""

TRIES = ((HEADS, True), (PLAIN_HEADS, True), (PLAIN_HEADS, False))
"""Heads, and whether they are narrowed, that are tried one after the other: some classes want a
power of two, or one width."""

HEAD_DIM = 16
"""Width of a head, where that of the config is a multiple."""

RANK = 12
"""Of matrices that are stored as the product of two."""

PATCHES = 3
"""Patches of an image in each direction."""

IMAGE = 64
"""Height and width of an image that is not read in patches."""

CHOSEN = 4
"""Tokens that an indexer chooses for each: fewer than a tiny model reads, so that it matters."""

STATE = 8
"""Numbers that a state space keeps for each channel."""

KV_KEYS = ("num_key_value_heads", "num_kv_heads")
HIDDEN_KEYS = ("hidden_size", "d_model", "n_embd", "dim", "emb_dim", "embedding_dim")
CHANNEL_KEYS = (
    *("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size", "decoder_ffn_dim", "dff"),
    *("dense_intermediate_size", "intermediate_size_mlp", "dim_ff", "hidden_dim"),
)
EXPERT_KEYS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
USED_EXPERTS_KEYS = ("num_experts_per_tok", "top_k_experts", "moe_topk")
CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len")
HIDDEN_KEYS_OF_PARTS = ("lru_width", "word_embed_proj_dim", "pooler_hidden_size")
"""Widths that are the hidden size in the models that have them."""

OF_PARTS = ("_multipliers", "_limit")
"""Ends of the names of lists with an entry for each part of a block, or with a lowest and a
highest number: those of Falcon-H1, and of the time steps of Mamba-2."""

SHARED_LAYERS = "num_kv_shared_layers"
"""How many of the last layers read keys and values of layers before them."""

STATE_HEADS = (
    ("mamba_n_heads", "mamba_d_head"),
    ("n_mamba_heads", "mamba_headdim"),
    ("mamba_num_heads", "mamba_head_dim"),
    ("num_heads", "head_dim"),
)
"""The keys of heads of a state space and of their width: together the expanded hidden size."""

SECTION = (16, 24, 24)
"""Rotary pairs for time, height and width, where a model with such does not tell them."""

SCORES_SCALE = "query_pre_attn_scalar"
"""The setting of what scores are divided by the root of: the width of a head in most models."""

OF_EXPERTS = re.compile(r".*(moe|expert|shared).*(intermediate|ffn_hidden)_size")
"""Channels of experts."""

NARROWED = re.compile(r"(.*_)?(head_?dim|rotary_dim|dim_head|kv_channels)")
"""Widths of heads and of parts of them, which keep their proportions."""


def shrunk(
    config: PreTrainedConfig, layers: int, *, heads: int = HEADS, narrow_heads: bool = True
) -> PreTrainedConfig:
    """A copy of a model's config in which all sizes are small, those of other parts as well.

    The kinds of layers, norms, activations, biases and whatever else tells how layers compute stay.

    Args:
        config: Of a language model, perhaps within a model of several parts.
        layers: How many of its first ones are kept.
        heads: Query heads.
        narrow_heads: Heads are narrowed as well; some numbers of rotary embeddings forbid that.
    """
    small = _shrunk_text(text_config(config), layers, heads, narrow_heads)
    whole: PreTrainedConfig = whole_of(config, small)
    # The kernels for all experts at once know no float64.
    whole._experts_implementation = "eager"
    # Some classes take the kernel of their attention from the config alone.
    whole._attn_implementation = "eager"
    return whole


def _shrunk_text(
    config: PreTrainedConfig, layers: int, heads: int, narrow_heads: bool
) -> PreTrainedConfig:
    """The same for a language model alone."""
    plain = without_overrides(config)
    small = copy.deepcopy(plain)
    for name, values in _lists(plain):
        setattr(small, name, values[:layers])
    sizes = _sizes(plain, layers, heads, narrow_heads)
    for name, value in sizes.items():
        # Some classes compute a size from others and refuse to be told.
        with contextlib.suppress(AttributeError):
            if hasattr(plain, name):
                setattr(small, name, value)
    if listed := getattr(small, HEADS_BY_LAYER, None):
        setattr(small, HEADS_BY_LAYER, _small_heads(plain, listed, sizes))
    _section(small, sizes["head_dim"])
    if config.is_heterogeneous:
        small.per_layer_config = {
            layer: _small_overrides(plain, config.per_layer_config[layer], values, sizes)
            for layer, values in config._heterogeneity_spec.per_layer_overrides.items()
            if layer < layers
        }
    # In float64 nothing is gained by a residual stream in float32.
    if hasattr(small, "residual_in_fp32"):
        small.residual_in_fp32 = False
    name_stages(small, layers)
    return small


def _small_heads(plain: Any, listed: Sequence[int], sizes: Mapping[str, Any]) -> list[int]:
    """Small numbers of query heads in about the proportions in which layers have them."""
    each = sizes["num_key_value_heads"]
    parts = (sizes["num_attention_heads"] * n / plain.num_attention_heads / each for n in listed)
    return [each * max(1, round(part)) for part in parts]


def _section(small: Any, head_dim: int) -> None:
    """Share, in place, the rotary pairs of a head among time, height and width as the model does.

    The default is a number of pairs, whatever the width of a head is.
    """
    if "mrope_section" not in getattr(small, "ignore_keys_at_rope_validation", ()):
        return
    rope = small.rope_parameters
    if "rope_type" in rope:
        small.rope_parameters = _sectioned(rope, head_dim)
    else:  # of each type of layer
        small.rope_parameters = {
            kind: _sectioned(own, head_dim) if isinstance(own, Mapping) else own
            for kind, own in rope.items()
        }


def _sectioned(rope: Mapping[str, Any], head_dim: int) -> dict[str, Any]:
    """Rotary settings with fewer pairs in about the same proportions; equal ones stay equal."""
    pairs = (int(head_dim * rope.get("partial_rotary_factor", 1)) + 1) // 2
    known = rope.get("mrope_section") or SECTION
    section = [count * pairs // sum(known) for count in known]
    odd = next((place for place, count in enumerate(known) if known.count(count) == 1), 0)
    section[odd] += pairs - sum(section)
    return {**rope, "mrope_section": section}


def without_overrides(config: PreTrainedConfig) -> PreTrainedConfig:
    """The settings of a config that hold for all layers unless some have their own."""
    plain = copy.deepcopy(config)
    if plain.is_heterogeneous:
        plain.per_layer_config = None
    return plain


def _small_overrides(
    plain: Any, own: Any, overrides: Mapping[str, Any], sizes: Mapping[str, Any]
) -> dict[str, Any]:
    """The small values of what a layer has otherwise than the others."""
    found = dict(overrides)
    of_layer = _sizes(own, 1, HEADS, narrow_heads=False)
    for name in overrides.keys() & of_layer.keys():
        found[name] = of_layer[name]
        if NARROWED.fullmatch(name):
            found[name] = overrides[name] * sizes[name] // getattr(plain, name)
    return found


def random_model(
    cls: type[PreTrainedModel], config: PreTrainedConfig, seed: int = 0
) -> PreTrainedModel:
    """A model in evaluation mode with random weights in float64, every part of which matters."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = cls(config)
    model.double().eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        if parameter.ndim == 1:
            parameter.add_(0.2 * noise)
        else:
            parameter.copy_(noise / parameter.shape[-1] ** 0.5)
    stored = model.state_dict().keys()
    for name, buffer in model.named_buffers():
        if name in stored and buffer.is_floating_point():
            noise = 0.2 * torch.randn(buffer.shape, generator=generator, dtype=buffer.dtype)
            # Where values differ they were computed, and belong together.
            buffer.add_(noise if buffer.unique().numel() <= 1 else 0)
    found: PreTrainedModel = model
    return found


def _lists(config: PreTrainedConfig) -> Iterator[tuple[str, Any]]:
    """The settings with an entry for each layer."""
    layers = getattr(config, "num_hidden_layers", None)
    for name, value in vars(config).items():
        of_layers = isinstance(value, list | tuple) and len(value) == layers
        if of_layers and not name.endswith(OF_PARTS):
            yield name, value


def _sizes(config: Any, layers: int, heads: int, narrow_heads: bool) -> dict[str, Any]:
    """The small value of each setting that is a size."""
    counted = getattr(config, "num_attention_heads", None)
    dense_heads = counted or HEADS
    dense_hidden = getattr(config, "hidden_size", None) or 0
    # Even, as rotary embeddings want, also where heads do not divide the hidden size.
    plain_dim = dense_hidden // dense_heads // 2 * 2 if counted else HEAD_DIM
    head_dim = getattr(config, "head_dim", None) or plain_dim
    kv_heads = next((getattr(config, key) for key in KV_KEYS if hasattr(config, key)), None)
    kv_heads = {1: 1, None: heads, dense_heads: heads}.get(kv_heads, KV_HEADS)
    own_size = bool(getattr(config, "head_dim", None)) and dense_heads * head_dim != dense_hidden
    widths = _head_widths(config, head_dim) if narrow_heads else {"head_dim": head_dim}
    hidden = (heads - own_size) * widths["head_dim"]
    sizes: dict[str, Any] = {
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        **dict.fromkeys(KV_KEYS, kv_heads),
        "num_experts_per_tok": 2,
        **USUAL_TOKENS,
        **widths,
    }
    for keys, size in (
        ((*HIDDEN_KEYS, *HIDDEN_KEYS_OF_PARTS), hidden),
        (CONTEXT_KEYS, CONTEXT),
        (("vocab_size", "vocab_size_per_layer_input", "entity_vocab_size"), VOCABULARY),
        (("hidden_size_per_layer_input", "moe_latent_size"), RANK),
        (CHANNEL_KEYS, CHANNELS),
        (filter(OF_EXPERTS.fullmatch, vars(config)), EXPERT_CHANNELS),
        (EXPERT_KEYS, EXPERTS),
        ([name for name in vars(config) if name.endswith("_rank")], RANK),
        ([name for name in vars(config) if name.endswith("state_size")], STATE),
        (("index_topk",), CHOSEN),
        (("index_kpool",), CHOSEN),
    ):
        sizes |= {key: size for key in keys if _is_size(getattr(config, key, None))}
    used = {key: getattr(config, key, None) for key in USED_EXPERTS_KEYS}
    sizes |= {key: min(2, count) for key, count in used.items() if count and _is_size(count)}
    sizes |= _same_sizes(config, sizes, dense_hidden, hidden)
    if shared := getattr(config, SHARED_LAYERS, 0):  # the last ones
        sizes[SHARED_LAYERS] = max(0, shared - config.num_hidden_layers + layers)
    if hasattr(config, "coordinate_size"):  # four coordinates and two lengths, side by side
        sizes["coordinate_size"], sizes["shape_size"] = hidden // 6, hidden // 2 - 2 * (hidden // 6)
    if getattr(config, SCORES_SCALE, None) == head_dim:
        sizes[SCORES_SCALE] = widths["head_dim"]
    if own := getattr(config, "attention_hidden_size", 0):  # the state beside the embedding
        sizes["attention_hidden_size"] = own // dense_hidden * hidden
    if (getattr(config, "n_group", None) or 1) > 1:  # a router that chooses groups of experts first
        sizes |= {"n_group": 2, "topk_group": 1}
        sizes |= {key: GROUPED_EXPERTS for key in EXPERT_KEYS if key in sizes}
    image, patch = getattr(config, "image_size", None), getattr(config, "patch_size", None)
    if image and _is_size(image) and not patch:
        sizes["image_size"] = min(image, IMAGE)
    if image and patch:
        sides = [PATCHES * size for size in (patch if _is_list(patch) else [patch, patch])]
        sizes["image_size"] = sides if _is_list(image) else sides[0]
    return sizes | _state_heads(config, hidden)


def _same_sizes(
    config: Any, known: Mapping[str, Any], dense_hidden: int, hidden: int
) -> dict[str, int]:
    """The settings of other names that are the hidden size or the number of layers."""
    numbers = {SIZE: (dense_hidden, hidden)}
    numbers[DEPTH] = (getattr(config, "num_hidden_layers", 0), known["num_hidden_layers"])
    return {
        name: small
        for pattern, (large, small) in numbers.items()
        for name, value in vars(config).items()
        if name not in known and _is_size(value) and value == large and pattern.fullmatch(name)
    }


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _is_size(value: Any) -> bool:
    return type(value) is int and value > 0


def _head_widths(config: Any, head_dim: int) -> dict[str, int]:
    """Widths of heads and of their parts, all by the same factor smaller."""
    factor = max(1, head_dim // HEAD_DIM) if head_dim % HEAD_DIM == 0 else 1
    widths = {
        name: max(4, value // factor // 2 * 2)
        for name, value in vars(config).items()
        if NARROWED.fullmatch(name) and type(value) is int and value
    }
    widths["head_dim"] = head_dim // factor
    if {"qk_nope_head_dim", "qk_rope_head_dim"} <= widths.keys():
        widths["qk_head_dim"] = widths["qk_nope_head_dim"] + widths["qk_rope_head_dim"]
    return widths


def _state_heads(config: Any, hidden: int) -> dict[str, int]:
    """Heads or channels of a state space whose width follows from the hidden size."""
    factor: Any = getattr(config, "mamba_expand", getattr(config, "expand", 0))
    for count, width in STATE_HEADS if factor else ():
        if hasattr(config, count) and hasattr(config, width):
            expanded = int(factor * hidden)
            heads = 2 * KV_HEADS
            return {
                count: heads,
                width: expanded // heads,
                "mamba_d_ssm": expanded,
                "n_groups": min(KV_HEADS, getattr(config, "n_groups", 1)),
                "mamba_d_state": STATE,
            }
    channels, dense = (getattr(config, key, None) for key in ("intermediate_size", "hidden_size"))
    expands = bool(factor and dense) and channels == int(factor * dense)
    return {"intermediate_size": int(factor * hidden)} if expands else {}
