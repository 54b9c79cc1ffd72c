"""Writes a candidate as a checkpoint that transformers loads."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path

from transformers import PreTrainedModel

from evocompress.costs import outline
from evocompress.errors import ExportError
from evocompress.export.card import model_card
from evocompress.export.folder import check_room, check_target, whole_folder
from evocompress.export.formats import AUTOMATIC, FORMATS
from evocompress.export.measure import measured_costs
from evocompress.export.record import CANDIDATE_FILE, Record
from evocompress.export.weights import LevelWeights
from evocompress.models import LoadedModel
from evocompress.sources import quiet_transformers
from evocompress.types import Candidate


def materialize(
    loaded: LoadedModel,
    library: LevelWeights | None,
    candidate: Candidate,
    out: Path,
    *,
    format: str = "auto",
    predicted: Mapping[str, float] | None = None,
    notes: Sequence[str] = (),
    overwrite: bool = False,
) -> Path:
    """Writes the compressed model to a new folder; the loaded model is not touched.

    The folder holds weights, config, generation config, tokenizer, ``candidate.json`` and a
    README.md. It appears whole or not at all.

    Args:
        loaded: The dense model.
        library: The level library, for candidates with compressed matrices.
        candidate: What to write.
        out: The folder.
        format: A key of `FORMATS`, or ``auto``: ``stock`` if it can express the candidate,
            else ``hf``.
        predicted: The candidate's costs by the cost model, written beside the measured ones.
        notes: Paragraphs for the README.md.
        overwrite: Replace a checkpoint that is in `out` already.

    Returns:
        The folder.

    Raises:
        ExportError: The format cannot express the candidate, `out` exists or the disk is full.
        LibraryError: The library is missing, or lacks a level.
    """
    check_target(out, overwrite)
    name = choose_format(loaded, candidate, format)
    model = FORMATS[name].build(loaded, library, candidate)
    model.generation_config = copy.deepcopy(loaded.model.generation_config)
    check_room(out, sum(weight.numel() * weight.itemsize for weight in model.parameters()))
    with whole_folder(out) as folder:
        _write_model(model, loaded, name, folder)
        record = Record(
            id=candidate.id,
            levels=candidate.to_json(),
            format=name,
            source=loaded.source,
            model_fingerprint=loaded.fingerprint,
            library_fingerprint=library.fingerprint if library else None,
            predicted=dict(predicted or {}),
            measured=measured_costs(folder, loaded.family),
        )
        (folder / CANDIDATE_FILE).write_text(record.text(), encoding="utf-8")
        family = loaded.family
        parts = outline(family.units(loaded.model), family.architecture(loaded.model))
        loading = FORMATS[name].loading.format(path=out.name)
        own_notes = [note for note in (FORMATS[name].note, *notes) if note]
        card = model_card(record, candidate, parts, loading, own_notes)
        (folder / "README.md").write_text(card, encoding="utf-8")
    return out


def check_format(name: str) -> None:
    """Refuse the name of a format that there is not.

    Raises:
        ExportError: It is neither ``auto`` nor a key of `FORMATS`.
    """
    if name not in ("auto", *FORMATS):
        raise ExportError(f"unknown format '{name}': choose one of auto, {', '.join(FORMATS)}")


def choose_format(loaded: LoadedModel, candidate: Candidate, name: str = "auto") -> str:
    """The format to write a candidate in: `name`, or for ``auto`` the first that can.

    Raises:
        ExportError: There is no such format, or it cannot express the candidate.
    """
    check_format(name)
    names = AUTOMATIC if name == "auto" else (name,)
    obstacles = {choice: FORMATS[choice].obstacle(loaded, candidate) for choice in FORMATS}
    able = [choice for choice in FORMATS if obstacles[choice] is None]
    for choice in names:
        if choice in able:
            return choice
    others = " and ".join(f"format '{choice}'" for choice in able) or "no format"
    raise ExportError(f"format '{names[-1]}' {obstacles[names[-1]]}: {others} can")


def _write_model(model: PreTrainedModel, loaded: LoadedModel, name: str, folder: Path) -> None:
    with quiet_transformers():
        model.save_pretrained(folder)
        if loaded.tokenizer is not None:
            loaded.tokenizer.save_pretrained(folder)
    FORMATS[name].add_files(loaded, folder)
