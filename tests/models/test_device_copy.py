"""Copies to a device: what they hold, and that a GPU is not waited for."""

import pytest
import torch

from evocompress.models.device_copy import to_device

CPU = torch.device("cpu")


def test_what_is_there_already_is_not_copied():
    source = torch.arange(4.0)
    assert to_device(source, CPU) is source


def test_a_copy_is_another_tensor():
    source = torch.arange(4.0)
    copied = to_device(source, CPU, copy=True)
    assert torch.equal(copied, source)
    assert copied.data_ptr() != source.data_ptr()


def test_a_dtype_is_converted():
    assert to_device(torch.arange(4.0), CPU, torch.bfloat16).dtype == torch.bfloat16


@pytest.mark.gpu
def test_a_gpu_gets_the_same_values():
    source = torch.randn(64, 64)
    copied = to_device(source, torch.device("cuda"), torch.bfloat16)
    assert copied.is_cuda
    assert torch.equal(copied.cpu(), source.bfloat16())


@pytest.mark.gpu
def test_a_busy_gpu_is_not_waited_for():
    source, device = torch.randn(2048, 2048), torch.device("cuda")
    to_device(source, device)  # makes the pinned buffer
    torch.cuda.synchronize()
    torch.cuda._sleep(2_000_000_000)  # about a second
    copied = to_device(source, device)
    assert not torch.cuda.current_stream().query()
    assert torch.equal(copied.cpu(), source)
