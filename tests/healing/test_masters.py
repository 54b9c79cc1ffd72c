from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from shared_masters import trained
from torch import nn

from evocompress.core.config import HealConfig
from evocompress.healing.masters import Masters


def linear(dtype: torch.dtype = torch.bfloat16) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(8, 8, bias=False).to(dtype)


def give_gradient(model: nn.Linear) -> None:
    model.weight.grad = torch.ones_like(model.weight)


def test_steps_too_small_for_bfloat16_move_the_masters_and_add_up() -> None:
    model = linear()
    before = model.weight.detach().clone()
    masters = Masters(model, {}, HealConfig())
    rate = 1e-5
    give_gradient(model)
    masters.collect_gradients()
    masters.step(rate)
    moved = before.float() - masters.weights["weight"]
    torch.testing.assert_close(moved, torch.full_like(moved, rate), rtol=1e-2, atol=0)
    large = before.abs() > 0.1
    assert torch.equal(model.weight[large], before[large])
    for _ in range(300):
        give_gradient(model)
        masters.collect_gradients()
        masters.step(rate)
    assert not torch.equal(model.weight[large], before[large])


def test_zeros_stay_exactly_zero_even_with_weight_decay() -> None:
    model = linear()
    zeros = torch.arange(64).reshape(8, 8) % 3 == 0
    model.weight.data[zeros] = 0
    masters = Masters(model, {"weight": zeros}, HealConfig(weight_decay=0.1))
    for _ in range(5):
        give_gradient(model)
        masters.collect_gradients()
        masters.step(1e-2)
    assert torch.equal(model.weight == 0, zeros)
    assert torch.equal(masters.weights["weight"] == 0, zeros)


def test_gradients_of_micro_steps_add_up_and_are_clipped_together() -> None:
    model = linear(torch.float32)
    masters = Masters(model, {}, HealConfig(clip=1.0))
    for _ in range(3):
        give_gradient(model)
        masters.collect_gradients()
        assert model.weight.grad is None
    assert masters.clip_gradients() == 3 * 8
    torch.testing.assert_close(masters.weights["weight"].grad.norm().item(), 1.0)


def test_state_continues_exactly() -> None:
    models = [linear(), linear()]
    first, second = (Masters(model, {}, HealConfig()) for model in models)
    give_gradient(models[0])
    first.collect_gradients()
    first.step(1e-3)
    second.load_state(first.state())
    for model, masters in zip(models, (first, second), strict=True):
        model.weight.grad = torch.full_like(model.weight, 0.5)
        masters.collect_gradients()
        masters.step(1e-3)
    assert torch.equal(first.weights["weight"], second.weights["weight"])
    assert torch.equal(models[0].weight, models[1].weight)


def test_a_loaded_state_is_on_the_device_of_the_model() -> None:
    # The meta device stands for any that differs from where a file's tensors are.
    masters = Masters(nn.Linear(8, 8, bias=False, device="meta"), {}, HealConfig())
    kinds = ("master", "exp_avg", "exp_avg_sq")
    saved = {f"{kind}.weight": torch.zeros(8, 8) for kind in kinds}
    masters.load_state(saved | {"step.weight": torch.tensor(3.0)})
    state = masters.state()
    assert len(state) == 4
    assert {tensor.device.type for tensor in state.values()} == {"meta"}


def test_a_loaded_state_is_a_copy() -> None:
    first, second = (Masters(linear(), {}, HealConfig()) for _ in range(2))
    first.weights["weight"].grad = torch.ones(8, 8)
    first.step(1e-3)
    saved = first.state()
    second.load_state(saved)
    shared = {t.data_ptr() for t in saved.values()} & {
        t.data_ptr() for t in second.state().values()
    }
    assert not shared


@pytest.mark.long
def test_two_processes_share_out_what_one_does_as_often_as_a_script_wants(tmp_path: Path) -> None:
    """To the bit; each micro-batch has a layer that the other has no gradient of, as experts."""
    one, *shared = (tmp_path / name for name in ("one", "two", "again"))
    state = trained()
    assert {"exp_avg.c.weight", "master.d.weight", "exp_avg.e.weight.weight"} <= set(state)
    assert {"exp_avg.f.weight.minimum", "codes.f.weight"} <= set(state)
    assert "exp_avg.d.weight" not in state
    save_file(state, one)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    script = Path(__file__).with_name("shared_masters.py")
    done = subprocess.run(
        [*launch, "--nproc-per-node", "2", str(script), *map(str, shared)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert [path.read_bytes() for path in shared] == [one.read_bytes()] * 2
