"""Compressed checkpoints of format ``hf`` as dense models: what their config says of each block.

Their classes are those of `evocompress.hf`. A block may lack a sub-layer, and has its own heads,
channels and biases.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import transformers
from transformers import PreTrainedConfig

from evocompress.core.errors import ModelError
from evocompress.models.families.branches import SubLayerName

PREFIX = "evocompress_"
"""How the model types of `evocompress.hf` begin."""

CLASS_PREFIX = "Evocompress"
"""How the names of its classes begin."""

DERIVED = "evocompress_derived"
"""The model type of what has no modeling file of its own."""


def is_compressed(model_type: str) -> bool:
    """Whether a model type is one of `evocompress.hf`."""
    return model_type.startswith(PREFIX)


def text_config(config: PreTrainedConfig) -> Any:
    """Of a model of several parts the config of the language model within; else the config."""
    return config.get_text_config(decoder=True) if config.sub_configs else config


def layer_config(config: PreTrainedConfig, block: int) -> Any:
    """The config as one block sees it, where blocks have settings of their own."""
    config = text_config(config)
    uneven = is_compressed(config.model_type) or config.is_heterogeneous
    return config.per_layer_config[block] if uneven else config


def missing(config: PreTrainedConfig, block: int) -> tuple[SubLayerName, ...]:
    """The sub-layers that a block does not have although the model's others may."""
    if not is_compressed(config.model_type):
        return ()
    return tuple(layer_config(config, block).skip)


def added_biases(config: PreTrainedConfig, block: int) -> tuple[SubLayerName, ...]:
    """The sub-layers of a block whose output matrix was given a bias that the family's has not."""
    if not is_compressed(config.model_type):
        return ()
    return tuple(layer_config(config, block).bias)


HEADS_BY_LAYER = "num_attention_heads_per_layer"
"""The setting of configs that list how many query heads each layer has."""


def head_shape(config: PreTrainedConfig, block: int) -> tuple[int, int, int]:
    """Query heads, key-value heads and the width of a head of a dense block.

    Without an attention the numbers are 0, and where no block has one the width is as well.
    """
    config, own = text_config(config), layer_config(config, block)
    heads = _listed_heads(config, block) or getattr(own, "num_attention_heads", 0)
    if not heads:
        return 0, 0, 0
    whole = own if config.is_heterogeneous else config
    size = getattr(whole, "head_dim", None) or whole.hidden_size // whole.num_attention_heads
    if "attention" in missing(config, block):
        return 0, 0, size
    return heads, _kv_heads(own) or heads, size


def _listed_heads(config: Any, block: int) -> int | None:
    """The query heads of a block by a list for all layers; none where its own setting is another.

    Such a list is that of the dense model.
    """
    listed = getattr(config, HEADS_BY_LAYER, None)
    own = has_own(config, block, "num_attention_heads")
    return listed[block] if listed and not own else None


def has_own(config: PreTrainedConfig, block: int, name: str) -> bool:
    """Whether a block has a setting of its own."""
    config = text_config(config)
    changed = config._heterogeneity_spec.per_layer_overrides if config.is_heterogeneous else {}
    return name in changed.get(block, {})


def _kv_heads(own: Any) -> int | None:
    """Key-value heads as a config counts them; Falcon's has keys of its own for that."""
    if getattr(own, "multi_query", False) and not getattr(own, "new_decoder_architecture", True):
        return 1
    counts = (getattr(own, key, None) for key in ("num_key_value_heads", "num_kv_heads"))
    return next(filter(None, counts), None)


def stock_class(name: str) -> str:
    """The class of transformers that a class of `evocompress.hf` is derived from."""
    return name.removeprefix(CLASS_PREFIX)


def dense_type(classes: Sequence[str]) -> str:
    """The model type of a class of transformers.

    Raises:
        ModelError: No class is named, or none that there is.
    """
    found = getattr(transformers, classes[0], None) if classes else None
    config = getattr(found, "config_class", None)
    if config is None:
        raise ModelError(
            f"config.json of this compressed checkpoint names no class in architectures that "
            f"transformers {transformers.__version__} has, so its family is unknown"
        )
    kind: str = config.model_type
    return kind


Class = TypeVar("Class", bound=type)


def dense_class(known: Class) -> Class:
    """The class of transformers that a class of `evocompress.hf` is derived from, or that it is."""
    return getattr(transformers, stock_class(known.__name__), known)


def dense_layers(config: PreTrainedConfig) -> dict[str, Any]:
    """In what the layers of the model in transformers differ, by its config; mostly nothing."""
    key = "dense_layers" if is_compressed(config.model_type) else "per_layer_config"
    found: dict[str, Any] = config.to_dict().get(key) or {}
    return found


def dense_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """A model's config without what tells its layers apart, in transformers' own class."""
    if not is_compressed(config.model_type):
        return config
    own = ("model_type", "per_layer_config", "dense_layers", "dense_class", "blocks", "auto_map")
    settings = {name: value for name, value in config.to_dict().items() if name not in own}
    settings |= {name: dense_config(getattr(config, name)) for name in _compressed_parts(config)}
    settings |= {"per_layer_config": layers} if (layers := dense_layers(config)) else {}
    return dense_class(type(config)).from_dict(settings)


def _compressed_parts(config: PreTrainedConfig) -> list[str]:
    """The names of the parts of a config that are compressed."""
    parts = {name: getattr(config, name, None) for name in config.sub_configs}
    return [name for name, part in parts.items() if part and is_compressed(part.model_type)]


def check_layers(config: PreTrainedConfig) -> None:
    """Refuse a compressed model whose blocks have more than their own two sub-layers."""
    if not is_compressed(config.model_type):
        return
    layers: Sequence[Any] = text_config(config).per_layer_config
    if any(layer.before or layer.after for layer in layers):
        raise ModelError(
            "this compressed checkpoint is of format 'folded', whose layers have MLPs of other "
            "blocks, and cannot be compressed again: give one of format hf"
        )
