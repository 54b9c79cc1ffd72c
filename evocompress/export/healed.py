"""The weights of a checkpoint by the names of the dense model, to be written in another format."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedModel

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
    if not isinstance(form, Pretrained) or form.adds_zeros:
        raise ExportError(
            f"{path} is of format '{record.format}', which adds zeros and so cannot be written in "
            "another: materialize and heal it in format 'hf'"
        )
    model = read_checkpoint(path, loaded.model)
    name_of = dense_name_of(path, loaded, model)
    tensors = model.state_dict().items()
    return dict(loaded.model.state_dict()) | {name_of(name): tensor for name, tensor in tensors}


def dense_name_of(path: Path, loaded: LoadedModel, model: PreTrainedModel) -> Callable[[str], str]:
    """What a parameter of a checkpoint is called in the dense model.

    Args:
        path: The checkpoint's folder.
        loaded: The dense model.
        model: What was read of the checkpoint.

    Raises:
        ExportError: It is of a format whose parameters are others.
    """
    record = read_record(path)
    form, candidate = FORMATS[record.format], Candidate.from_json(record.levels)
    if not isinstance(form, Pretrained):
        raise ExportError(
            f"{path} is of format '{record.format}', whose parameters are not the dense model's: "
            "materialize it in format 'hf'"
        )
    left = layout(loaded, candidate)
    fewer = text_config(model.config).num_hidden_layers == len(left.kept) < len(left.blocks)
    if fewer and record.format != "folded":
        # There were formats that left out blocks of which nothing is left.
        return renumbered(left.names, left.kept)
    return form.name_of(loaded, candidate)
