"""Mixtures of experts as transformers stores them, against its own forward pass."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import CONFIG_MAPPING

from evocompress.models.families.derivation.defaults import default_config
from evocompress.models.families.derivation.derived import derive
from evocompress.models.families.derivation.from_config import language_class
from evocompress.models.families.derivation.shrink import random_model, shrunk
from evocompress.models.families.mixture import ExpertViews, Mixture, expert_views, fused
from evocompress.models.modeling.layers import of_each, projections

STORED = {
    "qwen3_moe": "out by in",
    "aria_text": "in by out",
    "gpt_oss": "in by out, gate and up projection in turns, with biases",
    "nemotron_h": "without a gate",
    "dbrx": "one below the other, the last projection in by out",
    "step3p7": "with an activation of its own, in a class that does not say how rows lie",
}


def tiny(name: str) -> Any:
    config = default_config(name)
    return random_model(language_class(config), shrunk(config, 4))


def fused_experts(model: Any) -> Any:
    every = (module for module in model.modules() if type(module).__name__.endswith("Experts"))
    return next(module for module in every if not isinstance(module, ExpertViews))


@pytest.mark.parametrize("name", STORED)
def test_experts_with_matrices_of_their_own_compute_the_same(name: str) -> None:
    module = fused_experts(tiny(name))
    count, hidden = projections(module)["down"][0].shape[:2]
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(7, hidden, generator=generator, dtype=torch.float64)
    chosen = torch.rand(7, count, generator=generator).topk(2).indices
    weights = torch.rand(7, 2, generator=generator, dtype=torch.float64)
    expected = module(tokens, chosen, weights).view(7, hidden)
    torch.testing.assert_close(expert_views(module)(tokens, chosen, weights), expected)


@pytest.mark.parametrize("name", STORED)
def test_what_holds_all_experts_is_made_of_their_own_matrices(name: str) -> None:
    module = fused_experts(tiny(name))
    each = [dict(expert.named_parameters()) for expert in expert_views(module)]
    for part, tensor in module.named_parameters():
        assert torch.equal(fused(module, part, each), tensor)


@pytest.mark.parametrize("name", STORED)
def test_the_matrices_of_experts_are_views(name: str) -> None:
    module = fused_experts(tiny(name))
    views: ExpertViews = expert_views(module)
    storages = {parameter.untyped_storage().data_ptr() for parameter in views.parameters()}
    assert storages == {p.untyped_storage().data_ptr() for p in module.parameters()}


def mixture(name: str, **settings: Any) -> Mixture:
    config = CONFIG_MAPPING[name](num_hidden_layers=3, **settings)
    found = derive(language_class(config), config).mixture
    assert isinstance(found, Mixture)
    return found


def test_a_router_that_ranks_groups_keeps_what_it_has_of_dropped_experts() -> None:
    found = mixture("deepseek_v3", first_k_dense_replace=1)
    assert found.droppable and found.whole_router
    assert (found.silencer, found.groups) == ("mlp.gate.e_score_correction_bias", (8, 4))
    assert (found.count, found.active) == (256, 8)


def test_one_without_groups_chooses_among_fewer() -> None:
    found = mixture("deepseek_v3", first_k_dense_replace=1, n_group=1, topk_group=1)
    assert found.droppable and not found.whole_router and found.groups == (1, 1)


def test_a_class_need_not_say_how_rows_of_gate_and_up_projection_lie() -> None:
    config = default_config("step3p7")
    found = derive(language_class(config), config)
    assert found.mixture is not None and found.mixture.droppable
    assert (found.mixture.count, found.limits) == (288, [])


def test_groups_without_a_bias_for_each_expert_keep_all() -> None:
    config = CONFIG_MAPPING["deepseek_v2"](
        num_hidden_layers=2, n_group=8, num_experts_per_tok=6, topk_method="group_limited_greedy"
    )
    found = derive(language_class(config), config)
    assert found.mixture is not None and not found.mixture.droppable
    (limit,) = found.limits
    assert limit.startswith("experts cannot be dropped: mlp.gate ranks 8 groups of as many experts")
    assert found.mlp.narrowable


def test_experts_with_tokens_of_their_own() -> None:
    """Llama 4 gives each expert all tokens, weighed: zero is what was not sent to it."""
    config = CONFIG_MAPPING["llama4_text"](num_hidden_layers=2)
    found = derive(language_class(config), config).mixture
    assert isinstance(found, Mixture) and found.droppable
    assert (found.count, found.active) == (16, 1)
    experts = [nn.Linear(2, 2, bias=False) for _ in range(2)]
    tokens = torch.tensor([[0.0, 0.0], [1.0, 2.0], [3.0, 4.0], [0.0, 0.0]])
    made = of_each(tokens, experts)
    expected = [torch.zeros(2), experts[0](tokens[1]), experts[1](tokens[2]), torch.zeros(2)]
    torch.testing.assert_close(made, torch.stack(expected))
