"""Blocks whose parts are built in unusual ways: what stands for a part that is removed."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from evocompress.models.families.derivation.derived import derive
from evocompress.models.families.derivation.from_config import language_class
from evocompress.models.families.derivation.residual_branch import Zero
from evocompress.models.families.derivation.shrink import random_model, shrunk
from evocompress.models.families.stand_ins import run_block
from evocompress.models.modeling.modeling_derived import Passing
from evocompress.testing.derived import typical_config

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
        # A short convolution behind it is given the cache as well.
        ("inkling_text", "attention", "self_attn.o_proj"),
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


GEMMA4 = {"hidden_size_per_layer_input": 32, "num_hidden_layers": 6}


def test_what_stays_of_a_block() -> None:
    """Gemma 4 adds to its stream by layer and scales it: a block cannot go, its parts can."""
    config = CONFIG_MAPPING["gemma4_text"](**GEMMA4)
    cls = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    family, model = derive(cls, config), random_model(cls, shrunk(config, 6))
    droppable = {unit.kind: unit.droppable for unit in family.units(model) if unit.block == 0}
    assert (droppable["block"], droppable["attention"], droppable["mlp"]) == (False, True, True)
    architecture, units = family.architecture(model), family.units(model)
    own = sum(map(sum, architecture.own_params))
    total = sum(parameter.numel() for parameter in model.parameters())
    assert architecture.outer_params + own + sum(unit.numel for unit in units) == total
    by_layer = 2 * model.config.hidden_size * model.config.hidden_size_per_layer_input
    # Two matrices in each block, and one beside the blocks that makes the inputs of all.
    assert architecture.token_flops == (6 * 2 + 6) * by_layer


def test_heads_of_two_widths_are_counted_by_what_they_cost() -> None:
    """The sixth layer of Gemma 4 has heads that are twice as wide."""
    config = CONFIG_MAPPING["gemma4_text"](**GEMMA4)
    family = derive(MODEL_FOR_CAUSAL_LM_MAPPING[type(config)], config)
    assert family.heads(config, 0) == (8, 4, 256) and family.heads(config, 5) == (8, 4, 512)
    assert family.at(0).attention.narrowable and family.at(5).attention.narrowable


@pytest.mark.parametrize("name", ["doge", "phi", "mamba2", "falcon"])
def test_parameters_are_counted(name: str) -> None:
    """Of what is outside the sub-layers as well: shared norms, factors of the residual stream."""
    config = CONFIG_MAPPING[name]()
    cls = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    family, model = derive(cls, config), random_model(cls, shrunk(config, 2))
    architecture, units = family.architecture(model), family.units(model)
    own = sum(map(sum, architecture.own_params))
    total = sum(parameter.numel() for parameter in model.parameters())
    assert architecture.outer_params + own + sum(unit.numel for unit in units) == total


def test_mixers_beside_each_other_are_one_sublayer() -> None:
    """A state space and an attention that read the same go together, with the norm they read."""
    family = derive(language_class(config := typical_config("falcon_h1")), config)
    branch = family.kinds[0].parts["attention"].branch
    assert branch.cores == ("mamba", "self_attn") and branch.before == ("input_layernorm",)
    paths = {matrix.path.partition(".")[0] for matrix in family.attention.matrices}
    assert paths == {"mamba", "self_attn"}
    # Heads of the attention can be cut; the law is of what the other mixer takes.
    beside = family.kinds[0].beside
    assert family.attention.narrowable
    assert beside and beside.state and beside.chunk and not (beside.pair or beside.kept)


def test_mlps_that_read_the_same_are_one_sublayer() -> None:
    """An MLP beside a mixture, each a module of the block, goes with it: a block can be dropped."""
    family = derive(language_class(config := typical_config("granitemoehybrid")), config)
    kind = family.kinds[0]
    assert kind.parts["mlp"].branch.cores == ("block_sparse_moe", "shared_mlp")
    assert not kind.remainder and not kind.shared


def test_a_norm_with_matrices_is_no_part_of_what_reads_it() -> None:
    """The norms of A.X K2 have a small MLP each."""
    family = derive(language_class(config := typical_config("axk2")), config)
    branches = [part.branch.core for part in family.kinds[0].parts.values()]
    assert branches == [("self_attn",), ("mlp",)]
    assert "input_layernorm" in family.kinds[0].shared
