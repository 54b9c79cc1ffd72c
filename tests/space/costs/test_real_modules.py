"""Predicted costs against what torch counts on tiny models of every family."""

from __future__ import annotations

import pytest
from transformers import PreTrainedModel

from evocompress.core.architecture import Architecture
from evocompress.core.canonical import canonical
from evocompress.core.types import DROP, Candidate
from evocompress.models.families import Family, family_of
from evocompress.space.costs import CostModel, cost_model
from evocompress.testing.costs import counted_flops
from evocompress.testing.staged import require_packages
from evocompress.testing.tiny import NAMES, tiny_model

LENGTH = 16


def reduced(
    model_type: str, dropped: list[tuple[int, str]]
) -> tuple[PreTrainedModel, Family, Architecture, CostModel, Candidate]:
    """A tiny model without some sub-layers, as far as it has them, and what is predicted for it."""
    require_packages(model_type)
    model = tiny_model(model_type, layers=3)
    family = family_of(model)
    units, architecture = family.units(model), family.architecture(model)
    names = {f"{family.block_names[i]}.{name}": (i, name) for i, name in dropped}
    droppable = {unit.name for unit in units if unit.droppable}
    dropped = [place for name, place in names.items() if name in droppable]
    candidate = canonical({name: DROP for name in names.keys() & droppable}, units)
    predicted = cost_model(units, architecture, length=architecture.tokens or LENGTH)
    for index, sublayer in dropped:
        block = family.blocks(model)[index]
        for path, module in family.replacements(block, sublayer).items():
            block.set_submodule(path, module)
    return model, family, architecture, predicted, candidate


DROPS = [
    [],
    [(0, "attention")],
    [(2, "mlp")],
    [(1, "attention"), (1, "mlp"), (2, "attention")],
]


@pytest.mark.parametrize("dropped", DROPS)
@pytest.mark.parametrize("model_type", sorted(NAMES))
def test_parameters_are_those_of_the_reduced_model(model_type, dropped):
    model, family, architecture, predicted, candidate = reduced(model_type, dropped)
    costs = predicted.of([candidate])
    everything = sum(parameter.numel() for parameter in model.parameters())
    blocks = sum(p.numel() for p in family.blocks(model).parameters())
    assert costs["params"].item() == everything
    assert costs["body_params"].item() == blocks
    assert costs["weight_bytes"].item() == everything * architecture.dtype_bytes


@pytest.mark.parametrize("dropped", DROPS)
@pytest.mark.parametrize("model_type", sorted(NAMES))
def test_flops_of_matrices_are_those_torch_counts(model_type, dropped):
    model, family, architecture, predicted, candidate = reduced(model_type, dropped)
    dead = {block for block, sublayer in dropped if sublayer == "attention"}
    counted = counted_flops(model, architecture, family, LENGTH, without=dead)
    assert predicted.of([candidate])["flops"].item() == counted
