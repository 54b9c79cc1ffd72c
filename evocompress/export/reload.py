"""Reads a written checkpoint back, to be measured or healed."""

from __future__ import annotations

from pathlib import Path

from torch import nn
from transformers import PreTrainedModel

from evocompress.core.errors import ModelError
from evocompress.export.gguf_writing import GGUF_FILE
from evocompress.export.record import verify_checkpoint
from evocompress.models.checkpoints import local_checkpoint, quiet_transformers, read_model
from evocompress.models.families import family_of, prepare_stock
from evocompress.models.modeling import register


def read_checkpoint(path: Path, like: PreTrainedModel) -> PreTrainedModel:
    """The model in a folder that `evocompress.export.materialize` wrote, in evaluation mode.

    Args:
        path: The folder.
        like: The dense model, whose task, dtype and device it gets.

    Raises:
        ModelError: The folder holds no checkpoint, one that only llama.cpp loads, or a file of it
            is missing or damaged.
        ExportError: A file of it is not what was written.
    """
    if (path / GGUF_FILE).exists():
        raise ModelError(
            f"{path} is of format gguf, which only llama.cpp loads: heal and evaluate want another "
            "format there, and the GGUF file can be written elsewhere with --out"
        )
    register()
    checkpoint, family = local_checkpoint(path), family_of(like)
    verify_checkpoint(path)
    with quiet_transformers():
        model = read_model(checkpoint, like.dtype, family.task.auto, family.unused)
    prepare_stock(model)
    nn.Module.to(model, like.device)
    model.eval()
    return model
