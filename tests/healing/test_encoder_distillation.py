"""Distilling models with one output a sequence, against autograd through the plain loss."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from evocompress.core.config import HealConfig
from evocompress.core.types import DROP, Candidate
from evocompress.export import materialize
from evocompress.healing import heal
from evocompress.healing.distillation import Distillation
from evocompress.models.dummy_inputs import random_batch
from evocompress.testing.probes import answer
from evocompress.testing.tiny import ENCODERS, SCORER, tiny_loaded


def plain_loss(name: str, outputs: Tensor, target: Tensor) -> Tensor:
    """The sum over the sequences of a micro-batch, by which students are judged."""
    compared = tiny_loaded(name).family.task.compared
    if compared == "scores":
        return (outputs - target).square().sum() / 2
    if compared == "logits":
        p = target.softmax(-1)
        return (p * (p.log() - outputs.log_softmax(-1))).sum()
    total = (1 - (outputs * target).sum(-1)).sum()
    for i in range(len(outputs)):
        others = [j for j in range(len(outputs)) if j != i]
        errors = [outputs[i] @ outputs[j] - target[i] @ target[j] for j in others]
        total = total + sum(error**2 for error in errors) / max(1, len(others))
    return total


def states_loss(
    name: str, student: PreTrainedModel, teacher: PreTrainedModel, batch: Tensor
) -> Tensor:
    """What is trained on beside it: of embedding models the states of all tokens."""
    if tiny_loaded(name).family.task.compared != "embeddings":
        return torch.zeros(())
    states = student(input_ids=batch).last_hidden_state
    wanted = teacher(input_ids=batch).last_hidden_state.detach()
    shares = (states - wanted).square().sum(-1) / wanted.square().sum(-1)
    return shares.mean(1).sum()


@pytest.mark.parametrize("name", [*ENCODERS, SCORER])
def test_loss_and_gradients_are_those_of_the_plain_loss(name: str) -> None:
    teacher, student = tiny_loaded(name), tiny_loaded(name, seed=1).model
    family = teacher.family
    batch = random_batch(family.task, student, 5, 12)
    student.requires_grad_(True)
    distillation = Distillation(student, teacher, batch, 3)
    assert [distillation.positions(index) for index in (0, 1)] == [3, 2]
    assert distillation.tokens(0) == 3 * (17 if name == "vit" else 12)
    value = distillation.backward(0, 0.25)
    found = {n: p.grad for n, p in student.named_parameters() if p.grad is not None}
    student.zero_grad()
    with torch.enable_grad():
        target = answer(family, teacher.model, batch[:3]).detach()
        loss = plain_loss(name, answer(family, student, batch[:3]), target)
        trained = loss + states_loss(name, student, teacher.model, batch[:3])
        (0.25 * trained).backward()
    assert value == pytest.approx(trained.item(), rel=1e-4)
    expected = {n: p.grad for n, p in student.named_parameters() if p.grad is not None}
    assert found.keys() == expected.keys()
    for key, gradient in found.items():
        torch.testing.assert_close(gradient, expected[key], rtol=1e-3, atol=1e-5)
    last = plain_loss(
        name, answer(family, student, batch[3:]), answer(family, teacher.model, batch[3:])
    )
    assert distillation.mean() == pytest.approx((loss.item() + last.item()) / 5, rel=1e-4)


@pytest.mark.parametrize("name", [*ENCODERS, SCORER])
def test_healing_brings_a_model_nearer_to_its_teacher(name: str, tmp_path: Path) -> None:
    """On the sequences that it is trained on: a random teacher has nothing to generalise."""
    teacher = tiny_loaded(name)
    dropped = teacher.family.units(teacher.model)[-1].parent
    assert dropped is not None
    student = materialize(teacher, None, Candidate(((dropped, DROP),)), tmp_path / "student")
    batch = random_batch(teacher.family.task, teacher.model, 4, 12)
    config = HealConfig(steps=12, learning_rate=1e-3, evaluate_every=4)
    report = heal(student, teacher, batch, batch, config, tmp_path / "heal")
    assert report.best_kl < 0.8 * report.initial_kl and report.best_step > 0
