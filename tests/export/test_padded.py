"""The format ``padded``, beyond the contract: what is filled up, and to which width."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from export_cases import write
from transformers import AutoConfig, AutoModelForCausalLM

from evocompress.core.types import DROP, Candidate, Level
from evocompress.export import FORMATS, choose_format, renumbering
from evocompress.models.loading import LoadedModel
from evocompress.models.loading import loaded as make_loaded
from evocompress.testing.formats import assert_same, candidate_of, even_channels, reload, uneven
from evocompress.testing.tiny import tiny_loaded, tiny_tokenizer


def six_heads(family: str) -> LoadedModel:
    """Two blocks of hidden size 96 with six heads of 16, each with its own keys."""
    config = AutoConfig.for_model(
        family,
        vocab_size=256,
        hidden_size=96,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=6,
        max_position_embeddings=64,
        pad_token_id=None,
        head_dim=16,
    )
    torch.manual_seed(0)
    return make_loaded(AutoModelForCausalLM.from_config(config), tiny_tokenizer(), family)


def with_heads(loaded: LoadedModel, count: int) -> Candidate:
    level = Level(kv_groups=count, group_heads=1)
    return candidate_of(loaded, {f"{i}.attention": level for i in range(2)})


def test_it_is_of_the_models_own_class_and_honest(loaded: LoadedModel, tmp_path: Path) -> None:
    levels = even_channels(loaded) if loaded.family.attention.norm_after else uneven(loaded)
    out = write(loaded, candidate_of(loaded, levels), tmp_path / "out", "padded")
    assert type(reload(out, loaded.family.task)) is type(loaded.model)
    assert "neither smaller nor faster" in (out / "README.md").read_text()


def test_what_could_not_be_tried_is_said(
    llama: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    candidate = candidate_of(llama, {"1.attention": DROP})
    assert FORMATS["padded"].obstacle(llama, candidate) is None

    def fails(*_: object, **__: object) -> None:
        raise ValueError("no such config")

    monkeypatch.setattr(renumbering, "random_model", fails)
    fresh = tiny_loaded("llama")
    assert FORMATS["padded"].obstacle(fresh, candidate) == (
        "cannot leave out model.layers.1.attention, because no tiny llama model could be tried: "
        "ValueError: no such config"
    )


def test_layers_are_as_wide_as_the_widest(llama: LoadedModel, tmp_path: Path) -> None:
    levels = {f"{i}.attention": Level(kv_groups=1, group_heads=2) for i in range(3)}
    levels |= {f"{i}.mlp": Level(channels=8 * (i + 1)) for i in range(4)} | {"3.attention": DROP}
    model = reload(write(llama, candidate_of(llama, levels), tmp_path / "out", "padded"))
    config = model.config
    assert (config.num_attention_heads, config.num_key_value_heads) == (2, 1)
    assert (config.intermediate_size, config.num_hidden_layers) == (32, 4)
    assert model.model.layers[0].mlp.down_proj.weight[:, 8:].count_nonzero() == 0
    assert model.model.layers[3].self_attn.o_proj.weight.count_nonzero() == 0


def test_biases_come_with_the_setting_of_the_class(llama: LoadedModel, tmp_path: Path) -> None:
    attention = Level(kv_groups=1, group_heads=1, bias=True)
    levels = {"0.attention": attention, "2.mlp": Level(channels=9, bias=True), "3": DROP}
    candidate = candidate_of(llama, levels)
    model = reload(write(llama, candidate, tmp_path / "out", "padded"))
    assert model.config.attention_bias and model.config.mlp_bias
    assert_same(model, llama, candidate)


def test_it_can_do_without_any_attention(llama: LoadedModel, tmp_path: Path) -> None:
    candidate = candidate_of(llama, {f"{i}.attention": DROP for i in range(4)})
    assert_same(reload(write(llama, candidate, tmp_path / "out", "padded")), llama, candidate)


@pytest.mark.parametrize(("family", "count"), [("llama", 6), ("qwen3", 5)])
def test_heads_are_filled_up_to_the_next_number_that_the_class_takes(
    family: str, count: int, tmp_path: Path
) -> None:
    loaded = six_heads(family)
    candidate = with_heads(loaded, 5)
    model = reload(write(loaded, candidate, tmp_path / "out", "padded"))
    assert model.config.num_attention_heads == count
    assert_same(model, loaded, candidate)


def test_heads_of_gpt2_are_filled_up_to_all_of_them(tmp_path: Path) -> None:
    loaded = tiny_loaded("gpt2", layers=2)
    candidate = with_heads(loaded, 2)
    model = reload(write(loaded, candidate, tmp_path / "out", "padded"))
    assert model.config.num_attention_heads == 4
    assert_same(model, loaded, candidate)


def test_five_heads_of_llama_need_another_format() -> None:
    llama = six_heads("llama")
    assert choose_format(llama, with_heads(llama, 3)) == "stock"
    assert choose_format(llama, with_heads(llama, 5)) == "hf"
