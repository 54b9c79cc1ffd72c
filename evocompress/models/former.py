"""Checkpoints of format ``hf`` that have a modeling file of their type, as there once were.

Their config says of each layer which sub-layers, heads, channels and experts it has left, and the
file knew what that means for the modules of the type. Here the derived family knows, and the
config is read as that of `evocompress.models.modeling.modeling_derived`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

from evocompress.core.widths import Widths
from evocompress.models.edits import Edits, removal, telling
from evocompress.models.families.base import Family, prepare
from evocompress.models.families.branches import Attributes, SubLayerName
from evocompress.models.families.derivation.derived import derived
from evocompress.models.families.derivation.from_config import class_for
from evocompress.models.families.shapes import matrix_shape
from evocompress.models.families.uneven import PREFIX, head_shape, stock_class
from evocompress.models.modeling.modeling_derived import made
from evocompress.models.tasks import CAUSAL

TYPES = (
    *("llama", "mistral", "qwen2", "qwen3", "phi3", "gemma2", "gemma3_text", "gpt2", "opt"),
    *("starcoder2", "mixtral", "qwen2_moe", "qwen3_moe"),
    *("bert", "roberta", "xlm-roberta", "vit", "deit", "deit-distilled"),
)
"""The types of configs that had a modeling file, behind `PREFIX`."""

DISTILLED = "-distilled"
"""The end of the type of a DeiT with two classifiers, whose config is that of any DeiT."""

CHANNELS = ("moe_intermediate_size", "intermediate_size")
EXPERTS = ("num_local_experts", "num_experts")
SIDES = ("before", "after")
"""Where MLPs of other blocks are in format ``folded``."""

NOT_DENSE = ("model_type", "per_layer_config", "auto_map")


class FormerConfig(PreTrainedConfig):
    """Reads the config of such a checkpoint as one of `modeling_derived`."""

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **settings: Any) -> Any:
        """The config of the class that is made for the model's own."""
        kind = CONFIG_MAPPING[cls.model_type.removeprefix(PREFIX).removesuffix(DISTILLED)]
        return made(kind).from_dict(translated(kind, config_dict), **settings)


def register_former() -> None:
    """Has transformers read the configs of such checkpoints."""
    for kind in TYPES:
        name = f"{PREFIX}{kind}"
        own = type(FormerConfig.__name__, (FormerConfig,), {"model_type": name})
        AutoConfig.register(name, own, exist_ok=True)


def translated(kind: type[PreTrainedConfig], former: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a former config in the words of `modeling_derived`."""
    settings = {name: value for name, value in former.items() if name not in NOT_DENSE}
    config = kind.from_dict(dict(settings))
    named = former.get("architectures")
    cls = getattr(transformers, stock_class(named[0])) if named else class_for(config, CAUSAL)
    family = derived(cls, config)
    with torch.device("meta"):
        model = cls(config)
    prepare(family, model)
    entries = former.get("per_layer_config") or {}
    layers = {
        str(index): _entry(family.at(index), config, block, entries.get(str(index), {}), index)
        for index, block in enumerate(family.blocks(model))
    }
    return settings | {
        "dense_class": cls.__name__,
        "blocks": family.layers_path.removeprefix(f"{model.base_model_prefix}."),
        "per_layer_config": {index: entry for index, entry in layers.items() if entry},
    }


def _entry(
    family: Family, config: Any, block: nn.Module, former: Mapping[str, Any], index: int
) -> dict[str, Any]:
    """What a layer's config says of it, edits included."""
    whole = (*EXPERTS, *CHANNELS) if family.mixture else EXPERTS
    own = {
        name: value
        for name, value in former.items()
        if name in ("skip", "bias") or (hasattr(config, name) and name not in whole)
    }
    edits = _edits(family, config, block, former, index)
    own |= {"edits": edits} if edits else {}
    for side in SIDES:
        alone = ({**mlp, "skip": ["attention"]} for mlp in former.get(side, ()))
        if mlps := [_edits(family, config, block, one, index) for one in alone]:
            own[side] = mlps
    return own


def _edits(
    family: Family, config: Any, block: nn.Module, former: Mapping[str, Any], index: int
) -> Edits:
    """The edits of a block that has what the former config says."""
    dense, own = _widths(family, config, block, former, index)
    left = [name for name in family.sublayers if name not in former.get("skip", ())]
    biased = former.get("bias", ())
    told: Attributes = {}
    shapes: dict[str, list[int]] = {}
    for sublayer in left:
        if own != replace(own, **_of(sublayer, dense)):
            told |= family.narrowing(block, sublayer, own)
            shapes |= _shapes(family, block, sublayer, own, dense)
        if biased is True or sublayer in biased:
            output = family.output(sublayer)
            shapes[f"{output.path}.bias"] = [matrix_shape(block, output)[0]]
    experts: Edits = {}
    if family.mixture and "mlp" in left:
        path = family.mixture.experts
        whole: Any = block.get_submodule(path)
        count = next((former[key] for key in EXPERTS if key in former), len(whole))
        experts = {path: [count, own.channels]}
        if count != len(whole):
            told |= family.mixture.routing(block, range(count))
    tensors = {f"{p}.{n}": list(t.shape) for (p, n), t in told.items() if isinstance(t, Tensor)}
    found = removal(family, block, former.get("skip", ())) | telling(block, told)
    found |= {"experts": experts, "shapes": shapes | tensors}
    return {key: value for key, value in found.items() if value}


def _of(sublayer: SubLayerName, widths: Widths) -> dict[str, int]:
    """The widths of a sub-layer."""
    if sublayer == "mlp":
        return {"channels": widths.channels}
    return {"heads": widths.heads, "kv_heads": widths.kv_heads}


def _widths(
    family: Family, config: Any, block: nn.Module, former: Mapping[str, Any], index: int
) -> tuple[Widths, Widths]:
    """How wide a block of the class is, and how wide the layer is."""
    heads, kv_heads, size = head_shape(config, index)
    channels = matrix_shape(block, family.mlp.output)[1]
    dense = Widths(heads, kv_heads, size, channels)
    own_heads = former.get("num_attention_heads", heads)
    grouped = former.get("num_key_value_heads", own_heads if heads == kv_heads else kv_heads)
    channels = next((former[key] for key in CHANNELS if key in former), channels)
    return dense, replace(dense, heads=own_heads, kv_heads=grouped, channels=channels)


def _shapes(
    family: Family, block: nn.Module, sublayer: SubLayerName, own: Widths, dense: Widths
) -> dict[str, list[int]]:
    """The shapes of the tensors of a narrow sub-layer's matrices."""
    found = {}
    for matrix in family.matrices:
        if matrix.sublayer != sublayer or matrix.expert:
            continue
        rows, columns = matrix_shape(block, matrix)
        shape = [own.size(matrix.rows, rows, dense), own.size(matrix.columns, columns, dense)]
        found[f"{matrix.path}.weight"] = shape[::-1] if matrix.transposed else shape
        if block.get_submodule(matrix.path).bias is not None:
            found[f"{matrix.path}.bias"] = shape[:1]
    return found
