"""What a student's outputs are held against: what a teacher gives now, gave once, or the text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from evocompress.healing.loss import (
    Comparison,
    Head,
    of_embeddings,
    of_logits,
    of_scores,
    of_text,
    rows_per_chunk,
)
from evocompress.models.families import Family
from evocompress.models.families.uneven import text_config
from evocompress.models.loading import LoadedModel
from evocompress.models.tasks import ALL_ROWS

COMPARISONS: dict[str, Comparison] = {
    "logits": of_logits,
    "embeddings": of_embeddings,
    "scores": of_scores,
}
MEASURES = {"logits": "KL", "embeddings": "embedding distance", "scores": "error of scores"}


def as_it_is(entries: Tensor) -> Tensor:
    """The head of targets that are kept as they are compared."""
    return entries


@dataclass(frozen=True)
class Targets:
    """What the outputs of micro-batches are compared with.

    Attributes:
        of: Gives for a micro-batch, by its number, an entry for each of its outputs.
        compare: Compares outputs with what `head` makes of entries.
        measure: What that tells, in words.
        head: Makes of some entries what is compared.
        taught: They are a teacher's.
    """

    of: Callable[[int], Tensor]
    compare: Comparison
    measure: str
    head: Head = as_it_is
    taught: bool = True


@dataclass(frozen=True)
class Lessons:
    """What is known ahead, where no teacher runs beside the student.

    Attributes:
        train: What is learnt; ``None`` where nothing is left to learn.
        validation: What chooses the best step.
    """

    train: Targets | None
    validation: Targets


def states_of(family: Family, model: PreTrainedModel, batch: Tensor) -> Tensor:
    """Hidden states that outputs come from: (positions, H), or (B, S, H)."""
    return family.task.states(family.hidden_states(model, batch.to(model.device)))


def output_rows(loaded: LoadedModel) -> int:
    """How many rows of outputs are made at once."""
    vocabulary = getattr(text_config(loaded.model.config), "vocab_size", 0)
    return rows_per_chunk(vocabulary) if loaded.family.task.causal else ALL_ROWS


def of_teacher(teacher: LoadedModel, states: Callable[[int], Tensor]) -> Targets:
    """Those of a teacher whose final states are given."""

    def head(rows: Tensor) -> Tensor:
        return teacher.family.outputs(teacher.model, rows)

    compared = teacher.family.task.compared
    return Targets(states, COMPARISONS[compared], MEASURES[compared], head)


@torch.no_grad()
def remembered(teacher: LoadedModel, micro_batches: Sequence[Tensor]) -> Targets:
    """The same where the states are made now and kept: afterwards the head alone is needed."""
    states = [states_of(teacher.family, teacher.model, batch) for batch in micro_batches]
    return of_teacher(teacher, states.__getitem__)


def next_tokens(micro_batches: Sequence[Tensor]) -> Targets:
    """The text's own next tokens."""

    def of(index: int) -> Tensor:
        return micro_batches[index][:, 1:].flatten()

    return Targets(of, of_text, "cross-entropy of the next tokens", taught=False)
