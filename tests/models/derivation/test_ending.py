"""What lies behind the blocks: logits by the keys of a config, blocks that yield several things."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from evocompress.models.families.derivation.derived import Derived, derive
from evocompress.models.families.derivation.shrink import random_model, shrunk
from evocompress.models.families.logits import LogitKeys
from evocompress.models.families.stand_ins import run_block
from evocompress.models.vocabulary import _slices

IDS = torch.arange(3, 15)[None]

LIKE_LAYERS = {
    "layer_types": ["linear_attention", "full_attention"],
    "num_hidden_layers": 2,
    "logits_scaling": 2.0,
}
"""A factor that is the number of a tiny model's layers by chance."""


def made(name: str, **settings: Any) -> tuple[Derived, Any]:
    """The family of a type, and a tiny model of it."""
    config = CONFIG_MAPPING[name](**settings)
    cls = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    return derive(cls, config), random_model(cls, shrunk(config, 2))


@pytest.mark.parametrize(
    ("name", "settings", "keys"),
    [
        ("cohere", {}, LogitKeys(factors=("logit_scale",))),
        ("cohere", {"logit_scale": 1.0}, LogitKeys()),
        ("granite", {"logits_scaling": 7.5}, LogitKeys(divisors=("logits_scaling",))),
        ("hyperclovax", {"logits_scaling": 7.5}, LogitKeys(factors=("logits_scaling",))),
        ("minicpm3", {}, LogitKeys(factors=("dim_model_base",), divisors=("hidden_size",))),
        ("granitemoehybrid", LIKE_LAYERS, LogitKeys(divisors=("logits_scaling",))),
        ("nanochat", {}, LogitKeys(cap="final_logit_softcapping")),
    ],
)
@torch.no_grad()
def test_logits_are_scaled_by_the_config(
    name: str, settings: dict[str, Any], keys: LogitKeys
) -> None:
    """All logits, and those of slices of the vocabulary, are what the class makes of the states."""
    family, model = made(name, **settings)
    assert family.logit_keys == keys
    wanted = model(IDS).logits
    states = family.hidden_states(model, IDS)
    torch.testing.assert_close(family.outputs(model, states), wanted, rtol=1e-9, atol=1e-9)
    slices = [logits for _, logits in _slices(family, model, states[0])]
    torch.testing.assert_close(torch.cat(slices, 1), wanted[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["gptj", "gpt_neo", "gpt_neox_japanese", "bamba"])
@torch.no_grad()
def test_blocks_that_yield_several_things(name: str) -> None:
    """Their hidden states go from block to block, as within the model."""
    family, model = made(name)
    assert family.among > 1
    hidden, arguments = family.block_inputs(model, IDS)
    for block, given in zip(family.blocks(model), arguments, strict=True):
        hidden = run_block(block, hidden, given)
    states = model.get_submodule(family.norm_path)(hidden)
    assert torch.equal(states, family.hidden_states(model, IDS))
