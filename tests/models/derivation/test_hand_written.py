"""What is derived is what was written by hand for the same type, where there is both."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from transformers import PreTrainedModel

from evocompress.models.families import Family, Matrix, family_of
from evocompress.models.families.base import matrices_of
from evocompress.models.families.convolutional import Convolutional
from evocompress.models.families.derivation.derived import derive
from evocompress.models.families.encoder import Encoder
from evocompress.testing.probes import answer, assert_equal, random_batch, replace_modules
from evocompress.testing.tiny import NAMES, declared, tiny_model

ENCODERS = [
    name
    for name in NAMES
    if isinstance(declared(name), Encoder) and not isinstance(declared(name), Convolutional)
    # The class with two heads is no first class of its type.
    if name != "deit-distilled"
]


def matrices(family: Family, model: PreTrainedModel) -> list[Matrix]:
    """The matrices of a kind of block, with numbers for the words of what they read."""
    found = matrices_of(family)
    words = list(dict.fromkeys(matrix.input for matrix in found))
    return [replace(matrix, input=str(words.index(matrix.input))) for matrix in found]


@pytest.mark.parametrize("name", ENCODERS)
@torch.no_grad()
def test_encoders_have_the_same_units_costs_and_values(name: str) -> None:
    model = tiny_model(name)
    written, found = family_of(model), derive(type(model), model.config)
    assert not found.limits
    assert found.task == written.task
    assert list(found.units(model)) == list(written.units(model))
    assert found.architecture(model) == written.architecture(model)
    assert found.norm_path == written.norm_path
    assert matrices(found, model) == matrices(written, model)
    batch = random_batch(written, model)
    states = written.hidden_states(model, batch)
    assert_equal(found.hidden_states(model, batch), states)
    assert_equal(found.outputs(model, states), written.outputs(model, states))
    for sublayer in written.sublayers:
        lacking = [copy.deepcopy(model) for _ in range(2)]
        for one, family in zip(lacking, (written, found), strict=True):
            block = family.blocks(one)[1]
            replace_modules(block, family.replacements(block, sublayer))
        assert_equal(*(answer(written, one, batch) for one in lacking))
