"""Blocks that have parameters in common, such as a transformer that runs in many of them."""

from __future__ import annotations

import pytest
import torch
from transformers import Zamba2Config, Zamba2ForCausalLM, ZambaConfig, ZambaForCausalLM

from evocompress.models.families.derivation.derived import derive
from evocompress.models.families.derivation.family import Derived
from evocompress.models.families.derivation.tied import first_sharing, shared_with_others
from evocompress.testing.derived import typical_config, typical_loaded


def test_what_blocks_share_is_seen() -> None:
    blocks = [torch.nn.Linear(2, 2) for _ in range(4)]
    assert first_sharing(blocks) == 0 and not any(shared_with_others(blocks))
    blocks[2].weight = blocks[1].weight
    assert first_sharing(blocks) == 3
    assert shared_with_others(blocks) == [(), ("weight",), ("weight",), ()]


@pytest.mark.parametrize("name", ["zamba", "zamba2"])
def test_shared_matrices_are_no_units_and_count_once(name: str) -> None:
    loaded = typical_loaded(typical_config(name))
    family, model = loaded.family, loaded.model
    assert isinstance(family, Derived)
    units, architecture = family.units(model), family.architecture(model)
    assert family.tied and all(path.startswith("shared_transf") for path in family.tied)
    assert not any("shared_transf" in unit.name for unit in units)
    assert all(unit.droppable for unit in units if unit.kind == "attention")
    assert any("several blocks share them" in limit for limit in family.limits)
    own = sum(map(sum, architecture.own_params)) + sum(unit.numel for unit in units)
    assert architecture.outer_params + own == model.num_parameters()


@pytest.mark.long
def test_the_real_model_has_both_kinds_of_blocks() -> None:
    family = derive(ZambaForCausalLM, ZambaConfig())
    assert [len(kind.tied) for kind in family.kinds] == [0, 9]
    assert family.order[:8] == (0, 0, 1, 0, 0, 0, 0, 1)


@pytest.mark.long
def test_transformers_may_take_turns() -> None:
    """The second of two is there once, and so no block shares it."""
    types = ["hybrid", "hybrid", "hybrid", "linear_attention"]
    config = Zamba2Config(layers_block_type=types, num_hidden_layers=4, num_mem_blocks=2)
    family = derive(Zamba2ForCausalLM, config)
    assert family.order == (0, 1, 0, 2)
    assert [bool(kind.tied) for kind in family.kinds] == [True, False, False]
