"""The metadata of a GGUF file: sizes as they are in its tensors, and what else the config says.

Each architecture of llama.cpp reads the keys that it knows, so that all are written of every model.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from evocompress.export.gguf_architectures import LlamaCpp
from evocompress.export.gguf_language import language_body, language_tensors
from evocompress.export.gguf_latent import add_latent, is_latent
from evocompress.export.gguf_mixers import add_mixers, layers_with_mixers
from evocompress.export.gguf_rotary import frequencies, rotary_kinds, scaling_of
from evocompress.export.gguf_tensors import ROPE_FACTORS
from evocompress.export.gguf_uneven import head_sizes, residual_scale
from evocompress.models.families import Family
from evocompress.models.families.base import final_norm
from evocompress.models.families.uneven import text_config
from evocompress.models.loading import LoadedModel

FACTORS = {
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "embedding_multiplier": "embedding_scale",
    "attention_multiplier": "attention_scale",
    "residual_multiplier": "residual_scale",
    "logits_scaling": "logit_scale",
    "logit_scale": "logit_scale",
    "clip_qkv": "clamp_kqv",
    "alibi_bias_max": "max_alibi_bias",
    "use_parallel_residual": "parallel_residual",
    "norm_topk_prob": "expert_weights_norm",
    "routed_scaling_factor": "expert_weights_scale",
    "n_group": "expert_group_count",
    "topk_group": "expert_group_used_count",
    "num_kv_shared_layers": "shared_kv_layers",
    "hidden_size_per_layer_input": "embedding_length_per_layer_input",
}
"""{setting: what gguf-py calls its key}."""

GROUPS = "expert_group_count", "expert_group_used_count"
"""Keys of experts that are chosen by groups, of which a config may tell without need."""

OFF = {"final_logit_softcapping": 0.0, "clip_qkv": 0.0, "hidden_size_per_layer_input": 0}
"""What keeps llama.cpp from doing what it does by default."""

BETAS = 32.0, 1.0
"""Between how many turns YaRN goes over from the one frequency to the other, if not told."""

DEEPSTACK = "deepstack_visual_indexes"
"""Of which layers of a vision tower the first blocks get a part each, behind that of the input."""

AXES = "mrope_section"
"""What rotary embeddings of images and text call their numbers of frequencies of each axis."""

QUERIES = "llama_4_scaling_beta"
"""By how much queries grow with every original context before them."""

EPSILONS = ("eps", "variance_epsilon", "norm_eps")
"""What norms call the number that they add to a variance."""

ATTENTION = "attn_output", "attn_k", "attn_qkv", "attn_kv_a_mqa"
"""Matrices whose sizes tell of heads, and that the heads read one latent."""

EPSILON = 1e-5
"""That number where a norm has none of its own: OLMo's."""


def add_metadata(
    writer: Any,
    model: PreTrainedModel,
    loaded: LoadedModel,
    tensors: Mapping[str, Tensor],
    found: LlamaCpp,
) -> None:
    """Adds what llama.cpp must know of an architecture beside the tokenizer."""
    import gguf

    config = text_config(model.config)
    architecture = loaded.family.architecture(loaded.model)
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(Path(loaded.source).name)
    writer.add_context_length(architecture.context)
    writer.add_embedding_length(architecture.hidden)
    writer.add_vocab_size(len(tensors["token_embd.weight"]))
    norm = final_norm(loaded.family, loaded.model)
    known = (getattr(norm, name) for name in EPSILONS if hasattr(norm, name))
    epsilon = next(known, EPSILON) / (residual_scale(config) ** 2 if found.borrowed else 1)
    writer.add_layer_norm_rms_eps(epsilon)
    writer.add_layer_norm_eps(epsilon)
    experts = any("_exps." in name for name in tensors)
    attention = getattr(config, "attn_config", None)
    for setting, key in FACTORS.items():
        own = getattr(config, setting, getattr(attention, setting, None))
        value = OFF.get(setting) if own is None else own
        applies = experts or not key.startswith("expert_")  # Nemotron-H's config tells of any
        applies &= key not in GROUPS or getattr(config, "topk_method", "") != "greedy"
        if value is not None and applies and not found.borrowed:
            getattr(writer, f"add_{key}")(value)
    vision = getattr(loaded.model.config, "vision_config", None)
    if levels := getattr(vision, DEEPSTACK, None):
        writer.add_num_deepstack_layers(len(levels))
    sizes = head_sizes(loaded, config)
    if is_latent(config):
        add_latent(writer, config, tensors)
    else:
        _add_head_sizes(writer, config, sizes)
    _add_sizes(writer, sizes, tensors, found)
    _add_experts(writer, loaded, tensors)
    add_mixers(writer, tensors, config)
    _add_rotary(writer, language_body(loaded.family, loaded.model), tensors)
    _add_activations(writer, loaded.family, model)
    _add_windows(writer, config)


def _add_head_sizes(writer: Any, config: Any, sizes: list[int]) -> None:
    """Adds the width of a head, also of layers with a window, which may be another."""
    own = dict(zip(getattr(config, "layer_types", None) or (), sizes, strict=False))
    size = own.get("full_attention", sizes[0])
    writer.add_key_length(size)
    writer.add_value_length(size)
    if "sliding_attention" in own:
        writer.add_key_length_swa(own["sliding_attention"])
        writer.add_value_length_swa(own["sliding_attention"])


def _add_sizes(
    writer: Any, sizes_of_heads: list[int], tensors: Mapping[str, Tensor], found: LlamaCpp
) -> None:
    """Adds heads, key-value heads and channels: one number where all layers are alike.

    A layer without keys of its own reads those of the last one with heads as wide. In a hybrid one
    without attention is without key-value heads if that is how it is known, and has as many heads
    as others.
    """
    heads, keys, channels = [], [], []
    read: dict[int, int] = {}
    for layer, head_dim in enumerate(sizes_of_heads):
        sizes = {
            name: tensors[whole].shape
            for name in (*ATTENTION, "ffn_down", "ffn_down_exps")
            if (whole := f"blk.{layer}.{name}.weight") in tensors
        }
        own = sizes["attn_output"][1] // head_dim if "attn_output" in sizes else 0
        heads.append(own)
        fused = (sizes["attn_qkv"][0] // head_dim - own) // 2 if own and "attn_qkv" in sizes else 0
        if "attn_k" in sizes:
            read[head_dim] = sizes["attn_k"][0] // head_dim
        latent = int("attn_kv_a_mqa" in sizes)
        keys.append(latent or fused or (read.get(head_dim, 0) if own else 0))
        channels.append(sizes.get("ffn_down", sizes.get("ffn_down_exps", (0,)))[-1])
    if layers_with_mixers(tensors):
        heads = [own or max(heads) for own in heads]
    if found.periodic:
        keys = [max(keys)] * len(keys)
    writer.add_block_count(len(sizes_of_heads))
    writer.add_head_count(_common(heads))
    writer.add_head_count_kv(_common(keys))
    writer.add_feed_forward_length(_common(channels))


def _common(sizes: list[int]) -> int | list[int]:
    """The size of all layers, or all sizes."""
    return sizes[0] if len(set(sizes)) == 1 else sizes


def _add_experts(writer: Any, loaded: LoadedModel, tensors: Mapping[str, Tensor]) -> None:
    """Adds numbers and sizes of experts, which are the same in all layers."""
    import gguf

    mixture = loaded.family.mixture
    blocks = (pair for pair in reversed([*tensors.items()]) if pair[0].startswith("blk."))
    first = {name.split(".", 2)[2]: tensor for name, tensor in blocks}
    if "ffn_down_exps.weight" not in first:
        return
    assert mixture is not None  # who has such tensors
    count, _, channels = first["ffn_down_exps.weight"].shape
    writer.add_expert_count(count)
    writer.add_expert_used_count(mixture.active)
    writer.add_expert_feed_forward_length(channels)
    if "ffn_down_shexp.weight" in first:
        shared = first["ffn_down_shexp.weight"].shape[1]
        writer.add_expert_shared_feed_forward_length(shared)
        writer.add_expert_shared_count(shared // channels)
    mixed = {int(n.split(".")[1]) for n in tensors if n.endswith("ffn_down_exps.weight")}
    writer.add_leading_dense_block_count(min(mixed))
    writer.add_interleave_moe_layer_step(1)
    if "ffn_latent_down.weight" in first:
        writer.add_moe_latent_size(len(first["ffn_latent_down.weight"]))
    if "exp_probs_b.bias" in first:
        writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)


def _add_rotary(writer: Any, model: PreTrainedModel, tensors: Container[str]) -> None:
    """Adds the bases, how much of a head is rotated, and what llama.cpp scales itself."""
    from gguf import RopeScalingType

    found = frequencies(model)
    if not found:
        writer.add_rope_scaling_finetuned(False)  # Granite's hybrids are not rotated then
        return
    settings = rotary_kinds(model.config)
    whole = settings.get("full_attention") or settings[""]
    writer.add_rope_freq_base(whole["rope_theta"])
    every = next(iter(found.values()))
    writer.add_rope_dimension_count(2 * len(found.get("full_attention", every)))
    if sections := _sections(model, len(every)):
        writer.add_rope_dimension_sections(sections)
    kind = scaling_of(whole)
    if kind in ("linear", "yarn") and ROPE_FACTORS not in tensors:
        writer.add_rope_scaling_type(RopeScalingType(kind))
        writer.add_rope_scaling_factor(whole["factor"])
    if kind == "yarn" or whole.get(QUERIES):
        writer.add_rope_scaling_orig_ctx_len(whole["original_max_position_embeddings"])
    if kind == "yarn":
        writer.add_rope_scaling_yarn_beta_fast(whole.get("beta_fast") or BETAS[0])
        writer.add_rope_scaling_yarn_beta_slow(whole.get("beta_slow") or BETAS[1])
        if whole.get("mscale_all_dim"):
            by = 0.1 if is_latent(model.config) else 1  # llama.cpp has it so for its older files
            writer.add_rope_scaling_yarn_log_mul(by * whole["mscale_all_dim"])
    if whole.get(QUERIES):
        writer.add_attn_temperature_scale(whole[QUERIES])
    if "sliding_attention" in settings:
        writer.add_rope_dimension_count_swa(2 * len(found.get("sliding_attention", every)))
        base = settings["sliding_attention"]["rope_theta"]
        writer.add_float32(f"{writer.arch}.rope.freq_base_swa", base)


def _add_activations(writer: Any, family: Family, model: PreTrainedModel) -> None:
    """Adds the numbers that activations of xIELU have, each in an array with one for each layer."""
    state = [(alone, tensor) for _, alone, tensor in language_tensors(family, model)]
    for part in ("alpha_p", "alpha_n", "beta", "eps"):
        numbers = [float(own) for name, own in state if name.endswith(f".act_fn.{part}")]
        if numbers:
            getattr(writer, f"add_xielu_{part}")(numbers)


def _sections(model: PreTrainedModel, count: int) -> Sequence[int]:
    """How many of the frequencies are of each of four axes of an image; empty without axes.

    Where axes take turns, they get a third each if those told are not all: of text all axes are the
    same, and llama.cpp does not rotate what is of none.
    """
    own: Iterator[Sequence[int] | None] = (
        getattr(module, AXES) for module in model.modules() if hasattr(module, AXES)
    )
    sections = next(own, None)
    if not sections:
        return ()
    in_turns = "mrope_interleaved" in getattr(model.config, "ignore_keys_at_rope_validation", ())
    if in_turns and any(place // 3 >= sections[place % 3] for place in range(count)):
        sections = [-(-count // 3)] * 3
    return [*sections, 0]


def _add_windows(writer: Any, config: Any) -> None:
    """Adds the attention window, and the layers that have one where not all do."""
    window, kinds = getattr(config, "sliding_window", None), getattr(config, "layer_types", None)
    if window and kinds:
        writer.add_sliding_window(window)
        writer.add_sliding_window_pattern([kind == "sliding_attention" for kind in kinds])
