"""Tasks: a model's task decides its inputs, and which of its outputs are compared.

A family serves one task. Sequences of one batch have one length and no padding, so one tensor is
all that a model is called with.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_MAPPING_NAMES,
)

Pooling = Literal["mean", "last", "first", "pooler"]
"""The mean over all tokens, the last token's state, the first one's, or what the class itself makes
of the states (``pooler_output``)."""

ALL_ROWS = 2**31 - 1
"""Rows of a chunk where nothing is cut; torch adds to them, so it is not the largest integer."""


@dataclass(frozen=True)
class Task:
    """What a model is for.

    Attributes:
        name: In words.
        auto: The class of transformers that loads such models.
        classes: By model type what the classes are called that `auto` makes of such models, one
            name or several.
        ending: How the names of those end that serve the task, where `auto` makes others too.
        input: The argument by which a model takes a batch.
        causal: It tells the next token, and a key-value cache serves that one.
        cached: Its classes keep keys and values unless they are told not to, as decoders do
            whatever they are for.
        compared: What an output is: ``logits`` of exclusive classes or tokens, ``embeddings``, of
            which only the direction counts, or ``scores``, numbers of their own.
        pooling: What of a sequence's final states its embedding is made of.
        by_position: Every position but the last has an output, the next token's logits; otherwise
            a sequence has one.
    """

    name: str
    auto: Any
    classes: Mapping[str, Sequence[str]]
    ending: str = ""
    input: str = "input_ids"
    causal: bool = False
    cached: bool = False
    compared: Literal["logits", "embeddings", "scores"] = "logits"
    pooling: Pooling = "mean"
    by_position: bool = False

    def class_names(self, model_type: str) -> tuple[str, ...]:
        """What transformers calls the classes of a model type that serve the task."""
        found = self.classes.get(model_type, ())
        names = (found,) if isinstance(found, str) else found
        return tuple(name for name in names if name.endswith(self.ending))

    @property
    def reads_text(self) -> bool:
        """Whether a batch is token ids (B, S); otherwise it is pixel values (B, C, H, W)."""
        return self.input == "input_ids"

    def inputs(self, batch: Tensor, dtype: torch.dtype | None = None) -> dict[str, Any]:
        """The keyword arguments with which a model is called for token ids or pixel values.

        Not every class converts pixel values to its dtype; ``None`` leaves them as they are.
        """
        batch = batch if self.reads_text or dtype is None else batch.to(dtype)
        return {self.input: batch} | ({"use_cache": False} if self.cached else {})

    def run(self, model: PreTrainedModel, batch: Tensor) -> Any:
        """What a model's own forward pass gives for a batch."""
        with _no_padding(model.config):
            return model(**self.inputs(batch, model.dtype))

    def pooled(self, output: Any) -> Tensor:
        """The embeddings (B, H) of what a model's forward pass gives, not yet of unit length."""
        found: Tensor
        if self.pooling == "pooler":
            found = output.pooler_output
        else:
            found = pooled(output.last_hidden_state, self.pooling)
        return found

    def counted(self, length: int) -> int:
        """How many outputs a sequence with this number of tokens has."""
        return length - 1 if self.by_position else 1

    def states(self, hidden: Tensor) -> Tensor:
        """Of final hidden states (B, S, H) those that outputs come from, an entry for each output.

        Returns:
            (B * (S - 1), H) where every position has an output, sequence by sequence; otherwise
            (B, S, H), all of a sequence.
        """
        return hidden[:, :-1].flatten(0, 1) if self.by_position else hidden


def pooled(hidden: Tensor, pooling: Pooling) -> Tensor:
    """What the hidden states (B, S, H) of whole sequences are pooled to, (B, H)."""
    place = {"last": -1, "first": 0}.get(pooling)
    return hidden.mean(1) if place is None else hidden[:, place]


CAUSAL = Task(
    "causal language model",
    AutoModelForCausalLM,
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    causal=True,
    cached=True,
    by_position=True,
)
WITH_IMAGES = replace(
    CAUSAL,
    auto=AutoModelForImageTextToText,
    classes=MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    ending="ForConditionalGeneration",
)
WITH_SOUNDS = replace(
    WITH_IMAGES, auto=AutoModelForMultimodalLM, classes=MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES
)
LANGUAGE = (WITH_IMAGES, WITH_SOUNDS, CAUSAL)
"""Tasks of models that tell the next token; of a type the first holds that has a class for it."""
EMBEDDINGS = Task("embeddings", AutoModel, MODEL_MAPPING_NAMES, compared="embeddings")
DECODER_EMBEDDINGS = replace(EMBEDDINGS, cached=True, pooling="last")
TEXT_CLASSES = Task(
    "text classification",
    AutoModelForSequenceClassification,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
)
DECODER_CLASSES = replace(TEXT_CLASSES, cached=True)
OTHER_DECODER_TASKS = (DECODER_CLASSES, DECODER_EMBEDDINGS)
"""Those of models that are built as decoders and do not tell the next token."""
SCORES = replace(DECODER_CLASSES, name="scores of texts", compared="scores")
IMAGE_CLASSES = Task(
    "image classification",
    AutoModelForImageClassification,
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    ending="ForImageClassification",
    input="pixel_values",
)
IMAGE_EMBEDDINGS = replace(
    EMBEDDINGS, name="embeddings of images", input="pixel_values", pooling="pooler"
)
DISTILLED_IMAGE_CLASSES = replace(IMAGE_CLASSES, ending="ForImageClassificationWithTeacher")
"""Of DeiT as it is published: the mean of the classifiers of two tokens counts."""


def language_task(model_type: str) -> Task:
    """The task of models of a type that tell the next token."""
    return next((task for task in LANGUAGE if task.class_names(model_type)), CAUSAL)


@contextmanager
def _no_padding(config: PreTrainedConfig) -> Iterator[None]:
    """Tells a class that takes no batches without a padding token that there is none in them."""
    if getattr(config, "pad_token_id", 0) is not None:  # models of images have no such setting
        yield
        return
    config.pad_token_id = -1
    try:
        yield
    finally:
        config.pad_token_id = None
