"""Format ``hf``: every layer as it is, with a modeling file that ships in the checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from transformers import PreTrainedConfig, PreTrainedModel

from evocompress.core.types import DENSE, Candidate
from evocompress.export.configs import cut_config
from evocompress.export.edits import edits_of
from evocompress.export.layout import (
    Block,
    layout,
    no_attention_left,
    no_block_left,
    of_matrices,
)
from evocompress.export.pretrained import Pretrained
from evocompress.export.running import MODELING_FILE, Programs, Running
from evocompress.export.weights import StateDict, assemble, renumbered
from evocompress.models.families.convolutional import Convolutional
from evocompress.models.families.uneven import dense_class, dense_layers, text_config
from evocompress.models.loading import LoadedModel
from evocompress.models.modeling import CLASSES, Classes, derived_classes
from evocompress.models.modeling.modeling_derived import made

LOADING = """from transformers import {auto}

# either with this package, which runs no code from the checkpoint:
import evocompress.hf
model = {auto}.from_pretrained("{path}")
# or without it:
model = {auto}.from_pretrained("{path}", trust_remote_code=True)"""


WORDS = ("skip", "bias")
"""What entries of ``per_layer_config`` have that are no settings of a whole model."""

CHANNELS = "intermediate_size"

SETTINGS = ("num_attention_heads", "num_key_value_heads", CHANNELS)
"""What they may have of a model's settings, if its config has that."""


class ModelingFile(Pretrained):
    """Each block has its own widths, or lacks a sub-layer; `evocompress.hf` has the class too."""

    loading = LOADING
    programs: ClassVar[Programs] = {"transformers": Running(MODELING_FILE)}

    def obstacle(self, loaded: LoadedModel, candidate: Candidate) -> str | None:
        """A model whose classes are those of another type, or one without any attention."""
        if unknown := of_matrices(loaded):
            return unknown
        if classes_of(loaded) is None:
            return f"cannot hold {loaded.family.model_type} models, whose class is of another type"
        left = layout(loaded, candidate)
        unit = left.first(lambda b, kind: kind == "mlp" and kind in b.biased and b.experts != ())
        if unit is not None:
            return f"cannot give the experts of {unit} a bias"
        return no_attention_left(left, loaded) or no_block_left(left)

    def build(self, loaded: LoadedModel, state: StateDict, candidate: Candidate) -> PreTrainedModel:
        """A model of the family's class in `evocompress.models.modeling`."""
        classes = known_classes(loaded)
        if isinstance(loaded.family, Convolutional):
            config = layers_config(loaded, layout(loaded, candidate).blocks)
        else:
            config = derived_config(loaded, state, candidate)
        return assemble(classes.head, config, state, self.name_of(loaded, candidate))

    def name_of(self, loaded: LoadedModel, candidate: Candidate) -> Callable[[str], str]:
        """Experts have other numbers; blocks keep theirs, as a class may go by them."""
        return renumbered(loaded.family.block_names, layout(loaded, candidate).blocks)

    def files(self, loaded: LoadedModel) -> tuple[Path, ...]:
        """The Python files that ``auto_map`` names."""
        return known_classes(loaded).files


def classes_of(loaded: LoadedModel) -> Classes | None:
    """The classes that a model is written in; ``None`` where there are none."""
    own = CLASSES.get(loaded.family.model_type)
    return own or derived_classes(dense_class(type(loaded.model)))


def known_classes(loaded: LoadedModel) -> Classes:
    """`classes_of` a model that has some."""
    classes = classes_of(loaded)
    assert classes is not None
    return classes


def layers_config(loaded: LoadedModel, blocks: Sequence[Block]) -> PreTrainedConfig:
    """The config of a CNN's class in `evocompress.models.modeling`; ``layers`` tells them apart."""
    classes = known_classes(loaded)
    own: dict[int, dict[str, Any]] = {}
    for block in blocks:
        settings: dict[str, Any] = {"skip": True} if block.dropped else {}
        settings |= {"channels": block.widths.channels} if block.narrow else {}
        settings |= {"bias": True} if block.biased else {}
        own |= {block.index: settings} if settings else {}
    settings = loaded.model.config.to_dict() | {"layers": own, "auto_map": classes.auto_map}
    del settings["model_type"]
    return classes.config.from_dict(settings)


def derived_config(
    loaded: LoadedModel,
    state: StateDict,
    candidate: Candidate,
    blocks: Sequence[Block] | None = None,
) -> PreTrainedConfig:
    """The config of a class of `modeling_derived`: the dense one's, and what each block becomes.

    With `blocks` it is that of a model of these alone.
    """
    classes, whole = known_classes(loaded), loaded.model.config
    dense, settings = text_config(whole), _layered(loaded, state, candidate, blocks)
    path = loaded.family.layers_path
    if dense is not whole:
        own = dense_class(type(dense))
        settings |= {"dense_class": own.__name__, "blocks": path.rpartition(".")[2]}
        name = next(name for name in whole.sub_configs if getattr(whole, name) is dense)
        settings = whole.to_dict() | {name: made(own).from_dict(settings)}
        del settings["model_type"]
    settings |= {
        "dense_class": dense_class(type(loaded.model)).__name__,
        "blocks": path.removeprefix(f"{loaded.model.base_model_prefix}."),
        "auto_map": classes.auto_map,
    }
    config = classes.config.from_dict(settings)
    config._attn_implementation = whole._attn_implementation
    return config


def _layered(
    loaded: LoadedModel,
    state: StateDict,
    candidate: Candidate,
    blocks: Sequence[Block] | None,
) -> dict[str, Any]:
    """The settings of the dense language model, and what each of its blocks becomes."""
    dense = text_config(loaded.model.config)
    grouped = dense._hasattr_without_heterogeneous_validation("num_key_value_heads")
    known = {*WORDS, *filter(dense._hasattr_without_heterogeneous_validation, SETTINGS)}
    whole, calls = loaded.model.config, loaded.family.calls
    kept = dense if blocks is None else text_config(cut_config(whole, blocks, calls))
    settings: dict[str, Any] = kept.to_dict()
    others = (*WORDS, "edits")
    given = {
        int(layer): {name: entry[name] for name in entry if name not in others}
        for layer, entry in (settings.get("per_layer_config") or {}).items()
    }
    own: dict[str, dict[str, Any]] = {}
    left = layout(loaded, candidate)
    for layer, block in enumerate(left.blocks if blocks is None else blocks):
        names = {kind: f"{left.names[block.index]}.{kind}" for kind in block.narrow}
        now = [k for k, name in names.items() if candidate.by_name.get(name, DENSE).narrow]
        entry = overrides(replace(block, narrow=tuple(now)), grouped=grouped)
        if block.experts:
            entry.pop(CHANNELS, None)  # which may be of other blocks' MLPs
        own[str(layer)] = given.get(block.index, {}) | {k: entry[k] for k in entry.keys() & known}
        if edits := edits_of(loaded, state, candidate, block):
            own[str(layer)]["edits"] = edits
    settings["per_layer_config"] = own
    settings |= {"dense_layers": layers} if (layers := dense_layers(dense)) else {}
    del settings["model_type"]
    narrow = any("num_attention_heads" in entry for entry in own.values())
    if narrow and dense._getattr_without_heterogeneous_validation("head_dim", None) is None:
        # Where layers have fewer heads, their size does not follow from the number.
        settings["head_dim"] = loaded.family.architecture(loaded.model).head_dim
    return settings


def overrides(block: Block, *, grouped: bool) -> dict[str, Any]:
    """A block's entry of ``per_layer_config``; `grouped`: with its number of key-value heads."""
    own: dict[str, Any] = {}
    if block.dropped:
        own["skip"] = list(block.dropped)
    if "attention" in block.narrow:
        own["num_attention_heads"] = block.widths.heads
        if grouped:
            own["num_key_value_heads"] = block.widths.kv_heads
    if "mlp" in block.narrow:
        own[CHANNELS] = block.widths.channels
    if block.biased:
        own["bias"] = list(block.biased)
    return own
