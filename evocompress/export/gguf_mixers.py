"""Mixers that are no attention, as llama.cpp holds them: short convolutions and Mamba.

All that it must be told of them is in the shapes of their tensors.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

FLOAT32 = r"blk\.\d+\.(shortconv\.conv\.weight|ssm_conv1d\.weight|ssm_[ad]|ssm_norm\.weight)"
"""Tensors that llama.cpp reads as float32 alone."""

MIXER = re.compile(r"blk\.(\d+)\.(shortconv\.out_proj|ssm_out)\.weight")
"""The tensor that every such mixer has, and no attention."""

PACKED = "shared_mlp.input_linear."


def apart(name: str, tensor: Tensor, *, mixture: bool) -> Iterator[tuple[str, Tensor]]:
    """The gate and the other half of the MLP that Granite's hybrids have beside experts or alone.

    Args:
        name: As in transformers.
        tensor: Perhaps both in one.
        mixture: Whether there are experts beside it.
    """
    kind = "mlp.shared_expert." if mixture else "mlp."
    path, found, part = name.partition(PACKED)
    if found:
        for matrix, half in zip(("gate_proj", "up_proj"), tensor.chunk(2), strict=True):
            yield f"{path}{kind}{matrix}.{part}", half
    else:
        yield name.replace("shared_mlp.output_linear.", f"{kind}down_proj."), tensor


def as_mixer(name: str, tensor: Tensor, groups: int) -> Tensor:
    """A tensor by llama.cpp's name as it holds that.

    Kernels have no axis of one input channel, logarithms of decays are decays, and the numbers that
    Mamba-2 has one of for each head are rows. Norms over `groups` have a row for each.
    """
    part = re.sub(r"^blk\.\d+\.", "", name)
    if part in ("shortconv.conv.weight", "ssm_conv1d.weight"):
        return tensor.squeeze(1)
    if part == "ssm_a":
        return -torch.exp(tensor.float()).reshape(len(tensor), -1)
    if part == "ssm_d":
        return tensor[:, None]
    return tensor.reshape(groups, -1) if part == "ssm_norm.weight" else tensor


def layers_with_mixers(tensors: Mapping[str, Tensor]) -> set[int]:
    """The layers that have a mixer that is no attention."""
    return {int(found[1]) for name in tensors if (found := MIXER.fullmatch(name))}


def add_mixers(writer: Any, tensors: Mapping[str, Tensor]) -> None:
    """Adds the sizes of such mixers, which are the same in all layers."""
    own = {
        name.split(".", 2)[2]: tensor
        for name, tensor in tensors.items()
        if name.startswith(f"blk.{min(layers_with_mixers(tensors), default=-1)}.")
    }
    if "shortconv.conv.weight" in own:
        writer.add_shortconv_l_cache(own["shortconv.conv.weight"].shape[1])
    if "ssm_out.weight" in own:
        _add_mamba(writer, own)


def _add_mamba(writer: Any, own: Mapping[str, Tensor]) -> None:
    """Adds the sizes of Mamba-2, from the tensors of one layer."""
    inner, groups = own["ssm_out.weight"].shape[1], len(own["ssm_norm.weight"])
    channels, kernel = own["ssm_conv1d.weight"].shape
    writer.add_ssm_conv_kernel(kernel)
    writer.add_ssm_inner_size(inner)
    writer.add_ssm_state_size((channels - inner) // (2 * groups))
    writer.add_ssm_time_step_rank(len(own["ssm_a"]))
    writer.add_ssm_group_count(groups)
