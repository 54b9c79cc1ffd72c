from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from evocompress.healing.loss import (
    DistillationLoss,
    of_embeddings,
    of_states,
    rows_per_chunk,
)
from evocompress.models.families.encoder import embedding
from evocompress.models.tasks import ALL_ROWS

WIDTH, VOCABULARY = 12, 40


def parts(rows: int, dtype: torch.dtype) -> tuple[Tensor, nn.Module, Tensor, nn.Module]:
    torch.manual_seed(0)
    body = torch.randn(rows, WIDTH, dtype=dtype, requires_grad=True)
    capped = nn.Sequential(nn.Linear(WIDTH, VOCABULARY, bias=False), nn.Tanh()).to(dtype)
    target = torch.randn(rows, WIDTH, dtype=dtype)
    return body, capped, target, nn.Linear(WIDTH, VOCABULARY).to(dtype)


def plain(hidden: Tensor, head: nn.Module, target: Tensor, target_head: nn.Module) -> Tensor:
    """The definition, with autograd and full logits."""
    p = target_head(target).detach().softmax(-1)
    return (p * (p.log() - head(hidden).softmax(-1).log())).sum()


@pytest.mark.parametrize("chunk", [1, 8, 19, 100])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_value_and_gradients_equal_autograd_of_the_definition(
    chunk: int, dtype: torch.dtype, tolerance: float
) -> None:
    body, head, target, target_head = parts(19, dtype)
    weight = head[0].weight
    expected = plain(body * 2, head, target, target_head)
    expected_body, expected_weight = torch.autograd.grad(0.25 * expected, [body, weight])
    loss = DistillationLoss(head, target_head, chunk)
    value = loss.backward(body * 2, target, 0.25)
    assert value == pytest.approx(expected.item(), rel=tolerance)
    assert loss.value(body.detach() * 2, target) == pytest.approx(value)
    torch.testing.assert_close(body.grad, expected_body, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(weight.grad, expected_weight, rtol=tolerance, atol=tolerance)


def test_equal_models_have_no_divergence_and_no_gradient() -> None:
    body, head, _, _ = parts(7, torch.float64)
    value = DistillationLoss(head, head, 4).backward(body * 1, body.detach(), 1.0)
    assert abs(value) < 1e-12
    assert body.grad.abs().max() < 1e-12


def test_chunks_hold_64_mib_of_float32_logits() -> None:
    assert rows_per_chunk(49_152) == 341
    assert rows_per_chunk(2**40) == 1


@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_embeddings_are_trained_on_their_distance_and_that_of_all_states(scale: float) -> None:
    torch.manual_seed(0)
    body = torch.randn(3, 5, WIDTH, dtype=torch.float64, requires_grad=True)
    target = torch.randn(3, 5, WIDTH, dtype=torch.float64)
    expected = of_states_plainly(body, target) + of_embeddings_plainly(body, target)
    (wanted,) = torch.autograd.grad(scale * expected, body)
    mean = partial(embedding, pooling="mean")
    loss = DistillationLoss(mean, mean, ALL_ROWS, of_embeddings, of_states)
    value = loss.backward(body * 1, target, scale)
    assert value == pytest.approx(expected.item(), rel=1e-12)
    torch.testing.assert_close(body.grad, wanted, rtol=1e-10, atol=1e-12)


def of_states_plainly(body: Tensor, target: Tensor) -> Tensor:
    shares = [
        ((token - wanted) @ (token - wanted)) / (wanted @ wanted)
        for sequence, dense in zip(body, target, strict=True)
        for token, wanted in zip(sequence, dense, strict=True)
    ]
    return torch.stack(shares).sum() / body.shape[1]


def of_embeddings_plainly(body: Tensor, target: Tensor) -> Tensor:
    student, dense = (
        [(means := states.mean(0)) / means.norm() for states in sequences]
        for sequences in (body, target)
    )
    own = [1 - one @ other for one, other in zip(student, dense, strict=True)]
    pairs = [(i, j) for i in range(3) for j in range(3) if i != j]
    errors = [(student[i] @ student[j] - dense[i] @ dense[j]) ** 2 for i, j in pairs]
    return torch.stack(own).sum() + torch.stack(errors).sum() / 2
