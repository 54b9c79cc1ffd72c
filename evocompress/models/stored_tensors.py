"""What a checkpoint's files really hold, against what its config says.

transformers leaves out tensors that it has no use for and does not say so in an error. Here
nothing is left out in silence: a tensor is loaded, is known to be of no consequence and told of in
the log, or the checkpoint is refused.
"""

from __future__ import annotations

import logging
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers import PreTrainedModel

from evocompress.core.errors import ModelError

BUFFERS = re.compile(
    r"(^|\.)(position_ids|token_type_ids|inv_freq|original_inv_freq|(cos|sin)_cached|masked_bias"
    r"|attn\.bias|(causal|attn|attention)_mask|num_batches_tracked)$"
)
"""What older versions stored beside the weights and the present ones compute."""

LOG = logging.getLogger("evocompress")

IGNORED = (r"rotary_emb\.inv_freq", "position_ids")
"""What transformers leaves out of any model's tensors without a word, beside the model's own."""

FLOATS = ("F64", "F32", "F16", "BF16")
"""Types of weights by their names in safetensors."""

SLACK = 2**27
"""A model that has more weights than are stored by more than this is not even built."""

LAYERS = ("num_hidden_layers", "n_layer", "num_layers")
EXPERTS = ("num_local_experts", "num_experts")
MOST_EXPERTS = 100_000
"""In all layers together."""

COUNTS = {
    **dict.fromkeys(LAYERS, 1_000),
    **dict.fromkeys(("hidden_size", "n_embd", "word_embed_proj_dim", "head_dim"), 10**6),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner", "moe_intermediate_size"), 10**7),
    **dict.fromkeys(("shared_expert_intermediate_size", "vocab_size", "type_vocab_size"), 10**7),
    **dict.fromkeys(("num_attention_heads", "num_key_value_heads", "n_head"), 10**5),
    **dict.fromkeys((*EXPERTS, "num_experts_per_tok"), 10**4),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx"), 10**8),
    **dict.fromkeys(("image_size", "patch_size", "num_channels", "embedding_size"), 10**5),
    "num_labels": 10**6,
}
"""The largest value of settings that decide how much is built; the least is one."""


@dataclass(frozen=True)
class Stored:
    """A tensor in a file.

    Attributes:
        type: As safetensors names it.
        shape: Its shape.
    """

    type: str
    shape: tuple[int, ...]


def check_counts(path: object, config: Mapping[str, Any]) -> None:
    """Refuse a config that describes no model that anybody could have, in no part of it."""
    for key, part in config.items():
        if key.endswith("_config") and isinstance(part, dict):
            check_counts(f"{path}, {key}", part)
    for key, most in COUNTS.items():
        value = config.get(key)
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, int | float) and not 1 <= one <= most:
                raise ModelError(f"{path}: {key} is {one}, but must be from 1 to {most:,}")
    depths = config.get("depths")
    most = COUNTS["num_hidden_layers"]
    if isinstance(depths, list) and not (
        all(isinstance(depth, int) and depth >= 1 for depth in depths) and sum(depths) <= most
    ):
        raise ModelError(f"{path}: depths must be numbers of layers, {most:,} at most together")
    layers, experts = _largest(config, LAYERS), _largest(config, EXPERTS)
    if layers * experts > MOST_EXPERTS:
        raise ModelError(
            f"{path}: {layers:,} layers of {experts:,} experts are {layers * experts:,}, but at "
            f"most {MOST_EXPERTS:,} are read"
        )


def _largest(config: Mapping[str, Any], keys: Iterable[str]) -> int:
    """The largest number among some settings; zero where there is none."""
    values = (config.get(key) for key in keys)
    return int(max((value for value in values if isinstance(value, int | float)), default=0))


def stored_tensors(files: Iterable[Path]) -> dict[str, Stored]:
    """The tensors in safetensors files by name; only the headers are read.

    Raises:
        ModelError: One is in two files.
    """
    found: dict[str, Stored] = {}
    for path in files:
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            for name in names:
                if name in found:
                    raise ModelError(f"{path} holds {name}, which another file of it holds as well")
                part = file.get_slice(name)
                found[name] = Stored(part.get_dtype(), tuple(part.get_shape()))
    return found


def check_types(source: object, tensors: Mapping[str, Stored]) -> None:
    """Refuse weights that are integers or of eight bits: they mean nothing without their scales."""
    others = [name for name, tensor in tensors.items() if tensor.type not in FLOATS]
    odd = [name for name in others if not BUFFERS.search(name)]
    if odd:
        raise ModelError(
            f"the checkpoint {source} holds {_listed(odd)} of type {tensors[odd[0]].type}: only "
            f"weights of type {', '.join(FLOATS)} are read; take the model that is not quantised"
        )


def check_stored_shapes(
    source: object,
    tensors: Mapping[str, Stored],
    expected: Mapping[str, Sequence[int]],
    prefix: str,
) -> None:
    """Refuse, before anything is made, files that do not hold what a config describes.

    Tied tensors are expected under each name; names may be stored with or without the body's
    prefix.
    """
    body = f"{prefix}."
    stored = {name.removeprefix(body): tensor for name, tensor in tensors.items()}
    if len(stored) < len(tensors):
        counts = Counter(name.removeprefix(body) for name in tensors)
        twice = next(name for name, count in counts.items() if count > 1)
        raise ModelError(f"the checkpoint {source} holds both {twice} and {body}{twice}")
    for name, shape in expected.items():
        found = stored.get(name.removeprefix(body))
        if found is not None and found.shape != tuple(shape):
            raise ModelError(_other_shape(source, name, found.shape, shape))
    wanted = sum(map(prod, expected.values()))
    there = sum(prod(tensor.shape) for tensor in tensors.values())
    if wanted > 2 * there + SLACK:
        raise ModelError(
            f"the checkpoint {source} holds {there:,} weights, but its config.json describes a "
            f"model of {wanted:,}"
        )


def check_loaded(source: object, info: Mapping[str, Any], unused: str = "") -> None:
    """Refuse a model that was not made of all the tensors of its checkpoint and of nothing else.

    Tensors that nothing wanted is computed with, by the regular expression `unused`, may be there
    or not. `info` is what transformers tells of loading it.
    """
    if missing := sorted(_used(info["missing_keys"], unused)):
        raise ModelError(
            f"the checkpoint {source} lacks {len(missing)} of the weights that its "
            f"config.json asks for, the first is {missing[0]}"
        )
    for name, found, wanted in sorted(info["mismatched_keys"]):
        raise ModelError(_other_shape(source, name, found, wanted))
    left = [name for name in _used(info["unexpected_keys"], unused) if not BUFFERS.search(name)]
    if harmless := [name for name in info["unexpected_keys"] if name not in left]:
        LOG.info("%s: nothing is computed with %s: left out", source, _listed(sorted(harmless)))
    if left:
        raise ModelError(
            f"the checkpoint {source} holds {_listed(sorted(left))}, for which the model that its "
            "config.json describes has no place (adapters are to be merged, and other layers or "
            "biases must be in the config)"
        )


def check_finite(source: object, model: nn.Module) -> None:
    """Refuse weights that are not numbers or infinite, with which nothing can be compared.

    What is stored beside a model's weights, such as running means, counts as well.
    """
    stored = model.state_dict(keep_vars=True).keys()
    buffers = ((name, one) for name, one in model.named_buffers() if name in stored)
    for name, tensor in chain(model.named_parameters(), buffers):
        if not tensor.is_floating_point() or not tensor.numel():
            continue
        # The least and the largest value are NaN where one is, at a tenth of isfinite's cost.
        if not all(math.isfinite(end.item()) for end in torch.aminmax(tensor.detach())):
            dtype = str(tensor.dtype).removeprefix("torch.")
            raise ModelError(
                f"the checkpoint {source} holds {name} with values that are NaN or infinite "
                f"(in {dtype}): give one that is whole, or another model.dtype"
            )


def left_out(model: PreTrainedModel, stored: Iterable[str], info: Mapping[str, Any]) -> set[str]:
    """Stored tensors that were left out, with those that transformers keeps quiet about.

    It searches for what it ignores anywhere in a name, so that others are ignored as well.
    """
    silent = "|".join((*(model._keys_to_ignore_on_load_unexpected or ()), *IGNORED))
    body = f"{model.base_model_prefix}."
    there = {name.removeprefix(body) for name in model.state_dict()}
    ignored = {name for name in stored if re.search(silent, name)}
    return set(info["unexpected_keys"]) | {
        name for name in ignored if name.removeprefix(body) not in there
    }


def without_missing(model: nn.Module, missing: Iterable[str]) -> None:
    """Takes modules out of a model, in place, that its checkpoint lacks and it can spare."""
    for path in {name.partition(".")[0] for name in missing}:
        setattr(model, path, None)


def _used(names: Iterable[str], unused: str) -> list[str]:
    """Those of some tensors that are not known to be of no use."""
    return [name for name in names if not (unused and re.fullmatch(unused, name))]


def _other_shape(source: object, name: str, found: Iterable[int], wanted: Iterable[int]) -> str:
    return (
        f"the checkpoint {source} holds {name} of shape {tuple(found)}, but its config.json asks "
        f"for {tuple(wanted)}"
    )


def _listed(names: Sequence[str]) -> str:
    """The first of some tensors, and how many there are beside it."""
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more tensors"
