"""A family for another task of the same classes, or with other embeddings."""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from typing import TypeVar

from transformers import PreTrainedModel

from evocompress.models.families.base import Family
from evocompress.models.tasks import Pooling, Task

FamilyType = TypeVar("FamilyType", bound=Family)


def with_task(family: FamilyType, task: Task) -> FamilyType:
    """The family with another task of the same classes."""
    other = copy(family)
    other.task = task
    return other


def with_pooling(family: FamilyType, pooling: Pooling) -> FamilyType:
    """The family with another way to make embeddings of states."""
    if pooling == family.task.pooling:
        return family
    return with_task(family, replace(family.task, pooling=pooling))


def makes_scores(model: PreTrainedModel) -> bool:
    """Whether a classifier has one output, or several that do not exclude each other."""
    config = model.config
    independent = config.problem_type in ("regression", "multi_label_classification")
    return independent or (config.num_labels or 1) < 2
