"""What holds for the blocks of every family, and for the settings that tell them apart."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from evocompress.export.configs import per_layer
from evocompress.models.dummy_inputs import random_batch
from evocompress.models.families import Family
from evocompress.models.families.derivation.derived import Derived
from evocompress.models.families.stand_ins import run_block
from evocompress.testing.staged import staged


def by_parts(
    family: Family, block: nn.Module, hidden: Tensor, arguments: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    """What a block makes of hidden states, and what its sub-layers' own outputs add up to."""
    last: dict[str, Tensor] = {}

    def note(sublayer: str, module: nn.Module, inputs: Any, output: Any) -> None:
        last[sublayer] = output[0] if isinstance(output, tuple) else output

    handles, expected = [], hidden
    branches = {name: getattr(family, name) for name in family.sublayers}
    for name, branch in branches.items():
        for path in {branch.zero_module, *branch.identity_modules} - {branch.norm_after}:
            module = block.get_submodule(path)
            handles.append(module.register_forward_hook(partial(note, name)))
    found = run_block(block, hidden, arguments)
    for handle in handles:
        handle.remove()
    for name, branch in branches.items():
        expected = expected + last[name]
        if branch.norm_after:
            expected = block.get_submodule(branch.norm_after)(expected)
    return found, expected


class BlockContract:
    """A part of `evocompress.testing.families.FamilyContract`, which has the fixtures."""

    def test_a_block_adds_what_its_sublayers_yield(
        self, family: Family, model: PreTrainedModel
    ) -> None:
        """Nothing multiplies a sub-layer's output on its way into the residual stream.

        Neither does any number that the block holds, whatever its value: in the formats
        ``folded`` and ``hf`` sub-layers are put beside each other, and only add.
        """
        if staged(family):
            pytest.skip("the residual stream of a stage has a shortcut of its own")
        if isinstance(family, Derived):
            pytest.skip("some have a multiplier of the residual, and those formats refuse them")
        hidden, arguments = family.block_inputs(model, random_batch(family.task, model, 1, 24))
        block = copy.deepcopy(family.blocks(model)[0])
        numbers = [name for name, value in vars(block).items() if isinstance(value, float)]
        for name in (None, *numbers):
            if name is not None:
                setattr(block, name, getattr(block, name) / 2)
            found, expected = by_parts(family, block, hidden, arguments[0])
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)

    def test_settings_of_layers_tell_them_apart(self, model: PreTrainedModel) -> None:
        """Lists with an entry for each layer differ: else no test sees whether they are cut.

        Give such settings of a new family in `evocompress.testing.tiny`.
        """
        for name, values in per_layer(model.config).items():
            # Which kinds of attention there are has a check of its own, of the windows.
            assert name == "layer_types" or len(set(map(repr, values))) > 1, name
