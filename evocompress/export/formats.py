"""The checkpoint formats: which candidates each can express, and how it builds the model."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Protocol

from transformers import PreTrainedModel

from evocompress.export.modeling import CLASSES
from evocompress.export.removal import Removal, cut_config, depends_on_index, removal
from evocompress.export.weights import LevelWeights, assemble, compressed_state
from evocompress.models import LoadedModel
from evocompress.types import Candidate


class Format(Protocol):
    """A way to write a compressed model.

    Attributes:
        loading: Python that loads such a checkpoint, for its README; ``{path}`` is filled in.
    """

    loading: str

    def obstacle(self, loaded: LoadedModel, candidate: Candidate) -> str | None:
        """Which unit this format cannot express and which format can; ``None`` if it can."""
        ...

    def build(
        self, loaded: LoadedModel, library: LevelWeights | None, candidate: Candidate
    ) -> PreTrainedModel:
        """The compressed model, sharing tensors with the dense one; to be saved, not run."""
        ...

    def add_files(self, loaded: LoadedModel, folder: Path) -> None:
        """Adds what `save_pretrained` does not write."""
        ...


class Stock:
    """The model's own class: zeros in matrices and whole removed blocks, nothing else."""

    loading = """from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{path}")
tokenizer = AutoTokenizer.from_pretrained("{path}")"""

    def obstacle(self, loaded: LoadedModel, candidate: Candidate) -> str | None:
        """A sub-layer dropped alone, a block that another's index depends on, or no attention."""
        gone = _removal(loaded, candidate)
        if not gone.attentions:
            return _no_attention(loaded)
        if gone.single:
            unit = _first_unit(loaded, gone.single)
            return f"format 'stock' cannot leave out {unit} alone: format 'hf' can"
        if gone.dropped and depends_on_index(loaded.model.config):
            unit = _first_unit(loaded, gone.dropped)
            return (
                f"format 'stock' cannot leave out {unit}, because this {loaded.family.model_type} "
                "model scales attention by the block's index: format 'hf' can"
            )
        return None

    def build(
        self, loaded: LoadedModel, library: LevelWeights | None, candidate: Candidate
    ) -> PreTrainedModel:
        """A model of the dense model's class with fewer blocks."""
        kept = _removal(loaded, candidate).kept
        config = cut_config(loaded.model.config, kept)
        state = compressed_state(loaded, library, candidate)
        return assemble(type(loaded.model), config, state, loaded.family.block_path(), kept)

    def add_files(self, loaded: LoadedModel, folder: Path) -> None:
        """Nothing: the class comes with transformers."""


class ModelingFile:
    """Blocks may lack a sub-layer; the class ships in the checkpoint and in `evocompress.hf`."""

    loading = """from transformers import AutoModelForCausalLM, AutoTokenizer

# either with this package, which runs no code from the checkpoint:
import evocompress.hf
model = AutoModelForCausalLM.from_pretrained("{path}")
# or without it:
model = AutoModelForCausalLM.from_pretrained("{path}", trust_remote_code=True)

tokenizer = AutoTokenizer.from_pretrained("{path}")"""

    def obstacle(self, loaded: LoadedModel, candidate: Candidate) -> str | None:
        """A family without a modeling file, or a model without any attention."""
        gone = _removal(loaded, candidate)
        if not gone.attentions:
            return _no_attention(loaded)
        family = loaded.family.model_type
        if family not in CLASSES:
            unit = _first_unit(loaded, gone.single) if gone.single else "blocks"
            can = "no format can" if gone.single else "format 'stock' can"
            return f"format 'hf' has no modeling file for {family} to leave out {unit}: {can}"
        return None

    def build(
        self, loaded: LoadedModel, library: LevelWeights | None, candidate: Candidate
    ) -> PreTrainedModel:
        """A model of the family's class in `evocompress.export.modeling`."""
        classes = CLASSES[loaded.family.model_type]
        gone = _removal(loaded, candidate)
        dense = loaded.model.config
        kept = tuple(range(gone.blocks)) if depends_on_index(dense) else gone.kept
        settings = cut_config(dense, kept).to_dict()
        settings["per_layer_config"] = {
            new: {"skip": list(gone.dropped[old])}
            for new, old in enumerate(kept)
            if old in gone.dropped
        }
        settings["auto_map"] = classes.auto_map
        del settings["model_type"]
        config = classes.config.from_dict(settings)
        config._attn_implementation = dense._attn_implementation
        state = compressed_state(loaded, library, candidate)
        return assemble(classes.causal, config, state, loaded.family.block_path(), kept)

    def add_files(self, loaded: LoadedModel, folder: Path) -> None:
        """The Python files that ``auto_map`` names."""
        for source in CLASSES[loaded.family.model_type].files:
            shutil.copyfile(source, folder / source.name)


FORMATS: dict[str, Format] = {"stock": Stock(), "hf": ModelingFile()}


def _removal(loaded: LoadedModel, candidate: Candidate) -> Removal:
    return removal(candidate, loaded.family.units(loaded.model))


def _first_unit(loaded: LoadedModel, dropped: dict[int, tuple[str, ...]]) -> str:
    block = min(dropped)
    return f"{loaded.family.block_path()}.{block}.{dropped[block][0]}"


def _no_attention(loaded: LoadedModel) -> str:
    unit = f"{loaded.family.block_path()}.0.attention"
    return f"no format can leave out every attention of a model: keep one, such as {unit}"
