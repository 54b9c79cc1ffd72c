"""Format ``gguf``: one file for llama.cpp.

Most types have an architecture of their own, in which layers are alike: that holds what format
``stock`` can express. Where layers differ, they are those of format ``hf``, written as an
architecture whose layers may: that of the type for some hybrids, ``deci`` for types with Llama's
blocks, ``openelm`` where queries and keys have norms. ``deci`` needs an attention in the first
layer, and an MLP wherever there is an attention, ``openelm`` both everywhere: a missing one is
written with zeros.
"""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

from transformers import PreTrainedModel

from evocompress.core.errors import ExportError
from evocompress.core.storage import GGUF, Lane
from evocompress.core.types import Candidate
from evocompress.export.gguf_architectures import (
    ARCHITECTURES,
    UNEVEN,
    WRITABLE,
    architecture_of,
)
from evocompress.export.gguf_language import has_other_parts, language_type
from evocompress.export.gguf_measure import gguf_costs
from evocompress.export.gguf_obstacles import alike_obstacle, uneven_obstacle
from evocompress.export.gguf_size import gguf_layout, room_for_lists
from evocompress.export.gguf_tensors import named_tensors
from evocompress.export.gguf_tokenizer import tokenizer_obstacle
from evocompress.export.gguf_uneven import has_multipliers
from evocompress.export.gguf_writing import GGUF_FILE, TYPES, typed_tensors, write_gguf
from evocompress.export.layout import layout
from evocompress.export.modeling_file import derived_config, known_classes
from evocompress.export.running import Programs, Running
from evocompress.export.stock import Stock
from evocompress.export.stored import StoredMatrices, TypeRules, every_matrix
from evocompress.export.weights import StateDict, assemble, renumbered
from evocompress.models.families.uneven import text_config
from evocompress.models.loading import LoadedModel, once
from evocompress.space.costs import FileLayout

LOADING = """from llama_cpp import Llama  # or in the folder: llama-cli -m model.gguf

model = Llama("{path}/model.gguf")"""

NOTE = (
    "Format `gguf`: llama.cpp's architecture `{name}`. Where a block has an attention and no MLP, "
    "there is an MLP of 32 channels that are all zeros, because llama.cpp needs one; `params` "
    "counts it."
)

NOTE_PARTS = (
    "Format `gguf` holds the language model alone. What sees images or hears sounds, and its "
    "projector, llama.cpp reads from a second file (`mmproj`), which its own converter makes of "
    "the dense model."
)

NOTE_FUSED = " Where it has an MLP alone, there is likewise an attention of one head of zeros."

NOTE_MULTIPLIED = (
    " It knows no multipliers: they are in the weights, which are rounded once more for that."
)

NOTE_CACHE = (
    "Keys and values were searched as a cache of type `{cache}` gives them back, which the file "
    "does not say: run it with `--cache-type-k {cache} --cache-type-v {cache}`."
)


class Gguf:
    """A GGUF file, where the architecture can with arrays of head counts and FFN widths."""

    loading: ClassVar[str] = LOADING
    lanes: ClassVar[frozenset[Lane]] = frozenset({GGUF})
    programs: ClassVar[Programs] = {
        "llama.cpp": Running(
            "llama.cpp's architecture of the type, or deci or openelm",
            families=WRITABLE,
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
        """A model that llama.cpp does not compute, or layers that differ where they must not."""
        obstacle = uneven_obstacle if _is_uneven(loaded, candidate) else alike_obstacle
        return obstacle(loaded, candidate) or tokenizer_obstacle(loaded)

    def note(self, loaded: LoadedModel, candidate: Candidate) -> str:
        """What the architecture is, what is added, and which parts of the model are not there."""
        own = _note_of_architecture(loaded, candidate)
        parts = NOTE_PARTS if has_other_parts(loaded.model) else ""
        cache = next((level.cache for _, level in candidate.levels if level.cache), "")
        cached = NOTE_CACHE.format(cache=cache) if cache else ""
        return " ".join(filter(None, (parts, own, cached)))

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
        """The model of format ``hf`` without blocks that are gone, or that of ``stock``."""
        self.check_package()
        if not _is_uneven(loaded, candidate):
            return Stock().build(loaded, state, candidate)
        return _uneven_model(loaded, state, candidate)

    def save(
        self, model: PreTrainedModel, loaded: LoadedModel, folder: Path, weights: str | None
    ) -> None:
        """Writes ``model.gguf``."""
        write_gguf(model, loaded, folder / GGUF_FILE, weights)

    def type_rules(self, loaded: LoadedModel, *, uneven: bool) -> TypeRules:
        """By what becomes of the rows of all matrices, in each form that candidates may have."""
        name = language_type(loaded)
        rules = TypeRules()
        if name in ARCHITECTURES:
            rules = rules.also(_even_rules(loaded))
        if name in UNEVEN and (uneven or name not in ARCHITECTURES):
            rules = rules.also(_uneven_rules(loaded))
        return rules

    def file_layout(self, loaded: LoadedModel, *, uneven: bool) -> FileLayout:
        """That of the largest form of candidates, with room for lists where layers differ."""
        self.check_package()
        name = language_type(loaded)
        forms = []
        if name in ARCHITECTURES:
            forms.append(_even_numbers(loaded))
        if name in UNEVEN and (uneven or name not in ARCHITECTURES):
            forms.append(_uneven_numbers(loaded))
        found = [gguf_layout(model, loaded, stored) for model, stored in forms]
        lists = room_for_lists(loaded) if uneven else 0
        return replace(found[-1], total=max(layout.total for layout in found) + lists)

    def save_typed(
        self,
        model: PreTrainedModel,
        loaded: LoadedModel,
        folder: Path,
        weights: str | None,
        stored: StoredMatrices,
    ) -> None:
        """Writes ``model.gguf`` with a type for each tensor."""
        numbered = self.build(loaded, stored.numbered(), stored.candidate)
        typed = typed_tensors(model, numbered, loaded, stored)
        write_gguf(model, loaded, folder / GGUF_FILE, weights, typed)

    def measured(self, folder: Path, loaded: LoadedModel, candidate: Candidate) -> dict[str, int]:
        """The costs that can be counted in the file."""
        return gguf_costs(folder / GGUF_FILE, loaded)


def _uneven_model(loaded: LoadedModel, state: StateDict, candidate: Candidate) -> PreTrainedModel:
    """The model of format ``hf`` without blocks that are gone."""
    left = layout(loaded, candidate)
    config = derived_config(loaded, state, candidate, left.kept)
    names = renumbered(left.names, left.kept)
    return assemble(known_classes(loaded).head, config, state, names)


@once
def _even_rules(loaded: LoadedModel) -> TypeRules:
    """Of files whose layers are alike."""
    model, stored = _even_numbers(loaded)
    return stored.rules(named_tensors(model, loaded, architecture_of(loaded, alike=True)))


@once
def _uneven_rules(loaded: LoadedModel) -> TypeRules:
    """Of files whose layers may differ."""
    model, stored = _uneven_numbers(loaded)
    return stored.rules(named_tensors(model, loaded, architecture_of(loaded, alike=False)))


def _even_numbers(loaded: LoadedModel) -> tuple[PreTrainedModel, StoredMatrices]:
    """What becomes of numbered rows in files whose layers are alike."""
    stored = every_matrix(loaded)
    return Stock().build(loaded, stored.numbered(), Candidate()), stored


def _uneven_numbers(loaded: LoadedModel) -> tuple[PreTrainedModel, StoredMatrices]:
    """The same where they may differ."""
    stored = every_matrix(loaded)
    return _uneven_model(loaded, stored.numbered(), Candidate()), stored


def _is_uneven(loaded: LoadedModel, candidate: Candidate) -> bool:
    """Whether a candidate is written as an architecture whose layers may differ."""
    name = language_type(loaded)
    if name not in UNEVEN:
        return False
    return name not in ARCHITECTURES or alike_obstacle(loaded, candidate) is not None


def _note_of_architecture(loaded: LoadedModel, candidate: Candidate) -> str:
    """What an architecture whose layers may differ adds."""
    if not _is_uneven(loaded, candidate):
        return ""
    found = architecture_of(loaded, alike=False)
    if found.differing:
        return ""
    text = NOTE.format(name=found.name) + (NOTE_FUSED if found.fused or found.own else "")
    multiplied = found.borrowed and has_multipliers(text_config(loaded.model.config))
    return text + (NOTE_MULTIPLIED if multiplied else "")
