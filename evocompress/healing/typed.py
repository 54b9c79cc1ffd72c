"""What of a student has a coarser type, whose values it must keep."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedModel

from evocompress.core.types import Level
from evocompress.export.healed import dense_name_of
from evocompress.export.record import CANDIDATE_FILE, read_candidate
from evocompress.export.stored import typed_levels
from evocompress.models.loading import LoadedModel


def typed_parameters(path: Path, dense: LoadedModel, student: PreTrainedModel) -> dict[str, Level]:
    """The levels of a student's parameters that have a coarser type, by their names in it.

    Args:
        path: Its checkpoint; one that was not made here has none.
        dense: The model that it was made of.
        student: What was read of it.

    Raises:
        ExportError: It has types and is of a format whose parameters are others.
    """
    levels = typed_levels(read_candidate(path)) if (path / CANDIDATE_FILE).is_file() else {}
    if not levels:
        return {}
    name_of = dense_name_of(path, dense, student)
    named = {name: name_of(name) for name, _ in student.named_parameters(remove_duplicate=False)}
    return {name: levels[own] for name, own in named.items() if own in levels}
