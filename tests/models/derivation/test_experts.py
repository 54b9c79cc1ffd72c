"""Mixtures of experts as transformers stores them, against its own forward pass."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import CONFIG_MAPPING

from evocompress.models.families.derivation.derived import derive
from evocompress.models.families.derivation.experts import DerivedMixture
from evocompress.models.families.derivation.from_config import language_class
from evocompress.models.families.derivation.shrink import random_model, shrunk
from evocompress.models.families.mixture import ExpertViews, expert_views
from evocompress.models.modeling.layers import of_each

STORED = {
    "qwen3_moe": "out by in",
    "aria_text": "in by out",
    "gpt_oss": "in by out, gate and up projection in turns, with biases",
}


def tiny(name: str) -> Any:
    config = CONFIG_MAPPING[name]()
    return random_model(language_class(config), shrunk(config, 1))


def fused_experts(model: Any) -> Any:
    return next(module for module in model.modules() if hasattr(module, "is_transposed"))


@pytest.mark.parametrize("name", STORED)
def test_experts_with_matrices_of_their_own_compute_the_same(name: str) -> None:
    fused = fused_experts(tiny(name))
    count, hidden = len(fused.down_proj), fused.down_proj.shape[2 if fused.is_transposed else 1]
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(7, hidden, generator=generator, dtype=torch.float64)
    chosen = torch.rand(7, count, generator=generator).topk(2).indices
    weights = torch.rand(7, 2, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(
        expert_views(fused)(tokens, chosen, weights), fused(tokens, chosen, weights)
    )


@pytest.mark.parametrize("name", STORED)
def test_the_matrices_of_experts_are_views(name: str) -> None:
    fused = fused_experts(tiny(name))
    views: ExpertViews = expert_views(fused)
    storages = {parameter.untyped_storage().data_ptr() for parameter in views.parameters()}
    assert storages == {p.untyped_storage().data_ptr() for p in fused.parameters()}


def test_a_router_that_chooses_among_groups_first_keeps_its_experts() -> None:
    config = CONFIG_MAPPING["deepseek_v3"](first_k_dense_replace=1, num_hidden_layers=3)
    found = derive(language_class(config), config)
    assert found.mixture is not None and not found.mixture.droppable
    assert any("experts cannot be dropped" in limit for limit in found.limits)
    assert (found.mixture.count, found.mixture.active) == (256, 8)


def test_one_without_groups_does_not() -> None:
    config = CONFIG_MAPPING["deepseek_v3"](
        first_k_dense_replace=1, num_hidden_layers=3, n_group=1, topk_group=1
    )
    found = derive(language_class(config), config)
    assert found.mixture is not None and found.mixture.droppable


def test_experts_with_tokens_of_their_own() -> None:
    """Llama 4 gives each expert all tokens, weighed: zero is what was not sent to it."""
    config = CONFIG_MAPPING["llama4_text"](num_hidden_layers=2)
    found = derive(language_class(config), config).mixture
    assert isinstance(found, DerivedMixture) and found.droppable
    assert (found.count, found.active) == (16, 1)
    experts = [nn.Linear(2, 2, bias=False) for _ in range(2)]
    tokens = torch.tensor([[0.0, 0.0], [1.0, 2.0], [3.0, 4.0], [0.0, 0.0]])
    made = of_each(tokens, experts)
    expected = [torch.zeros(2), experts[0](tokens[1]), experts[1](tokens[2]), torch.zeros(2)]
    torch.testing.assert_close(made, torch.stack(expected))
