"""Falcon-H1's multipliers, which llama.cpp does not know: they go into the weights."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

SECTIONS = "ssm_multipliers"
"""The setting by which such a type is known: of gate, channels, both groups and time steps."""


def with_multipliers(name: str, tensor: Tensor, config: Any) -> Tensor:
    """A tensor by llama.cpp's name with what its product is multiplied by."""
    if not hasattr(config, SECTIONS):
        return tensor
    part = re.sub(r"^blk\.\d+\.", "", name)
    factor = _sections(config) if part == "ssm_in.weight" else _factors(config).get(part, 1.0)
    return (tensor.float() * factor).to(tensor.dtype)


def _factors(config: Any) -> Mapping[str, float]:
    """Of all matrices with one number."""
    read, (gate, down) = config.attention_in_multiplier, config.mlp_multipliers
    return {
        "token_embd.weight": config.embedding_multiplier,
        "output.weight": config.lm_head_multiplier,
        "attn_q.weight": read,
        "attn_k.weight": read * config.key_multiplier,
        "attn_v.weight": read,
        "attn_output.weight": config.attention_out_multiplier,
        "ffn_gate.weight": gate,
        "ffn_down.weight": down,
        "ssm_out.weight": config.ssm_out_multiplier,
    }


def _sections(config: Any) -> Tensor:
    """Of each row of the matrix that makes a state space's inputs (R, 1)."""
    inner = config.mamba_n_heads * config.mamba_d_head
    groups = config.mamba_n_groups * config.mamba_d_state
    rows = torch.tensor([inner, inner, groups, groups, config.mamba_n_heads])
    factors = torch.tensor(getattr(config, SECTIONS)) * config.ssm_in_multiplier
    each: Tensor = factors.repeat_interleave(rows)
    return each[:, None]
