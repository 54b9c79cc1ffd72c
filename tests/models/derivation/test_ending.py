"""What lies behind the blocks: logits by the keys of a config, blocks that yield several things."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import CONFIG_MAPPING

from evocompress.models.families.derivation.derived import Derived, derive
from evocompress.models.families.derivation.ending import body_path
from evocompress.models.families.derivation.from_config import language_class
from evocompress.models.families.derivation.shrink import random_model, shrunk
from evocompress.models.families.derivation.structure import Unclear
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
    cls = language_class(config)
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
        ("muse_glimmer", {}, LogitKeys("final_logit_softcapping", ("output_multiplier",))),
        ("paligemma", {}, LogitKeys()),
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


@torch.no_grad()
def test_positions_are_those_that_the_whole_model_gives() -> None:
    """PaliGemma counts them from one, its language model from zero."""
    family, model = made("paligemma")
    assert (family.layers_path, family.body) == ("model.language_model.layers", "model")
    _, arguments = family.block_inputs(model, IDS)
    positions = [given["position_ids"].flatten().tolist() for given in arguments]
    assert positions == [list(range(1, IDS.shape[1] + 1))] * 2


@torch.no_grad()
def test_a_part_that_is_given_more_than_tokens_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    _, model = made("olmo2")
    plain = model.forward

    def doubled(input_ids: Tensor, **given: Any) -> Any:
        return plain(inputs_embeds=2 * model.model.embed_tokens(input_ids), **given)

    assert body_path(model, "model.layers", IDS) == "model"
    monkeypatch.setattr(model, "forward", doubled)
    with pytest.raises(Unclear, match="no part of it makes of tokens alone the hidden states"):
        body_path(model, "model.layers", IDS)
