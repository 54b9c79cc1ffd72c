"""What a matrix reads, as rows: also the patches of an image that a convolution reads."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import unfold


def rows_read(module: nn.Module, inputs: Tensor, length: int) -> Tensor:
    """The inputs of a matrix (sequences, positions, in), of what its module is called with.

    That is (..., in), perhaps in one long row of tokens whose sequences have `length`, or feature
    maps (B, F, H, W) of a convolution, each of whose patches is a row (F times kernel).
    """
    if not isinstance(module, nn.Conv2d):
        return inputs.reshape(-1, length, inputs.shape[-1])
    kernel, dilation, padding, stride = (
        tuple(map(int, value))
        for value in (module.kernel_size, module.dilation, module.padding, module.stride)
    )
    return unfold(inputs, kernel, dilation, padding, stride).transpose(1, 2)
