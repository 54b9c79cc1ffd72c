"""Format ``hf``: every layer as it is, with a modeling file that ships in the checkpoint."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from evocompress.export.configs import cut_config, depends_on_index
from evocompress.export.layout import Block, layout, without_blocks
from evocompress.export.modeling import CLASSES
from evocompress.export.weights import LevelWeights, assemble, compressed_state
from evocompress.families import name_of
from evocompress.models import LoadedModel
from evocompress.types import Candidate

LOADING = """from transformers import {auto}

# either with this package, which runs no code from the checkpoint:
import evocompress.hf
model = {auto}.from_pretrained("{path}")
# or without it:
model = {auto}.from_pretrained("{path}", trust_remote_code=True)"""


class ModelingFile:
    """Each block has its own widths, or lacks a sub-layer; `evocompress.hf` has the class too."""

    loading = LOADING
    note = ""

    def obstacle(self, loaded: LoadedModel, candidate: Candidate) -> str | None:
        """A family without a modeling file, or a model without any attention."""
        family = name_of(loaded.family)
        if family not in CLASSES:
            return f"has no modeling file for the blocks of {family}"
        left = layout(loaded, candidate)
        if loaded.family.task.causal and left.kept and not left.having("attention"):
            # The cache would have no layer that knows how many tokens there have been.
            return f"cannot leave out every attention, {left.path}.0.attention among them"
        return without_blocks(left)

    def build(
        self, loaded: LoadedModel, library: LevelWeights | None, candidate: Candidate
    ) -> PreTrainedModel:
        """A model of the family's class in `evocompress.export.modeling`."""
        classes = CLASSES[name_of(loaded.family)]
        left, dense = layout(loaded, candidate), loaded.model.config
        blocks = left.blocks if depends_on_index(dense) else left.kept
        settings = cut_config(dense, blocks).to_dict()
        grouped = "num_key_value_heads" in settings
        own = [_overrides(block, grouped=grouped) for block in blocks]
        settings["per_layer_config"] = {layer: entry for layer, entry in enumerate(own) if entry}
        # Where layers have fewer heads, their size does not follow from the number.
        settings["head_dim"] = left.dense.head_dim
        settings["auto_map"] = classes.auto_map
        del settings["model_type"]
        config = classes.config.from_dict(settings)
        config._attn_implementation = dense._attn_implementation
        state = compressed_state(loaded, library, candidate)
        return assemble(classes.head, config, state, left.path, [b.index for b in blocks])

    def add_files(self, loaded: LoadedModel, folder: Path) -> None:
        """The Python files that ``auto_map`` names."""
        for source in CLASSES[name_of(loaded.family)].files:
            shutil.copyfile(source, folder / source.name)


def _overrides(block: Block, *, grouped: bool) -> dict[str, Any]:
    """What ``per_layer_config`` says of one block."""
    own: dict[str, Any] = {}
    if block.dropped:
        own["skip"] = list(block.dropped)
    if "attention" in block.narrow:
        own["num_attention_heads"] = block.widths.heads
        if grouped:
            own["num_key_value_heads"] = block.widths.kv_heads
    if "mlp" in block.narrow:
        own["intermediate_size"] = block.widths.channels
    if block.biased:
        own["bias"] = list(block.biased)
    return own
