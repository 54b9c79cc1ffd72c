"""A family for another task of the same classes, or with other embeddings."""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from typing import TypeVar

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
