"""Costs of narrowed sub-layers against counts by hand, for three ways to build a block."""

from itertools import product

import numpy as np
import pytest

from evocompress.core.architecture import Architecture
from evocompress.core.canonical import canonical
from evocompress.core.config import SpaceConfig
from evocompress.core.errors import ConfigError
from evocompress.core.types import DROP, Level, Unit
from evocompress.space.budget import check_cost
from evocompress.space.build import build_space
from evocompress.space.costs import COSTS, ROUTED, SERVED, TIMED, TYPED, WRITTEN, cost_model
from evocompress.space.costs.latency import Conditions, LatencyTable, Phase
from evocompress.testing import costs as contract

D, E, F, V, LAYERS, LENGTH, WINDOW = 24, 4, 20, 50, 2, 9, 5


def model_of(attention, mlp, heads, kv_heads, own):
    """Units and dimensions of a model of two blocks, the second with a window.

    `attention` and `mlp` are {role: (out, in, rows, columns, bias)}.
    """
    units = []
    for index in range(LAYERS):
        block = f"b.{index}"
        units.append(Unit(block, "block", None, index, "block"))
        for kind, matrices in (("attention", attention), ("mlp", mlp)):
            parent = f"{block}.{kind}"
            units.append(Unit(parent, kind, block, index, kind))
            for role, (out, into, rows, columns, bias) in matrices.items():
                name = f"{parent}.{role}"
                shape = (out, into)
                units.append(Unit(name, "matrix", parent, index, role, shape, rows, columns, bias))
    architecture = Architecture(
        hidden=D,
        vocabulary=V,
        tied=False,
        outer_params=2 * V * D + D,
        heads=(heads,) * LAYERS,
        kv_heads=(kv_heads,) * LAYERS,
        head_dim=E,
        channels=(F,) * LAYERS,
        windows=(None, WINDOW),
        own_params=(own,) * LAYERS,
        dtype_bytes=4,
        context=64,
    )
    return units, architecture


QUERY, KEY, VALUE, CHANNEL = ("query",), ("key",), ("value",), ("channel",)
NONE = ()

# Llama with biases on the projections into the heads (Qwen2): 6 heads in 2 groups, one norm each.
LLAMA = model_of(
    {
        "q": (24, D, QUERY, NONE, True),
        "k": (8, D, KEY, NONE, True),
        "v": (8, D, VALUE, NONE, True),
        "o": (D, 24, NONE, QUERY, False),
    },
    {
        "gate": (F, D, CHANNEL, NONE, False),
        "up": (F, D, CHANNEL, NONE, False),
        "down": (D, F, NONE, CHANNEL, False),
    },
    heads=6,
    kv_heads=2,
    own=(D + 24 + 8 + 8, D),
)

# GPT-2: one projection for query, key and value; biases everywhere; norms with biases.
GPT2 = model_of(
    {"qkv": (72, D, (*QUERY, *KEY, *VALUE), NONE, True), "o": (D, 24, NONE, QUERY, True)},
    {"fc": (F, D, CHANNEL, NONE, True), "proj": (D, F, NONE, CHANNEL, True)},
    heads=6,
    kv_heads=6,
    own=(2 * D + 72 + D, 2 * D + F + D),
)

# Phi-3: fused projections, grouped queries, no biases.
PHI3 = model_of(
    {
        "qkv": (24 + 2 * 12, D, (*QUERY, *KEY, *VALUE), NONE, False),
        "o": (D, 24, NONE, QUERY, False),
    },
    {
        "gate_up": (2 * F, D, (*CHANNEL, *CHANNEL), NONE, False),
        "down": (D, F, NONE, CHANNEL, False),
    },
    heads=6,
    kv_heads=3,
    own=(D, D),
)


def llama_sizes(g, q, c):
    """(weights, others) of the attention and of the MLP, spelled out."""
    h = g * q
    attention = (h * E * D + 2 * g * E * D + D * h * E, D + h * E + 2 * g * E)
    return attention, (2 * c * D + D * c, D)


def gpt2_sizes(g, q, c):
    assert q == 1
    attention = (3 * g * E * D + D * g * E, 2 * D + 3 * g * E + D)
    return attention, (c * D + D * c, 2 * D + c + D)


def phi3_sizes(g, q, c):
    return ((g * q + 2 * g) * E * D + D * g * q * E, D), (2 * c * D + D * c, D)


MODELS = {
    "llama": (LLAMA, llama_sizes, (2, 3)),
    "gpt2": (GPT2, gpt2_sizes, (6, 1)),
    "phi3": (PHI3, phi3_sizes, (3, 2)),
}


def counted(sizes, widths, bias):
    """All costs of blocks of widths ((g, q) or None, c or None), counted token by token."""
    outer = 2 * V * D + D
    body = matrices = cache = 0
    flops, decode = LENGTH * 2 * D * V, 2 * D * V
    for window, (attention, c) in zip((None, WINDOW), widths, strict=True):
        g, q = attention or (0, 0)
        parts = sizes(g or 1, q or 1, c or 1)
        for (weights, others), kept in zip(parts, (attention, c), strict=True):
            if kept is None:
                continue
            matrices += weights
            body += weights + others + (D if bias else 0)
            flops += LENGTH * 2 * weights
            decode += 2 * weights
        for token in range(1, LENGTH + 1):
            seen = min(token, window or token)
            flops += 2 * 2 * g * q * E * seen
        decode += 2 * 2 * g * q * E * seen
        cache += 2 * min(LENGTH, window or LENGTH) * g * E * 4
    return {
        "params": outer + body,
        "body_params": body,
        "nonzeros": outer + body,
        "body_nonzeros": body,
        "matrix_nonzeros": matrices,
        "flops": flops,
        "decode_flops": decode,
        "weight_bytes": 4 * (outer + body),
        "kv_bytes": cache,
    }


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_costs_of_widths_equal_counts_by_hand(name, bias):
    (units, architecture), sizes, (groups, queries) = MODELS[name]
    model = cost_model(units, architecture, length=LENGTH)
    heads = [(g, q) for g, q in product(range(1, groups + 1), range(1, queries + 1))]
    for (g, q), c in product(heads[:-1], (1, 7, 19)):
        levels = {
            "b.0.attention": Level(kv_groups=g, group_heads=q, bias=bias),
            "b.0.mlp": Level(channels=c, bias=bias),
            "b.1.attention": Level(kv_groups=g, group_heads=q, bias=bias),
            "b.1.mlp": DROP,
        }
        got = model.of([canonical(levels, units)])
        expected = counted(sizes, [((g, q), c), ((g, q), None)], bias)
        assert {name: values.item() for name, values in got.items()} == expected


@pytest.mark.parametrize("name", MODELS)
def test_the_dense_model(name):
    (units, architecture), sizes, full = MODELS[name]
    dense = cost_model(units, architecture, length=LENGTH).dense()
    assert dense == counted(sizes, [(full, F)] * 2, bias=False)


def test_zeros_shrink_with_their_matrix():
    (units, architecture), _, _ = MODELS["llama"]
    model = cost_model(units, architecture)
    narrow = {"b.0.mlp": Level(channels=7), "b.1.attention": Level(kv_groups=1, group_heads=2)}
    sparse = {
        "b.0.mlp.up": Level(zeros=101),  # 480 weights, of which 168 are left
        "b.0.mlp.down": Level(zeros=240, pattern="2:4"),  # 480, 168
        "b.1.attention.k": Level(zeros=100),  # 192, 96
        "b.1.attention.o": Level(zeros=33),  # 576, 192
        "b.1.mlp.up": Level(zeros=13),  # all are left
    }
    zeros = 101 * 168 // 480 + 168 // 2 + 100 * 96 // 192 + 33 * 192 // 576 + 13
    without, both = (model.of([canonical(levels, units)]) for levels in (narrow, narrow | sparse))
    for name in COSTS.keys() - {*TIMED, *ROUTED, *TYPED, *SERVED, *WRITTEN}:
        saved = (without[name] - both[name]).item()
        assert saved == (zeros if name.endswith("nonzeros") else 0)


@pytest.mark.parametrize(
    ("name", "level", "message"),
    [
        ("b.0.mlp", Level(channels=21), "'channels=21': in this model it has 20 channels"),
        (
            "b.0.attention",
            Level(kv_groups=2, group_heads=4),
            "it has 2 key-value heads with 3 query heads each",
        ),
    ],
)
def test_levels_wider_than_the_model_are_refused(name, level, message):
    units, architecture = LLAMA
    with pytest.raises(ConfigError, match=message):
        cost_model(units, architecture).of([canonical({name: level}, units)])


# ---- contract


def table():
    attention = {(g, q): 0.1 + 0.03 * g * q + 0.01 * g for g in (1, 2) for q in (1, 2, 3)}
    phase = Phase(1, 8, 3.0, 0.4, attention, {1: 0.1, 10: 0.3, 20: 0.7})
    later = Phase(1, 8, 2.0, 0.2, attention, {1: 0.2, 20: 0.3})
    made = Conditions("cpu", "float32", 1, "sdpa", "2", "m", (1, 8), (1, 8))
    return LatencyTable(made, phase, later)


@pytest.mark.parametrize("latency", [None, table()])
@pytest.mark.parametrize(
    "config",
    [
        {"width": {"multiple_of": 3}, "drop": {"protect": []}},
        {"width": {"multiple_of": 3, "uniform": True}, "drop": {"units": ["block"]}},
        {"width": {"multiple_of": 1}, "drop": {}, "sparsity": {"target": 0.5, "levels": 2}},
        {"width": {"multiple_of": 1}, "sparsity": {"target": 0.3, "match": ["*.up", "*.o"]}},
    ],
)
def test_contract(config, latency):
    units, architecture = LLAMA
    space = build_space(units, architecture, SpaceConfig(**config), adds_bias=True, latency=latency)
    rng = np.random.default_rng(0)
    contract.check_described(space.cost_model)
    contract.check_last_levels_cost_least(space)
    for _ in range(5):
        contract.check_levels_never_cost_more(space, rng)
        contract.check_genomes_cost_as_candidates(space, rng)


# ---- latency


def test_latency_is_what_the_table_says():
    units, architecture = LLAMA
    model = cost_model(units, architecture, latency=table())
    levels = {
        "b.0.attention": Level(kv_groups=1, group_heads=2),
        "b.0.mlp": Level(channels=15),
        "b.1.attention": DROP,
    }
    costs = model.of([canonical(levels, units)])
    assert costs["latency"].item() == pytest.approx(0.4 + 0.17 + 0.5 + 0.7)
    phase = table().decode
    expected = phase.seconds(attention=[(1, 2)], mlp=[15, 20])
    assert costs["decode_latency"].item() == pytest.approx(expected)


def test_latency_without_a_table_is_refused():
    units, architecture = LLAMA
    config = SpaceConfig(drop={"protect": []}, budget={"latency": 0.7})
    with pytest.raises(ConfigError, match="space.budget: 'latency' needs .* `evocompress profile`"):
        build_space(units, architecture, config)
    space = build_space(units, architecture, config, latency=table())
    assert space.budget == {"latency": pytest.approx(0.7 * space.cost_model.dense()["latency"])}
    with pytest.raises(ConfigError, match="search.objectives: unknown cost 'latencie'; did you"):
        check_cost("latencie", space.cost_model, "search.objectives")
