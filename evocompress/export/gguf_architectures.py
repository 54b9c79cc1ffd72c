"""What llama.cpp calls the types of models that it computes as transformers does, and with what.

Only what was run is here: tiny random models, whose logits were those of transformers. A model with
other settings than those that were run is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import inf
from typing import Any

from evocompress.export.gguf_language import language_type
from evocompress.export.llama_like import LLAMA_LIKE
from evocompress.models.families import SubLayerName
from evocompress.models.loading import LoadedModel


@dataclass(frozen=True)
class LlamaCpp:
    """An architecture of llama.cpp.

    Attributes:
        name: That of gguf-py's ``MODEL_ARCH_NAMES``.
        neighbours: It rotates neighbouring elements of a head, and transformers the two halves.
        halves: It rotates the two halves of a head, and transformers neighbouring elements.
        windowed: It is told which layers have an attention window.
        windowed_at: With this many layers all but every fourth have an attention window, and are
            rotated; with any other number none has, and all are. 0 where the number does not tell.
        unrotated: Every such layer is without rotary embedding; 0 where none is.
        periodic: Every so many layers have an attention, and all others another mixer.
        dense_first: The first ones of its layers may have an MLP in place of experts.
        spanning: Its heads together are as wide as the hidden state.
        headed: It takes no embedding for a head: one that is tied is written twice.
        factors: It takes a tensor with what each rotary frequency is divided by.
        mscale: YaRN scales with it as its ``mscale`` says: there must be one, and of 1 where there
            is no latent.
        uneven: Each of its layers may have heads, key-value heads and channels of its own. No such
            one knows multipliers as Granite has them, but for those that are a type's own.
        own: It is uneven and still that of the type itself, with all that this one knows.
        differing: The sub-layers that each of its layers may have with a width of its own, where it
            is not `uneven` and is the type's own.
        fused: Its queries, keys and values are one matrix; no layer can lack an attention.
        mixed: What it is called where MLPs are mixtures of experts, if that is another name. Then
            all of them are.
        settings: Those that differ from the type's default config, and must be so.
        also: Those that may be other than in the default config.
    """

    name: str
    neighbours: bool = False
    halves: bool = False
    windowed: bool = False
    windowed_at: int = 0
    unrotated: int = 0
    periodic: bool = False
    dense_first: bool = False
    spanning: bool = False
    headed: bool = False
    factors: bool = False
    mscale: bool = False
    uneven: bool = False
    own: bool = False
    differing: tuple[SubLayerName, ...] = ()
    fused: bool = False
    mixed: str = ""
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
    "apertus": LlamaCpp("apertus", factors=True),
    "arcee": LlamaCpp("arcee", factors=True, neighbours=True),
    "bloom": LlamaCpp("bloom"),
    "cohere": LlamaCpp("command-r", spanning=True),
    "cohere2": LlamaCpp("cohere2", spanning=True, windowed=True),
    "dbrx": LlamaCpp(
        "dbrx", settings={"moe_normalize_expert_weights": 1.0, "ffn_act_fn": {"name": "silu"}}
    ),
    "deepseek_v2": LlamaCpp("deepseek2", dense_first=True, mscale=True),
    "deepseek_v3": LlamaCpp("deepseek2", dense_first=True, mscale=True, also=("norm_topk_prob",)),
    "dots1": LlamaCpp("dots1", dense_first=True, also=("norm_topk_prob",)),
    "ernie4_5": LlamaCpp("ernie4_5"),
    "ernie4_5_moe": LlamaCpp("ernie4_5-moe", dense_first=True),
    "exaone4": LlamaCpp("exaone4", factors=True, spanning=True, windowed_at=64),
    "exaone_moe": LlamaCpp("exaone-moe", dense_first=True, windowed=True),
    "falcon": LlamaCpp("falcon"),
    "falcon_h1": LlamaCpp(
        "falcon-h1",
        headed=True,
        settings={"time_step_limit": (0.0, inf)},
        also=("mamba_norm_before_gate",),
    ),
    "gemma": LlamaCpp("gemma"),
    "gemma2": LlamaCpp("gemma2", windowed=True),
    "gemma3_text": LlamaCpp("gemma3", windowed=True, also=("final_logit_softcapping",)),
    "gemma4_text": GEMMA4,
    "gemma4_unified_text": GEMMA4,
    "glm": LlamaCpp("chatglm", spanning=True),
    "glm4": LlamaCpp("glm4"),
    "glm4_moe": LlamaCpp("glm4moe", dense_first=True, also=("use_qk_norm",)),
    "glm4_moe_lite": LlamaCpp("deepseek2", dense_first=True, mscale=True),
    "glm4v_moe_text": LlamaCpp("glm4moe", dense_first=True),
    "glm4v_text": LlamaCpp("glm4", halves=True),
    "glm_ocr_text": LlamaCpp("glm4", halves=True),
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
    "lfm2_moe": LlamaCpp(
        "lfm2moe", spanning=True, dense_first=True, settings={"routed_scaling_factor": 1.0}
    ),
    "llama4_text": LlamaCpp(
        "llama4",
        unrotated=4,
        settings={"attention_chunk_size": 8192, "floor_scale": 8192, "attn_scale": 0.1},
    ),
    "mamba": LlamaCpp("mamba", also=("residual_in_fp32", "use_mambapy", "use_associative_scan")),
    "mamba2": LlamaCpp(
        "mamba2",
        settings={"n_groups": 1, "time_step_limit": (0.0, inf)},
        also=("residual_in_fp32",),
    ),
    "mellum": LlamaCpp("qwen3moe", settings={"norm_topk_prob": True}),
    "ministral3": LlamaCpp("mistral3", neighbours=True, mscale=True),
    "minimax_m2": LlamaCpp("minimax-m2", headed=True),
    "mixtral": LlamaCpp("llama", factors=True, neighbours=True),
    "mpt": LlamaCpp("mpt", settings={"softmax_scale": None}),
    "nemotron": LlamaCpp("nemotron", spanning=True, headed=True),
    "nemotron_h": LlamaCpp(
        "nemotron_h",
        differing=("attention", "mlp"),
        mixed="nemotron_h_moe",
        settings={"use_conv_bias": True},
    ),
    "olmo": LlamaCpp("olmo", spanning=True, neighbours=True),
    "olmo2": LlamaCpp("olmo2", headed=True),
    "olmo3": LlamaCpp("olmo2", headed=True, windowed=True),
    "olmoe": LlamaCpp("olmoe", headed=True),
    "paddleocr_vl_text": LlamaCpp("paddleocr"),
    "phi": LlamaCpp("phi2", spanning=True, headed=True),
    "phi3": LlamaCpp("phi3", spanning=True),
    "qwen2_5_omni_text": LlamaCpp("qwen2vl"),
    "qwen2_5_vl_text": LlamaCpp("qwen2vl"),
    "qwen2_moe": LlamaCpp("qwen2moe", spanning=True, headed=True),
    "qwen2_vl_text": LlamaCpp("qwen2vl"),
    "qwen3": LlamaCpp("qwen3"),
    "qwen3_5_moe_text": LlamaCpp("qwen35moe", periodic=True),
    "qwen3_5_text": LlamaCpp("qwen35", periodic=True),
    "qwen3_next": LlamaCpp("qwen3next", periodic=True, settings={"norm_topk_prob": True}),
    "qwen3_moe": LlamaCpp("qwen3moe", settings={"norm_topk_prob": True}),
    "qwen3_omni_moe_text": LlamaCpp("qwen3vlmoe", settings={"norm_topk_prob": True}),
    "qwen3_vl_moe_text": LlamaCpp("qwen3vlmoe"),
    "qwen3_vl_text": LlamaCpp("qwen3vl"),
    "seed_oss": LlamaCpp("seed_oss"),
    "smollm3": LlamaCpp("smollm3", neighbours=True, unrotated=4),
    "solar_open": LlamaCpp("glm4moe", dense_first=True),
    "stablelm": LlamaCpp("stablelm", headed=True),
    "starcoder2": LlamaCpp("starcoder2", spanning=True),
    "youtu": LlamaCpp("deepseek2", mscale=True),
}
"""By the ``model_type`` of transformers; those of `LLAMA_LIKE` are written as ``deci``."""

DECI = LlamaCpp("deci", neighbours=True, factors=True, uneven=True)

OPENELM = LlamaCpp("openelm", uneven=True, fused=True)
"""Llama's blocks with norms of queries and keys."""

UNEVEN: Mapping[str, LlamaCpp] = {
    **dict.fromkeys((*LLAMA_LIKE, "granite", "phi3", "seed_oss"), DECI),
    **dict.fromkeys(("ernie4_5", "helium"), replace(DECI, neighbours=False)),
    "qwen3": OPENELM,
    **dict.fromkeys(("gemma4_text", "gemma4_unified_text"), replace(GEMMA4, uneven=True, own=True)),
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
    found = (ARCHITECTURES if alike else UNEVEN)[language_type(loaded)]
    if loaded.family.mixture is None or not found.mixed:
        return found
    return replace(found, name=found.mixed, differing=("attention",))
