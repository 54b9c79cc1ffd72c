"""Narrow layers: what the checkpoint holds, and how the modeling files build them."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from export_cases import random_levels, write
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from evocompress.core.types import DROP, Level
from evocompress.export import read_record
from evocompress.models.loading import LoadedModel
from evocompress.space.costs import cost_model
from evocompress.testing.formats import (
    candidate_of,
    even_channels,
    even_heads,
    in_memory,
    reload,
    with_bias,
    with_zeros,
)
from evocompress.testing.probes import answer, assert_equal, random_batch
from evocompress.testing.tiny import tiny_loaded


def outputs(loaded: LoadedModel, model: PreTrainedModel) -> Tensor:
    return answer(loaded.family, model, random_batch(loaded.family, loaded.model))


def test_hf_is_the_candidate_to_the_last_bit(loaded: LoadedModel, tmp_path: Path) -> None:
    candidate = candidate_of(loaded, with_zeros(loaded, with_bias(loaded)))
    model = reload(write(loaded, candidate, tmp_path / "out"), loaded.family.task)
    assert type(model).__module__.startswith("evocompress.")
    assert_equal(outputs(loaded, model), in_memory(loaded, candidate))


def test_stock_is_the_candidate_to_the_last_bit(loaded: LoadedModel, tmp_path: Path) -> None:
    levels = even_channels(loaded)
    if loaded.family.model_type not in ("gpt2", "opt") and not loaded.family.attention.norm_after:
        levels |= even_heads(loaded) | {"1": DROP}
    candidate = candidate_of(loaded, with_zeros(loaded, levels))
    model = reload(write(loaded, candidate, tmp_path / "out"), loaded.family.task)
    assert type(model) is type(loaded.model)
    # The class of a mixture multiplies the matrices of all experts at once.
    rounding = 0 if loaded.family.mixture is None else 1e-5
    expected = in_memory(loaded, candidate)
    torch.testing.assert_close(outputs(loaded, model), expected, rtol=0, atol=rounding)


@pytest.mark.parametrize("seed", [0, *(pytest.param(n, marks=pytest.mark.long) for n in (1, 2))])
def test_costs_are_exactly_those_of_the_cost_model(
    loaded: LoadedModel, seed: int, tmp_path: Path
) -> None:
    candidate = candidate_of(loaded, random_levels(loaded, np.random.default_rng(seed)))
    out = write(loaded, candidate, tmp_path / "out", "hf")
    family, model = loaded.family, loaded.model
    costs = cost_model(family.units(model), family.architecture(model)).of([candidate])
    measured, again = read_record(out).measured, reload(out, family.task)
    assert measured["params"] == sum(weight.numel() for weight in again.parameters())
    assert measured == {name: costs[name].item() for name in measured}


def test_config_says_only_what_differs(llama: LoadedModel, tmp_path: Path) -> None:
    out = write(llama, candidate_of(llama, with_bias(llama)), tmp_path / "out")
    config = json.loads((out / "config.json").read_text())
    layers = config["per_layer_config"]
    assert {layer: sorted(entry.pop("edits")) for layer, entry in layers.items()} == {
        "0": ["attributes", "shapes"],
        "1": ["identities", "passes", "zeros"],
        "2": ["attributes", "shapes"],
        "3": ["identities", "zeros"],
    }
    assert layers == {
        "0": {"num_attention_heads": 2, "intermediate_size": 100},
        "1": {"skip": ["attention", "mlp"]},
        "2": {
            "num_attention_heads": 1,
            "num_key_value_heads": 1,
            "intermediate_size": 40,
            "bias": ["attention", "mlp"],
        },
        "3": {"skip": ["attention"]},
    }
    assert (config["num_attention_heads"], config["intermediate_size"]) == (4, 128)
    layers = AutoConfig.from_pretrained(out).per_layer_config
    assert [layer.intermediate_size for layer in layers] == [100, 128, 40, 128]


@pytest.mark.parametrize("family", ["llama", "phi3", "gpt2"])
def test_another_attention_kernel_reaches_every_layer(
    family: str, ids: Tensor, tmp_path: Path
) -> None:
    loaded = tiny_loaded(family, layers=4)
    out = write(loaded, candidate_of(loaded, with_bias(loaded)), tmp_path / "out")
    eager = AutoModelForCausalLM.from_pretrained(out, attn_implementation="eager")
    logits = eager(ids).logits
    # Without a mask, as this kernel gets it, an eager attention would see the future.
    eager.set_attn_implementation("sdpa")
    kernels = {m.config._attn_implementation for m in eager.modules() if hasattr(m, "config")}
    assert kernels == {"sdpa"}
    torch.testing.assert_close(eager(ids).logits, logits, rtol=0, atol=1e-4)


def test_a_loaded_model_can_be_copied_and_saved_again(loaded: LoadedModel, tmp_path: Path) -> None:
    candidate, task = candidate_of(loaded, with_bias(loaded)), loaded.family.task
    model = reload(write(loaded, candidate, tmp_path / "out"), task)
    copied = copy.deepcopy(model)
    copied.save_pretrained(tmp_path / "again")
    assert_equal(outputs(loaded, reload(tmp_path / "again", task)), outputs(loaded, model))


def test_weights_of_cut_heads_are_absent_from_the_files(llama: LoadedModel, tmp_path: Path) -> None:
    candidate = candidate_of(llama, {"0.attention": Level(kv_groups=1, group_heads=1)})
    tensors = load_file(write(llama, candidate, tmp_path / "out") / "model.safetensors")
    shapes = {k: tuple(v.shape) for k, v in tensors.items() if "layers.0.self_attn" in k}
    assert set(shapes.values()) == {(16, 64), (64, 16)}


def test_card_has_a_table_of_widths(llama: LoadedModel, tmp_path: Path) -> None:
    out = write(llama, candidate_of(llama, with_bias(llama)), tmp_path / "out")
    card = (out / "README.md").read_text()
    rows = ["| 0 | 2 | 2 | 100 |", "| 1 | – | – | – |", "| 2 | 1 | 1 | 40 |", "| 3 | – | – | 128 |"]
    assert "\n".join(rows) in card
