"""Mixers that are no attention, as llama.cpp holds them: short convolutions, Mamba and delta nets.

All that it must be told of them is in the shapes of their tensors.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from evocompress.export.layout import Layout
from evocompress.models.loading import LoadedModel

FLOAT32 = r"blk\.\d+\.(shortconv\.conv\.weight|ssm_conv1d\.weight|ssm_[ad]|ssm_norm\.weight)"
"""Tensors that llama.cpp reads as float32 alone."""

MIXER = re.compile(r"blk\.(\d+)\.(shortconv\.out_proj|ssm_out)\.weight")
"""The tensor that every such mixer has, and no attention."""

KEYS = "linear_num_key_heads"
"""The setting by which a delta net is known."""

TILED = ("qwen3_5_text", "qwen3_5_moe_text")
"""Types of which llama.cpp holds values in another order."""

OF_VALUES = (
    *("attn_qkv.weight", "attn_gate.weight", "ssm_conv1d.weight", "ssm_out.weight"),
    *("ssm_a", "ssm_dt.bias", "ssm_alpha.weight", "ssm_beta.weight"),
)
"""Tensors with rows or columns of values."""

MAMBA = "mamba"
"""The type whose channels are heads of their own, so that a number for each is no row."""

GROUPS = "mamba_n_groups"
"""The setting that tells of groups where there is no norm over them."""

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


def as_mixer(name: str, tensor: Tensor, config: Any) -> Tensor:
    """A tensor by llama.cpp's name as it holds that.

    Kernels have no axis of one input channel, logarithms of decays are decays, and the numbers that
    Mamba-2 has one of for each head are rows. Norms over groups have a row for each.
    """
    part = re.sub(r"^blk\.\d+\.", "", name)
    if hasattr(config, KEYS):
        return as_delta_net(part, tensor, config)
    if part in ("shortconv.conv.weight", "ssm_conv1d.weight"):
        return tensor.squeeze(1)
    if part == "ssm_a":
        return -torch.exp(tensor.float()).reshape(len(tensor), -1)
    if part == "ssm_d" and config.model_type != MAMBA:
        return tensor[:, None]
    groups = getattr(config, "n_groups", 1)
    return tensor.reshape(groups, -1) if part == "ssm_norm.weight" else tensor


def as_delta_net(part: str, tensor: Tensor, config: Any) -> Tensor:
    """The same of a gated delta net, whose heads have values in groups for each key.

    Where they are a matrix of their own, llama.cpp wants the first of each group, then the second.
    """
    if part == "ssm_conv1d.weight":
        tensor = tensor.squeeze(1)
    elif part == "ssm_a":
        tensor = -torch.exp(tensor.float())
    if config.model_type not in TILED or part not in OF_VALUES:
        return tensor
    if part == "ssm_out.weight":
        return _tiled(tensor.T, config).T.contiguous()
    values = config.linear_num_value_heads
    if part in ("attn_qkv.weight", "ssm_conv1d.weight"):
        values *= config.linear_value_head_dim
    elif part == "attn_gate.weight":
        values = len(tensor)
    keys = len(tensor) - values
    return torch.cat([tensor[:keys], _tiled(tensor[keys:], config)])


def _tiled(rows: Tensor, config: Any) -> Tensor:
    keys = getattr(config, KEYS)
    within = config.linear_num_value_heads // keys
    return rows.reshape(keys, within, -1, *rows.shape[1:]).transpose(0, 1).reshape(rows.shape)


def attention_interval(mixers: Collection[int], layers: int) -> int | None:
    """Every which layer has an attention, if that says which ones; others have another mixer."""
    return next(
        (
            every
            for every in range(1, layers + 2)
            if all((layer in mixers) == bool((layer + 1) % every) for layer in range(layers))
        ),
        None,
    )


def layers_with_mixers(tensors: Mapping[str, Tensor]) -> set[int]:
    """The layers that have a mixer that is no attention."""
    return {int(found[1]) for name in tensors if (found := MIXER.fullmatch(name))}


def add_mixers(writer: Any, tensors: Mapping[str, Tensor], config: Any) -> None:
    """Adds the sizes of such mixers, which are the same in all layers."""
    layers = 1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("blk."))
    if every := attention_interval(layers_with_mixers(tensors), layers):
        writer.add_full_attention_interval(every)
    own = {
        name.split(".", 2)[2]: tensor
        for name, tensor in tensors.items()
        if name.startswith(f"blk.{min(layers_with_mixers(tensors), default=-1)}.")
    }
    if "shortconv.conv.weight" in own:
        writer.add_shortconv_l_cache(own["shortconv.conv.weight"].shape[1])
    if "ssm_out.weight" in own:
        _add_mamba(writer, own, getattr(config, GROUPS, 1))


def _add_mamba(writer: Any, own: Mapping[str, Tensor], groups: int) -> None:
    """Adds the sizes of Mamba, from the tensors of one layer.

    Where it has a norm, that tells its `groups`.
    """
    inner = own["ssm_out.weight"].shape[1]
    channels, kernel = own["ssm_conv1d.weight"].shape
    writer.add_ssm_conv_kernel(kernel)
    writer.add_ssm_inner_size(inner)
    if "ssm_x.weight" in own:
        writer.add_ssm_state_size(own["ssm_a"].shape[1])
        writer.add_ssm_time_step_rank(own["ssm_dt.weight"].shape[1])
        return
    norm = own.get("ssm_norm.weight")
    if norm is not None:  # that of a delta net is over a head
        groups = len(norm) if norm.dim() > 1 else (channels - inner) // (2 * len(norm))
    writer.add_ssm_state_size((channels - inner) // (2 * groups))
    writer.add_ssm_time_step_rank(len(own["ssm_a"]))
    writer.add_ssm_group_count(groups)


def tensor_kinds(architecture: str) -> set[str]:
    """gguf-py's names of the kinds of tensors that an architecture of llama.cpp has."""
    import gguf

    known = {word: number for number, word in gguf.MODEL_ARCH_NAMES.items()}
    return {tensor.name for tensor in gguf.MODEL_TENSORS[known[architecture]]}


def attention_alone(loaded: LoadedModel, left: Layout, architecture: str) -> str | None:
    """The obstacle of a hybrid with attention alone, for whose other cache there is no layer."""
    blocks = loaded.family.blocks(loaded.model)
    every = (module for one in left.having("attention") for module in blocks[one.index].modules())
    if any(isinstance(module, nn.Conv1d) for module in every) or not tensor_kinds(architecture) & {
        "SHORTCONV_CONV",
        "SSM_CONV1D",
    }:
        return None
    return (
        f"cannot hold this {loaded.family.model_type} model with attention alone, because "
        f"llama.cpp's architecture {architecture} needs a layer with another mixer"
    )
