"""The weights of a checkpoint by the names of the dense model, to be written in another format."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from evocompress.core.errors import ExportError
from evocompress.core.types import Candidate
from evocompress.export.formats import FORMATS
from evocompress.export.layout import layout
from evocompress.export.pretrained import Pretrained
from evocompress.export.record import read_record
from evocompress.export.reload import read_checkpoint
from evocompress.export.weights import renumbered
from evocompress.models.families.uneven import text_config
from evocompress.models.loading import LoadedModel


def checkpoint_state(path: Path, loaded: LoadedModel, candidate: Candidate) -> dict[str, Tensor]:
    """The dense model's state with the weights of a checkpoint of it in place.

    Raises:
        ExportError: It was made from another model or candidate, or is of a format that adds zeros.
    """
    record = read_record(path)
    if record.model_fingerprint != loaded.fingerprint:
        raise ExportError(f"{path} was made from another model than {loaded.source}")
    if record.id != candidate.id:
        raise ExportError(f"{path} is of candidate {record.id}, not of {candidate.id}")
    form = FORMATS[record.format]
    name_of = form.name_of(loaded, candidate) if isinstance(form, Pretrained) else None
    if name_of is None:
        raise ExportError(
            f"{path} is of format '{record.format}', which adds zeros and so cannot be written in "
            "another: materialize and heal it in format 'hf'"
        )
    model = read_checkpoint(path, loaded.model)
    tensors, left = model.state_dict(), layout(loaded, candidate)
    if text_config(model.config).num_hidden_layers == len(left.kept) < len(left.blocks):
        # There were formats that left out blocks of which nothing is left.
        name_of = name_of if record.format == "folded" else renumbered(left.names, left.kept)
    return dict(loaded.model.state_dict()) | {name_of(n): tensor for n, tensor in tensors.items()}
