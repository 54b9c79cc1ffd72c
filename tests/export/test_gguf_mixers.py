"""Format ``gguf`` of blocks that mix tokens otherwise than by attention."""

from __future__ import annotations

from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from export_cases import write
from test_gguf_types import obstacle

from evocompress.core.types import DROP
from evocompress.export import materialize
from evocompress.export.gguf_mixers import as_delta_net
from evocompress.testing.formats import candidate_of
from evocompress.testing.gguf_reference import GgufReference
from evocompress.testing.gguf_types import (
    gguf_levels,
    gguf_loaded,
    uneven_gguf_levels,
)
from evocompress.testing.plain_library import PlainLibrary


def test_delta_nets_with_values_of_another_width_than_keys_are_refused() -> None:
    loaded = gguf_loaded("qwen3_5_text")
    loaded.model.config.linear_value_head_dim = 16
    assert "keys of 8 and values of 16 elements" in (obstacle(loaded) or "")


def test_values_of_delta_nets_are_in_the_order_of_llama_cpp() -> None:
    config = gguf_loaded("qwen3_5_text").model.config
    config.linear_num_key_heads, config.linear_num_value_heads = 2, 4
    config.linear_key_head_dim = config.linear_value_head_dim = 1
    rows = torch.arange(8.0)[:, None]
    assert as_delta_net("attn_qkv.weight", rows, config)[:, 0].tolist() == [0, 1, 2, 3, 4, 6, 5, 7]
    gates = as_delta_net("attn_gate.weight", rows[:4], config)
    assert gates[:, 0].tolist() == as_delta_net("ssm_out.weight", rows[:4].T, config)[0].tolist()
    assert gates[:, 0].tolist() == [0, 2, 1, 3]


def test_layers_with_other_mixers_are_those_without_key_value_heads(tmp_path: Path) -> None:
    lfm2 = gguf_loaded("lfm2")
    candidate = candidate_of(lfm2, {"1": DROP})
    out = materialize(
        lfm2, PlainLibrary(lfm2), candidate, tmp_path / "out", format="gguf", weights="q8_0"
    )
    file = GgufReference(out / "model.gguf")
    sizes = ("attention.head_count", "attention.head_count_kv", "shortconv.l_cache")
    assert [file.metadata[f"lfm2.{size}"] for size in sizes] == [6, [0, 2, 0, 2], 3]
    kernel = lfm2.model.get_parameter("model.layers.3.conv.conv.weight")
    # Kernels are float32, whatever the matrices are, without their axis of one input channel.
    held = file.tensors["blk.2.shortconv.conv.weight"]
    torch.testing.assert_close(torch.tensor(held).float(), kernel.detach()[:, 0], rtol=0, atol=0)


def test_mamba_2_is_told_by_its_tensors(tmp_path: Path) -> None:
    loaded = gguf_loaded("granitemoehybrid", num_local_experts=0)
    out = write(loaded, candidate_of(loaded, {}), tmp_path / "out", "gguf")
    file = GgufReference(out / "model.gguf")
    sizes = ("conv_kernel", "inner_size", "state_size", "time_step_rank", "group_count")
    config: Any = loaded.model.config
    wanted = config.mamba_d_conv, 2 * config.hidden_size, config.mamba_d_state, config.mamba_n_heads
    assert tuple(file.metadata[f"granitehybrid.ssm.{size}"] for size in sizes) == (*wanted, 1)
    assert file.metadata["granitehybrid.rope.scaling.finetuned"] is False
    logarithm = loaded.model.get_parameter("model.layers.0.mamba.A_log").detach()
    decays = torch.tensor(file.tensors["blk.0.ssm_a"]).float()
    torch.testing.assert_close(decays, -logarithm.exp()[:, None])
    # The MLP beside which there would be experts is one by itself, its halves two matrices.
    packed = loaded.model.get_parameter("model.layers.1.shared_mlp.input_linear.weight").detach()
    halves = [file.tensors[f"blk.1.ffn_{half}.weight"] for half in ("gate", "up")]
    torch.testing.assert_close(torch.tensor(np.concatenate(halves)).float(), packed)


def test_mamba_2_without_attention_has_no_heads(tmp_path: Path) -> None:
    loaded = gguf_loaded("mamba2", time_step_limit=[0.0, inf])
    out = write(loaded, candidate_of(loaded, gguf_levels(loaded)), tmp_path / "out", "gguf")
    metadata = GgufReference(out / "model.gguf").metadata
    sizes = ("block_count", "attention.head_count", "attention.head_count_kv", "ssm.group_count")
    assert [metadata[f"mamba2.{size}"] for size in sizes] == [4, 0, 0, 1]


def test_mamba_of_another_width_than_twice_the_hidden_size_is_refused() -> None:
    loaded = gguf_loaded("mamba")
    loaded.model.config.intermediate_size = 88
    assert "is 88 and not twice the hidden size, 96" in (obstacle(loaded) or "")


def test_channels_of_mamba_are_heads_of_their_own(tmp_path: Path) -> None:
    loaded = gguf_loaded("mamba")
    out = write(loaded, candidate_of(loaded, gguf_levels(loaded)), tmp_path / "out", "gguf")
    file, config = GgufReference(out / "model.gguf"), loaded.model.config
    sizes = [f"mamba.ssm.{size}" for size in ("inner_size", "state_size", "time_step_rank")]
    wanted = [2 * config.hidden_size, config.state_size, config.time_step_rank]
    assert [file.metadata[size] for size in sizes] == wanted
    logarithm = loaded.model.get_parameter("backbone.layers.0.mixer.A_log").detach()
    decays = torch.tensor(file.tensors["blk.0.ssm_a"]).float()
    torch.testing.assert_close(decays, -logarithm.exp())
    assert file.tensors["blk.0.ssm_d"].shape == (2 * config.hidden_size,)


def test_multipliers_of_falcon_h1_are_in_its_weights(tmp_path: Path) -> None:
    loaded = gguf_loaded("falcon_h1", tie_word_embeddings=True)
    out = write(loaded, candidate_of(loaded, {}), tmp_path / "out", "gguf")
    file, state = GgufReference(out / "model.gguf"), loaded.model.state_dict()
    inner, groups, size = 192, 2, 8
    assert file.metadata["falcon-h1.ssm.group_count"] == groups
    dense = state["model.layers.0.mamba.in_proj.weight"]
    held = torch.tensor(file.tensors["blk.0.ssm_in.weight"]).float()
    starts = [0, inner, 2 * inner, 2 * inner + groups * size, 2 * (inner + groups * size)]
    found = [float((held[row] / dense[row]).mean()) for row in starts]
    assert found == pytest.approx([1.2 * factor for factor in (0.5, 0.6, 0.7, 0.8, 0.9)])
    # A tied head is multiplied by something else than the embedding.
    embedding = state["model.embed_tokens.weight"]
    for name, factor in {"token_embd": 5.0, "output": 0.3}.items():
        own = torch.tensor(file.tensors[f"{name}.weight"]).float()
        torch.testing.assert_close(own, factor * embedding)


def test_hybrids_of_one_mixer_a_layer_have_each_layer_s_sizes(tmp_path: Path) -> None:
    loaded = gguf_loaded("nemotron_h")
    out = write(loaded, candidate_of(loaded, uneven_gguf_levels(loaded)), tmp_path / "out", "gguf")
    metadata = GgufReference(out / "model.gguf").metadata
    sizes = ("attention.head_count", "attention.head_count_kv", "feed_forward_length")
    assert [metadata[f"nemotron_h.{size}"] for size in sizes] == [
        [2, 1, 2, 2, 2, 2],
        [0, 1, 0, 0, 2, 0],
        [16, 0, 32, 0, 0, 0],
    ]
    assert metadata["nemotron_h.ssm.group_count"] == 2
    assert "deci" not in (out / "README.md").read_text()
