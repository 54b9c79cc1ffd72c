"""Writes a candidate as a checkpoint."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from math import ceil
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedModel

from evocompress.core.errors import ExportError
from evocompress.core.types import Candidate
from evocompress.export.card import model_card
from evocompress.export.choice import choose_format
from evocompress.export.companions import copy_terms
from evocompress.export.folder import check_room, check_target, whole_folder
from evocompress.export.formats import FORMATS, WEIGHTS, Format, TypedFormat, build
from evocompress.export.gguf_writing import TYPES
from evocompress.export.healed import checkpoint_state
from evocompress.export.inventory import tensors_of_files, with_rounded_values
from evocompress.export.parts import Parts, parts_bytes, read_parts, write_parts
from evocompress.export.pretrained import Pretrained
from evocompress.export.record import Record, StoredTensor, write_record
from evocompress.export.safetensors_size import file_bytes_of
from evocompress.export.stored import (
    StoredMatrices,
    known_parts,
    lane_of,
    rounding_inputs,
    stored_matrices,
)
from evocompress.export.weights import LevelWeights, compressed_state
from evocompress.models.families.outer import every_unit
from evocompress.models.loading import LoadedModel
from evocompress.space.costs import cost_parts

ROUNDED_NOTE = (
    "This format has one type for all weights: those of matrices with a coarser type are rounded "
    "to its values, and take as much space as the others."
)

INPUTS_NOTE = (
    "What matrices of type w8a8 read is not rounded by programs that read this format, as it is "
    "where format 'compressed-tensors' is run, and where 'evocompress evaluate' judges it."
)


def materialize(
    loaded: LoadedModel,
    library: LevelWeights | None,
    candidate: Candidate,
    out: Path,
    *,
    format: str = "auto",
    weights: str | None = None,
    healed: Path | None = None,
    predicted: Mapping[str, float] | None = None,
    notes: Sequence[str] = (),
    overwrite: bool = False,
) -> Path:
    """Writes the compressed model to a new folder; the loaded model is not touched.

    The folder holds weights, config, generation config and tokenizer (or one GGUF file),
    ``candidate.json``, a README.md and what else programs need that came with the dense model. It
    appears whole or not at all.

    Args:
        loaded: The dense model.
        library: The level library, for candidates with compressed matrices.
        candidate: What to write.
        out: The folder.
        format: A key of `FORMATS`, or ``auto``: ``stock`` if it can express the candidate,
            else ``hf``. For another program see `evocompress.export.choose_for`.
        weights: One of `WEIGHTS`; ``None`` keeps the type of the dense model's checkpoint.
        healed: A checkpoint of the same candidate, whose weights take the place of the library's.
        predicted: The candidate's costs by the cost model, written beside the measured ones.
        notes: Paragraphs for the README.md.
        overwrite: Replace a checkpoint that is in `out` already.

    Raises:
        ExportError: The format cannot express that, `out` exists, or the disk is full.
        LibraryError: The library is missing, or lacks a level.
    """
    check_target(out, overwrite)
    name = choose_format(loaded, candidate, format)
    form = FORMATS[name]
    weights = _type_of_weights(loaded, candidate, form, weights)
    state = _state(loaded, library, candidate, healed)
    beside = {} if healed is None else read_parts(healed)
    stored = _typed(form, loaded, library, candidate, state, beside)
    parts = _parts(form, loaded, library, candidate, state, beside) if stored is None else {}
    model = _built(name, loaded, state if stored is None else dict(stored.state), candidate)
    check_room(out, _bytes(model, weights) + parts_bytes(parts))
    with whole_folder(out) as folder:
        check_target(out, overwrite)  # again: another process may have written it meanwhile
        if stored is not None and isinstance(form, TypedFormat):
            form.save_typed(model, loaded, folder, weights, stored)
        else:
            form.save(model, loaded, folder, weights)
            write_parts(folder, parts)
        copy_terms(loaded, folder)
        record = _record(loaded, library, candidate, name, folder, predicted or {})
        told = notes if stored is not None else [*notes, *_rounded_notes(candidate)]
        card = _card(record, loaded, candidate, out.name, told)
        (folder / "README.md").write_text(card, encoding="utf-8")
        write_record(folder, record)
    return out


def _built(
    name: str, loaded: LoadedModel, state: dict[str, Tensor], candidate: Candidate
) -> PreTrainedModel:
    """The compressed model, which generates as the dense one."""
    model = build(name, loaded, state, candidate)
    if loaded.family.task.causal:
        model.generation_config = copy.deepcopy(loaded.model.generation_config)
    return model


def _rounded_notes(candidate: Candidate) -> list[str]:
    """What is said of types in a format that holds only their values."""
    if lane_of(candidate) is None:
        return []
    return [ROUNDED_NOTE, *([INPUTS_NOTE] if rounding_inputs(candidate) else [])]


def _measured(
    form: Format,
    folder: Path,
    loaded: LoadedModel,
    candidate: Candidate,
    predicted: Mapping[str, float],
) -> dict[str, int]:
    """What is measured of the files, their size only where it was foretold."""
    measured = form.measured(folder, loaded, candidate)
    if "file_bytes" in predicted:
        measured["file_bytes"] = file_bytes_of(folder)
    return measured


def _tensors(
    form: Format, folder: Path, loaded: LoadedModel, candidate: Candidate
) -> dict[str, StoredTensor]:
    """How the files store each tensor, where some matrix has a coarser type."""
    if lane_of(candidate) is None:
        return {}
    found = tensors_of_files(folder)
    if isinstance(form, Pretrained):
        return with_rounded_values(found, loaded, candidate, form.name_of(loaded, candidate))
    return found


def _typed(
    form: Format,
    loaded: LoadedModel,
    library: LevelWeights | None,
    candidate: Candidate,
    state: Mapping[str, Tensor],
    beside: Parts,
) -> StoredMatrices | None:
    """The matrices of coarser types that a format holds as such."""
    if isinstance(form, TypedFormat) and lane_of(candidate) in form.lanes:
        return stored_matrices(loaded, library, candidate, state, beside)
    return None


def _parts(
    form: Format,
    loaded: LoadedModel,
    library: LevelWeights | None,
    candidate: Candidate,
    state: Mapping[str, Tensor],
    beside: Parts,
) -> Parts:
    """What stands beside the weights of a checkpoint whose format has the values of types alone."""
    if lane_of(candidate) is None or not isinstance(form, Pretrained) or form.adds_zeros:
        return {}
    return known_parts(loaded, library, candidate, state, beside)


def _state(
    loaded: LoadedModel, library: LevelWeights | None, candidate: Candidate, healed: Path | None
) -> dict[str, Tensor]:
    """The dense model's state with a candidate's weights in place."""
    if healed is not None:
        return checkpoint_state(healed, loaded, candidate)
    return compressed_state(loaded, library, candidate)


def _type_of_weights(
    loaded: LoadedModel, candidate: Candidate, form: Format, weights: str | None
) -> str | None:
    """The type that weights are written in; ``None`` for that which they have."""
    if weights is None and loaded.widened is not None:
        weights = str(loaded.widened).removeprefix("torch.")
    if weights is not None:
        check_weights(weights)
        form.check_weights(loaded, candidate, weights)
    return weights


def _bytes(model: PreTrainedModel, weights: str | None) -> int:
    """Room for a model's weights, of their own type or another one."""
    if weights is None:
        return sum(weight.numel() * weight.itemsize for weight in model.parameters())
    return ceil(sum(weight.numel() for weight in model.parameters()) * TYPES[weights].bytes)


def _record(
    loaded: LoadedModel,
    library: LevelWeights | None,
    candidate: Candidate,
    name: str,
    folder: Path,
    predicted: Mapping[str, float],
) -> Record:
    """What a checkpoint of some format was made from, and what its files have."""
    form = FORMATS[name]
    return Record(
        id=candidate.id,
        levels=candidate.to_json(),
        format=name,
        source=loaded.source,
        model_fingerprint=loaded.fingerprint,
        library_fingerprint=library.fingerprint if library else None,
        predicted=dict(predicted),
        measured=_measured(form, folder, loaded, candidate, predicted),
        tensors=_tensors(form, folder, loaded, candidate),
    )


def _card(
    record: Record, loaded: LoadedModel, candidate: Candidate, name: str, notes: Sequence[str]
) -> str:
    """The text of README.md for a folder of some name."""
    family, form = loaded.family, FORMATS[record.format]
    parts = cost_parts(family.units(loaded.model), family.architecture(loaded.model))
    own_notes = [note for note in (form.note(loaded, candidate), *notes) if note]
    outer = [unit for unit in every_unit(family, loaded.model) if unit.kind == "outer"]
    return model_card(record, candidate, parts, _loading(loaded, form, name), own_notes, outer)


def check_weights(name: str) -> None:
    """Refuse the name of a type of weights that there is not."""
    if name not in WEIGHTS:
        raise ExportError(f"unknown weights '{name}': choose one of {', '.join(WEIGHTS)}")


def _loading(loaded: LoadedModel, form: Format, folder: str) -> str:
    """Python that loads a checkpoint, for its README.

    The folder's name stands in string literals there, so it is written as JSON writes it.
    """
    folder = json.dumps(folder)[1:-1]
    text = form.loading.format(path=folder, auto=loaded.family.task.auto.__name__)
    if loaded.tokenizer is None or "{auto}" not in form.loading:
        return text
    text = text.replace("\n", ", AutoTokenizer\n", 1)
    return f'{text}\ntokenizer = AutoTokenizer.from_pretrained("{folder}")'
