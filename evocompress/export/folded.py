"""Format ``folded``: as ``hf``, with an attention in every layer.

Programs that count layers by their caches, such as vLLM's transformers backend, have no place for
a layer without attention. Its MLP is run by the layer before it, or by the first one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from transformers import PreTrainedModel

from evocompress.core.types import Candidate
from evocompress.export.layout import Block, Layout, layout, mixed_experts, second_round
from evocompress.export.modeling_file import (
    ModelingFile,
    is_written_by_hand,
    known_classes,
    overrides,
    uneven_config,
)
from evocompress.export.running import MODELING_FILE, Programs, Running
from evocompress.export.stock import renumbering
from evocompress.export.weights import StateDict, assemble
from evocompress.models.families import Family
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
        attention: The block whose attention it has.
        mlp: The block whose MLP is its own.
        before: Blocks whose MLPs run before it.
        after: Blocks whose MLPs run after it.
    """

    attention: Block
    mlp: Block | None
    before: list[Block] = field(default_factory=list)
    after: list[Block] = field(default_factory=list)


class Folded(ModelingFile):
    """Each layer has an attention, and any number of MLPs."""

    programs: ClassVar[Programs] = {
        "transformers": Running(MODELING_FILE, on_request=True),
        "vllm": Running(
            "vLLM's transformers backend", families=("llama", "mistral", "qwen2", "qwen3")
        ),
    }

    def obstacle(self, loaded: LoadedModel, candidate: Candidate) -> str | None:
        """As of ``hf``, and a model without a cache, or in which the numbers of blocks matter."""
        if compressed := second_round(loaded):
            return compressed
        if not loaded.family.task.causal:
            task = loaded.family.task.name
            return f"cannot hold {loaded.family.model_type} models for {task}, only language models"
        if loaded.family.mixture is not None:
            return mixed_experts(loaded)
        if not is_written_by_hand(loaded):
            return f"has no modeling file for the blocks of {loaded.family.model_type}"
        left = layout(loaded, candidate)
        return super().obstacle(loaded, candidate) or renumbering(left, loaded)

    def note(self, loaded: LoadedModel, candidate: Candidate) -> str:
        """What becomes of blocks without attention, where there are any."""
        alone = any(block.dropped == ("attention",) for block in layout(loaded, candidate).blocks)
        return NOTE if alone else ""

    def build(self, loaded: LoadedModel, state: StateDict, candidate: Candidate) -> PreTrainedModel:
        """A model of the family's class in `evocompress.models.modeling`."""
        layers = folded_layers(layout(loaded, candidate))
        grouped = hasattr(loaded.model.config, "num_key_value_heads")
        own = [_overrides(layer, grouped=grouped) for layer in layers]
        config = uneven_config(loaded, [layer.attention for layer in layers], own)
        head = known_classes(loaded).head
        return assemble(head, config, state, self.name_of(loaded, candidate))

    def name_of(self, loaded: LoadedModel, candidate: Candidate) -> Callable[[str], str]:
        """The MLPs of a layer may be of several blocks."""
        left = layout(loaded, candidate)
        return _names(left, folded_layers(left), loaded.family)


def folded_layers(left: Layout) -> list[Layer]:
    """The layers of the folded model; the first block left without attention may lead."""
    leading: list[Block] = []
    layers: list[Layer] = []
    for block in left.kept:
        if "attention" not in block.dropped:
            mlp = None if "mlp" in block.dropped else block
            layers.append(Layer(block, mlp, before=leading))
            leading = []
        elif not layers:
            leading.append(block)
        elif layers[-1].mlp is None:
            layers[-1].mlp = block
        else:
            layers[-1].after.append(block)
    return layers


def _overrides(layer: Layer, *, grouped: bool) -> dict[str, Any]:
    """What ``per_layer_config`` says of a layer."""
    attention, mlp = (
        overrides(block, grouped=grouped) if block else {"skip": ["mlp"]}
        for block in (layer.attention, layer.mlp)
    )
    own = {name: value for name, value in attention.items() if name.startswith("num_")}
    own |= {name: mlp[name] for name in ("intermediate_size",) if name in mlp}
    biased = ["attention"] if "attention" in attention.get("bias", ()) else []
    biased += ["mlp"] if "mlp" in mlp.get("bias", ()) else []
    own |= {"bias": biased} if biased else {}
    own |= {"skip": ["mlp"]} if layer.mlp is None else {}
    sides = {"before": layer.before, "after": layer.after}
    return own | {side: [_mlp(block) for block in sides[side]] for side in sides if sides[side]}


def _mlp(block: Block) -> dict[str, Any]:
    """What ``before`` and ``after`` say of the MLP of a block."""
    own: dict[str, Any] = {"intermediate_size": block.widths.channels}
    return own | ({"bias": True} if "mlp" in block.biased else {})


def _names(left: Layout, layers: Sequence[Layer], family: Family) -> Callable[[str], str]:
    """What a parameter of the folded model is called in the dense one."""
    pattern = re.compile(rf"^{re.escape(left.path)}\.(\d+)\.(?:(before|after)\.(\d+)\.)?(.+)$")
    mlp = (*family.mlp.identity_modules, family.mlp.zero_module)

    def name_of(name: str) -> str:
        match = pattern.match(name)
        if match is None:
            return name
        layer, path = layers[int(match[1])], match[4]
        block: Block | None = layer.attention
        if match[2]:
            block = (layer.before if match[2] == "before" else layer.after)[int(match[3])]
        elif any(path.startswith(f"{part}.") for part in mlp):
            block = layer.mlp
        assert block is not None
        return f"{left.path}.{block.index}.{path}"

    return name_of
