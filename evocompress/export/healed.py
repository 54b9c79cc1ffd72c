"""The weights of a checkpoint by the names of the dense model, to be judged, or written anew."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedModel

from evocompress.compression.rounded_inputs import InputRounding
from evocompress.core.errors import ExportError
from evocompress.core.types import Candidate
from evocompress.export.formats import FORMATS
from evocompress.export.layout import layout
from evocompress.export.pretrained import Pretrained
from evocompress.export.record import CANDIDATE_FILE, read_record
from evocompress.export.reload import read_checkpoint
from evocompress.export.stored import rounding_inputs
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


def read_candidate_model(path: Path, loaded: LoadedModel) -> PreTrainedModel:
    """A checkpoint's model as its candidate: what a type rounds that matrices read is rounded.

    The formats that are read back hold only the values of types, and do not do so by themselves.

    Raises:
        ModelError: As of `evocompress.export.reload.read_checkpoint`.
        ExportError: Also where the names of its parameters are not known.
    """
    model = read_checkpoint(path, loaded.model)
    if not (path / CANDIDATE_FILE).is_file():
        return model
    rounding = rounding_inputs(Candidate.from_json(read_record(path).levels))
    if not rounding:
        return model
    name_of = dense_name_of(path, loaded, model)
    for name, _ in model.named_parameters(remove_duplicate=False):
        if name_of(name) in rounding:
            module = model.get_submodule(name.rpartition(".")[0])
            module.register_forward_pre_hook(InputRounding())
    return model


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
