"""The model that is healed: loading it, its zeros, and writing it back as a checkpoint."""

from __future__ import annotations

import copy
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from evocompress.core.errors import ModelError
from evocompress.export.folder import whole_folder
from evocompress.export.healed import read_candidate_model
from evocompress.export.parts import Parts, write_parts
from evocompress.export.pretrained import save_weights
from evocompress.export.record import read_record, write_record
from evocompress.healing.adapters import without_adapters
from evocompress.models.checkpoints import quiet_transformers
from evocompress.models.families import Family, Matrix
from evocompress.models.families.sharing import share_modules
from evocompress.models.families.uneven import text_config
from evocompress.models.loading import LoadedModel

WEIGHT_FILES = ("*.safetensors", "*.safetensors.index.json")


def load_student(path: Path, teacher: LoadedModel) -> PreTrainedModel:
    """The checkpoint in a folder, with the teacher's dtype and device and with gradients.

    It runs as in evaluation: without dropout the loss is what is measured, and a step can be
    repeated exactly.

    Raises:
        ModelError: The folder holds no whole checkpoint, or one with another vocabulary.
    """
    model = read_candidate_model(path, teacher)
    configs = (text_config(one.config) for one in (model, teacher.model))
    ours, theirs = (getattr(config, "vocab_size", None) for config in configs)
    if ours != theirs:
        raise ModelError(f"{path} has a vocabulary of {ours} and its teacher one of {theirs}")
    for parameter in model.parameters():
        # The loaded tensors may be views of the memory-mapped file, or of those of all experts.
        parameter.data = parameter.data.clone(memory_format=torch.contiguous_format)
    family = teacher.family
    share_modules(family.sharing, family.commons, model.config, family.blocks(model))
    model.requires_grad_(True)
    return model


def zero_masks(model: PreTrainedModel, family: Family) -> dict[str, Tensor]:
    """Where the matrices of the blocks stay zero: {parameter name: boolean, same shape}.

    A bias stays zero with the row that it belongs to, and where all of it is zero: those are
    what the format ``padded`` filled in for dropped sub-layers, cut heads and channels, and
    layers that need no bias.
    """
    parameters = dict(model.named_parameters())
    masks: dict[str, Tensor] = {}
    for matrix in family.matrices:
        for name in _names_of(matrix, parameters, family):
            weight = parameters[f"{name}.weight"].detach() == 0
            masks[f"{name}.weight"] = weight
            if f"{name}.bias" in parameters:
                bias = parameters[f"{name}.bias"].detach() == 0
                rows = weight.T if matrix.transposed else weight.flatten(1)
                gone = rows.all(1)
                masks[f"{name}.bias"] = bias & (gone | bias.all())
    return {name: mask for name, mask in masks.items() if mask.any()}


def _names_of(matrix: Matrix, parameters: Iterable[str], family: Family) -> list[str]:
    """The modules of a matrix in all blocks of a model with these parameters."""
    block = family.block_names.pattern + r"\.((before|after)\.\d+\.)?"
    pattern = re.compile(f"({block}{matrix.pattern})\\.weight")
    return [found[1] for found in map(pattern.fullmatch, parameters) if found]


def _of_dtype(model: PreTrainedModel, dtype: torch.dtype | None) -> PreTrainedModel:
    """The model, or where it is computed in another dtype a copy in the wanted one."""
    if dtype is None or model.dtype == dtype:
        return model
    other = copy.deepcopy(model)
    nn.Module.to(other, dtype)
    other.config.dtype = dtype
    return other


def write_student(
    model: PreTrainedModel,
    source: Path,
    out: Path,
    note: str,
    dtype: torch.dtype | None = None,
    parts: Parts | None = None,
) -> None:
    """Writes the model like the checkpoint it came from, replacing `out` wholly or not at all.

    Everything but the weights is copied from `source`, and the README.md gets the note as a
    paragraph. `dtype` is that of the weights there; ``None`` keeps the model's. `parts` are of
    what has a coarser type; ``None`` keeps those of `source`.

    Raises:
        ExportError: The disk is full.
    """
    with whole_folder(out) as folder:
        with quiet_transformers():
            save_weights(_of_dtype(without_adapters(model), dtype), folder)
        ignored = shutil.ignore_patterns(*WEIGHT_FILES)
        shutil.copytree(source, folder, ignore=ignored, dirs_exist_ok=True)
        write_parts(folder, parts or {})
        card = folder / "README.md"
        text = card.read_text(encoding="utf-8") if card.exists() else ""
        card.write_text(f"{text}\n## Healing\n\n{note}\n", encoding="utf-8")
        write_record(folder, read_record(source))
