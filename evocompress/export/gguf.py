"""Format ``gguf``: one file for llama.cpp, in whose architecture ``deci`` layers differ in width.

Layers are those of format ``hf``. llama.cpp needs an attention in the first one, and an MLP
wherever there is an attention: a missing one is written as 32 channels of zeros.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

from transformers import PreTrainedModel

from evocompress.core.errors import ExportError
from evocompress.core.types import Candidate
from evocompress.export.gguf_measure import gguf_costs
from evocompress.export.gguf_tokenizer import tokenizer_obstacle
from evocompress.export.gguf_writing import GGUF_FILE, TYPES, write_gguf
from evocompress.export.layout import layout
from evocompress.export.llama_like import first_without_attention, unlike_llama
from evocompress.export.modeling_file import ModelingFile, derived_config, known_classes
from evocompress.export.running import Programs, Running
from evocompress.export.weights import StateDict, assemble, renumbered
from evocompress.models.loading import LoadedModel

ROPES = ("default", "linear", "llama3")
"""Kinds of rotary embeddings that only divide the frequencies."""

LOADING = """from llama_cpp import Llama  # or in the folder: llama-cli -m model.gguf

model = Llama("{path}/model.gguf")"""

NOTE = (
    "Format `gguf`: llama.cpp's architecture `deci`. Where a block has an attention and no MLP, "
    "there is an MLP of 32 channels that are all zeros, because llama.cpp needs one; `params` "
    "counts it."
)


class Gguf:
    """A GGUF file with arrays of head counts and FFN widths."""

    loading: ClassVar[str] = LOADING
    programs: ClassVar[Programs] = {
        "llama.cpp": Running(
            "llama.cpp's architecture deci", families=("llama", "mistral", "qwen2")
        )
    }

    def check_package(self) -> None:
        """Refuse to write GGUF files without the package that does."""
        if find_spec("gguf") is None:
            raise ExportError(
                "format 'gguf' needs a package that is not installed: "
                "pip install 'evocompress[gguf]'"
            )

    def obstacle(self, loaded: LoadedModel, candidate: Candidate) -> str | None:
        """A model that ``deci`` does not compute, or a first layer without attention."""
        return (
            _unfit(loaded)
            or ModelingFile().obstacle(loaded, candidate)
            or first_without_attention(layout(loaded, candidate), "llama.cpp")
        )

    def note(self, loaded: LoadedModel, candidate: Candidate) -> str:
        """What the architecture is, and what is added."""
        return NOTE

    def check_weights(self, loaded: LoadedModel, candidate: Candidate, weights: str) -> None:
        """Refuse widths that the type of weights cannot be cut into blocks of."""
        block, left = TYPES[weights].block, layout(loaded, candidate)
        for kept in left.kept:
            sizes = {
                "attention": (kept.widths.heads * kept.widths.head_dim, "columns of its heads"),
                "mlp": (kept.widths.channels, "FFN channels"),
            }
            for kind, (size, what) in sizes.items():
                if kind not in kept.dropped and size % block:
                    raise ExportError(
                        f"weights {weights}: {left.path}.{kept.index}.{kind} has {size} {what}, "
                        f"no multiple of {block}: choose other weights, or search with "
                        f"space.width.multiple_of={block}"
                    )
        hidden = loaded.family.architecture(loaded.model).hidden
        if hidden % block:
            raise ExportError(
                f"weights {weights}: the hidden size {hidden} is no multiple of {block}: choose "
                "other weights"
            )

    def build(self, loaded: LoadedModel, state: StateDict, candidate: Candidate) -> PreTrainedModel:
        """The model of format ``hf`` without the blocks of which nothing is left."""
        self.check_package()
        left = layout(loaded, candidate)
        config = derived_config(loaded, state, candidate, left.kept)
        names = renumbered(left.names, left.kept)
        return assemble(known_classes(loaded).head, config, state, names)

    def save(
        self, model: PreTrainedModel, loaded: LoadedModel, folder: Path, weights: str | None
    ) -> None:
        """Writes ``model.gguf``."""
        write_gguf(model, loaded, folder / GGUF_FILE, weights)

    def measured(self, folder: Path, loaded: LoadedModel) -> dict[str, int]:
        """The costs that can be counted in the file."""
        return gguf_costs(folder / GGUF_FILE)


def _unfit(loaded: LoadedModel) -> str | None:
    """Why llama.cpp's ``deci`` does not compute a model, whatever is done to it."""
    config = loaded.model.config
    other = unlike_llama(loaded)
    if other is not None:
        return other
    rope = (config.rope_parameters or {}).get("rope_type", "default")
    if rope not in ROPES:
        return f"cannot hold this {config.model_type} model, whose rotary embeddings are {rope}"
    return tokenizer_obstacle(loaded)
