"""AdamW with moments in eight bits: zeros, resuming, memory, and what its user is told."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from evocompress.core.config import HealConfig
from evocompress.core.errors import ConfigError
from evocompress.healing import heal
from evocompress.healing.masters import Masters
from evocompress.healing.optimizers import BLOCK, MOMENT_BYTES, MOMENTS
from evocompress.healing.state import HealFolder
from evocompress.models.loading import LoadedModel

CONFIG = HealConfig(
    steps=6, optimizer="adamw8bit", evaluate_every=2, learning_rate=3e-3, weight_decay=0.1
)


@pytest.fixture
def eager() -> Iterator[None]:
    """Nothing is compiled, which takes seconds for every shape."""
    pytest.importorskip("torchao")
    with torch.compiler.set_stance("force_eager"):
        yield


def matrix() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(64, 64, bias=False).to(torch.bfloat16)


def train(model: nn.Linear, masters: Masters, steps: int) -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        noise = torch.randn(model.weight.shape, generator=generator)
        model.weight.grad = noise.to(model.weight.dtype)
        masters.collect_gradients()
        masters.step(1e-2)


@pytest.mark.usefixtures("eager")
def test_moments_take_as_many_bytes_as_planned() -> None:
    for optimizer, each in MOMENT_BYTES.items():
        model = matrix()
        masters = Masters(model, {}, CONFIG.model_copy(update={"optimizer": optimizer}))
        train(model, masters, 1)
        size = sum(t.nbytes for key, t in masters.state().items() if key.startswith(MOMENTS))
        assert size == each * 64 * 64


@pytest.mark.usefixtures("eager")
def test_zeros_stay_exactly_zero_in_weights_and_moments() -> None:
    model = matrix()
    zeros = torch.arange(64 * 64).reshape(64, 64) % 3 == 0
    model.weight.data[zeros] = 0
    masters = Masters(model, {"weight": zeros}, CONFIG)
    train(model, masters, 5)
    assert torch.equal(model.weight == 0, zeros)
    (state,) = masters._optimizer.state.values()
    for key in MOMENTS:
        assert torch.equal(state[key].dequantize() == 0, zeros)


@pytest.mark.usefixtures("eager")
def test_steps_are_near_those_of_moments_in_float32() -> None:
    moved = []
    for optimizer in MOMENT_BYTES:
        model = matrix()
        masters = Masters(model, {}, CONFIG.model_copy(update={"optimizer": optimizer}))
        before = masters.weights["weight"].clone()
        train(model, masters, 10)
        moved.append(masters.weights["weight"] - before)
    exact, packed = moved
    assert 0 < (packed - exact).norm() < 0.1 * exact.norm()


@pytest.mark.usefixtures("eager")
def test_a_small_weight_and_one_of_no_whole_blocks_keep_float32() -> None:
    for size in (8, BLOCK - 1):
        model = nn.Linear(size, 65, bias=False)
        masters = Masters(model, {}, CONFIG)
        train(model, masters, 1)
        assert masters.state()["exp_avg.weight"].dtype == torch.float32


@pytest.fixture
def healing(
    student: Path, teacher: LoadedModel, train: Tensor, validation: Tensor
) -> tuple[Any, ...]:
    return student, teacher, train, validation, CONFIG


@pytest.mark.usefixtures("eager")
def test_resumed_healing_ends_in_the_same_weights(healing: Any, tmp_path: Path) -> None:
    def stop(done: float, total: float, text: str) -> None:
        if done >= 5:
            raise KeyboardInterrupt

    whole, cut = tmp_path / "whole", tmp_path / "cut"
    expected = heal(*healing, whole)
    with pytest.raises(KeyboardInterrupt):
        heal(*healing, cut, progress=stop)
    state = HealFolder(cut).latest()
    assert state is not None
    kept = load_file(state / "state.safetensors")
    codes = [tensor for key, tensor in kept.items() if key.startswith("exp_avg.codes.")]
    assert codes and {tensor.dtype for tensor in codes} == {torch.uint8}
    resumed = heal(*healing, cut, resume=True)
    assert resumed.best_kl == expected.best_kl < 0.95 * expected.initial_kl
    files = [folder / "checkpoint" / "model.safetensors" for folder in (whole, cut)]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.usefixtures("eager")
def test_where_nothing_can_be_compiled_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._dynamo.exc import BackendCompilerFailed

    def fail(self: Any) -> None:
        raise BackendCompilerFailed("inductor", OSError("no compiler"), None)

    masters = Masters(matrix(), {}, CONFIG)
    monkeypatch.setattr(type(masters._optimizer), "step", fail)
    with pytest.raises(ConfigError, match="no compiler.*install a C"):
        masters.step(1e-3)
