"""Blocks whose parts are built in unusual ways: what stands for a part that is removed."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from evocompress.models.families.derivation.derived import derive
from evocompress.models.families.derivation.shrink import random_model, shrunk
from evocompress.models.families.derivation.structure import Passing, Zero
from evocompress.models.families.stand_ins import run_block

IDS = torch.arange(3, 15)[None]


@pytest.mark.parametrize(
    ("name", "sublayer", "output"),
    [
        # The parts add their output to the residual stream that they are given.
        ("bloom", "attention", "self_attention.dense"),
        ("bloom", "mlp", "mlp.dense_4h_to_h"),
        ("mpt", "mlp", "ffn.down_proj"),
        # The attention's output is added to the MLP's, in its place.
        ("falcon", "mlp", "mlp.dense_4h_to_h"),
        ("falcon", "attention", "self_attention.dense"),
        # A block with one part, which asks its norm for a type of number.
        ("mamba", "attention", "mixer.out_proj"),
        ("nemotron_h", "attention", "mixer.out_proj"),
    ],
)
@torch.no_grad()
def test_a_removed_part_adds_nothing(name: str, sublayer: Any, output: str) -> None:
    """Its last matrix at zero has the same effect."""
    config = CONFIG_MAPPING[name]()
    cls = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    family, model = derive(cls, config), random_model(cls, shrunk(config, 2))
    silent = copy.deepcopy(model)
    own, block = family.at(0), family.blocks(model)[0]
    for path, module in own.replacements(block, sublayer).items():
        block.set_submodule(path, module)
    for parameter in family.blocks(silent)[0].get_submodule(output).parameters():
        parameter.zero_()
    assert torch.equal(model(IDS, use_cache=False).logits, silent(IDS, use_cache=False).logits)


def test_zero_passes_a_residual_on() -> None:
    """Wherever it stands among the arguments."""
    hidden, residual = torch.ones(1, 2, 3), torch.rand(1, 2, 3)
    zero = Zero(2, (1, "residual"))
    assert zero(hidden, residual)[0] is residual
    assert zero(hidden, residual=residual)[0] is residual


def test_a_norm_that_passes_keeps_its_type_of_number() -> None:
    """Also where the block is cast to another one."""
    passing = Passing(torch.nn.LayerNorm(3)).to(torch.bfloat16)
    assert passing.weight.dtype == torch.bfloat16
    assert not passing.state_dict()


@torch.no_grad()
def test_blocks_can_be_asked_what_they_are() -> None:
    """The model reads an attribute of its blocks, of those that are recorded as well."""
    config = CONFIG_MAPPING["nemotron_h"]()
    cls = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    family, model = derive(cls, config), random_model(cls, shrunk(config, 2))
    hidden, arguments = family.block_inputs(model, IDS)
    for block, given in zip(family.blocks(model), arguments, strict=True):
        hidden = run_block(block, hidden, given)
    states = model.get_submodule(family.norm_path)(hidden)
    torch.testing.assert_close(states, family.hidden_states(model, IDS), rtol=0, atol=0)
