"""Checkpoints for other programs: what they hold."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from export_cases import random_levels, write
from gguf import GGUFReader

from evocompress.core.errors import ExportError
from evocompress.core.types import DROP, Level
from evocompress.export import materialize, read_record
from evocompress.export.deci import shared_heads
from evocompress.export.gguf_tokenizer import KNOWN, tokenizer_obstacle
from evocompress.export.healed import checkpoint_state
from evocompress.export.layout import layout
from evocompress.export.record import write_record
from evocompress.healing.student import zero_masks
from evocompress.models.loading import LoadedModel
from evocompress.space.costs import cost_model
from evocompress.testing.byte_tokenizers import trained_tokenizer
from evocompress.testing.formats import (
    assert_written,
    candidate_of,
    heads,
    in_memory,
    reload,
    uneven,
    with_zeros,
)
from evocompress.testing.gguf_reference import GgufReference
from evocompress.testing.plain_library import PlainLibrary
from evocompress.testing.tiny import tiny_loaded, windowless

WITHOUT_MLPS = {"0.mlp": DROP, "1.attention": DROP, "2.attention": DROP, "3.mlp": DROP}


@pytest.mark.parametrize("format", ["folded", "deci", "gguf"])
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2"])
def test_attentions_without_mlps(format: str, family: str, tmp_path: Path) -> None:
    loaded = windowless(family)
    candidate = candidate_of(loaded, WITHOUT_MLPS | {"2.mlp": Level(channels=40)})
    out = write(loaded, candidate, tmp_path / "out", format)
    assert_written(out, loaded, candidate)


def settings(out: Path) -> dict:
    return json.loads((out / "config.json").read_text())


# ---- folded


def test_every_folded_layer_has_an_attention(llama: LoadedModel, tmp_path: Path) -> None:
    levels = {"0.attention": DROP, "1.mlp": DROP, "2.attention": DROP, "3.attention": DROP}
    out = write(llama, candidate_of(llama, levels), tmp_path / "out", "folded")
    config = settings(out)
    assert config["num_hidden_layers"] == 1
    entry = {"identities": ["input_layernorm"], "zeros": {"self_attn": 2}}
    layers = config["per_layer_config"]
    assert layers.keys() == {"0"} and layers["0"]["skip"] == ["mlp"]
    assert layers["0"]["before"] == [entry] and layers["0"]["after"] == [entry] * 2
    assert "is no layer of its own" in (out / "README.md").read_text()


@pytest.mark.parametrize("seed", range(2))
def test_folded_costs_are_those_of_the_cost_model(
    llama: LoadedModel, seed: int, tmp_path: Path
) -> None:
    candidate = candidate_of(llama, random_levels(llama, np.random.default_rng(seed)))
    measured = read_record(write(llama, candidate, tmp_path / "out", "folded")).measured
    costs = cost_model(llama.family.units(llama.model), llama.family.architecture(llama.model))
    assert measured == {name: costs.of([candidate])[name].item() for name in measured}


def test_healing_keeps_the_zeros_of_folded_mlps(llama: LoadedModel, tmp_path: Path) -> None:
    candidate = candidate_of(llama, with_zeros(llama, uneven(llama)))
    model = reload(write(llama, candidate, tmp_path / "out", "folded"))
    masks = zero_masks(model, llama.family)
    folded = {name for name in masks if ".after." in name}
    assert {name.rsplit(".", 2)[1] for name in folded} == {"gate_proj", "up_proj", "down_proj"}


# ---- deci


def test_deci_says_what_each_block_is(llama: LoadedModel, tmp_path: Path) -> None:
    out = write(llama, candidate_of(llama, uneven(llama)), tmp_path / "out", "deci")
    config = settings(out)
    assert (config["model_type"], config["architectures"]) == (
        "nemotron-nas",
        ["DeciLMForCausalLM"],
    )
    assert (config["num_attention_heads"], config["head_dim"]) == (2, 16)
    kept = {"no_op": False, "replace_with_linear": False}
    assert config["block_configs"] == [
        {
            "attention": kept | {"n_heads_in_group": 1},
            "ffn": {"no_op": False, "intermediate_size": 100},
        },
        {
            "attention": kept | {"n_heads_in_group": 2},
            "ffn": {"no_op": False, "intermediate_size": 40},
        },
        {
            "attention": {"no_op": True, "replace_with_linear": False, "n_heads_in_group": None},
            "ffn": {"no_op": False, "intermediate_size": 128},
        },
    ]
    assert "1 query heads and 0 key-value heads of zeros" in (out / "README.md").read_text()
    assert (out / "modeling_deci.py").exists() and (out / "layers.py").exists()


@pytest.mark.parametrize(
    ("kept", "query", "keys"),
    [
        ([(3, 3), (1, 3)], 9, [3, 1]),
        ([(3, 3), (2, 3)], 9, [3, 3]),  # nine heads cannot be shared out to two groups
        ([(2, 3), (3, 1)], 6, [2, 3]),
        ([(2, 2), (1, 1)], 4, [2, 1]),
    ],
)
def test_all_layers_get_the_number_of_heads_that_costs_least(
    kept: list[tuple[int, int]], query: int, keys: list[int]
) -> None:
    left = layout(windowless("llama", layers=2, hidden=64), candidate_of(windowless("llama"), {}))
    dense = replace(left.dense, heads=9, kv_heads=3)
    blocks = [
        replace(block, widths=replace(dense, heads=groups * within, kv_heads=groups))
        for block, (groups, within) in zip(left.blocks, kept, strict=True)
    ]
    found = shared_heads(replace(left, dense=dense, blocks=tuple(blocks)))
    assert (found.query, list(found.keys.values())) == (query, keys)


def test_foreign_blocks_of_deci_are_refused() -> None:
    from evocompress.models.modeling.modeling_deci import DeciLMConfig

    entry = {"attention": {"no_op": False, "n_heads_in_group": 1}, "ffn": {"ffn_mult": 1.0}}
    with pytest.raises(ValueError, match="ffn_mult"):
        DeciLMConfig(block_configs=[entry])


# ---- gguf


@pytest.mark.parametrize(
    ("weights", "kind", "error"),
    [("float32", 0, 1e-4), ("float16", 1, 0.1), ("bfloat16", 30, 0.5), ("q8_0", 8, 0.5)],
)
def test_gguf_weights(weights: str, kind: int, error: float, tmp_path: Path) -> None:
    loaded = windowless("llama", hidden=128)
    candidate = candidate_of(loaded, {"0.mlp": Level(channels=96), "1.mlp": DROP})
    out = tmp_path / "out"
    materialize(loaded, PlainLibrary(loaded), candidate, out, format="gguf", weights=weights)
    kinds = {int(t.tensor_type) for t in GGUFReader(out / "model.gguf").tensors if len(t.shape) > 1}
    assert kinds == {kind}
    ids = torch.arange(1, 9)
    logits = in_memory(loaded, candidate, ids[None])
    difference = abs(GgufReference(out / "model.gguf").logits(ids.numpy()) - logits[0].numpy())
    assert difference.max() < error


def test_gguf_counts_what_is_stored(tmp_path: Path) -> None:
    loaded = windowless("llama")
    candidate = candidate_of(loaded, {"1.mlp": DROP, "2.attention": DROP, "3": DROP})
    measured = read_record(write(loaded, candidate, tmp_path / "out", "gguf")).measured
    costs = cost_model(loaded.family.units(loaded.model), loaded.family.architecture(loaded.model))
    params = costs.of([candidate])["params"].item()
    added = 64 + 3 * 64 * 32  # the norm and the matrices of an MLP of zeros
    assert measured["params"] == params + added
    assert measured["nonzeros"] == params + 64
    assert measured["weight_bytes"] == 4 * measured["params"]


@pytest.mark.parametrize("rope", ["llama3", "linear"])
def test_gguf_with_scaled_rotary_embeddings(rope: str, tmp_path: Path) -> None:
    loaded = windowless("llama", layers=2)
    config = loaded.model.config
    config.rope_parameters = {
        "rope_type": rope,
        "rope_theta": 5000.0,
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    }
    loaded = replace(loaded, model=_rebuilt(loaded))
    candidate = candidate_of(loaded, {"1.mlp": Level(channels=32)})
    assert_written(write(loaded, candidate, tmp_path / "out", "gguf"), loaded, candidate)


def _rebuilt(loaded: LoadedModel) -> torch.nn.Module:
    """The model with what follows from its changed config."""
    model = type(loaded.model)(loaded.model.config)
    model.load_state_dict(loaded.model.state_dict())
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize("kind", KNOWN)
def test_known_tokenizers(kind: str, tmp_path: Path) -> None:
    loaded = windowless("llama", layers=1, vocabulary=640)
    loaded = replace(loaded, tokenizer=trained_tokenizer(kind))
    out = write(loaded, candidate_of(loaded, {}), tmp_path / "out", "gguf")
    metadata = GgufReference(out / "model.gguf").metadata
    tokens = loaded.tokenizer.convert_ids_to_tokens(range(len(loaded.tokenizer)))
    assert metadata["tokenizer.ggml.pre"] == kind
    assert metadata["tokenizer.ggml.tokens"][: len(tokens)] == tokens
    assert metadata["tokenizer.ggml.tokens"][-1] == "[PAD639]"
    assert metadata["tokenizer.ggml.eos_token_id"] == loaded.tokenizer.eos_token_id
    assert metadata["tokenizer.ggml.add_bos_token"] is False
    # The model read from this file again has its tokenizer copied.
    again = replace(loaded, source=str(out / "model.gguf"))
    copied = write(again, candidate_of(again, {}), tmp_path / "again", "gguf")
    both = [GgufReference(folder / "model.gguf").metadata for folder in (out, copied)]
    first, second = ({k: v for k, v in m.items() if k.startswith("tokenizer.")} for m in both)
    assert first == second


def test_an_unknown_tokenizer_is_named() -> None:
    from tokenizers import pre_tokenizers

    loaded = windowless("llama", layers=1)
    tokenizer = trained_tokenizer("gpt-2")
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    text = tokenizer_obstacle(replace(loaded, tokenizer=tokenizer))
    assert text and "cannot hold the tokenizer of this llama model" in text


# ---- healed checkpoints


@pytest.mark.parametrize("written", ["hf", "folded"])
@pytest.mark.parametrize("wanted", ["hf", "folded", "deci", "gguf", "padded"])
def test_a_healed_checkpoint_is_written_in_another_format(
    llama: LoadedModel, written: str, wanted: str, tmp_path: Path
) -> None:
    candidate = candidate_of(llama, {"1.attention": DROP, "2.attention": heads(llama)[0]})
    healed = write(llama, candidate, tmp_path / "healed", written)
    model = reload(healed)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.01)
    model.save_pretrained(healed)
    write_record(healed, read_record(healed))
    ids = torch.arange(1, 17)[None]
    out = materialize(llama, None, candidate, tmp_path / "out", format=wanted, healed=healed)
    if wanted == "gguf":
        logits = torch.from_numpy(GgufReference(out / "model.gguf").logits(ids[0].numpy()))[None]
    else:
        logits = reload(out)(ids).logits
    torch.testing.assert_close(logits.float(), model(ids).logits, rtol=0, atol=1e-4)


def test_a_checkpoint_with_added_zeros_or_of_another_model_is_no_source(
    llama: LoadedModel, tmp_path: Path
) -> None:
    candidate = candidate_of(llama, {"1.attention": DROP})
    padded = write(llama, candidate, tmp_path / "padded", "padded")
    with pytest.raises(ExportError, match="is of format 'padded', which adds zeros"):
        materialize(llama, None, candidate, tmp_path / "out", healed=padded)
    other = tiny_loaded("llama", layers=4, seed=1)
    with pytest.raises(ExportError, match="made from another model"):
        materialize(other, None, candidate, tmp_path / "out", healed=padded)


def test_a_checkpoint_of_another_candidate_is_no_source(llama: LoadedModel, tmp_path: Path) -> None:
    ours, other = (candidate_of(llama, {f"{index}.attention": DROP}) for index in (1, 2))
    healed = write(llama, other, tmp_path / "healed", "hf")
    assert checkpoint_state(healed, llama, other)
    with pytest.raises(ExportError, match=f"of candidate {other.id}, not of {ours.id}"):
        checkpoint_state(healed, llama, ours)
    with pytest.raises(ExportError, match=f"of candidate {other.id}, not of {ours.id}"):
        materialize(llama, None, ours, tmp_path / "out", healed=healed)
    assert not (tmp_path / "out").exists()
