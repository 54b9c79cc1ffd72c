"""Quality of models with one output a sequence, against brute force."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import PreTrainedModel

from evocompress.evaluation.heldout import measure_latency, output_quality
from evocompress.models.dummy_inputs import random_batch
from evocompress.models.families import family_of
from evocompress.testing.probes import answer
from evocompress.testing.tiny import declared, tiny_model


def pair(name: str) -> tuple[PreTrainedModel, PreTrainedModel]:
    """A model and the same one with noise on its weights."""
    dense, other = tiny_model(name), tiny_model(name)
    generator = torch.Generator().manual_seed(1)
    for parameter in other.parameters():
        parameter.mul_(1 + 0.3 * torch.randn(parameter.shape, generator=generator))
    return dense, other


@pytest.mark.parametrize("name", ["bert-classifier", "vit"])
def test_classes_are_compared_one_by_one(name: str) -> None:
    task, (dense, other) = declared(name).task, pair(name)
    batch = random_batch(task, dense, 7, 12)
    p, q = (model(**task.inputs(batch)).logits.double().softmax(-1) for model in (dense, other))
    labels = torch.tensor([int(row.argmax()) for row in q])
    labels[0] = (labels[0] + 1) % 10
    found = output_quality(task, dense, {"dense": dense, "other": other}, batch, labels, batch=3)
    rows = zip(p.tolist(), q.tolist(), strict=True)
    kls = [sum(a * math.log(a / b) for a, b in zip(*row, strict=True)) for row in rows]
    assert found["other"]["kl"] == pytest.approx(sum(kls) / 7, rel=1e-4)
    same = sum(int(a.argmax() == b.argmax()) for a, b in zip(p, q, strict=True)) / 7
    assert found["other"]["agreement"] == pytest.approx(same)
    assert found["other"]["accuracy"] == pytest.approx(6 / 7)
    assert found["dense"]["kl"] == 0 and found["dense"]["agreement"] == 1


def test_embeddings_are_compared_by_themselves_and_by_their_similarities() -> None:
    dense, other = pair("bert")
    family = family_of(dense)
    batch = random_batch(family.task, dense, 6, 12)
    one, two = (answer(family, model, batch).double() for model in (dense, other))
    found = output_quality(family.task, dense, {"dense": dense, "other": other}, batch, batch=6)
    cosines = [float(a @ b) for a, b in zip(one, two, strict=True)]
    assert found["other"]["distance"] == pytest.approx(1 - sum(cosines) / 6, rel=1e-3)
    pairs = [(i, j) for i in range(6) for j in range(i)]
    ranks = []
    for rows in (one, two):
        values = [float(rows[i] @ rows[j]) for i, j in pairs]
        ranks.append([sum(value < each for value in values) for each in values])
    gaps = sum((a - b) ** 2 for a, b in zip(*ranks, strict=True))
    expected = 1 - 6 * gaps / (15 * (15**2 - 1))
    assert found["other"]["spearman"] == pytest.approx(expected)
    assert found["dense"]["distance"] == pytest.approx(0, abs=1e-12)
    assert found["dense"]["spearman"] == pytest.approx(1)


def test_two_sequences_have_no_ranks() -> None:
    dense, other = pair("bert")
    family = family_of(dense)
    batch = random_batch(family.task, dense, 2, 12)
    assert output_quality(family.task, dense, {"a": other}, batch)["a"]["spearman"] is None


@pytest.mark.parametrize("name", ["bert", "vit"])
def test_only_a_whole_pass_is_timed(name: str) -> None:
    model = tiny_model(name)
    task = declared(name).task
    found = measure_latency({"a": model}, prefill=(2, 8), decode=(4, 2), repeats=2, task=task)
    assert found["a"].prefill.median > 0 and found["a"].decode is None
    assert math.isfinite(found["a"].prefill.slowest)
