"""Reads a written checkpoint back, to be measured or healed."""

from __future__ import annotations

from pathlib import Path

from torch import nn
from transformers import PreTrainedModel

import evocompress.hf  # noqa: F401  (checkpoints of format "hf" load without their own code)
from evocompress.families import family_of
from evocompress.sources import local_checkpoint, quiet_transformers, read_model


def read_checkpoint(path: Path, like: PreTrainedModel) -> PreTrainedModel:
    """The model in a folder that `evocompress.export.materialize` wrote, in evaluation mode.

    Args:
        path: The folder.
        like: The dense model, whose task, dtype and device it gets.

    Raises:
        ModelError: The folder holds no checkpoint, or a file of it is missing or damaged.
    """
    with quiet_transformers():
        model = read_model(local_checkpoint(path), like.dtype, family_of(like).task.auto)
    nn.Module.to(model, like.device)
    model.eval()
    return model
