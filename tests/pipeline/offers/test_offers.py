"""What `evocompress models` tells of a model, against the model and against what formats say."""

from __future__ import annotations

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from evocompress.models.families import FAMILIES
from evocompress.models.loading import loaded
from evocompress.pipeline.offers import (
    ACTIONS,
    Offers,
    model_rows,
    offers,
    offers_of_type,
    type_rows,
)
from evocompress.pipeline.offers.types import type_names
from evocompress.testing.tiny import tiny_loaded


@pytest.mark.parametrize("name", ["llama", "bert", "mixtral", "resnet"])
def test_what_is_offered_is_what_the_units_are(name: str) -> None:
    model = tiny_loaded(name)
    found, units = offers(model), model.family.units(model.model)
    blocks = [{unit.kind: unit for unit in units if unit.block == i} for i in range(found.blocks)]
    assert found.layout == ("own" if name in FAMILIES else "derived") and not found.reasons
    assert found.actions.keys() == ACTIONS.keys()
    for action in ("attention", "mlp", "block"):
        there = [one for one in blocks if action in one and one[action].droppable]
        assert found.actions[action] == len(there)
    for action, kind in (("heads", "attention"), ("channels", "mlp")):
        there = [one for one in blocks if kind in one and one[kind].narrowable]
        assert found.actions[action] == len(there)
    assert found.actions["experts"] == (found.blocks if name == "mixtral" else 0)
    assert found.actions["zeros"] == found.blocks


def test_formats_tell_what_they_hold_and_why_not_the_rest() -> None:
    found = offers(tiny_loaded("llama")).formats
    assert found["hf"].changes == ("zeros", "block", "part", "width", "even")
    assert not found["hf"].reason
    assert found["stock"].changes == ("zeros", "block", "even")
    assert found["stock"].reason == "cannot leave out model.layers.1.attention alone"
    mixed = offers(tiny_loaded("mixtral")).formats["deci"]
    assert not mixed.changes and "cannot hold mixtral models" in mixed.reason


TINY = {
    "num_hidden_layers": 3,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "pad_token_id": 0,
}


def of_type(name: str, **settings: object) -> Offers:
    config = AutoConfig.for_model(name, **TINY | settings)
    return offers(loaded(AutoModelForCausalLM.from_config(config), None, f"tiny:{name}"))


def test_what_is_offered_of_a_derived_type() -> None:
    found = of_type("granite")
    assert (found.layout, found.blocks) == ("derived", 3)
    assert found.actions == dict.fromkeys(ACTIONS, 3) | {"experts": 0}


def test_blocks_of_several_kinds_are_counted() -> None:
    found = of_type("lfm2", layer_types=["conv", "full_attention", "conv"])
    assert found.actions == dict.fromkeys(ACTIONS, 3) | {"experts": 0, "heads": 1}
    heading, row = type_rows([found])
    cells = dict(zip(heading, row, strict=True))
    assert (cells["heads"], cells["attention"], cells["experts"]) == ("1/3", "yes", "-")
    where = {row[0]: row[1:] for row in model_rows(found)}
    assert where["cut heads"][0] == "in 1 of 3 blocks"
    assert where["cut heads"][1].startswith("heads cannot be cut: conv keeps a state of its own")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("t5", "it is an encoder with a decoder, whose blocks read the encoder's states"),
        ("blip", "it reads pixel_values beside input_ids"),
        ("qwen2_5_omni", "load one of these as a checkpoint of its own (qwen2_5_omni_thinker)"),
    ],
)
def test_a_type_with_which_nothing_can_be_done_has_its_reason(name: str, reason: str) -> None:
    found = offers_of_type(name)
    assert found.layout == "none" and not any(found.actions.values())
    assert len(found.reasons) == 1 and reason in found.reasons[0]
    assert type_rows([found])[1][2:-1] == ("-",) * (len(ACTIONS) + 1)


@pytest.mark.parametrize("name", ["deit", "gpt2"])
def test_a_type_of_several_classes_or_with_other_keys_is_shown_whole(name: str) -> None:
    found = offers_of_type(name)
    assert found.layout == "derived"
    assert found.actions["heads"] == found.blocks == 12


def test_types_are_those_of_language_models_and_of_families() -> None:
    names = type_names()
    assert {"llama", "olmo2", "gpt_oss", "gemma3", "voxtral", "bert", "vit", "resnet"} <= set(names)
    assert len(names) > 150 and names == sorted(set(names))
