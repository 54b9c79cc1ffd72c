"""States within the models, and next tokens, beside the divergence: against plain autograd."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div

from evocompress.core.config import HealConfig
from evocompress.core.types import DROP, Candidate
from evocompress.export import materialize
from evocompress.healing import heal
from evocompress.healing.distillation import Distillation
from evocompress.healing.layers import LayerLoss, matching
from evocompress.healing.student import load_student
from evocompress.models.loading import LoadedModel
from evocompress.testing.tiny import tiny_loaded


@pytest.mark.parametrize(
    ("gone", "blocks", "expected"),
    [
        ((), 4, [(0, 0), (1, 1), (2, 2), (3, 3)]),
        ((0,), 3, [(0, 1), (1, 2), (2, 3)]),
        ((3,), 3, [(0, 0), (1, 1), (2, 3)]),
        ((3,), 4, [(0, 0), (1, 1), (2, 3)]),
        ((1, 2), 4, [(0, 2), (3, 3)]),
        ((1, 2), 2, [(0, 2), (1, 3)]),
    ],
)
def test_what_is_held_against_what(
    gone: tuple[int, ...], blocks: int, expected: list[tuple[int, int]]
) -> None:
    assert list(matching(4, frozenset(gone), blocks)) == expected


@pytest.fixture
def teacher() -> LoadedModel:
    loaded = tiny_loaded("llama")
    loaded.model.double()
    return loaded


@pytest.fixture
def shorter(teacher: LoadedModel, tmp_path: Path) -> Path:
    """The teacher without its middle block."""
    gone = {f"model.layers.1.{kind}": DROP for kind in ("attention", "mlp")}
    return materialize(teacher, None, Candidate(tuple(sorted(gone.items()))), tmp_path / "shorter")


def relative(ours: Tensor, theirs: Tensor) -> Tensor:
    return ((ours - theirs).square().sum(-1) / theirs.square().sum(-1)).mean()


def test_the_gradient_equals_autograd_of_the_definition(
    teacher: LoadedModel, shorter: Path
) -> None:
    student = load_student(shorter, teacher)
    tokens = torch.randint(1, 240, (3, 12), generator=torch.Generator().manual_seed(0))
    blocks = [teacher.family.blocks(model) for model in (student, teacher.model)]
    pairs = matching(3, frozenset({1}), len(blocks[0]))
    layers = LayerLoss(*blocks, pairs, 0.7)
    pair = Distillation(student, teacher, tokens, 3, next_token=0.3, layers=layers)
    value = pair.backward(0, 1 / pair.positions(0))
    found = {name: parameter.grad for name, parameter in student.named_parameters()}

    states: dict[nn.Module, Tensor] = {}
    hooks = [
        block.register_forward_hook(lambda block, _, out: states.update({block: out}))
        for block in (*blocks[0], *blocks[1])
    ]
    logits, wanted = student(tokens).logits[:, :-1], teacher.model(tokens).logits[:, :-1]
    for hook in hooks:
        hook.remove()
    kl = kl_div(logits.log_softmax(-1), wanted.log_softmax(-1), log_target=True, reduction="none")
    last = blocks[0][-1]
    expected = (
        kl.sum(-1).mean()
        + 0.3 * cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        + 0.35 * relative(states[blocks[0][0]], states[blocks[1][1]])
        + 0.35 * relative(states[last], states[blocks[1][2]])
    )
    assert value / pair.positions(0) == pytest.approx(expected.item())
    gradients = torch.autograd.grad(expected, list(student.parameters()), allow_unused=True)
    for (name, gradient), own in zip(found.items(), gradients, strict=True):
        assert (gradient is None) == (own is None), name
        if own is not None:
            torch.testing.assert_close(gradient, own)


@pytest.mark.parametrize("changes", [{"states": 1.0}, {"next_token": 0.1}])
def test_a_healing_with_them_still_lowers_the_divergence(
    changes: dict[str, float],
    teacher: LoadedModel,
    shorter: Path,
    train: Tensor,
    validation: Tensor,
    tmp_path: Path,
) -> None:
    config = HealConfig(steps=4, learning_rate=3e-3, evaluate_every=2, train=("all",), **changes)
    report = heal(shorter, teacher, train, validation, config, tmp_path / "healed")
    assert report.best_kl < report.initial_kl
