"""Format ``folded``: as ``hf``, with an attention in every layer.

Programs that count layers by their caches, such as vLLM's transformers backend, have no place for
a layer without attention. Its MLP is run by the layer before it, or by the first one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from transformers import PreTrainedModel

from evocompress.core.types import Candidate
from evocompress.export.layout import Block, Layout, layout, second_round
from evocompress.export.modeling_file import ModelingFile, derived_config, known_classes
from evocompress.export.renumbering import renumbering
from evocompress.export.running import MODELING_FILE, Programs, Running
from evocompress.export.weights import StateDict, assemble
from evocompress.models.families import Family
from evocompress.models.families.uneven import text_config
from evocompress.models.loading import LoadedModel

NOTE = (
    "Format `folded`: a block that has lost its attention is no layer of its own. Its MLP is run "
    "by the layer before it (`after` in `per_layer_config`), or by the first one (`before`). The "
    "function and the weights are those of the blocks one after the other."
)


@dataclass
class Layer:
    """One layer of the folded model.

    Attributes:
        block: The one whose attention it has.
        before: Blocks without attention that run before it.
        after: Blocks without attention that run after it.
    """

    block: Block
    before: list[Block] = field(default_factory=list)
    after: list[Block] = field(default_factory=list)


class Folded(ModelingFile):
    """Each layer has an attention, and any number of MLPs."""

    programs: ClassVar[Programs] = {
        "transformers": Running(MODELING_FILE, on_request=True),
        "vllm": Running(
            "vLLM's transformers backend",
            families=(
                *("llama", "mistral", "qwen2", "qwen3", "arcee", "ernie4_5", "gemma", "glm4"),
                *("granite", "helium", "hunyuan_v1_dense", "nemotron", "olmo2", "phi"),
                *("seed_oss", "smollm3", "stablelm"),
                *("ernie4_5_moe", "flex_olmo", "glm4_moe", "granitemoe", "hunyuan_v1_moe"),
                *("mixtral", "olmoe", "qwen2_moe", "qwen3_moe", "llava"),
            ),
        ),
    }

    def obstacle(self, loaded: LoadedModel, candidate: Candidate) -> str | None:
        """As of ``hf``, and a model without a cache, or in which the numbers of blocks matter."""
        if compressed := second_round(loaded):
            return compressed
        if not loaded.family.task.causal:
            task = loaded.family.task.name
            return f"cannot hold {loaded.family.model_type} models for {task}, only language models"
        if any("grouped" in matrix.rows for matrix in loaded.family.matrices):
            # vLLM continued GPT-NeoX with other tokens.
            name = loaded.family.model_type
            return f"cannot hold {name} models, whose queries, keys and values are in groups"
        left = layout(loaded, candidate)
        return (
            super().obstacle(loaded, candidate)
            or (renumbering(left, loaded) if _numbered_anew(left) else None)
            or _untried(left, loaded)
            or _other_experts(left)
            or _of_other_kinds(left, loaded.family)
        )

    def note(self, loaded: LoadedModel, candidate: Candidate) -> str:
        """What becomes of blocks without attention, where there are any."""
        alone = any(block.dropped == ("attention",) for block in layout(loaded, candidate).blocks)
        return NOTE if alone else ""

    def build(self, loaded: LoadedModel, state: StateDict, candidate: Candidate) -> PreTrainedModel:
        """A model of a class of `modeling_derived`."""
        layers = folded_layers(layout(loaded, candidate))
        every = text_config(derived_config(loaded, state, candidate)).to_dict()["per_layer_config"]
        entries = {int(index): entry for index, entry in every.items()}
        config = derived_config(loaded, state, candidate, [layer.block for layer in layers])
        own: Any = text_config(config)
        own.per_layer_config = {
            str(number): entries.get(layer.block.index, {}) | _sides(layer, entries)
            for number, layer in enumerate(layers)
        }
        head = known_classes(loaded).head
        return assemble(head, config, state, self.name_of(loaded, candidate))

    def name_of(self, loaded: LoadedModel, candidate: Candidate) -> Callable[[str], str]:
        """The MLPs of a layer may be of several blocks."""
        left = layout(loaded, candidate)
        return _names(left, folded_layers(left))


def folded_layers(left: Layout) -> list[Layer]:
    """The layers of the folded model; the first blocks left without attention may lead."""
    leading: list[Block] = []
    layers: list[Layer] = []
    for block in left.kept:
        if "attention" in block.sublayers and "attention" not in block.dropped:
            layers.append(Layer(block, before=leading))
            leading = []
        elif not layers:
            leading.append(block)
        else:
            layers[-1].after.append(block)
    return layers


def _other_experts(left: Layout) -> str | None:
    """The obstacle of a mixture of other experts than the config says.

    vLLM's transformers backend takes the experts of a layer for its own ones, of which the config
    says, once for all layers, how many there are and how wide each is.
    """
    for block in left.kept:
        if "mlp" in block.dropped or not block.experts:
            continue
        less = "fewer" if block.reduced else "narrower" if "mlp" in block.narrow else ""
        if less:
            mlp = f"{left.names[block.index]}.mlp"
            return f"cannot give {mlp} {less} experts, because vLLM reads them from the config"
    return None


def _numbered_anew(left: Layout) -> bool:
    """Whether there are fewer layers than blocks, so that some have another number."""
    return len(folded_layers(left)) < len(left.blocks)


def _of_other_kinds(left: Layout, family: Family) -> str | None:
    """The obstacle of a block that would have to be a part of one that is built otherwise."""
    if family.among:
        return f"cannot hold {family.model_type} models, whose blocks yield more than the state"
    for layer in folded_layers(left):
        for block in (*layer.before, *layer.after):
            if family.at(block.index) is not family.at(layer.block.index):
                name = left.names[block.index]
                return f"cannot hold {name} in a layer whose attention is of another kind of block"
    return None


def _untried(left: Layout, loaded: LoadedModel) -> str | None:
    """The obstacle of fewer layers where no tiny model with a block less could be tried.

    In Gemma 4 the embedding has a part for each layer, so that no block is ever left out.
    """
    if any(block.removable for block in left.blocks):
        return None
    unit = left.first(lambda block, kind: kind == "attention" and kind in block.dropped)
    return unit and (
        f"cannot leave out {unit}, because {loaded.family.model_type} models cannot have fewer "
        "layers: their blocks do more than attention and MLP"
    )


def _sides(layer: Layer, entries: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """What ``per_layer_config`` says of the blocks around a layer's own."""
    sides = {"before": layer.before, "after": layer.after}
    return {
        side: [entries[block.index]["edits"] for block in blocks]
        for side, blocks in sides.items()
        if blocks
    }


def _names(left: Layout, layers: Sequence[Layer]) -> Callable[[str], str]:
    """What a parameter of the folded model is called in the dense one."""
    pattern = re.compile(rf"^{re.escape(left.path)}\.(\d+)\.(?:(before|after)\.(\d+)\.)?(.+)$")

    def name_of(name: str) -> str:
        match = pattern.match(name)
        if match is None:
            return name
        layer = layers[int(match[1])]
        block = layer.block
        if match[2]:
            block = (layer.before if match[2] == "before" else layer.after)[int(match[3])]
        return f"{left.path}.{block.index}.{match[4]}"

    return name_of
