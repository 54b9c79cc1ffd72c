"""What llama.cpp calls the types of models that it computes as transformers does, and with what.

Only what was run is here: tiny random models, whose logits were those of transformers. A model with
other settings than those that were run is refused by name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import inf
from typing import Any

from evocompress.core.types import Candidate
from evocompress.export.gguf_mixers import attention_alone, attention_interval, tensor_kinds
from evocompress.export.gguf_rotary import frequencies, rotary_obstacle
from evocompress.export.layout import Layout, layout, second_round
from evocompress.export.llama_like import LLAMA_LIKE, first_without_attention, unlike_llama
from evocompress.export.modeling_file import ModelingFile
from evocompress.export.stock import Stock, differing_obstacle
from evocompress.models.families import SubLayerName
from evocompress.models.families.shapes import attention_windows
from evocompress.models.loading import LoadedModel

HANDING = "sliding_attention", "full_attention"
"""Of what kinds the two layers are whose keys and values llama.cpp gives to others."""

INCONSEQUENTIAL = (
    *("use_cache", "tie_word_embeddings", "dtype", "torch_dtype", "use_return_dict", "return_dict"),
    *("model_type", "architectures", "transformers_version", "use_sliding_window"),
    *("output_hidden_states", "output_attentions", "output_router_logits", "add_cross_attention"),
)
"""Settings that do not tell what is computed, or that are dealt with elsewhere."""


@dataclass(frozen=True)
class LlamaCpp:
    """An architecture of llama.cpp.

    Attributes:
        name: That of gguf-py's ``MODEL_ARCH_NAMES``.
        neighbours: It rotates neighbouring elements of a head, and transformers the two halves.
        windowed: It is told which layers have an attention window.
        unrotated: Every such layer is without rotary embedding; 0 where none is.
        periodic: Every so many layers have an attention, and all others another mixer.
        dense_first: The first ones of its layers may have an MLP in place of experts.
        spanning: Its heads together are as wide as the hidden state.
        headed: It takes no embedding for a head: one that is tied is written twice.
        factors: It takes a tensor with what each rotary frequency is divided by.
        uneven: Each of its layers may have heads, key-value heads and channels of its own. No such
            one knows multipliers as Granite has them, but for those that are a type's own.
        own: It is uneven and still that of the type itself, with all that this one knows.
        differing: The sub-layers that each of its layers may have with a width of its own, where it
            is not `uneven` and is the type's own.
        fused: Its queries, keys and values are one matrix; no layer can lack an attention.
        settings: Those that differ from the type's default config, and must be so.
        also: Those that may be other than in the default config.
    """

    name: str
    neighbours: bool = False
    windowed: bool = False
    unrotated: int = 0
    periodic: bool = False
    dense_first: bool = False
    spanning: bool = False
    headed: bool = False
    factors: bool = False
    uneven: bool = False
    own: bool = False
    differing: tuple[SubLayerName, ...] = ()
    fused: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)
    also: tuple[str, ...] = ()

    @property
    def borrowed(self) -> bool:
        """Whether it is another type's."""
        return self.uneven and not self.own


GEMMA4 = LlamaCpp(
    "gemma4",
    windowed=True,
    factors=True,
    also=(
        *("attention_k_eq_v", "use_double_wide_mlp", "enable_moe_block"),
        "final_logit_softcapping",
    ),
)

ARCHITECTURES: Mapping[str, LlamaCpp] = {
    "arcee": LlamaCpp("arcee", factors=True, neighbours=True),
    "bloom": LlamaCpp("bloom"),
    "cohere": LlamaCpp("command-r", spanning=True),
    "cohere2": LlamaCpp("cohere2", spanning=True, windowed=True),
    "dots1": LlamaCpp("dots1", dense_first=True, also=("norm_topk_prob",)),
    "ernie4_5": LlamaCpp("ernie4_5"),
    "ernie4_5_moe": LlamaCpp("ernie4_5-moe", dense_first=True),
    "exaone4": LlamaCpp("exaone4", factors=True, spanning=True, settings={"sliding_window": None}),
    "exaone_moe": LlamaCpp("exaone-moe", dense_first=True, windowed=True),
    "falcon": LlamaCpp("falcon"),
    "gemma": LlamaCpp("gemma"),
    "gemma2": LlamaCpp("gemma2", windowed=True),
    "gemma3_text": LlamaCpp("gemma3", windowed=True, also=("final_logit_softcapping",)),
    "gemma4_text": GEMMA4,
    "glm": LlamaCpp("chatglm", spanning=True),
    "glm4": LlamaCpp("glm4"),
    "glm4_moe": LlamaCpp("glm4moe", dense_first=True, also=("use_qk_norm",)),
    "gpt2": LlamaCpp("gpt2"),
    "gpt_bigcode": LlamaCpp("starcoder"),
    "gpt_neox": LlamaCpp("gptneox", headed=True),
    "gpt_oss": LlamaCpp("gpt-oss", headed=True, windowed=True),
    "granite": LlamaCpp("granite", factors=True, neighbours=True),
    "granitemoe": LlamaCpp("granitemoe", factors=True, neighbours=True),
    "granitemoehybrid": LlamaCpp(
        "granitehybrid",
        factors=True,
        neighbours=True,
        differing=("attention",),
        settings={"mamba_n_groups": 1, "mamba_expand": 2, "time_step_limit": (0.0, inf)},
        also=("position_embedding_type",),
    ),
    "granitemoeshared": LlamaCpp("granitemoe", factors=True, neighbours=True),
    "hunyuan_v1_dense": LlamaCpp("hunyuan-dense"),
    "hunyuan_v1_moe": LlamaCpp("hunyuan-moe"),
    "jais2": LlamaCpp("jais2"),
    "lfm2": LlamaCpp("lfm2", spanning=True, also=("block_auto_adjust_ff_dim",)),
    "mellum": LlamaCpp("qwen3moe", settings={"norm_topk_prob": True}),
    "minimax_m2": LlamaCpp("minimax-m2", headed=True),
    "mixtral": LlamaCpp("llama", factors=True, neighbours=True),
    "nemotron": LlamaCpp("nemotron", spanning=True, headed=True),
    "nemotron_h": LlamaCpp(
        "nemotron_h", differing=("attention", "mlp"), settings={"use_conv_bias": True}
    ),
    "olmo": LlamaCpp("olmo", spanning=True, neighbours=True),
    "olmo2": LlamaCpp("olmo2", headed=True),
    "olmo3": LlamaCpp("olmo2", headed=True, windowed=True),
    "olmoe": LlamaCpp("olmoe", headed=True),
    "phi": LlamaCpp("phi2", spanning=True, headed=True),
    "phi3": LlamaCpp("phi3", spanning=True),
    "qwen2_moe": LlamaCpp("qwen2moe", spanning=True, headed=True),
    "qwen3": LlamaCpp("qwen3"),
    "qwen3_5_moe_text": LlamaCpp("qwen35moe", periodic=True),
    "qwen3_5_text": LlamaCpp("qwen35", periodic=True),
    "qwen3_next": LlamaCpp("qwen3next", periodic=True, settings={"norm_topk_prob": True}),
    "qwen3_moe": LlamaCpp("qwen3moe", settings={"norm_topk_prob": True}),
    "seed_oss": LlamaCpp("seed_oss"),
    "smollm3": LlamaCpp("smollm3", neighbours=True, unrotated=4),
    "solar_open": LlamaCpp("glm4moe", dense_first=True),
    "stablelm": LlamaCpp("stablelm", headed=True),
    "starcoder2": LlamaCpp("starcoder2", spanning=True),
}
"""By the ``model_type`` of transformers; those of `LLAMA_LIKE` are written as ``deci``."""

DECI = LlamaCpp("deci", neighbours=True, factors=True, uneven=True)

OPENELM = LlamaCpp("openelm", uneven=True, fused=True)
"""Llama's blocks with norms of queries and keys."""

UNEVEN: Mapping[str, LlamaCpp] = {
    **dict.fromkeys((*LLAMA_LIKE, "granite", "phi3", "seed_oss"), DECI),
    **dict.fromkeys(("ernie4_5", "helium"), replace(DECI, neighbours=False)),
    "qwen3": OPENELM,
    "gemma4_text": replace(GEMMA4, uneven=True, own=True),
    **{name: own for name, own in ARCHITECTURES.items() if own.differing},
}
"""Architectures whose layers may differ, by the types whose blocks compute what they do.

Each was run with heads, groups, channels and sub-layers that differ (llama-cpp-python 0.3.36). So
were all of `ARCHITECTURES`: they take the sizes of the first layer for all, and refuse other files.
"""

WRITABLE = tuple(dict.fromkeys((*UNEVEN, *ARCHITECTURES)))
"""All that can be written."""


def architecture_of(loaded: LoadedModel, *, alike: bool) -> LlamaCpp:
    """The architecture that a model is written as, whose layers may differ or are `alike`."""
    return (ARCHITECTURES if alike else UNEVEN)[loaded.family.model_type]


def alike_obstacle(loaded: LoadedModel, candidate: Candidate) -> str | None:
    """Why none of `ARCHITECTURES` computes a candidate, if none does."""
    name = loaded.family.model_type
    found = ARCHITECTURES.get(name)
    if found is None:
        return f"cannot hold {name} models, only {', '.join(WRITABLE)}"
    return (
        _model_obstacle(loaded, found)
        or rotary_obstacle(loaded.model, factors=found.factors)
        or Stock().obstacle(loaded, candidate)
        or _layers_in_order(loaded, layout(loaded, candidate), found)
        or _too_few_heads(loaded, layout(loaded, candidate), found)
        or _experts_missing(layout(loaded, candidate), found)
        or attention_alone(loaded, layout(loaded, candidate), found.name)
    )


def uneven_obstacle(loaded: LoadedModel, candidate: Candidate) -> str | None:
    """Why the architecture of `UNEVEN` for a model's type does not compute a candidate."""
    name, left = loaded.family.model_type, layout(loaded, candidate)
    found = UNEVEN[name]
    model = unlike_llama(loaded) if name in LLAMA_LIKE else _model_obstacle(loaded, found)
    return (
        model
        or rotary_obstacle(loaded.model, factors=found.factors)
        or (_partly_rotated(loaded) if found.borrowed else None)
        or ModelingFile().obstacle(loaded, candidate)
        or _layers_in_order(loaded, left, found)
        or attention_alone(loaded, left, found.name)
        or _without_place(loaded, left, found)
    )


def _model_obstacle(loaded: LoadedModel, found: LlamaCpp) -> str | None:
    """Why an architecture does not compute a model, whatever is done to it."""
    name, task = loaded.family.model_type, loaded.family.task
    if compressed := second_round(loaded):
        return compressed
    if not task.causal:
        return f"cannot hold {name} models for {task.name}, only language models"
    return (
        _other_settings(loaded, ARCHITECTURES.get(name, found))
        or _norm_scale(loaded)
        or _two_widths(loaded)
        or _keys_of_others(loaded)
        or _untied(loaded, found)
        or _mixed(loaded, found)
    )


def _without_place(loaded: LoadedModel, left: Layout, found: LlamaCpp) -> str | None:
    """The obstacle of what an uneven architecture has no place for."""
    lost = left.first(lambda block, sublayer: sublayer == "mlp" and sublayer in block.dropped)
    if lost and getattr(loaded.model.config, "enable_moe_block", False):
        return f"cannot leave out {lost}, because llama.cpp's {found.name} wants its experts"
    if found.differing:
        return differing_obstacle(left, found.differing)
    if found.borrowed and not found.fused:
        return first_without_attention(left, "llama.cpp")
    unit = left.first(lambda block, sublayer: sublayer in block.biased)
    return unit and f"cannot give the output of {unit} a bias"


def _partly_rotated(loaded: LoadedModel) -> str | None:
    """The obstacle of heads that are not rotated as a whole."""
    size = loaded.family.architecture(loaded.model).head_dim
    if all(2 * len(own) == size for own in frequencies(loaded.model).values()):
        return None
    return f"cannot hold this {loaded.family.model_type} model, whose heads are rotated in part"


def _other_settings(loaded: LoadedModel, found: LlamaCpp) -> str | None:
    """The first setting of a model that is not as it was when the architecture was tried."""
    for name, value in _untried(loaded.model.config, found):
        return (
            f"cannot hold this {loaded.family.model_type} model, with whose {name} = {value!r} "
            "llama.cpp was not tried"
        )
    return None


def _untried(config: Any, found: LlamaCpp) -> Iterator[tuple[str, Any]]:
    """The settings that are words, switches or lists, with other values than by default."""
    default = type(config)().to_dict()
    for name, value in config.to_dict().items():
        wanted = found.settings.get(name, default.get(name, value))
        if name in found.settings:
            value = getattr(config, name)  # the same as in the class, not in a file
        words = isinstance(value, bool | str) or isinstance(wanted, bool | str)
        words |= name.endswith("_softcapping") and (value is None) != (wanted is None)
        if name.startswith("_") or name in (*INCONSEQUENTIAL, *found.also):
            continue
        if (words or name in found.settings) and value != wanted:
            yield name, value


def _norm_scale(loaded: LoadedModel) -> str | None:
    """The obstacle of attention scores that are scaled by something else than the heads' width."""
    scalar = getattr(loaded.model.config, "query_pre_attn_scalar", None)
    head_dim = loaded.family.architecture(loaded.model).head_dim
    if scalar is None or scalar == head_dim:
        return None
    return (
        f"cannot hold this {loaded.family.model_type} model, whose query_pre_attn_scalar is "
        f"{scalar} and not the width of a head, {head_dim}"
    )


def _keys_of_others(loaded: LoadedModel) -> str | None:
    """The obstacle of layers that read keys of other layers than llama.cpp takes for them."""
    config = loaded.model.config
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
    config = loaded.model.config
    key, value = (getattr(config, f"linear_{name}_head_dim", 0) for name in ("key", "value"))
    if key == value:
        return None
    return (
        f"cannot hold this {loaded.family.model_type} model, whose delta nets have keys of {key} "
        f"and values of {value} elements"
    )


def _untied(loaded: LoadedModel, found: LlamaCpp) -> str | None:
    """The obstacle of a head that the architecture has no place for."""
    if "OUTPUT" in tensor_kinds(found.name) or loaded.family.architecture(loaded.model).tied:
        return None
    what = "layers that differ of " if found.borrowed else ""
    return (
        f"cannot hold {what}this {loaded.family.model_type} model, whose head is not its embedding"
    )


def _mixed(loaded: LoadedModel, found: LlamaCpp) -> str | None:
    """The obstacle of experts that the architecture has no place for: Nemotron-H's."""
    if loaded.family.mixture is None or "FFN_GATE_INP" in tensor_kinds(found.name):
        return None
    return f"cannot hold this {loaded.family.model_type} model, whose MLPs are mixtures of experts"


def _experts_missing(left: Layout, found: LlamaCpp) -> str | None:
    """The obstacle of MLPs without experts where llama.cpp wants these."""
    sparse = [bool(block.experts) for block in left.kept]
    if not any(sparse) or all(sparse) or (found.dense_first and sparse == sorted(sparse)):
        return None
    dense = next(i for i in reversed(range(len(sparse))) if not sparse[i])
    return (
        f"cannot write {left.names[left.kept[dense].index]}.mlp, because llama.cpp's architecture "
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


def _layers_in_order(loaded: LoadedModel, left: Layout, found: LlamaCpp) -> str | None:
    """The obstacle of layers whose windows or rotary embeddings llama.cpp cannot be told."""
    config = loaded.model.config
    name = loaded.family.model_type
    windows = attention_windows(config, config.num_hidden_layers)
    narrowest = min((window for window in windows if window), default=None)
    context = loaded.family.architecture(loaded.model).context
    if not found.windowed and narrowest is not None and narrowest < context:
        return f"cannot hold this {name} model, whose attention window is {narrowest} tokens"
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
