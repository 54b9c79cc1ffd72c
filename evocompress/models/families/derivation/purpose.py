"""What a derived model is for, and how it is run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from inspect import Parameter, signature
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from evocompress.models.dummy_inputs import image_shape
from evocompress.models.families.derivation.parts import FIRST_SPECIAL
from evocompress.models.families.derivation.reasons import stages, why_no_layers
from evocompress.models.families.derivation.structure import Unclear
from evocompress.models.families.uneven import text_config
from evocompress.models.tasks import (
    CAUSAL,
    DECODER_CLASSES,
    DECODER_EMBEDDINGS,
    DISTILLED_IMAGE_CLASSES,
    EMBEDDINGS,
    IMAGE_CLASSES,
    IMAGE_EMBEDDINGS,
    TEXT_CLASSES,
    WITH_IMAGES,
    WITH_SOUNDS,
    Task,
    language_task,
)

LENGTH = 9
"""Tokens of the sequences that are tried."""

IMAGE_MEANS = replace(IMAGE_EMBEDDINGS, pooling="mean")

TASKS: Mapping[str, Task] = {
    "with images": WITH_IMAGES,
    "with sounds": WITH_SOUNDS,
    "causal": CAUSAL,
    "embeddings": EMBEDDINGS,
    "image embeddings": IMAGE_EMBEDDINGS,
    "text classes": TEXT_CLASSES,
    "image classes": IMAGE_CLASSES,
    "distilled image classes": DISTILLED_IMAGE_CLASSES,
    "image means": IMAGE_MEANS,
    "decoder embeddings": DECODER_EMBEDDINGS,
    "decoder classes": DECODER_CLASSES,
}
"""The tasks for whose models a family can be derived, in the order in which they are looked for."""

INPUTS = ("input_ids", "pixel_values")

CACHES = ("past_key_values", "cache_params", "state")
"""What decoders yield for the next token."""


@dataclass(frozen=True)
class Ending:
    """What is known of an encoder beside its blocks.

    Attributes:
        unused: See `Family.unused`.
        after_padding: Positions are counted from behind the padding token's id, as RoBERTa does.
        shorter: Tokens by which the longest sequence is shorter than the config says.
        reach: By how many tokens more than its config says a layer with a window sees on each side.
    """

    unused: str = ""
    after_padding: bool = False
    shorter: int = 0
    reach: int = 0


def tasks_of(model_type: str) -> list[tuple[Task, tuple[str, ...]]]:
    """Each of `TASKS` for which there are classes of a model type, and these."""
    others = (task for task in TASKS.values() if not task.causal)
    every = [(t, t.class_names(model_type)) for t in (language_task(model_type), *others)]
    return [(task, names) for task, names in every if names]


def task_of(cls: type[PreTrainedModel], config: PreTrainedConfig) -> Task:
    """The first task that a class may serve; what it makes of an input tells the rest.

    Raises:
        Unclear: It is built in a way that cannot be compressed.
    """
    served = (
        task
        for task, names in tasks_of(config.model_type)
        if cls.__name__ in names and task.input in ("input_ids", cls.main_input_name)
    )
    task = next(served, CAUSAL)
    check_called(cls, config, task)
    if not hasattr(text_config(config), "num_hidden_layers"):
        raise Unclear(why_no_layers(config))
    reads_both = "decoder_input_ids" in signature(cls.forward).parameters
    if task.causal and not reads_both:
        return task
    if reason := stages(config):
        raise Unclear(reason)
    if reads_both or config.is_encoder_decoder:
        raise Unclear(
            "it is an encoder with a decoder, whose blocks read the encoder's states beside their "
            "own, so they cannot be run one after the other on one hidden state"
        )
    alone = language_task(config.model_type).class_names(config.model_type)
    if not alone and (parts := _parts(config)):
        raise Unclear(_of_parts(cls, parts))
    return next(one for one in (task, IMAGE_EMBEDDINGS) if one.input == cls.main_input_name)


def _parts(config: PreTrainedConfig) -> list[str]:
    """The types of the models within a model."""
    parts = (getattr(config, name, None) for name in config.sub_configs)
    return [part.model_type for part in parts if isinstance(part, PreTrainedConfig)]


def _of_parts(cls: type[PreTrainedModel], parts: list[str]) -> str:
    """Why a model of several parts, such as a tower of texts and one of images, has no family."""
    known = {part: names for part in parts for _, names in tasks_of(part)[:1]}
    alone = " or ".join(f"{', '.join(names)} (type {part})" for part, names in known.items())
    others = [part for part in parts if part not in known]
    why = (
        f"{cls.__name__} is made of several models ({', '.join(parts)}), each with blocks and a "
        "hidden state of its own, and none of them tells the next token"
    )
    why += f": give one as a checkpoint of its own class, {alone}" if alone else ""
    return why + (f"; AutoModel has no class for {', '.join(others)}" if others else "")


def check_called(cls: type[PreTrainedModel], config: PreTrainedConfig, task: Task) -> None:
    """Refuse a class that cannot be called, or not with its main input alone.

    Raises:
        Unclear: It is one.
    """
    if cls.forward is nn.Module.forward:
        types = [part for part in _parts(config) if tasks_of(part)]
        raise Unclear(
            f"{cls.__name__} has no forward pass, only its parts have: load one of these as a "
            f"checkpoint of its own ({', '.join(types)})"
        )
    given = "input_ids" if task.causal else cls.main_input_name
    if given not in INPUTS:
        raise Unclear(f"it reads {given}, and only token ids and images are given")
    if others := _others_needed(cls, given):
        raise Unclear(f"it reads {' and '.join(others)} beside {given}")


def _others_needed(cls: type[PreTrainedModel], given: str) -> list[str]:
    """The arguments without which a model cannot be called, beside one."""
    return [
        name
        for name, one in signature(cls.forward).parameters.items()
        if name not in ("self", given)
        and one.default is Parameter.empty
        and one.kind not in (Parameter.VAR_KEYWORD, Parameter.VAR_POSITIONAL)
    ]


def task_seen(task: Task, model: PreTrainedModel) -> Task:
    """The task of a tiny model of a class that may serve a task.

    Classes of texts are those of decoders where the model keeps something for the next token, and
    embeddings of images are means over the tokens where the class makes none.
    """
    if task.causal:
        return task  # which may read more than a tiny batch
    return task_of_output(task, model(**task.inputs(tiny_batch(task, model))))


def task_of_output(task: Task, output: Any) -> Task:
    """The same, told by what a model of the class puts out."""
    if task.causal:
        return task
    if any(output.get(name) is not None for name in CACHES):
        return DECODER_EMBEDDINGS if task.compared == "embeddings" else DECODER_CLASSES
    if task.pooling == "pooler" and output.get("pooler_output") is None:
        return IMAGE_MEANS
    return task


def tiny_batch(task: Task, model: PreTrainedModel, length: int = LENGTH) -> Tensor:
    """What a tiny model is called with: (1, length) tokens, or an image."""
    generator = torch.Generator().manual_seed(0)
    if task.reads_text:
        return torch.randint(3, FIRST_SPECIAL, (1, length), generator=generator)
    return torch.rand(1, *image_shape(model), generator=generator, dtype=torch.float64)
