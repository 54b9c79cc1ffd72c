"""Experts that lie in the block itself, beside a dense MLP, as Gemma 4's do."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from evocompress.compression.live_model import LiveModel
from evocompress.core.types import DROP, Candidate, Level
from evocompress.evaluation.estimates import ESTIMATES
from evocompress.evaluation.estimates.base import Subject
from evocompress.models.families.derivation.derived import derive
from evocompress.models.families.derivation.from_config import language_class
from evocompress.models.loading import LoadedModel
from evocompress.space.costs import cost_model
from evocompress.testing.derived import typical_config, typical_loaded
from evocompress.testing.formats import candidate_of
from evocompress.testing.plain_library import PlainLibrary
from evocompress.testing.probes import random_ids

GONE = {"1.experts.0": DROP, "1.experts.3": DROP}
KINDS = ("experts", "mlp", "channels")


@pytest.fixture
def loaded() -> LoadedModel:
    return typical_loaded(typical_config("gemma4_text with experts"))


def block_of(model: Any, index: int = 1) -> Any:
    return model.model.layers[index]


def never_chosen(block: Any, *gone: int) -> None:
    """Make, in place, a router choose as if it did not have some experts."""
    router: Any = block.router

    def forward(tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        scores = router.proj(router.norm(tokens) * router.scale * router.scalar_root_size)
        scores[:, list(gone)] = -torch.inf
        weights, chosen = scores.softmax(-1, dtype=torch.float32).topk(2, dim=-1)
        weights = weights / weights.sum(-1, keepdim=True) * router.per_expert_scale[chosen]
        return scores, weights, chosen

    router.forward = forward


def logits(loaded: LoadedModel, levels: dict[str, Level]) -> Tensor:
    """What the live model computes with some levels."""
    with LiveModel(loaded, PlainLibrary(loaded)) as live, torch.no_grad():
        live.apply(candidate_of(loaded, levels))
        found: Tensor = loaded.model(random_ids()).logits
        return found


def test_they_are_found_with_their_router_and_the_dense_mlp(loaded: LoadedModel) -> None:
    mixture = loaded.family.at(0).mixture
    assert mixture is not None
    assert (mixture.experts, mixture.router, mixture.mlp) == ("experts", "router", "")
    assert (mixture.count, mixture.active, mixture.droppable) == (4, 2, True)
    units = {unit.name: unit.kind for unit in loaded.family.units(loaded.model) if unit.block == 1}
    assert units["model.layers.1.experts.3"] == "expert"
    assert units["model.layers.1.experts.3.up_proj"] == "matrix"
    assert units["model.layers.1.mlp.up_proj"] == "matrix"
    assert "shared" in next(m for m in loaded.family.matrices if m.path == "mlp.up_proj").rows


def test_a_dropped_expert_is_one_that_is_never_chosen(loaded: LoadedModel) -> None:
    stock = copy.deepcopy(loaded.model)
    never_chosen(block_of(stock), 0, 3)
    dense = logits(loaded, {})
    torch.testing.assert_close(logits(loaded, GONE), stock(random_ids()).logits)
    assert (logits(loaded, GONE) - dense).abs().max() > 1e-3


def test_without_the_mlp_neither_it_nor_the_experts_add_anything(loaded: LoadedModel) -> None:
    silent = copy.deepcopy(loaded.model)
    nn.init.zeros_(block_of(silent).post_feedforward_layernorm.weight)
    torch.testing.assert_close(logits(loaded, {"1.mlp": DROP}), silent(random_ids()).logits)


def test_narrower_experts_are_the_silenced_ones(loaded: LoadedModel) -> None:
    level, library = Level(channels=7), PlainLibrary(loaded)
    silent = copy.deepcopy(loaded.model)
    for number in range(4):
        for matrix, weight in library.silenced(f"model.layers.1.experts.{number}", level).items():
            silent.get_parameter(f"{matrix}.weight").data.copy_(weight)
    torch.testing.assert_close(logits(loaded, {"1.mlp": level}), silent(random_ids()).logits)


@pytest.mark.parametrize("levels", [GONE, {"1.mlp": DROP}, {"1.mlp": Level(channels=7)}], ids=KINDS)
def test_operations_are_those_of_a_pass(loaded: LoadedModel, levels: dict[str, Level]) -> None:
    """But for scores of tokens that are not seen, which a pass computes and nothing counts."""
    ids, candidates = random_ids(1), [candidate_of(loaded, own) for own in ({}, levels)]
    units, shape = loaded.family.units(loaded.model), loaded.family.architecture(loaded.model)
    counted = cost_model(units, shape, length=ids.shape[1]).of(candidates)["flops"]
    found = []
    with LiveModel(loaded, PlainLibrary(loaded)) as live, torch.no_grad():
        for candidate in candidates:
            live.apply(candidate)
            with FlopCounterMode(display=False) as counter:
                loaded.model(ids, use_cache=False)
            found.append(counter.get_total_flops())
    assert found[0] > found[1]
    assert found[0] - found[1] == counted[0] - counted[1]


def test_errors_without_an_expert_are_those_of_the_router_and_the_experts(
    loaded: LoadedModel,
) -> None:
    found: list[Tensor] = []
    models = [loaded.model, copy.deepcopy(loaded.model)]
    never_chosen(block_of(models[1]), 2)
    for model in models:
        hook = block_of(model).experts.register_forward_hook(lambda _, __, y: found.append(y))
        model(random_ids())
        hook.remove()
    whole, without = found
    expected = float((without - whole).norm() ** 2 / whole.norm() ** 2)
    with LiveModel(loaded) as live:
        rows = ESTIMATES["expert_output_error"](Subject(live, [random_ids()], Candidate()))
    assert rows["model.layers.1.experts.2"] == (pytest.approx(expected),)
    assert len(rows) == 12


def test_shares_of_the_routing_add_up_to_one(loaded: LoadedModel) -> None:
    with LiveModel(loaded) as live:
        rows = ESTIMATES["routing_frequency"](Subject(live, [random_ids()], Candidate()))
    own = torch.tensor([row for name, row in rows.items() if name.startswith("model.layers.1.")])
    torch.testing.assert_close(own.sum(0), torch.ones(2, dtype=own.dtype))


def test_many_of_which_a_token_uses_several() -> None:
    """How many a token uses is told by the config alone, which the router holds."""
    sizes = {"num_experts": 128, "top_k_experts": 8, "moe_intermediate_size": 704}
    config = typical_config("gemma4_text with experts")
    for name, size in sizes.items():
        setattr(config, name, size)
    found = derive(language_class(config), config).mixture
    assert found is not None and (found.count, found.active) == (128, 8)
    assert found.row == config.hidden_size + 1
