"""Costs against formulas written out matrix by matrix, and against the contract."""

import numpy as np
import pytest

from evocompress.core.canonical import canonical
from evocompress.core.config import SpaceConfig
from evocompress.core.errors import ConfigError
from evocompress.core.types import DROP, Candidate, Level
from evocompress.space.build import build_space
from evocompress.space.costs import COSTS, cost_model
from evocompress.testing import costs as contract
from evocompress.testing.decoders import SMOLLM2_135M, Decoder

DECODER = Decoder(layers=3, window=5)
UNITS = DECODER.units()
LENGTH = 12
JOINT = SpaceConfig(sparsity={"target": 0.5, "levels": 2}, drop={}, budget={"matrix_nonzeros": 0.4})


def counted(candidate: Candidate, length: int) -> dict[str, float]:
    """All costs of a candidate, token by token and matrix by matrix."""
    d, f, v = DECODER.hidden, DECODER.ffn, DECODER.vocabulary
    e, h, kv = DECODER.head_dim, DECODER.heads, DECODER.kv_heads
    embedding = v * d
    params = outer = embedding + d
    matrices = cache = 0
    prefill, decode = length * 2 * embedding, 2 * embedding
    for layer in range(DECODER.layers):
        window = DECODER.window if layer % 2 else None
        if f"model.layers.{layer}.attention" not in candidate.by_name:
            weights = d * h * e + 2 * d * kv * e + h * e * d
            params += weights + d
            matrices += weights
            for token in range(1, length + 1):
                seen = min(token, window) if window else token
                scores_and_sum = 2 * (2 * h * e * seen)
                prefill += 2 * weights + scores_and_sum
            decode += 2 * weights + scores_and_sum
            cache += sum(2 * kv * e * 2 for _ in range(min(length, window or length)))
        if f"model.layers.{layer}.mlp" not in candidate.by_name:
            weights = 3 * d * f
            params += weights + d
            matrices += weights
            prefill += length * 2 * weights
            decode += 2 * weights
    zeros = sum(level.zeros for _, level in candidate.levels)
    return {
        "params": params,
        "body_params": params - outer,
        "nonzeros": params - zeros,
        "body_nonzeros": params - outer - zeros,
        "matrix_nonzeros": matrices - zeros,
        "flops": prefill,
        "decode_flops": decode,
        "weight_bytes": 2 * params,
        "kv_bytes": cache,
    }


@pytest.mark.parametrize("length", [1, 4, 5, LENGTH])
@pytest.mark.parametrize(
    "levels",
    [
        {},
        {"model.layers.0.attention": DROP},
        {"model.layers.1.attention": DROP, "model.layers.1.mlp": DROP},
        {"model.layers.2.mlp.up_proj": Level(zeros=100), "model.layers.0.mlp": DROP},
        {"model.layers.1": DROP, "model.layers.1.mlp.up_proj": Level(zeros=100)},
    ],
)
def test_costs_equal_counts_by_hand(levels, length):
    candidate = canonical(levels, UNITS)
    model = cost_model(UNITS, DECODER.architecture(), length=length)
    got = {name: values.item() for name, values in model.of([candidate]).items()}
    assert got == counted(candidate, length)


def test_contract():
    space = build_space(UNITS, DECODER.architecture(), JOINT)
    rng = np.random.default_rng(0)
    contract.check_described(space.cost_model)
    contract.check_drops_are_additive(space.cost_model, UNITS)
    for _ in range(5):
        contract.check_levels_never_cost_more(space, rng)
        contract.check_genomes_cost_as_candidates(space, rng)
    contract.check_last_levels_cost_least(space)


def test_smollm2_has_its_published_size():
    model = cost_model(SMOLLM2_135M.units(), SMOLLM2_135M.architecture())
    assert model.dense()["params"] == 134_515_008
    assert model.length == 512


def test_default_length_is_cut_to_the_context():
    small = Decoder(context=20)
    assert cost_model(small.units(), small.architecture()).length == 20


@pytest.mark.parametrize("length", [0, DECODER.context + 1])
def test_length_outside_the_context_is_refused(length):
    with pytest.raises(ConfigError, match="1 to 128 tokens"):
        cost_model(UNITS, DECODER.architecture(), length=length)


def test_every_cost_is_described():
    assert all(description for description in COSTS.values())
