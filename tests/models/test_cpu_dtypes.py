"""Whether a dtype is worth computing in is measured."""

import pytest
import torch

from evocompress.models import cpu_dtypes
from evocompress.models.cpu_dtypes import slow_on_cpu


@pytest.fixture(autouse=True)
def measured_anew():
    slow_on_cpu.cache_clear()
    yield
    slow_on_cpu.cache_clear()


@pytest.mark.parametrize(("times", "slow"), [(0.5, False), (1.9, False), (2.1, True), (8, True)])
def test_half_precision_is_compared_with_float32(times, slow, monkeypatch):
    seconds = {torch.float32: 0.01, torch.bfloat16: 0.01 * times}
    monkeypatch.setattr(cpu_dtypes, "_fastest", seconds.__getitem__)
    assert slow_on_cpu(torch.bfloat16) is slow


def test_it_is_measured_once(monkeypatch):
    measured = []
    monkeypatch.setattr(cpu_dtypes, "_fastest", lambda dtype: measured.append(dtype) or 1.0)
    assert [slow_on_cpu(torch.float16) for _ in range(2)] == [False, False]
    assert measured == [torch.float16, torch.float32]
    assert not slow_on_cpu(torch.float32)
    assert len(measured) == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_any_machine_can_measure(dtype, monkeypatch):
    monkeypatch.setattr(cpu_dtypes, "SHAPE", (8, 16, 16))
    assert cpu_dtypes._fastest(dtype) > 0
