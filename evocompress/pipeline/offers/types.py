"""What can be done to models of each type of the installed transformers, by default configs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_IMAGE_MAPPING_NAMES,
    MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES,
)

from evocompress.core.errors import ModelError
from evocompress.models.checkpoints import quiet_transformers
from evocompress.models.families import FAMILIES, family_of
from evocompress.models.families.base import prepare
from evocompress.models.families.derivation.defaults import default_config
from evocompress.models.families.derivation.family import Derived
from evocompress.models.families.derivation.from_config import class_for, first_derived
from evocompress.models.families.derivation.matrices_alone import MatricesAlone
from evocompress.models.families.derivation.purpose import tasks_of
from evocompress.models.families.derivation.reasons import why_not_made
from evocompress.models.families.derivation.shrink import shrunk
from evocompress.models.families.derivation.tracing import FAILURES
from evocompress.models.families.uneven import text_config
from evocompress.models.loading import LoadedModel
from evocompress.models.tasks import (
    CAUSAL,
    EMBEDDINGS,
    IMAGE_CLASSES,
    TEXT_CLASSES,
    WITH_SOUNDS,
    Task,
)
from evocompress.pipeline.offers.offers import Offers, nothing, offers

IMAGE = 224
"""Height and width of images, where a config does not tell."""


def type_names() -> list[str]:
    """The types of language models, of any parts, and of encoders of texts and images."""
    own = {family.model_type for family in FAMILIES.usable().values()}
    language = {*CAUSAL.classes, *filter(WITH_SOUNDS.class_names, WITH_SOUNDS.classes)}
    texts = {*TEXT_CLASSES.classes, *MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES}
    images = {*filter(IMAGE_CLASSES.class_names, IMAGE_CLASSES.classes)}
    images |= {*MODEL_FOR_IMAGE_MAPPING_NAMES}
    images |= {name for name in EMBEDDINGS.classes if name.endswith("vision_model")}
    return sorted(own | language | texts | images)


def class_name(model_type: str) -> str:
    """The class of a type's models that can be compressed, if any can."""
    own = (f.task for f in FAMILIES.usable().values() if f.model_type == model_type)
    return next(iter(next(own, _derived_task(model_type)).class_names(model_type)), "")


def _derived_task(model_type: str) -> Task:
    """The task for which models of a type are tried that has no family."""
    return next((task for task, _ in tasks_of(model_type)), CAUSAL)


def offers_of_type(model_type: str) -> Offers:
    """What can be done to models of a type, as its config is by default."""
    with quiet_transformers():
        try:
            return replace(offers(_skeleton(model_type)), model_type=model_type)
        except ModelError as error:
            return nothing(model_type, class_name(model_type), str(error))
        except Exception as error:  # classes of models fail with any type of error
            return nothing(model_type, class_name(model_type), why_not_made(error))


def _skeleton(model_type: str) -> LoadedModel:
    """A small model of a type without weights.

    Raises:
        ModelError: Models of the type cannot be compressed.
    """
    config = default_config(model_type)
    own = [family for family in FAMILIES.usable().values() if family.model_type == model_type]
    if own:
        config.architectures = [class_name(model_type)]
        model = _own(own[0].task, config)
        family = family_of(model)
    else:
        model, family = _derived(config)
    prepare(family, model)
    tokens = family.architecture(model).tokens
    return LoadedModel(model, None, family, model_type, fingerprint="", tokens=tokens)


def _own(task: Task, config: Any) -> PreTrainedModel:
    """A model of a type that has a family."""
    if not task.reads_text and not hasattr(config, "image_size"):
        config.image_size = IMAGE
    small = shrunk(config, config.num_hidden_layers) if task.causal else config
    with torch.device("meta"):
        model: PreTrainedModel = task.auto.from_config(small)
    return model


def _sizes(config: Any, layers: int) -> Iterator[Any]:
    """A config, but before it, where there can be one, that of a narrow model."""
    if layers:
        with suppress(*FAILURES):  # as of heads that are listed by stages
            yield shrunk(config, layers)
    yield config


def _derived(config: Any) -> tuple[PreTrainedModel, Derived | MatricesAlone]:
    """A model of another type, narrow where its class can be so, and its family.

    Raises:
        ModelError: None can be derived.
    """
    layers = getattr(text_config(config), "num_hidden_layers", 0)
    reasons = []
    for one in _sizes(config, layers):
        try:
            family = first_derived(one)
        except ModelError as reason:
            reasons.append(reason)
            continue
        # Some encoders look at values to tell positions; small ones may have some.
        small = one is not config and not family.task.cached
        with torch.device("cpu" if small else "meta"):
            return class_for(one, family.task)(one), family
    raise reasons[0]
