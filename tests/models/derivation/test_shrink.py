"""Tiny models of a class: what is small, and what stays as it is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PhiForCausalLM

from evocompress.models.families.derivation.defaults import default_config
from evocompress.models.families.derivation.from_config import language_class
from evocompress.models.families.derivation.shrink import HEADS, KV_HEADS, random_model, shrunk
from evocompress.models.families.uneven import head_shape


def config_of(name: str, **settings: Any) -> Any:
    """The default config of a type, with some settings."""
    return CONFIG_MAPPING[name](**settings)


def parameters(config: Any) -> int:
    """How many parameters the language model of a config has, without making any."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    "name",
    ["gemma", "gptj", "codegen", "deepseek_v3", "qwen3_next", "nemotron_h", "bamba", "ctrl"]
    + ["rwkv", "xlstm"],
)
def test_models_are_tiny(name: str) -> None:
    """No width of the real config, of heads, channels, experts or states, is left."""
    assert parameters(shrunk(config_of(name), 2)) < 1_500_000


def test_sizes_differ() -> None:
    """Numbers of a tiny model tell what they count."""
    small: Any = shrunk(config_of("cwm"), 2)
    sizes = [small.hidden_size, small.intermediate_size, small.head_dim, small.vocab_size]
    sizes += [small.num_attention_heads, small.num_key_value_heads]
    assert len(set(sizes)) == len(sizes)


def test_parts_of_a_head_keep_their_proportions() -> None:
    """Latent attention: a query has a part that is rotated and one that is not."""
    small: Any = shrunk(config_of("deepseek_v3"), 2)
    assert small.qk_head_dim == small.qk_nope_head_dim + small.qk_rope_head_dim
    assert small.qk_nope_head_dim == 2 * small.qk_rope_head_dim


def test_heads_can_keep_their_width() -> None:
    """Where numbers of rotary embeddings belong to dimensions of a head."""
    small: Any = shrunk(config_of("gemma"), 2, narrow_heads=False)
    assert small.head_dim == 256 and small.num_attention_heads == HEADS


def test_the_config_itself_stays() -> None:
    """A tiny copy is another object."""
    config = config_of("qwen3_next")
    before = config.to_dict()
    shrunk(config, 4)
    assert config.to_dict() == before


def test_every_parameter_matters() -> None:
    """Norms and biases of random models are neither one nor zero."""
    model = random_model(PhiForCausalLM, shrunk(config_of("phi"), 2))
    for name, parameter in model.named_parameters():
        assert parameter.dtype == torch.float64
        assert parameter.unique().numel() > 1, name


def test_encoders_beside_the_language_model_have_one_layer() -> None:
    """Nothing of them is tried, and what is built takes time."""
    small: Any = shrunk(config_of("phi4_multimodal"), 2)
    assert small.vision_config.num_hidden_layers == small.audio_config.num_blocks == 1
    assert small.num_hidden_layers == 2


def test_all_parts_of_a_model_become_small() -> None:
    config = config_of("gemma3", mm_tokens_per_image=4)
    small: Any = shrunk(config, 2)
    vision, text = small.vision_config, small.text_config
    assert (vision.num_hidden_layers, vision.hidden_size, vision.image_size) == (1, 32, 224)
    assert text.num_hidden_layers == 2 and text.hidden_size < 200
    assert small.mm_tokens_per_image == 4  # how images are read is not about sizes
    special = [small.image_token_index, small.boi_token_index, small.eoi_token_index]
    assert len({*special}) == 3 and all(300 <= token < text.vocab_size for token in special)
    assert config.to_dict() == config_of("gemma3", mm_tokens_per_image=4).to_dict()


def test_parts_stay_as_wide_as_the_language_model_that_they_hand_on_to() -> None:
    small: Any = shrunk(config_of("idefics2"), 2)
    assert small.perceiver_config.hidden_size == small.text_config.hidden_size


def test_what_a_config_computes_of_its_parts_is_small() -> None:
    small: Any = shrunk(config_of("minimax_m3_vl"), 2)
    merged = small.text_config.hidden_size * small.vision_config.spatial_merge_size**2
    assert small.merged_hidden_size == merged < 1000


def test_height_and_width_are_not_taken_for_two_layers() -> None:
    vision = {"num_hidden_layers": 2, "image_size": [16, 16], "patch_size": [4, 4]}
    small: Any = shrunk(config_of("internvl", vision_config=vision), 2)
    assert [*small.vision_config.image_size] == [16, 16]


def test_rotary_pairs_are_shared_out_anew() -> None:
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}
    small: Any = shrunk(config_of("qwen2_5_vl", text_config={"rope_parameters": rope}), 2)
    text = small.text_config
    pairs = text.hidden_size // text.num_attention_heads // 2
    assert sum(text.rope_parameters["mrope_section"]) == pairs
    assert rope["mrope_section"] == [16, 24, 24]


def test_rotary_pairs_keep_their_order_and_those_of_a_type_of_layer_are_shared_out() -> None:
    """Height, width and time; equal numbers stay equal, and an odd half of a head has a pair."""
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [22, 22, 20]}
    text = {"rope_parameters": rope}
    small: Any = shrunk(config_of("ernie4_5_vl_moe", text_config=text), 2).text_config
    assert small.rope_parameters["mrope_section"] == [2, 2, 4]
    by_type: Any = shrunk(default_config("cohere_compass_text"), 4).rope_parameters
    assert {sum(own["mrope_section"]) for own in by_type.values()} == {8}


def test_what_a_config_keeps_in_configs_of_their_own_is_small() -> None:
    small: Any = shrunk(default_config("dbrx"), 2)
    assert small.attn_config.kv_n_heads == small.num_key_value_heads == KV_HEADS
    assert small.ffn_config.hidden_size == small.d_model < 200


def test_buffers_that_were_computed_stay() -> None:
    """A mask of what comes later, stored as numbers, is one in a random model as well."""
    config = shrunk(config_of("minimax"), 2)
    model: Any = random_model(language_class(config), config)
    decay = model.model.layers[1].self_attn.diagonal_decay
    assert not decay.triu(1).any() and decay.tril().ne(0).sum() > 100


def test_heads_that_do_not_divide_the_hidden_size_are_of_an_even_width() -> None:
    config = config_of("qwen3_omni_moe_text", hidden_size=2048, num_attention_heads=28)
    small = shrunk(config, 2, heads=6, narrow_heads=False)
    assert small.hidden_size // small.num_attention_heads == 72
    assert small.hidden_size % small.num_attention_heads == 0


def test_listed_heads_keep_about_their_proportions() -> None:
    config = default_config("laguna", num_attention_heads_per_layer=[48, 64] * 20)

    small = shrunk(config, 2)

    assert small.num_attention_heads_per_layer == [6, 8]
    assert [head_shape(small, block) for block in range(2)] == [(6, 2, 16), (8, 2, 16)]
