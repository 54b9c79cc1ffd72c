"""Mixtures of experts: what is prepared, what is dropped, and what is refused."""

import copy

import pytest
import torch
from torch.nn.functional import linear
from transformers import AutoConfig, AutoModelForCausalLM

from evocompress.compression.live_model import LiveModel
from evocompress.core.canonical import canonical
from evocompress.core.errors import ConfigError, LibraryError
from evocompress.core.types import DROP, Candidate, Level
from evocompress.models.families import family_of
from evocompress.models.families.base import prepare
from evocompress.models.loading import loaded as make_loaded
from evocompress.space.costs import cost_model
from evocompress.testing.plain_library import PlainLibrary
from evocompress.testing.probes import random_ids
from evocompress.testing.tiny import MIXTURES, stock_model, tiny_loaded

MLP = "model.layers.1.mlp"


def experts(*numbers, layer=1):
    return {f"model.layers.{layer}.mlp.experts.{number}": DROP for number in numbers}


def logits(model):
    with torch.no_grad():
        return model(random_ids()).logits


@pytest.fixture(params=MIXTURES)
def name(request):
    return request.param


def test_a_prepared_model_is_the_stock_one_and_shares_its_memory(name):
    model = stock_model(name)
    fused = model.model.layers[0].mlp.experts.gate_up_proj
    expected, total = logits(model), sum(p.numel() for p in model.parameters())
    prepare(family_of(model), model)
    torch.testing.assert_close(logits(model), expected, rtol=1e-5, atol=1e-5)
    assert sum(p.numel() for p in model.parameters()) == total
    up = model.model.layers[0].mlp.experts[1].up_proj.weight
    assert up.untyped_storage().data_ptr() == fused.untyped_storage().data_ptr()


def test_routers_of_different_sizes_need_no_common_loss(name):
    model = stock_model(name)
    model.config.output_router_logits = True
    loaded = make_loaded(model, None, name)
    with LiveModel(loaded) as live:
        live.apply(Candidate(tuple(sorted(experts(0).items()))))
        assert loaded.model(random_ids(), labels=random_ids()).loss.isfinite()


@pytest.mark.parametrize("normed", [False, True])
def test_a_dropped_expert_is_one_that_the_stock_router_must_not_choose(name, normed):
    stock = stock_model(name)
    stock.config.norm_topk_prob = normed
    loaded = tiny_loaded(name)
    for model in (stock, loaded.model):
        for block in model.model.layers:
            block.mlp.gate.norm_topk_prob = normed
    mask_router(stock.model.layers[1].mlp.gate, [0, 3], normed or name == "mixtral")
    with LiveModel(loaded) as live:
        dense = logits(loaded.model)
        live.apply(canonical(experts(0, 3), live.units.values()))
        dropped = logits(loaded.model)
    torch.testing.assert_close(dropped, logits(stock), rtol=1e-5, atol=1e-5)
    assert (dropped - dense).abs().max() > 0.01
    assert torch.equal(logits(loaded.model), dense)


def mask_router(router, gone, normed):
    """Give the experts `gone` logits of minus infinity."""

    def forward(hidden):
        scores = linear(hidden.reshape(-1, hidden.shape[-1]), router.weight)
        scores[:, gone] = -torch.inf
        weights, chosen = scores.float().softmax(-1).topk(router.top_k, dim=-1)
        return scores, weights / weights.sum(-1, keepdim=True) if normed else weights, chosen

    router.forward = forward


def test_every_expert_is_narrowed_to_its_own_channels(name):
    loaded = tiny_loaded(name)
    library, level = PlainLibrary(loaded), Level(channels=10)
    silenced = copy.deepcopy(loaded.model)
    own = [unit for unit in library.units if unit.startswith(f"{MLP}.experts.")]
    own = [unit for unit in own if library.units[unit].kind == "expert"]
    for unit in own:
        for matrix, weight in library.silenced(unit, level).items():
            silenced.get_parameter(f"{matrix}.weight").copy_(weight)
    kept = {tuple(library.kept(unit, level).items.tolist()) for unit in own}
    assert len(kept) == len(own)
    with LiveModel(loaded, library) as live:
        live.apply(Candidate(((MLP, level),)))
        torch.testing.assert_close(logits(loaded.model), logits(silenced), rtol=1e-4, atol=1e-4)


def test_costs_are_those_of_the_model(name):
    loaded = tiny_loaded(name)
    family, library = loaded.family, PlainLibrary(loaded)
    units, architecture = family.units(loaded.model), family.architecture(loaded.model)
    model = cost_model(units, architecture)
    levels = experts(0, 2) | {MLP: Level(channels=12), "model.layers.0.mlp": DROP}
    candidate = canonical(levels | experts(1, layer=0), units)
    assert f"{MLP.replace('1', '0')}.experts.1" not in candidate.by_name
    costs = {key: values.item() for key, values in model.of([candidate]).items()}
    gone = {unit for unit in candidate.by_name if candidate.by_name[unit].drop}
    with LiveModel(loaded, library) as live:
        live.apply(candidate)
        sizes = {
            key: value.numel()
            for key, value in loaded.model.named_parameters()
            if not any(key.startswith(f"{unit}.") for unit in gone)
        }
    assert costs["params"] == sum(sizes.values())
    unused = {MLP: architecture.experts - 4, MLP.replace("1", "2"): architecture.experts - 2}
    inactive = sum(
        count * sum(size for key, size in sizes.items() if key.startswith(f"{mlp}.experts.1."))
        for mlp, count in unused.items()
    )
    assert costs["active_params"] == sum(sizes.values()) - inactive


def test_a_shared_expert_keeps_its_width_beside_narrow_ones():
    loaded = tiny_loaded("qwen2_moe")
    library, narrow = PlainLibrary(loaded), {MLP: Level(channels=10)}
    matrices = [f"{MLP}.shared_expert.{word}_proj" for word in ("gate", "up", "down")]
    zeros = {matrix: Level(zeros=3000) for matrix in matrices}
    silenced = copy.deepcopy(loaded.model)
    for matrix in matrices:
        weight = library.load(matrix, zeros[matrix])["weight"]
        assert weight.shape == library.units[matrix].shape
        silenced.get_parameter(f"{matrix}.weight").copy_(weight)
    with LiveModel(loaded, library) as live:
        live.apply(Candidate(tuple(sorted(zeros.items()))))
        torch.testing.assert_close(logits(loaded.model), logits(silenced), rtol=0, atol=0)
        live.apply(canonical(narrow | zeros, live.units.values()))
        both = logits(loaded.model)
    for index in range(5):
        for matrix, weight in library.silenced(f"{MLP}.experts.{index}", narrow[MLP]).items():
            silenced.get_parameter(f"{matrix}.weight").copy_(weight)
    torch.testing.assert_close(both, logits(silenced), rtol=1e-4, atol=1e-4)


def test_a_shared_expert_counts_for_every_token():
    loaded, length = tiny_loaded("qwen2_moe"), 8
    units, shape = loaded.family.units(loaded.model), loaded.family.architecture(loaded.model)
    names = [f"{MLP}.shared_expert.{word}_proj" for word in ("gate", "up", "down")]
    model = cost_model(units, shape, length=length)
    zeros = canonical({name: Level(zeros=1000) for name in names}, units)
    gone = canonical({MLP: DROP}, units)
    dense, (sparse, less) = (
        model.dense(),
        ({key: values[i] for key, values in model.of([zeros, gone]).items()} for i in (0, 1)),
    )
    assert dense["nonzeros"] - sparse["nonzeros"] == 3000
    assert dense["matrix_nonzeros"] - sparse["matrix_nonzeros"] == 3000
    assert all(dense[key] == sparse[key] for key in ("params", "active_params", "flops"))
    hidden, router = shape.hidden, shape.experts * shape.hidden
    met = 3 * hidden * (96 + 2 * 128) + hidden + router  # the gate, then the router
    assert dense["flops"] - less["flops"] == 2 * met * length
    assert dense["active_params"] - less["active_params"] == met + hidden  # and the norm


def test_fewer_experts_than_a_token_uses_are_refused(name):
    loaded = tiny_loaded(name)
    levels = experts(*range(loaded.family.mixture.count - 1))
    with pytest.raises(ConfigError, match=rf"{MLP}' would keep 1 experts, but each token uses 2"):
        canonical(levels, loaded.family.units(loaded.model))
    with LiveModel(loaded) as live, pytest.raises(LibraryError, match="each token uses 2"):
        live.apply(Candidate(tuple(sorted(levels.items()))))


@pytest.mark.parametrize("name", ["qwen2_moe", "qwen3_moe"])
def test_ordinary_mlps_among_mixtures_are_of_another_kind(name):
    config = AutoConfig.for_model(
        name,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        vocab_size=32,
        num_experts=4,
        mlp_only_layers=[1],
    )
    family = family_of(AutoModelForCausalLM.from_config(config))
    assert family.at(0).mixture is not None and family.at(1).mixture is None
