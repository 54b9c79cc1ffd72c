"""Configs of the model's own class, for fewer blocks and other widths."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import PreTrainedConfig

from evocompress.core.architecture import Architecture
from evocompress.core.widths import Widths, dense_widths
from evocompress.export.layout import Block
from evocompress.models.config_keys import name_stages
from evocompress.models.families.derivation.shrink import (
    CHANNEL_KEYS,
    EXPERT_KEYS,
    OF_PARTS,
    SHARED_LAYERS,
)
from evocompress.models.families.shapes import matrix_shape
from evocompress.models.families.uneven import (
    HEADS_BY_LAYER,
    dense_layers,
    is_compressed,
    text_config,
)
from evocompress.models.loading import LoadedModel

NOT_OF_LAYERS = (
    *("architectures", "token_id", "token_ids", "tokens", "_keys", "keys_to_ignore"),
    *OF_PARTS,
)
"""Ends of the names of lists that every config may have, and that are not about layers."""


NUMBERS_OF_LAYERS = ("attn_layer_indices", "mlp_only_layers", "full_attn_idxs")
"""Settings that list the numbers of layers."""

FIRST_LAYERS = (
    *("max_window_layers", "first_k_dense_replace", "num_dense_layers"),
    *("moe_layer_start_index", "moe_layer_end_index"),
)
"""Settings by which the first layers are of another kind, the one so numbered not among them.

That of the last mixture, which ERNIE 4.5 names, is among them.
"""


ADJUSTED = "block_auto_adjust_ff_dim"
"""Where this is set, MLPs of LFM2 have other channels than their config says."""


def use_of_index(config: PreTrainedConfig) -> str:
    """What a model makes of the numbers of its blocks; empty where that is nothing."""
    if getattr(text_config(config), "scale_attn_by_inverse_layer_idx", False):
        return "scales attention by the block's index"
    parts = [config, *(getattr(config, name, None) for name in config.sub_configs)]
    if any("deepstack" in name for part in parts if part for name in vars(part)):
        return "adds what it sees in images to the first blocks by their index"
    return ""


def cut_config(
    config: PreTrainedConfig, kept: Sequence[Block], calls: Sequence[int] = ()
) -> PreTrainedConfig:
    """A copy of the config for a model with only the blocks `kept`.

    Where blocks have several `calls` all are, as numbers matter to the class.
    """
    whole = copy.deepcopy(config)
    if calls:
        return whole
    cut, indices = text_config(whole), [block.index for block in kept]
    _cut_lists(cut, indices)
    for name in FIRST_LAYERS:
        if first := getattr(cut, name, None):
            last = name.endswith("end_index")
            setattr(cut, name, sum(index < first + last for index in indices) - last)
    if shared := getattr(cut, SHARED_LAYERS, 0):
        first = cut.num_hidden_layers - shared
        setattr(cut, SHARED_LAYERS, sum(index >= first for index in indices))
    for name in NUMBERS_OF_LAYERS:
        if numbers := getattr(cut, name, None):
            setattr(cut, name, [i for i, index in enumerate(indices) if index in numbers])
    own = {} if is_compressed(cut.model_type) else _of_layers(cut)
    if own:
        cut.per_layer_config = None
    cut.num_hidden_layers = len(kept)
    name_stages(cut, len(kept))
    if own:
        cut.per_layer_config = {
            layer: own[index] for layer, index in enumerate(indices) if index in own
        }
    return whole


def _of_layers(config: PreTrainedConfig) -> dict[int, Any]:
    """What layers of a model in transformers have otherwise than the others, by number."""
    return {int(layer): own for layer, own in dense_layers(config).items()}


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
        if hasattr(config, HEADS_BY_LAYER):
            setattr(config, HEADS_BY_LAYER, [widths.heads] * config.num_hidden_layers)
        if hasattr(config, "num_key_value_heads"):
            config.num_key_value_heads = widths.kv_heads
    key = channel_key(config, dense.channels)
    if widths.channels != dense.channels and key:
        setattr(config, key, widths.channels)
        if hasattr(config, ADJUSTED):
            setattr(config, ADJUSTED, False)


def channel_key(config: PreTrainedConfig, channels: int = 0) -> str:
    """The setting of the width of a model's MLPs or experts; empty where it follows from others.

    That with the value `channels` comes first: Granite's hybrids without experts have two.
    """
    keys = ("moe_intermediate_size", *CHANNEL_KEYS, "hidden_dim", "shared_intermediate_size")
    known = [key for key in keys if hasattr(config, key)]
    return next((key for key in known if getattr(config, key) == channels), (*known, "")[0])


def are_channels_of_mlps_alone(loaded: LoadedModel) -> bool:
    """Whether a setting of a model's config is the width of its MLPs and of nothing behind them."""
    if len(getattr(loaded.family, "kinds", ())) > 1 or loaded.family.mixture is not None:
        return True  # `is_taken` sees it
    key, shapes = channel_key(text_config(loaded.model.config)), []
    first = loaded.family.at(0)
    if not first.mlp.coupled:
        return True  # the first layer, of which a model is made, has no MLP to tell it by
    output = first.mlp.output
    dense = matrix_shape(loaded.family.blocks(loaded.model)[0], output)[1]
    for less in (0, 8) if key else ():
        single = _of_one_layer(loaded.model.config, loaded)
        text = text_config(single)
        if less:
            setattr(text, key, dense - less)
        with torch.device("meta"):
            built = type(loaded.model)(single)
        name = f"{loaded.family.block_names[0]}."
        every, blocks = built.named_parameters(), f"{loaded.family.layers_path}."
        outside = {n: tuple(p.shape) for n, p in every if not n.startswith(blocks)}
        mlp = built.get_parameter(f"{name}{output.path}.weight").shape
        shapes.append((outside, tuple(mlp)))
    return len(shapes) == 2 and shapes[0][0] == shapes[1][0] and shapes[0][1] != shapes[1][1]


def _of_one_layer(config: PreTrainedConfig, loaded: LoadedModel) -> PreTrainedConfig:
    """A copy of a config for a model of one layer, which stands for all; of all that are one."""
    single = copy.deepcopy(config)
    if not loaded.family.calls:
        text = text_config(single)
        _cut_lists(text, [0])
        text.num_hidden_layers = 1
        name_stages(text, 1)
    return single


def whole_widths(loaded: LoadedModel) -> Widths:
    """The widths of dense sub-layers: of a hybrid those of the blocks that have them."""
    whole = loaded.family.architecture(loaded.model)
    heads, keys, channels = map(max, (whole.heads, whole.kv_heads, whole.channels))
    return Widths(heads, keys, whole.head_dim, channels)


def expert_key(config: PreTrainedConfig, count: int) -> str:
    """The setting of the number of a mixture's experts; empty where none is found."""
    keys = (key for key in EXPERT_KEYS if getattr(config, key, None) == count)
    return next(keys, "")


def is_taken(config: PreTrainedConfig, loaded: LoadedModel, blocks: Sequence[Block]) -> bool:
    """Whether the model's class makes some blocks of a config as wide as they are to be.

    Some classes want heads whose number divides the hidden size, others derive their size from it,
    or do not say by a setting how many channels there are. Where all blocks are built alike one
    stands for all.
    """
    narrow = any("attention" in block.narrow for block in blocks)
    if len(getattr(loaded.family, "kinds", ())) < 2 and not loaded.family.calls:
        config, blocks = _of_one_layer(config, loaded), blocks[:1]
    lists = per_layer(text_config(config))
    try:
        config = type(config).from_dict(config.to_dict())  # as it is read from a checkpoint
        if per_layer(text_config(config)) != lists:
            return False  # Gemma 4 wants full attention in the last layer
        if narrow:
            text_config(config).validate()
        with torch.device("meta"):
            built = type(loaded.model)(config)
    except (StrictDataclassError, ValueError):
        return False
    if loaded.family.mixture is not None:
        loaded.family.mixture.prepare(built, loaded.family.blocks(built))
    architecture = loaded.family.architecture(loaded.model)  # which is counted, so once for all
    pairs = zip(blocks, loaded.family.blocks(built), strict=True)
    return all(_is_as_wide(module, block, loaded, architecture) for block, module in pairs)


def _is_as_wide(
    module: nn.Module, block: Block, loaded: LoadedModel, architecture: Architecture
) -> bool:
    """Whether a block has the matrices that it is to have, and they have their shapes."""
    family, dense = loaded.family.at(block.index), loaded.family.blocks(loaded.model)[block.index]
    widths = dense_widths(architecture, block.index)
    for matrix in family.matrices:
        try:
            found = matrix_shape(module, matrix)
        except AttributeError:
            return False
        wanted = matrix_shape(dense, matrix)
        if block.widths != widths and matrix.sublayer not in block.dropped:
            rows, columns = matrix.rows, matrix.columns
            size = partial(block.widths.size, dense=widths)
            wanted = size(rows, wanted[0]), size(columns, wanted[1])
        if found != wanted:
            return False
    return True
