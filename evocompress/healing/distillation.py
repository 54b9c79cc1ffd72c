"""A student beside its teacher on fixed micro-batches."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedModel

from evocompress.core.processes import of_all, own_part
from evocompress.healing.layers import LayerLoss
from evocompress.healing.loss import DistillationLoss, of_states
from evocompress.healing.targets import Targets, of_teacher, output_rows, states_of
from evocompress.models.families import Family
from evocompress.models.loading import LoadedModel

CACHE_BYTES = 2**30
"""The teacher's hidden states are kept, rather than made again in each epoch, up to this."""


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
        targets: Targets | None = None,
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
            targets: What it is compared with instead of what the teacher gives.
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
        self._targets = targets or of_teacher(teacher, self._teacher_states)
        of_inner = self._task.compared == "embeddings" and targets is None
        self._loss = DistillationLoss(
            partial(self._family.outputs, student),
            self._targets.head,
            output_rows(teacher),
            self._targets.compare,
            of_states if of_inner else None,
            next_token,
        )

    @property
    def targets(self) -> Targets:
        """What it is compared with."""
        return self._targets

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
            return self._loss.backward(hidden, self._target(index), scale, tokens)
        with self._layers.recording():
            hidden = self._student_states(index)
            target = self._target(index)
            beside, gradients = self._layers.gradients(self.positions(index), scale)
        return beside + self._loss.backward(hidden, target, scale, tokens, gradients)

    def _next_tokens(self, index: int) -> Tensor | None:
        """The tokens that the positions of a micro-batch should foretell, where they do."""
        if not self._task.by_position:
            return None
        return self._micro_batches[index][:, 1:].flatten().to(self._student.device)

    @torch.no_grad()
    def mean(self) -> float:
        """Mean over all positions of all micro-batches, which several processes share out."""
        own = {
            index: self._loss.value(self._student_states(index), self._target(index))
            for index in own_part(len(self))
        }
        return sum(of_all(own, len(self))) / sum(
            self.positions(index) for index in range(len(self))
        )

    def _student_states(self, index: int) -> Tensor:
        return states_of(self._family, self._student, self._micro_batches[index])

    def _target(self, index: int) -> Tensor:
        return self._targets.of(index).to(self._student.device)

    @torch.no_grad()
    def _teacher_states(self, index: int) -> Tensor:
        if index in self._hidden:
            return self._hidden[index]
        states = states_of(self._teacher.family, self._teacher.model, self._micro_batches[index])
        if self._keep:
            self._hidden[index] = states
        return states
