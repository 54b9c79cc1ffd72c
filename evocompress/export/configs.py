"""Configs of the model's own class, for fewer blocks and other widths."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig, PreTrainedModel

from evocompress.core.types import Unit
from evocompress.core.widths import Widths
from evocompress.export.layout import Block
from evocompress.models.config_keys import name_stages
from evocompress.models.families.base import Family, prepare
from evocompress.models.families.shapes import matrix_shape
from evocompress.models.families.uneven import text_config
from evocompress.models.loading import LoadedModel

CHANNEL_KEYS = ("moe_intermediate_size", "intermediate_size", "ffn_dim", "n_inner", "hidden_dim")

NOT_OF_LAYERS = ("architectures", "token_id", "token_ids", "tokens", "_keys", "keys_to_ignore")
"""Ends of the names of lists that every config may have, and that are not about layers."""


def use_of_index(config: PreTrainedConfig) -> str:
    """What a model makes of the numbers of its blocks; empty where that is nothing."""
    if getattr(text_config(config), "scale_attn_by_inverse_layer_idx", False):
        return "scales attention by the block's index"
    parts = [config, *(getattr(config, name, None) for name in config.sub_configs)]
    if any("deepstack" in name for part in parts if part for name in vars(part)):
        return "adds what it sees in images to the first blocks by their index"
    return ""


def cut_config(config: PreTrainedConfig, kept: Sequence[Block]) -> PreTrainedConfig:
    """A copy of the config for a model with only the blocks `kept`."""
    whole = copy.deepcopy(config)
    cut, indices = text_config(whole), [block.index for block in kept]
    _cut_lists(cut, indices)
    if getattr(cut, "max_window_layers", None) is not None:
        cut.max_window_layers = sum(index < cut.max_window_layers for index in indices)
    cut.num_hidden_layers = len(kept)
    name_stages(cut, len(kept))
    return whole


def per_layer(config: PreTrainedConfig) -> dict[str, list[object] | tuple[object, ...]]:
    """The settings with an entry for each layer, whatever they are called.

    `NOT_OF_LAYERS` may be as long by chance.
    """
    return {
        name: value
        for name, value in vars(config).items()
        if isinstance(value, list | tuple)
        and len(value) == getattr(config, "num_hidden_layers", None)
        and not name.endswith(NOT_OF_LAYERS)
    }


def _cut_lists(config: PreTrainedConfig, indices: Sequence[int]) -> None:
    """Leaves, in place, the entries of some layers in all settings that have one for each."""
    for name, values in per_layer(config).items():
        setattr(config, name, type(values)(values[index] for index in indices))


def set_widths(config: PreTrainedConfig, widths: Widths, dense: Widths) -> None:
    """Gives all layers of a dense config, in place, other widths.

    The size of a head is written out, because it follows from the number of heads otherwise.
    """
    config = text_config(config)
    if (widths.heads, widths.kv_heads) != (dense.heads, dense.kv_heads):
        config.head_dim = widths.head_dim
        config.num_attention_heads = widths.heads
        if hasattr(config, "num_key_value_heads"):
            config.num_key_value_heads = widths.kv_heads
    key = channel_key(config)
    if widths.channels != dense.channels and key:
        setattr(config, key, widths.channels)


def channel_key(config: PreTrainedConfig) -> str:
    """The setting of the width of a model's MLPs or experts; empty where it follows from others."""
    return next((key for key in CHANNEL_KEYS if hasattr(config, key)), "")


def are_channels_of_mlps_alone(loaded: LoadedModel) -> bool:
    """Whether a setting of a model's config is the width of its MLPs and of nothing behind them."""
    key, shapes = channel_key(text_config(loaded.model.config)), []
    first = loaded.family.at(0)
    if not first.mlp.coupled:
        return True  # the first layer, of which a model is made, has no MLP to tell it by
    output = first.mlp.output
    dense = matrix_shape(loaded.family.blocks(loaded.model)[0], output)[1]
    for less in (0, 8) if key else ():
        single = copy.deepcopy(loaded.model.config)
        text = text_config(single)
        _cut_lists(text, [0])
        text.num_hidden_layers = 1
        name_stages(text, 1)
        if less:
            setattr(text, key, dense - less)
        with torch.device("meta"):
            built = type(loaded.model)(single)
        name = f"{loaded.family.block_names[0]}."
        outside = {n: tuple(p.shape) for n, p in built.named_parameters() if name not in n}
        mlp = built.get_parameter(f"{name}{output.path}.weight").shape
        shapes.append((outside, tuple(mlp)))
    return len(shapes) == 2 and shapes[0][0] == shapes[1][0] and shapes[0][1] != shapes[1][1]


def is_taken(config: PreTrainedConfig, loaded: LoadedModel) -> bool:
    """Whether the model's classes take the heads that `set_widths` gave a config.

    Some want their number to divide the hidden size; others derive their size from it.
    """
    dense = _output(loaded.family, loaded.model)
    single, text = copy.deepcopy(config), text_config(config)
    _cut_lists(text_config(single), [0])
    text_config(single).num_hidden_layers = 1
    try:
        text.validate()
        # The first layer of some models has no attention.
        built = _built(loaded, single) or _built(loaded, config)
    except (StrictDataclassError, ValueError):
        return False
    if not (dense and dense.shape and built and built.shape):
        return False
    heads = loaded.family.architecture(loaded.model).heads[dense.block]
    return bool(dense.shape[1] * text.num_attention_heads == built.shape[1] * heads)


def _built(loaded: LoadedModel, config: PreTrainedConfig) -> Unit | None:
    """The same as `_output`, of a model of a config."""
    with torch.device("meta"):
        model = type(loaded.model)(config)
        prepare(loaded.family, model)
    return _output(loaded.family, model)


def _output(family: Family, model: PreTrainedModel) -> Unit | None:
    """The first matrix of a model whose columns are those of query heads; ``None`` without any."""
    return next((unit for unit in family.units(model) if unit.columns == ("query",)), None)
