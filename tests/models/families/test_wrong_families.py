"""The contract suites fail for families that are declared wrongly."""

from __future__ import annotations

from dataclasses import replace

import pytest
from transformers import AutoConfig

from evocompress.core.config import WidthSpace
from evocompress.core.errors import ConfigError
from evocompress.export.configs import cut_config
from evocompress.export.layout import Block
from evocompress.models.families import FAMILIES
from evocompress.models.families.base import Family
from evocompress.models.families.branches import llama_attention, llama_mlp
from evocompress.space.levels import width_levels
from evocompress.testing import tiny
from evocompress.testing.families import FamilyContract
from evocompress.testing.narrowing import NarrowingContract
from evocompress.testing.plain_library import PlainLibrary
from evocompress.testing.tiny import tiny_loaded, tiny_model


class Granite(Family):
    """Declared as if its residual multiplier were not there."""

    model_type = "granite"


class SmolLM3(Family):
    model_type = "smollm3"


class Olmo2(Family):
    """Declared as if its norms of queries and keys were each head's own."""

    model_type = "olmo2"
    attention = llama_attention(identity_modules=("post_attention_layernorm",))
    mlp = llama_mlp(identity_modules=("post_feedforward_layernorm",))


class FixedOlmo2(Olmo2):
    """Declared rightly."""

    attention = replace(Olmo2.attention, narrowable=False)


GROUPED = {"num_key_value_heads": 2}


def register(monkeypatch, family, **settings):
    monkeypatch.setitem(FAMILIES, family.model_type, family)
    monkeypatch.setitem(tiny._SETTINGS, family.model_type, GROUPED | settings)
    return family.model_type


@pytest.mark.parametrize("settings", [{}, {"residual_multiplier": 0.5}])
def test_a_residual_multiplier_is_found_whatever_its_value(monkeypatch, settings):
    name = register(monkeypatch, Granite(), **settings)
    with pytest.raises(AssertionError, match="not close"):
        FamilyContract().test_a_block_adds_what_its_sublayers_yield(Granite(), tiny_model(name))


def test_scaled_outputs_are_found(monkeypatch):
    name = register(monkeypatch, Granite(), logits_scaling=8.0)
    with pytest.raises(AssertionError, match="not equal"):
        FamilyContract().test_body_and_head_make_the_outputs(Granite(), tiny_model(name))


def test_settings_of_layers_must_differ(monkeypatch):
    check = FamilyContract().test_settings_of_layers_tell_them_apart
    name = register(monkeypatch, SmolLM3())
    with pytest.raises(AssertionError, match="no_rope_layers"):
        check(tiny_model(name))
    check(tiny_model(register(monkeypatch, SmolLM3(), no_rope_layers=[1, 0, 1])))


def test_settings_of_layers_are_cut_whatever_they_are_called():
    config = AutoConfig.for_model("smollm3", num_hidden_layers=3, no_rope_layers=[1, 0, 1])
    config.some_scales, config.eos_token_id = (0.1, 0.2, 0.3), [1, 2, 3]
    kept = [Block(index, (), None, None) for index in (0, 1)]
    cut = cut_config(config, kept)
    assert (cut.num_hidden_layers, cut.no_rope_layers) == (2, [1, 0])
    assert cut.some_scales == (0.1, 0.2)
    assert cut.eos_token_id == [1, 2, 3]
    assert config.no_rope_layers == [1, 0, 1]


@pytest.mark.parametrize(("family", "fits"), [(Olmo2(), False), (FixedOlmo2(), True)])
def test_norms_of_all_heads_need_an_attention_that_is_not_narrowable(monkeypatch, family, fits):
    loaded = tiny_loaded(register(monkeypatch, family))
    suite, library = NarrowingContract(), PlainLibrary(loaded)
    if not fits:
        with pytest.raises(RuntimeError, match="size of tensor"):
            suite.test_a_narrow_sublayer_is_the_silenced_one(
                loaded, library, "attention", bias=False
            )
        return
    suite.test_a_narrow_sublayer_is_the_silenced_one(loaded, library, "mlp", bias=False)
    suite.test_both_sublayers_in_both_kernels(loaded, library, "eager")
    suite.test_restore_gives_the_very_same_model(loaded, library)
    suite.test_what_is_not_narrowable_is_refused(loaded)
    units, architecture = family.units(loaded.model), family.architecture(loaded.model)
    config = WidthSpace(units=("attention",), multiple_of=1)
    with pytest.raises(ConfigError, match="attention of this model cannot be narrowed"):
        width_levels(units, architecture, config, adds_bias=False)
