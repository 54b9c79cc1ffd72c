"""What stands beside the language model in a model of several parts, made small."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import count
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig

from evocompress.models.families.uneven import text_config

SMALL = {
    **dict.fromkeys(("hidden_size", "embed_dim", "d_model", "upsample_groups"), 32),
    **dict.fromkeys(("num_attention_heads", "num_key_value_heads", "num_heads"), 2),
    **{"encoder_attention_heads": 2, "head_dim": 16},
    **{"intermediate_size": 48, "encoder_ffn_dim": 48, "base_channels": 32, "num_filters": 4},
    **{"kv_n_heads": 2, "ffn_hidden_size": 24, "moe_num_experts": 4},
}
"""Sizes of an encoder of images or sounds, or of what a config keeps in configs of their own."""

DEPTH = re.compile(r"(.*_)?(layers|num_blocks|depth)")
"""What may be how many layers a part has; it keeps one."""

SIZE = re.compile(r"(?!codebook_).*(_size|_dim)")
"""What may be the width of the language model, which other parts hand on to; no codebook's is."""

TOKEN = re.compile(r".*_token_(id|index)")
"""What names a token that stands for an image, for a sound or for the end of one."""

USUAL_TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
"""Tokens of every tiny model."""

FIRST_SPECIAL = 300
"""The first token of a tiny model that may stand for something else than text."""


def whole_of(config: PreTrainedConfig, small: PreTrainedConfig) -> Any:
    """A model's config with a small one in the place of that of its language model.

    Args:
        config: Of a model of one part or of several; they become small as well.
        small: The small config of its language model.
    """
    text = text_config(config)
    whole = small if text is config else copy.deepcopy(config, {id(text): small})
    parts, hidden = list(_parts(whole, small)), getattr(text, "hidden_size", None)
    for part in parts:
        _cut_short(part)
        _narrow(part, SMALL, hidden, small)
    outer = [] if whole is small else [whole]
    for one in outer:
        _narrow(one, {}, hidden, small)
        _compute_again(one)
    _rename_tokens([*outer, *parts, small])
    return whole


def _parts(config: PreTrainedConfig, small: PreTrainedConfig) -> Iterator[Any]:
    """The configs within one, at any depth, but for those around the language model's."""
    for name in config.sub_configs:
        part = getattr(config, name, None)
        if isinstance(part, PreTrainedConfig) and part is not small:
            inner = [getattr(part, one, None) for one in part.sub_configs]
            if not any(one is small for one in inner):
                yield part
            yield from _parts(part, small)


def _cut_short(part: Any) -> None:
    """Leave, in place, one layer of an encoder."""
    values = dict(vars(part))
    depths = {n: v for n, v in values.items() if DEPTH.fullmatch(n) and type(v) is int and v > 1}
    for name, value in values.items():
        if name in depths:
            setattr(part, name, 1)
        elif SIZE.fullmatch(name):
            continue  # height and width are no settings of two layers
        elif isinstance(value, list | tuple) and len(value) in depths.values():
            setattr(part, name, value[:1])


def _narrow(part: Any, sizes: Mapping[str, int], hidden: int | None, small: Any) -> None:
    """Give, in place, a part small sizes; what is as wide as the language model stays so."""
    for name, value in list(vars(part).items()):
        if type(value) is int and value == hidden and SIZE.fullmatch(name):
            setattr(part, name, small.hidden_size)
        elif type(value) is int and name in sizes:
            setattr(part, name, min(value, sizes[name]))


def _compute_again(whole: Any) -> None:
    """Give, in place, a config the sizes that its class computes of those of its parts."""
    try:
        computed = vars(type(whole).from_dict(whole.to_dict()))
    except (StrictDataclassError, ValueError):
        return  # what is wrong with it is told where a model of it is made
    for name, value in list(vars(whole).items()):
        if type(value) is int and type(computed.get(name)) is int:
            setattr(whole, name, computed[name])


def _rename_tokens(configs: Iterable[Any]) -> None:
    """Give, in place, each token that the configs name a small number of its own."""
    numbers = count(FIRST_SPECIAL)
    known: dict[int, int] = {}
    for config in configs:
        for name, value in list(vars(config).items()):
            if name in USUAL_TOKENS:
                setattr(config, name, USUAL_TOKENS[name])
            elif TOKEN.fullmatch(name) and type(value) is int and value >= 0:
                if value not in known:
                    known[value] = next(numbers)
                setattr(config, name, known[value])
