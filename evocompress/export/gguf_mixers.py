"""Mixers that are no attention, as llama.cpp holds them: short convolutions.

All that it must be told of them is in the shapes of their tensors.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

CONVOLUTION = r"blk\.\d+\.shortconv\.conv\.weight"

MIXER = re.compile(r"(blk\.\d+)\.shortconv\.out_proj\.weight")
"""The tensor that every such mixer has, and no attention."""

FLOAT32 = CONVOLUTION
"""Tensors that llama.cpp reads as float32 alone."""


def as_mixer(name: str, tensor: Tensor) -> Tensor:
    """A tensor by llama.cpp's name as it holds that: kernels have no axis of one input channel."""
    return tensor.squeeze(1) if re.fullmatch(CONVOLUTION, name) else tensor


def has_mixer(tensors: Mapping[str, Tensor], layer: int) -> bool:
    """Whether a layer has a mixer that is no attention."""
    return any((found := MIXER.fullmatch(n)) and found[1] == f"blk.{layer}" for n in tensors)


def add_mixers(writer: Any, tensors: Mapping[str, Tensor]) -> None:
    """Adds the sizes of such mixers, which are the same in all layers."""
    for name, tensor in tensors.items():
        if re.fullmatch(CONVOLUTION, name):
            writer.add_shortconv_l_cache(tensor.shape[1])
            return
