"""A student beside its teacher on fixed micro-batches."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedModel

from evocompress.healing.layers import LayerLoss
from evocompress.healing.loss import (
    Comparison,
    DistillationLoss,
    of_embeddings,
    of_logits,
    of_scores,
    of_states,
    rows_per_chunk,
)
from evocompress.models.families import Family
from evocompress.models.families.uneven import text_config
from evocompress.models.loading import LoadedModel
from evocompress.models.tasks import ALL_ROWS

CACHE_BYTES = 2**30
"""The teacher's hidden states are kept, rather than made again in each epoch, up to this."""


COMPARISONS: dict[str, Comparison] = {
    "logits": of_logits,
    "embeddings": of_embeddings,
    "scores": of_scores,
}
MEASURES = {"logits": "KL", "embeddings": "embedding distance", "scores": "error of scores"}


class Distillation:
    """KL(teacher‖student) on sequences that are cut once into micro-batches.

    As everywhere in this package, every position but the last of a sequence counts; a classifier's
    sequence counts as one position. Of embedding models the distance counts by which candidates
    are searched; what is trained on has the distance of all final states beside it.
    """

    def __init__(
        self,
        student: PreTrainedModel,
        teacher: LoadedModel,
        tokens: Tensor,
        batch: int,
        *,
        again: bool = True,
        next_token: float = 0.0,
        layers: LayerLoss | None = None,
        family: Family | None = None,
    ) -> None:
        """Runs nothing yet.

        Args:
            student: What is trained.
            teacher: What it is compared with.
            tokens: Ids (N, S) or other inputs.
            batch: How many of them are run at once.
            again: They are needed several times: what the teacher makes of them is kept, as far
                as there is room.
            next_token: Weight of the cross-entropy of the text's own next tokens in training.
            layers: What training has of the states within the models beside it.
            family: The student's, where it is not the teacher's.
        """
        self._student = student
        self._teacher = teacher
        self._family = family or teacher.family
        self._micro_batches = torch.split(tokens, batch)
        self._hidden: dict[int, Tensor] = {}
        self._task = teacher.family.task
        self._length = teacher.length(tokens)
        values = teacher.family.architecture(teacher.model).state_values(self._length)
        size = len(tokens) * values * teacher.model.dtype.itemsize
        self._keep = again and layers is None and size <= CACHE_BYTES
        self._layers = layers
        vocabulary = getattr(text_config(teacher.model.config), "vocab_size", 0)
        self._loss = DistillationLoss(
            partial(self._family.outputs, student),
            partial(teacher.family.outputs, teacher.model),
            rows_per_chunk(vocabulary) if self._task.causal else ALL_ROWS,
            COMPARISONS[self._task.compared],
            of_states if self._task.compared == "embeddings" else None,
            next_token,
        )

    @property
    def measure(self) -> str:
        """What is made small, in words."""
        return MEASURES[self._task.compared]

    def __len__(self) -> int:
        return len(self._micro_batches)

    def tokens(self, index: int) -> int:
        """Tokens of a micro-batch."""
        return len(self._micro_batches[index]) * self._length

    def positions(self, index: int) -> int:
        """Counted positions of a micro-batch."""
        return len(self._micro_batches[index]) * self._task.counted(self._length)

    def backward(self, index: int, scale: float) -> float:
        """Adds the gradient of `scale` times the micro-batch's sum; returns the sum."""
        tokens = self._next_tokens(index)
        if self._layers is None:
            hidden = self._student_states(index)
            return self._loss.backward(hidden, self._teacher_states(index), scale, tokens)
        with self._layers.recording():
            hidden = self._student_states(index)
            target = self._teacher_states(index)
            beside, gradients = self._layers.gradients(self.positions(index), scale)
        return beside + self._loss.backward(hidden, target, scale, tokens, gradients)

    def _next_tokens(self, index: int) -> Tensor | None:
        """The tokens that the positions of a micro-batch should foretell, where they do."""
        if not self._task.by_position:
            return None
        return self._micro_batches[index][:, 1:].flatten().to(self._student.device)

    @torch.no_grad()
    def mean(self) -> float:
        """Mean over all positions of all micro-batches."""
        total = sum(
            self._loss.value(self._student_states(index), self._teacher_states(index))
            for index in range(len(self))
        )
        return total / sum(self.positions(index) for index in range(len(self)))

    def _student_states(self, index: int) -> Tensor:
        return self._states(self._family, self._student, index)

    def _states(self, family: Family, model: PreTrainedModel, index: int) -> Tensor:
        """Hidden states that outputs come from: (positions, H), or (B, S, H)."""
        inputs = self._micro_batches[index].to(model.device)
        return self._task.states(family.hidden_states(model, inputs))

    @torch.no_grad()
    def _teacher_states(self, index: int) -> Tensor:
        if index in self._hidden:
            return self._hidden[index]
        states = self._states(self._teacher.family, self._teacher.model, index)
        if self._keep:
            self._hidden[index] = states
        return states
