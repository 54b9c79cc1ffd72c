"""What a healing depends on, so that nothing else is resumed by mistake."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from evocompress.core.config import HealConfig
from evocompress.models.loading import LoadedModel, fingerprint

NOT_COMPARED = {"source", "tokens", "least_gain", "most_tokens", "teacher", "adapt_teacher"}
"""Settings that say where text and teacher come from, which are compared by their content."""


def recipe(
    student: PreTrainedModel,
    teacher: LoadedModel,
    train: Tensor,
    validation: Tensor,
    config: HealConfig,
) -> dict[str, Any]:
    """All that the result depends on, in words that an error message can name."""
    return {
        "student": fingerprint(student),
        "teacher": teacher.fingerprint,
        "training data": digest(train),
        "validation data": digest(validation),
        "configuration": config.model_dump(mode="json", exclude=NOT_COMPARED),
    }


def digest(tokens: Tensor) -> str:
    """Of the content of sequences or images."""
    whole = tokens if tokens.is_floating_point() else tokens.to(torch.int64)
    data = whole.cpu().contiguous().numpy()
    return hashlib.blake2b(data.tobytes(), digest_size=8).hexdigest()


def sized_for(loaded: LoadedModel, config: HealConfig, length: int) -> HealConfig:
    """The settings with as many sequences a micro-step as a model takes, see `HealConfig.sized`."""
    return config.sized(length, by_position=loaded.family.task.by_position)
