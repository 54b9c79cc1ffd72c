"""Spaces of experts: what is admissible, and what it costs."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from evocompress.core.canonical import canonical
from evocompress.core.config import SpaceConfig
from evocompress.core.errors import BudgetError, ConfigError
from evocompress.core.types import DROP, Level
from evocompress.search.operators.mutation import exchange, mutate
from evocompress.space import sampling
from evocompress.space.budget import minimal_genomes
from evocompress.space.build import build_space
from evocompress.space.costs import cost_model
from evocompress.space.repair import repair
from evocompress.testing import costs as contract
from evocompress.testing.decoders import Decoder

MIXTURE = Decoder(layers=2, experts=4, active=2)
SHARED = replace(MIXTURE, shared=24)
CONFIGS = {
    "experts": {"drop": {"units": ["expert"]}, "budget": {"body_params": 0.7}},
    "blocks": {"drop": {"units": ["block", "expert"], "protect": []}, "budget": {"params": 0.6}},
    "all": {
        "drop": {"units": ["attention", "mlp", "expert"]},
        "width": {"units": ["mlp"], "channels": [0.5, 0.75], "multiple_of": 4, "protect": []},
        "sparsity": {"match": ["*experts*"], "target": 0.5, "levels": 2, "step": 16},
        "budget": {"active_params": 0.9, "nonzeros": 0.5},
    },
    "shared": {
        "drop": {"units": ["attention", "mlp", "expert"]},
        "width": {"units": ["mlp"], "channels": [0.5, 0.75], "multiple_of": 4, "protect": []},
        "sparsity": {"target": 0.5, "levels": 2, "step": 16},
        "budget": {"active_params": 0.9, "nonzeros": 0.5, "flops": 0.9},
    },
}


def space_of(config, decoder=MIXTURE):
    return build_space(decoder.units(), decoder.architecture(), SpaceConfig(**config))


@pytest.fixture(params=CONFIGS, scope="module")
def space(request):
    return space_of(CONFIGS[request.param], SHARED if request.param == "shared" else MIXTURE)


def kept(candidate):
    """For each MLP that is there the number of its experts."""
    levels = candidate.by_name
    mlps = [f"model.layers.{layer}.mlp" for layer in range(MIXTURE.layers)]
    return [
        sum(levels.get(f"{mlp}.experts.{i}") != DROP for i in range(MIXTURE.experts))
        for mlp in mlps
        if levels.get(mlp) != DROP
    ]


def test_every_mixture_keeps_what_a_token_uses(space):
    rng = np.random.default_rng(0)
    parent = sampling.uniform(space)
    genomes = [parent, *(sampling.random(space, rng) for _ in range(10))]
    genomes += [exchange(space, parent, rng) for _ in range(20)]
    moved = [mutate(space, parent, rng) for _ in range(20)]
    drawn = list(rng.integers(0, space.encoding.sizes, size=(20, len(space.units))))
    genomes += [repair(space, genome, rng) for genome in moved + drawn]
    for genome in genomes:
        candidate = space.candidate(genome)
        assert all(count >= 2 for count in kept(candidate))
        assert space.feasible(genome[None])[0]
        assert space.candidate(space.genome(candidate)) == candidate


def test_nothing_admissible_costs_less_than_the_floor():
    space = space_of(CONFIGS["experts"])
    lowest = space.costs(minimal_genomes(space))["params"].min()
    every = np.indices((2,) * len(space.units)).reshape(len(space.units), -1).T
    admissible = every[space.encoding.admissible(every)]
    # Of 4 experts at least 2 stay in each of two layers.
    assert len(admissible) == sum(1 for n in range(3) for _ in combinations(range(4), n)) ** 2
    assert space.costs(admissible)["params"].min() == lowest


def test_costs_keep_their_contract(space):
    rng = np.random.default_rng(1)
    contract.check_described(space.cost_model)
    contract.check_drops_are_additive(space.cost_model, space.encoding.tree)
    contract.check_levels_never_cost_more(space, rng)
    contract.check_last_levels_cost_least(space)
    contract.check_genomes_cost_as_candidates(space, rng)


def test_a_dropped_expert_saves_parameters_and_a_row_of_the_router():
    units, architecture = MIXTURE.units(), MIXTURE.architecture()
    model = cost_model(units, architecture, length=8)
    one = model.of([canonical({"model.layers.0.mlp.experts.3": DROP}, units)])
    dense, row = model.dense(), MIXTURE.hidden
    assert dense["params"] - one["params"].item() == 3 * MIXTURE.hidden * MIXTURE.ffn + row
    assert dense["active_params"] - one["active_params"].item() == row
    assert dense["flops"] - one["flops"].item() == 2 * row * 8
    unused = 2 * 2 * 3 * MIXTURE.hidden * MIXTURE.ffn
    assert dense["params"] - dense["active_params"] == unused


def test_patterns_are_not_asked_of_the_width_that_a_shared_expert_keeps():
    """Of 32 channels 10 are left, which 2:4 does not divide; it divides the 24 shared ones."""
    width = {"units": ["mlp"], "channels": [10], "multiple_of": 2, "protect": []}
    config = {"width": width, "sparsity": {"target": 0.5, "pattern": "2:4"}}
    with pytest.raises(ConfigError, match=r"leaves 'model.layers.0.mlp.experts.0.down_proj' 10"):
        space_of(config, SHARED)
    config["sparsity"]["match"] = ["*shared_expert*"]
    assert len(space_of(config, SHARED).encoding.matrices) == 3 * SHARED.layers


def test_a_dropped_mlp_voids_its_experts():
    units = SHARED.units()
    mlp, expert = "model.layers.1.mlp", "model.layers.1.mlp.experts.0"
    both = canonical({mlp: DROP, expert: DROP}, units)
    assert both == canonical({mlp: DROP}, units)
    zeros = {f"{mlp}.shared_expert.up_proj": Level(zeros=4)}
    assert canonical({mlp: DROP} | zeros, units) == canonical({mlp: DROP}, units)
    with pytest.raises(ConfigError, match=f"'{expert}': 'channels=4' is no level"):
        canonical({expert: Level(channels=4)}, units)


@pytest.mark.parametrize(
    ("decoder", "config", "message"),
    [
        (Decoder(), {"drop": {"units": ["expert"]}}, "this model is no mixture of experts"),
        (
            replace(MIXTURE, active=4),
            {"drop": {"units": ["expert"]}},
            "leaves no expert to remove",
        ),
        (Decoder(), {"drop": {}, "budget": {"active_params": 0.5}}, "this model is none"),
        (MIXTURE, {"drop": {}, "budget": {"latency": 0.5}}, "depends on the routing"),
        (MIXTURE, {"drop": {"units": ["block"], "merge": True}}, "experts of different blocks"),
    ],
)
def test_what_does_not_fit_is_refused(decoder, config, message):
    with pytest.raises(ConfigError, match=message):
        space_of(config, decoder)


def test_a_criterion_that_adds_a_bias_is_refused():
    config = SpaceConfig(width={"channels": [0.5], "multiple_of": 4, "units": ["mlp"]})
    with pytest.raises(ConfigError, match="experts of a mixture do not have"):
        build_space(MIXTURE.units(), MIXTURE.architecture(), config, adds_bias=True)


def test_a_budget_below_the_fewest_experts_cannot_be_reached():
    with pytest.raises(BudgetError, match="cannot be reached"):
        space_of({"drop": {"units": ["expert"]}, "budget": {"body_params": 0.4}})
