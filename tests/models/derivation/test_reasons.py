"""Why models of a type cannot be compressed, in words that name what upstream does."""

from __future__ import annotations

import pytest

from evocompress.models.families.derivation.defaults import default_config
from evocompress.models.families.derivation.derived import derived_or_reason
from evocompress.models.families.derivation.from_config import class_for
from evocompress.models.families.derivation.purpose import tasks_of
from evocompress.models.families.derivation.reasons import why_not_made, why_not_run

REASONS = {
    "big_bird": "attention.self is a BigBirdBlockSparseAttention at first, and a BigBirdSelfAtt",
    "blenderbot": "model.decoder.layers has 24 blocks where the config tells 2 layers (encoder_la",
    "flaubert": "the model holds their parts in lists beside each other (attentions, ffns)",
    "florence2": "it is an encoder with a decoder",
    "hrm_text": "runs all blocks of model.L_module.layers and model.H_module.layers several times",
    "longcat_flash": "one is 2 of them, with 2 modules in each of self_attn, mlps",
    "squeezebert": "the model never calls the modules of encoder.layers",
    "xlm": "transformer holds their parts in lists beside each other (attentions, ffns)",
    "blt": "only its parts do (patcher_config, encoder_config, decoder_config, global_config)",
    "gemma4_unified_assistant": "all of its layers read keys and values of that one",
    "mra": "a part of it computes in float32 whatever the type of the model is",
    "openai-gpt": "attn yields a list, and a stand-in for it yields a tensor or a tuple",
    "qwen4_exp": "blocks pass on 4 streams of hidden states side by side (of 80 numbers each)",
    "qwen4_exp_text": "blocks pass on 4 streams of hidden states side by side (of 80 numbers each)",
    "swin": "it has 4 stages (depths: 2, 2, 6, 2)",
    "yolos": "the model changes the hidden state between its blocks",
    "xmod": "raises ValueError: Input language unknown",
    "zaya": "more than the hidden state: prev_router_hidden_states, which",
    "kyutai_speech_to_text": "a token of text and 32 of sound together at each position",
}
SLOW = {"kyutai_speech_to_text", "longcat_flash"}


@pytest.mark.parametrize(
    "name", [pytest.param(t, marks=pytest.mark.long) if t in SLOW else t for t in REASONS]
)
def test_the_reason_says_what_the_class_does(name: str) -> None:
    config = default_config(name)
    found = derived_or_reason(class_for(config, tasks_of(name)[0][0]), config)
    assert isinstance(found, str) and REASONS[name] in found


def test_tokens_of_several_kinds_are_told_by_the_config() -> None:
    config = default_config("kyutai_speech_to_text")
    assert "32 of sound together" in why_not_run(RuntimeError("sizes"), config)


def test_a_package_that_lacks_is_named() -> None:
    long = "TimmWrapperModel requires the timm library but it was not found in your environment."
    assert why_not_made(ImportError(long)) == (
        "TimmWrapperModel of transformers needs the package timm, which is not installed"
    )


def test_an_error_outside_of_the_classes_is_told_as_it_is() -> None:
    assert why_not_made(KeyError("size")) == "a model of it cannot be made (KeyError: 'size')"
