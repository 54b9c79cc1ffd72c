"""What the rows of an attention's matrices are: one after the other, or group by group."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from evocompress.models.families.coupling import Kept, index_of, ungrouped
from evocompress.models.families.derivation.derived import derive

FALCON_40B = {
    "new_decoder_architecture": True,
    "num_kv_heads": 8,
    "num_attention_heads": 64,
    "hidden_size": 4096,
}


GATED = [("query",), ("key",), ("value",), ("query",)]
"""Rows of queries, keys, values and an output gate."""


def test_rows_of_groups() -> None:
    """Two key-value heads of three: their queries, key and value, of two rows each."""
    names = [f"{kind}{n}" for g in range(3) for kind, n in [("q", 2 * g), ("q", 2 * g + 1)]
             + [("k", g), ("v", g)]]  # fmt: skip
    rows = [f"{name}.{row}" for name in names for row in range(2)]
    kept = Kept(torch.tensor([0, 2]), torch.tensor([1, 4]))
    lengths = {"query": 6, "key": 3, "value": 3, "grouped": 12}
    index = index_of(("grouped",), kept, lengths, 24)
    assert index is not None
    stay = {"q1", "k0", "v0", "q4", "k2", "v2"}
    assert [rows[i] for i in index] == [row for row in rows if row.split(".")[0] in stay]


def test_groups_taken_apart() -> None:
    """All queries, all keys, all values, each in the order of the heads."""
    rows = torch.tensor([[0], [1], [10], [20], [2], [3], [11], [21]])
    queries, keys, values = ungrouped(rows, 2, 1)
    assert queries.flatten().tolist() == [0, 1, 2, 3]
    assert keys.flatten().tolist() == [10, 11]
    assert values.flatten().tolist() == [20, 21]


@pytest.mark.parametrize(
    ("name", "settings", "rows"),
    [
        ("gpt_neox", {}, [("grouped",)]),
        ("persimmon", {}, [("grouped",)]),
        ("falcon", {}, [("query", "key", "value")]),
        ("falcon", FALCON_40B, [("grouped",)]),
        ("glm4", {}, [("query",), ("key",), ("value",)]),
        # Sinks; a gate of each head, and one of each of its channels; latents.
        ("gpt_oss", {}, [("query",), ("key",), ("value",)]),
        ("lfm3", {"layer_types": ["full_attention"] * 2, "num_hidden_layers": 2}, GATED),
        ("afmoe", {}, GATED),
        ("deepseek_v3", {}, [(), ("query",), (), ("value",)]),
    ],
)
def test_rows_of_real_classes(
    name: str, settings: dict[str, Any], rows: list[tuple[str, ...]]
) -> None:
    """Found by running them, and proved: narrower attentions are the silenced ones."""
    config = CONFIG_MAPPING[name](**settings)
    family = derive(MODEL_FOR_CAUSAL_LM_MAPPING[type(config)], config)
    assert [matrix.rows for matrix in family.attention.matrices[:-1]] == rows
    assert family.attention.narrowable


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("olmo2", "self_attn.q_norm.weight norms all heads together"),
        ("mpt", "attn is given position_bias, which has values for each head and is made for all"),
        ("diffllama", "what a head of self_attn yields depends on the other heads"),
        (
            "doge",
            "what a head of self_attn yields depends on the other heads, through self_attn.dt",
        ),
        ("codegen", "attn.qkv_proj holds 4 parts, in each queries before values before keys"),
        ("jetmoe", "self_attention.experts.input_linear holds a matrix of each expert"),
        ("qwen3_next", "linear_attn keeps a state of its own, and no keys and values of heads"),
        ("mamba2", "mixer.conv1d mixes tokens by a convolution"),
    ],
)
def test_heads_that_cannot_be_cut_have_a_reason(name: str, reason: str) -> None:
    """Whatever in how their classes compute is the obstacle."""
    config = CONFIG_MAPPING[name]()
    family = derive(MODEL_FOR_CAUSAL_LM_MAPPING[type(config)], config)
    assert not family.at(0).attention.narrowable
    assert any(re.search(f"heads cannot be cut: {reason}", limit) for limit in family.limits)


def test_channels_that_are_normed_together_stay() -> None:
    config = CONFIG_MAPPING["bitnet"]()
    family = derive(MODEL_FOR_CAUSAL_LM_MAPPING[type(config)], config)
    assert not family.mlp.narrowable
    assert "channels cannot be cut: mlp.ffn_sub_norm.weight norms all channels together" in (
        family.limits
    )
