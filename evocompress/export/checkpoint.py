"""Writes a candidate as a checkpoint that transformers loads."""

from __future__ import annotations

import copy
import shutil
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

COMPANIONS = (
    *("preprocessor_config.json", "processor_config.json"),
    *("modules.json", "config_sentence_transformers.json", "sentence_*_config.json"),
    *("*_Pooling/config.json", "*_Normalize/config.json"),
)
"""Files of a dense model that hold for a compressed one: of image processors, and of
sentence-transformers, whose folders may be empty and then are not needed."""


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

    The folder holds weights, config, generation config, tokenizer, ``candidate.json``, a
    README.md and what else programs need that came with the dense model (`COMPANIONS`). It
    appears whole or not at all.

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
    if loaded.family.task.causal:
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
        loading = _loading(loaded, name, out.name)
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


def _loading(loaded: LoadedModel, name: str, folder: str) -> str:
    """Python that loads a checkpoint, for its README."""
    text = FORMATS[name].loading.format(path=folder, auto=loaded.family.task.auto.__name__)
    if loaded.tokenizer is None:
        return text
    text = text.replace("\n", ", AutoTokenizer\n", 1)
    return f'{text}\ntokenizer = AutoTokenizer.from_pretrained("{folder}")'


def _write_model(model: PreTrainedModel, loaded: LoadedModel, name: str, folder: Path) -> None:
    with quiet_transformers():
        # Under the names that its modules have, by which the costs are counted: transformers would
        # write those of older versions, which it turns into the present ones for its own types.
        model.save_pretrained(folder, save_original_format=False)
        if loaded.tokenizer is not None:
            loaded.tokenizer.save_pretrained(folder)
    _copy_companions(loaded, folder)
    FORMATS[name].add_files(loaded, folder)


def _copy_companions(loaded: LoadedModel, folder: Path) -> None:
    """Copies what the dense model's folder says of preparing inputs and of pooling outputs."""
    if loaded.folder is None:
        return
    for pattern in COMPANIONS:
        for source in loaded.folder.glob(pattern):
            target = folder / source.relative_to(loaded.folder)
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(source, target)
