"""Why an architecture of llama.cpp does not compute a model, or a candidate of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from evocompress.core.types import Candidate
from evocompress.export.gguf_architectures import (
    ARCHITECTURES,
    LlamaCpp,
    architecture_of,
)
from evocompress.export.gguf_language import language_body, language_type
from evocompress.export.gguf_latent import latent_obstacle
from evocompress.export.gguf_mixers import (
    MAMBA,
    attention_alone,
    attention_interval,
    tensor_kinds,
)
from evocompress.export.gguf_rotary import frequencies, rotary_obstacle
from evocompress.export.layout import Layout, layout, second_round
from evocompress.export.llama_like import LLAMA_LIKE, first_without_attention, unlike_llama
from evocompress.export.modeling_file import ModelingFile
from evocompress.export.stock import Stock, differing_obstacle, uneven_experts
from evocompress.models.families.shapes import attention_windows
from evocompress.models.families.uneven import text_config
from evocompress.models.loading import LoadedModel

HANDING = "sliding_attention", "full_attention"
"""Of what kinds the two layers are whose keys and values llama.cpp gives to others."""

INCONSEQUENTIAL = (
    *("use_cache", "tie_word_embeddings", "dtype", "torch_dtype", "use_return_dict", "return_dict"),
    *("model_type", "architectures", "transformers_version", "use_sliding_window"),
    *("output_hidden_states", "output_attentions", "output_router_logits", "add_cross_attention"),
)
"""Settings that do not tell what is computed, or that are dealt with elsewhere."""


def alike_obstacle(loaded: LoadedModel, candidate: Candidate) -> str | None:
    """Why none of `ARCHITECTURES` computes a candidate, if none does."""
    if compressed := second_round(loaded):
        return compressed
    name = language_type(loaded)
    if name not in ARCHITECTURES:
        return f"cannot hold {name} models; 'evocompress models --formats' lists those that it can"
    found = architecture_of(loaded, alike=True)
    return (
        _model_obstacle(loaded, found)
        or rotary_obstacle(
            language_body(loaded.family, loaded.model), factors=found.factors, mscale=found.mscale
        )
        or Stock().obstacle(loaded, candidate)
        or _layers_in_order(loaded, layout(loaded, candidate), found)
        or _too_few_heads(loaded, layout(loaded, candidate), found)
        or latent_obstacle(loaded, layout(loaded, candidate))
        or _experts_missing(layout(loaded, candidate), found)
        or attention_alone(loaded, layout(loaded, candidate), found.name)
    )


def uneven_obstacle(loaded: LoadedModel, candidate: Candidate) -> str | None:
    """Why the architecture of `UNEVEN` for a model's type does not compute a candidate."""
    name, left = language_type(loaded), layout(loaded, candidate)
    found = architecture_of(loaded, alike=False)
    model = unlike_llama(loaded, name) if name in LLAMA_LIKE else _model_obstacle(loaded, found)
    return (
        model
        or rotary_obstacle(
            language_body(loaded.family, loaded.model), factors=found.factors, mscale=found.mscale
        )
        or (_partly_rotated(loaded) if found.borrowed else None)
        or ModelingFile().obstacle(loaded, candidate)
        or _layers_in_order(loaded, left, found)
        or attention_alone(loaded, left, found.name)
        or _without_place(loaded, left, found)
        or _experts_missing(left, found)
    )


def _model_obstacle(loaded: LoadedModel, found: LlamaCpp) -> str | None:
    """Why an architecture does not compute a model, whatever is done to it."""
    name, task = loaded.family.model_type, loaded.family.task
    if compressed := second_round(loaded):
        return compressed
    if not task.causal:
        return f"cannot hold {name} models for {task.name}, only language models"
    return (
        _other_settings(loaded, ARCHITECTURES.get(language_type(loaded), found))
        or _norm_scale(loaded)
        or _two_widths(loaded)
        or _other_expansion(loaded)
        or _keys_of_others(loaded)
        or _untied(loaded, found)
    )


def _without_place(loaded: LoadedModel, left: Layout, found: LlamaCpp) -> str | None:
    """The obstacle of what an uneven architecture has no place for."""
    if found.own and loaded.family.mixture is not None and (uneven := uneven_experts(left)):
        return uneven
    if found.differing:
        return differing_obstacle(left, found.differing)
    if found.borrowed and not found.fused:
        return first_without_attention(left, "llama.cpp")
    unit = left.first(lambda block, sublayer: sublayer in block.biased)
    return unit and f"cannot give the output of {unit} a bias"


def _partly_rotated(loaded: LoadedModel) -> str | None:
    """The obstacle of heads that are not rotated as a whole."""
    size = loaded.family.architecture(loaded.model).head_dim
    if all(
        2 * len(own) == size
        for own in frequencies(language_body(loaded.family, loaded.model)).values()
    ):
        return None
    return f"cannot hold this {loaded.family.model_type} model, whose heads are rotated in part"


def _other_settings(loaded: LoadedModel, found: LlamaCpp) -> str | None:
    """The first setting of a model that is not as it was when the architecture was tried."""
    for name, value in _untried(text_config(loaded.model.config), found):
        return (
            f"cannot hold this {loaded.family.model_type} model, with whose {name} = {value!r} "
            "llama.cpp was not tried"
        )
    return None


def _untried(config: Any, found: LlamaCpp) -> Iterator[tuple[str, Any]]:
    """The settings that are words or switches, with other values than when it was tried.

    Sizes and other numbers are written into the file.
    """
    default = type(config)().to_dict()
    for name, value in config.to_dict().items():
        wanted = found.settings.get(name, default.get(name, value))
        if name in found.settings:
            value = getattr(config, name)  # the same as in the class, not in a file
            value = tuple(value) if isinstance(value, list) else value
        words = isinstance(value, bool | str) or isinstance(wanted, bool | str)
        words |= name.endswith("_softcapping") and (value is None) != (wanted is None)
        if name.startswith("_") or name in (*INCONSEQUENTIAL, *found.also):
            continue
        if (words or name in found.settings) and value != wanted:
            yield name, value
    for name in type(config).sub_configs:
        yield from _untried(getattr(config, name), found)


def _norm_scale(loaded: LoadedModel) -> str | None:
    """The obstacle of attention scores that are scaled by something else than the heads' width."""
    scalar = getattr(text_config(loaded.model.config), "query_pre_attn_scalar", None)
    head_dim = loaded.family.architecture(loaded.model).head_dim
    if scalar is None or scalar == head_dim:
        return None
    return (
        f"cannot hold this {loaded.family.model_type} model, whose query_pre_attn_scalar is "
        f"{scalar} and not the width of a head, {head_dim}"
    )


def _keys_of_others(loaded: LoadedModel) -> str | None:
    """The obstacle of layers that read keys of other layers than llama.cpp takes for them."""
    config = text_config(loaded.model.config)
    readers = getattr(config, "num_kv_shared_layers", 0)
    handing = config.layer_types[-readers - 2 : -readers] if readers else HANDING
    if tuple(handing) == HANDING:
        return None
    return (
        f"cannot hold this {loaded.family.model_type} model, because the last two layers with "
        f"keys of their own are not a {HANDING[0]} and a {HANDING[1]}"
    )


def _two_widths(loaded: LoadedModel) -> str | None:
    """The obstacle of a delta net whose keys and values are of different widths."""
    config = text_config(loaded.model.config)
    key, value = (getattr(config, f"linear_{name}_head_dim", 0) for name in ("key", "value"))
    if key == value:
        return None
    return (
        f"cannot hold this {loaded.family.model_type} model, whose delta nets have keys of {key} "
        f"and values of {value} elements"
    )


def _other_expansion(loaded: LoadedModel) -> str | None:
    """The obstacle of a Mamba that is not twice as wide as the hidden state."""
    config = text_config(loaded.model.config)
    if config.model_type != MAMBA or config.intermediate_size == 2 * config.hidden_size:
        return None
    return (
        f"cannot hold this {MAMBA} model, whose intermediate_size is {config.intermediate_size} "
        f"and not twice the hidden size, {config.hidden_size}"
    )


def _untied(loaded: LoadedModel, found: LlamaCpp) -> str | None:
    """The obstacle of a head that the architecture has no place for."""
    if "OUTPUT" in tensor_kinds(found.name) or loaded.family.architecture(loaded.model).tied:
        return None
    what = "layers that differ of " if found.borrowed else ""
    return (
        f"cannot hold {what}this {loaded.family.model_type} model, whose head is not its embedding"
    )


def _experts_missing(left: Layout, found: LlamaCpp) -> str | None:
    """The obstacle of MLPs without experts where llama.cpp wants these."""
    blocks = [block for block in left.kept if "mlp" in block.sublayers]
    sparse = [bool(block.experts) for block in blocks]
    if not any(sparse) or all(sparse) or (found.dense_first and sparse == sorted(sparse)):
        return None
    dense = next(i for i in reversed(range(len(sparse))) if not sparse[i])
    return (
        f"cannot write {left.names[blocks[dense].index]}.mlp, because llama.cpp's architecture "
        f"{found.name} wants experts there"
    )


def _too_few_heads(loaded: LoadedModel, left: Layout, found: LlamaCpp) -> str | None:
    """The obstacle of narrow attentions where heads must span the hidden state."""
    hidden = loaded.family.architecture(loaded.model).hidden
    narrow = (
        block
        for block in left.kept
        if found.spanning and block.widths.heads * block.widths.head_dim not in (0, hidden)
    )
    first = next(narrow, None)
    if first is None:
        return None
    return (
        f"cannot write {left.names[first.index]}.attention, because the heads of "
        f"llama.cpp's architecture {found.name} are together as wide as the hidden size, {hidden}"
    )


def _windows_by_number(loaded: LoadedModel, left: Layout, found: LlamaCpp) -> str | None:
    """The obstacle of windows where llama.cpp takes none, or the other way round."""
    config, count = text_config(loaded.model.config), len(left.kept)
    windows = [config.layer_types[block.index] == HANDING[0] for block in left.kept]
    regular = windows == [bool((layer + 1) % 4) for layer in range(count)]
    windowed = config.sliding_window is not None
    if windowed == (count == found.windowed_at) and (regular or not windowed):
        return None
    return (
        f"cannot hold this {loaded.family.model_type} model of {count} layers, because llama.cpp's "
        f"architecture {found.name} has attention windows with {found.windowed_at} layers, in all "
        "but every 4th, and with no other number"
    )


def _layers_in_order(loaded: LoadedModel, left: Layout, found: LlamaCpp) -> str | None:
    """The obstacle of layers whose windows or rotary embeddings llama.cpp cannot be told."""
    config = text_config(loaded.model.config)
    name = loaded.family.model_type
    windows = attention_windows(config, config.num_hidden_layers)
    narrowest = min((window for window in windows if window), default=None)
    context = loaded.family.architecture(loaded.model).context
    if found.windowed_at:
        return _windows_by_number(loaded, left, found)
    if not found.windowed and narrowest is not None and narrowest < context:
        return f"cannot hold this {name} model, whose attention window is {narrowest} tokens"
    chunks = getattr(config, "attention_chunk_size", None) or context
    if chunks < context and any(
        (kind == "chunked_attention") != bool(rotated)
        for kind, rotated in zip(config.layer_types, config.no_rope_layers, strict=False)
    ):
        return f"cannot hold this {name} model, whose rotated layers are not those with chunks"
    mixers = [
        layer
        for layer, block in enumerate(left.kept)
        if found.periodic and config.layer_types[block.index] == "linear_attention"
    ]
    if found.periodic and attention_interval(mixers, len(left.kept)) is None:
        return (
            f"cannot hold this {name} model, because layers with an attention would not be "
            "equally far apart"
        )
    if found.unrotated:
        rotated = [config.no_rope_layers[block.index] for block in left.kept]
        if [bool(one) for one in rotated] != [
            bool((layer + 1) % found.unrotated) for layer in range(len(rotated))
        ]:
            return (
                f"cannot hold this {name} model, because not every {found.unrotated}th of its "
                "layers, and no other, would be without rotary embedding"
            )
    return None
