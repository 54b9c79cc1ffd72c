"""The family of a model told by its config alone, before any weights are read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel

from evocompress.core.errors import ModelError, one_line
from evocompress.models.families.derivation.derived import (
    Derived,
    derived,
    derived_or_reason,
)
from evocompress.models.families.derivation.matrices_alone import MatricesAlone, alone_or_reason
from evocompress.models.families.derivation.purpose import tasks_of
from evocompress.models.modeling.modeling_derived import model_classes
from evocompress.models.tasks import CAUSAL, EMBEDDINGS, Task, language_task


def derived_from(
    source: object, settings: Mapping[str, Any], task: Task = CAUSAL
) -> Derived | MatricesAlone:
    """The family of a model without one of its own.

    Code that comes with the model is not run.

    Args:
        source: What the config is called in messages.
        settings: Those of its ``config.json``, with a type of transformers.
        task: What the model is for.

    Raises:
        ModelError: They are no config of that type, or no family can be derived.
    """
    try:
        plain = PreTrainedConfig._decode_special_floats(dict(settings))
        config: PreTrainedConfig = CONFIG_MAPPING[settings["model_type"]].from_dict(plain)
    except Exception as error:  # classes of configs fail with any type of error
        raise ModelError(f"{source} is no config of its type: {one_line(error)}") from None
    try:
        return derived(class_for(config, task), config)
    except ModelError as reason:
        raise ModelError(f"{source}: {reason}") from None


def language_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """The class of language models of a config, with all parts that the config describes.

    Raises:
        ModelError: transformers has none.
    """
    task = language_task(config.model_type)
    if type(config) not in task.auto._model_mapping:
        raise ModelError(
            f"transformers has no class of language models of type {config.model_type!r}"
        )
    return class_for(config, task)


def first_derived(config: PreTrainedConfig) -> Derived | MatricesAlone:
    """The family of models of a config for the first task for which one can be derived.

    Language models come first; what is one in a model of several parts is tried as that alone.
    Where there is none it is the first one of the matrices alone.

    Raises:
        ModelError: There is none; the message is about the first.
    """
    tasks = [task for task, _ in tasks_of(config.model_type)] or [CAUSAL]
    if tasks[0] not in (CAUSAL, EMBEDDINGS):
        tasks = tasks[:1]
    reasons, classes = [], []
    for task in tasks:
        classes.append(language_class(config) if task.causal else class_for(config, task))
        found = derived_or_reason(classes[-1], config)
        if isinstance(found, Derived):
            return found
        reasons.append(found)
    for cls in classes:
        alone = alone_or_reason(cls, config, reasons[0])
        if isinstance(alone, MatricesAlone):
            return alone
    raise ModelError(reasons[0])


def class_for(config: PreTrainedConfig, task: Task) -> type[PreTrainedModel]:
    """The class of models of a config that serve a task.

    Raises:
        ModelError: transformers has none.
    """
    classes: Any = task.auto._model_mapping
    if type(config) not in classes:
        raise ModelError(
            f"transformers has no class of {task.name}s of type {config.model_type!r}, only of a "
            "whole with other parts"
            if task.causal
            else f"transformers has no class for {task.name} of type {config.model_type!r}"
        )
    several = model_classes(task.auto, type(config))
    serving = (cls for cls in several if cls.__name__.endswith(task.ending))
    found: type[PreTrainedModel] = next(serving, several[0])
    return found
