"""Whether a GGUF file holds a language model, and nothing that reading it would leave out.

transformers reads the tensors and settings that it knows the names of, as of a language model, and
says nothing of the others: a classifier, an embedding model, biases, norms, scaled rotary
embeddings and factors of logits or residuals would be lost.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import isclose
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel
from transformers.integrations.ggml import GGUF_CONFIG_MAPPING
from transformers.modeling_gguf_pytorch_utils import (
    TENSOR_PROCESSORS,
    TensorProcessor,
    get_gguf_hf_weights_map,
)

from evocompress.core.errors import ModelError, one_line

KNOWN = re.compile(r"(token_embd|position_embd|output|output_norm)\.(weight|bias)|blk\.(\d+)\..+")
"""Tensors of a language model; which of a block's are read is told when it is loaded."""

HARMLESS = {
    *("attention.key_length", "attention.value_length", "expert_feed_forward_length"),
    *("expert_shared_feed_forward_length", "context_length", "vocab_size", "tensor_data_layout"),
    *("pooling_type", "attention.causal", "rope.scaling.finetuned"),
    "rope.scaling.original_context_length",
}
"""Settings that the shapes of the tensors tell as well, or that nothing is computed with alone."""


def check_language_model(path: Path) -> None:
    """Refuse a GGUF file of another kind of model, or with tensors that would be left out."""
    from gguf import GGUFReader

    try:
        reader = GGUFReader(path)
        kind = _value(reader, "general.architecture")
        names = [tensor.name for tensor in reader.tensors]
        blocks = _value(reader, f"{kind}.block_count")
        pooled = _value(reader, f"{kind}.pooling_type")
        causal = _value(reader, f"{kind}.attention.causal")
    except Exception as error:  # parsers of a damaged file fail with any type of error
        raise ModelError(f"{path} is damaged, replace it: {one_line(error)}") from None
    if pooled or causal is False:
        raise ModelError(
            f"{path} is an embedding model or a reranker (pooling_type, attention.causal), and "
            "GGUF files are read as language models only: give its checkpoint of safetensors"
        )
    for name in names:
        known = KNOWN.fullmatch(name)
        if known is None or (known[3] and blocks is not None and int(known[3]) >= blocks):
            raise ModelError(
                f"{path} holds {name}, which is not read from GGUF files, so that another model "
                "would be compressed: give its checkpoint of safetensors"
            )


def check_read_whole(path: Path, model: PreTrainedModel) -> None:
    """Refuse a GGUF file with tensors or settings that reading it would leave out.

    The model has the class and config that transformers makes of it, without weights.
    """
    from gguf import GGUFReader

    try:
        reader = GGUFReader(path)
        kind = _value(reader, "general.architecture")
        start = f"{kind}."
        facts = {
            key.removeprefix(start): field.contents()
            for key, field in reader.fields.items()
            if key.startswith(start)
        }
        names = [tensor.name for tensor in reader.tensors]
        make: Any = TENSOR_PROCESSORS.get(kind, TensorProcessor)
        known = get_gguf_hf_weights_map(model, make(config=model.config.to_dict()))
    except Exception as error:  # parsers of a damaged file fail with any type of error
        raise ModelError(f"{path} is damaged, replace it: {one_line(error)}") from None
    lost = [f"{start}{key} = {value}" for key, value in _not_computed(facts, model.config).items()]
    # Experts are stored together, under names without an ending.
    lost += [n for n in names if n not in known and n.removesuffix(".weight") not in known]
    if lost:
        raise ModelError(
            f"{path} holds {lost[0]}, which is not read from GGUF files of {kind} models, so that "
            "another model would be compressed: give its checkpoint of safetensors"
        )


def _not_computed(facts: Mapping[str, Any], config: Any) -> dict[str, Any]:
    """Settings of a file that a config does not compute with."""
    type_ = config.model_type
    settings: dict[str, Any] = GGUF_CONFIG_MAPPING
    mapped = settings.get(type_) or settings[type_.removesuffix("_text")]
    computed = _computed(config)
    unscaled = facts.get("rope.scaling.type") == "none"
    left = {}
    for key, value in facts.items():
        if key in computed:
            same = _equal(value, computed[key])
        elif key in mapped or key in HARMLESS or (unscaled and key.startswith("rope.scaling.")):
            same = True
        else:
            factor = key.endswith(("_scale", "factor", "scale_linear"))
            same = value in ("", "none") or _equal(value, 0) or (factor and _equal(value, 1))
        if not same:
            left[key] = value
    return left


def _computed(config: Any) -> dict[str, Any]:
    """What a config computes with, under the names that GGUF files have for it."""
    ropes = getattr(config, "rope_parameters", None) or {}
    full = ropes.get("full_attention", ropes)
    local = ropes.get("sliding_attention", full)
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rotated = {
        "rope.dimension_count": int(width * full.get("partial_rotary_factor", 1)),
        "rope.dimension_count_swa": int(width * local.get("partial_rotary_factor", 1)),
        "rope.freq_base": full.get("rope_theta"),
        "rope.freq_base_swa": local.get("rope_theta"),
    }
    limits = {
        "attention.sliding_window": "sliding_window",
        "attn_logit_softcapping": "attn_logit_softcapping",
        "final_logit_softcapping": "final_logit_softcapping",
    }
    return (rotated if ropes else {}) | {
        key: getattr(config, name, None) or 0 for key, name in limits.items()
    }


def _equal(value: Any, wanted: Any) -> bool:
    """Whether two numbers are the same in float32."""
    numbers = isinstance(value, int | float) and isinstance(wanted, int | float)
    return numbers and isclose(value, wanted, rel_tol=1e-6)


def _value(reader: Any, key: str) -> Any:
    """A piece of metadata; ``None`` where there is none."""
    field = reader.get_field(key)
    return None if field is None else field.contents()
