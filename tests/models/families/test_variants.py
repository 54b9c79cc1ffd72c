from __future__ import annotations

import pytest
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from evocompress.core.errors import ModelError
from evocompress.models.families import family_named, family_of
from evocompress.models.families.derivation.family import Derived
from evocompress.models.families.shapes import attention_windows
from evocompress.models.tasks import CAUSAL
from evocompress.testing.tiny import NAMES, declared, tiny_model


def variant(model_type: str, **settings: object) -> PreTrainedModel:
    config = tiny_model(model_type, layers=1).config
    for name, value in settings.items():
        setattr(config, name, value)
    return AutoModelForCausalLM.from_config(config)


def test_units_of_a_llama_block() -> None:
    model = tiny_model("llama", layers=2)
    units = family_of(model).units(model)[10:]
    block = "model.layers.1"
    assert [(unit.name, unit.role, unit.parent, unit.shape) for unit in units] == [
        (block, "block", None, None),
        (f"{block}.attention", "attention", block, None),
        (f"{block}.self_attn.q_proj", "q_proj", f"{block}.attention", (64, 64)),
        (f"{block}.self_attn.k_proj", "k_proj", f"{block}.attention", (32, 64)),
        (f"{block}.self_attn.v_proj", "v_proj", f"{block}.attention", (32, 64)),
        (f"{block}.self_attn.o_proj", "o_proj", f"{block}.attention", (64, 64)),
        (f"{block}.mlp", "mlp", block, None),
        (f"{block}.mlp.gate_proj", "gate_proj", f"{block}.mlp", (128, 64)),
        (f"{block}.mlp.up_proj", "up_proj", f"{block}.mlp", (128, 64)),
        (f"{block}.mlp.down_proj", "down_proj", f"{block}.mlp", (64, 128)),
    ]


def test_matrices_that_end_alike_have_their_path_as_role() -> None:
    model = tiny_model("gpt2", layers=1)
    units = family_of(model).units(model)
    roles = [unit.role for unit in units if unit.kind == "matrix"]
    assert roles == ["c_attn", "attn.c_proj", "c_fc", "mlp.c_proj"]


@pytest.mark.parametrize(
    ("settings", "norm", "limit"),
    [
        (
            {"do_layer_norm_before": False, "word_embed_proj_dim": 32},
            "",
            "blocks cannot be dropped",
        ),
        ({"_remove_final_layer_norm": True}, "", ""),
        ({"word_embed_proj_dim": 32}, "model.decoder.final_layer_norm", ""),
    ],
)
def test_variants_of_opt_are_derived_as_they_are(
    settings: dict[str, object], norm: str, limit: str
) -> None:
    """The first one is OPT-350m: norms behind the sums, and no last one."""
    family = family_of(variant("opt", **settings))
    assert isinstance(family, Derived)
    assert family.norm_path == norm and "".join(family.limits).startswith(limit)
    assert bool(family.limits) == bool(limit)


@pytest.mark.parametrize(
    ("model_type", "architecture", "classes"),
    [
        ("bert", "BertForMaskedLM", "BertLMHeadModel or BertModel or BertForSequenceClass"),
        ("vit", "ViTForMaskedImageModeling", "ViTModel or ViTForImageClassification "),
        ("llama", "LlamaForTokenClassification", "LlamaForCausalLM"),
        ("llama", "LlamaForRewardModel", "LlamaForCausalLM"),
        ("gpt2", "GPT2DoubleHeadsModel", "GPT2LMHeadModel"),
        ("gemma3_text", "Gemma3ForConditionalGeneration", "Gemma3ForCausalLM"),
        ("mixtral", "MixtralForQuestionAnswering", "MixtralForCausalLM"),
    ],
)
def test_other_classes_of_a_type_are_refused(
    model_type: str, architecture: str, classes: str
) -> None:
    message = f"class {architecture} are not supported: .* only those of class {classes}"
    with pytest.raises(ModelError, match=message):
        family_named(model_type, [architecture])


def test_a_config_without_a_class_is_a_decoders() -> None:
    for name in ("llama", "gpt2", "mixtral"):
        assert family_named(name).task is CAUSAL
    for name, first in (("bert", "BertLMHeadModel"), ("vit", "ViTForImageClassification")):
        with pytest.raises(ModelError, match=f"names no class in architectures.* add {first}"):
            family_named(name)


def test_every_family_serves_the_class_of_its_models() -> None:
    for family in map(declared, NAMES):
        (name,) = family.task.class_names(family.model_type)
        found = family_named(family.model_type, [name])
        # Whether it is a decoder is told by running it.
        assert (found.model_type, found.task.name) == (family.model_type, family.task.name)
    for classes in (["LLaMAForCausalLM"], ["LlamaForCausalLM"] * 2):
        assert family_named("llama", classes).task is CAUSAL


def test_several_classes_are_refused() -> None:
    with pytest.raises(ModelError, match=r"several classes \(LlamaForCausalLM, LlamaModel\)"):
        family_named("llama", ["LlamaForCausalLM", "LlamaModel"])


@pytest.mark.parametrize(
    ("model_type", "setting"),
    [("llama", {"is_causal": False}), ("gemma3_text", {"use_bidirectional_attention": True})],
)
def test_a_language_model_that_sees_what_comes_is_refused(
    model_type: str, setting: dict[str, bool]
) -> None:
    with pytest.raises(ModelError, match="attention in both directions"):
        family_of(variant(model_type, **setting))


def test_an_unknown_type_is_refused_by_name() -> None:
    with pytest.raises(ModelError, match="text_model' are not supported; supported: resnet"):
        family_named("siglip_text_model", ["SiglipTextModel"])
        family_named("siglip_text_model", ["SiglipTextModel"])


def test_another_class_of_a_type_to_be_derived_is_refused() -> None:
    with pytest.raises(ModelError, match=r"class OlmoForTagging .* only those of class OlmoForC"):
        family_named("olmo", ["OlmoForTagging"])


@pytest.mark.parametrize(
    ("model_type", "settings", "expected"),
    [
        ("llama", {}, (None, None, None)),
        ("mistral", {"sliding_window": 5}, (5, 5, 5)),
        ("mistral", {"sliding_window": None}, (None, None, None)),
        ("qwen2", {"sliding_window": 5, "use_sliding_window": False}, (None, None, None)),
        ("phi3", {"sliding_window": 5}, (5, 5, 5)),
        ("gemma2", {"sliding_window": 5}, (5, None, 5)),
        ("gemma3_text", {"sliding_window": 5, "sliding_window_pattern": 3}, (5, 5, None)),
    ],
)
def test_windows_follow_the_config(
    model_type: str, settings: dict[str, object], expected: tuple[int | None, ...]
) -> None:
    config = AutoConfig.for_model(model_type, num_hidden_layers=3, **settings)
    assert attention_windows(config, 3) == expected
