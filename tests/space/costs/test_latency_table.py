"""Latency tables: sums and interpolation of parts, and their JSON form."""

import json
from dataclasses import replace

import pytest

from evocompress.core.errors import ConfigError
from evocompress.space.costs.latency import Conditions, LatencyTable, Phase

PHASE = Phase(
    batch=1,
    tokens=512,
    dense=0.5,
    base=0.1,
    attention={(1, 1): 0.01, (1, 3): 0.02, (3, 1): 0.03, (3, 3): 0.08},
    mlp={32: 0.01, 96: 0.02, 224: 0.04},
    scale=1.05,
    offset=-0.01,
    spread=0.04,
    errors=(0.01, -0.02),
)
MADE = Conditions("cpu: X", "bfloat16", 2, "sdpa", "2.13", "abc", (1, 512), (1, 128))
TABLE = LatencyTable(MADE, PHASE, replace(PHASE, tokens=128, graph=True))


@pytest.mark.parametrize(
    ("width", "seconds"),
    [
        ((1, 1), 0.01),
        ((3, 3), 0.08),
        ((1, 2), 0.015),
        ((2, 1), 0.02),
        ((2, 2), (0.01 + 0.02 + 0.03 + 0.08) / 4),
    ],
)
def test_attention_between_measured_widths(width, seconds):
    assert PHASE.attention_seconds(*width) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("channels", "seconds"), [(32, 0.01), (64, 0.015), (96, 0.02), (160, 0.03), (224, 0.04)]
)
def test_mlp_between_measured_widths(channels, seconds):
    assert PHASE.mlp_seconds(channels) == pytest.approx(seconds)


def test_narrower_than_measured_costs_as_the_narrowest():
    assert PHASE.mlp_seconds(1) == 0.01


def test_heads_that_have_no_groups_of_queries():
    phase = replace(PHASE, attention={(2, 1): 0.02, (4, 1): 0.06})
    assert phase.attention_seconds(3, 1) == pytest.approx(0.04)
    assert phase.full == ((4, 1), 224)


def test_a_model_is_the_sum_of_its_parts():
    assert PHASE.seconds([], []) == 0.1
    seconds = PHASE.seconds([(3, 3), (1, 3)], [96, 96, 160])
    assert seconds == pytest.approx(0.1 + 0.08 + 0.02 + 2 * 0.02 + 0.03)


def test_json_holds_everything():
    text = json.dumps(TABLE.to_json(), allow_nan=False)
    assert LatencyTable.from_json(json.loads(text), "table.json") == TABLE


def test_a_table_that_says_nothing_of_corrections_has_none():
    data = json.loads(json.dumps(TABLE.to_json()))
    for key in ("scale", "offset", "spread", "errors", "graph"):
        del data["phases"]["decode"][key]
    found = LatencyTable.from_json(data, "table.json").decode
    plain = Phase(1, 128, PHASE.dense, PHASE.base, PHASE.attention, PHASE.mlp)
    assert found == plain
    assert not found.graph


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data.pop("made"),
        lambda data: data["made"].pop("prefill"),
        lambda data: data["made"].update(weather="fine"),
        lambda data: data["phases"].pop("decode"),
        lambda data: data["phases"]["prefill"].pop("base"),
        lambda data: data["phases"]["prefill"].update(mlp=[[32]]),
        lambda data: data["phases"]["prefill"].update(mlp=[[32, "long"]]),
        lambda data: data["phases"]["prefill"].update(attention=[]),
        lambda data: data["phases"]["prefill"]["attention"].pop(),
        lambda data: data["phases"]["prefill"].update(mlp=[[32, float("nan")]]),
        lambda data: data["phases"]["prefill"].update(batch=float("inf")),
        lambda data: data["phases"]["prefill"].update(errors=7),
        lambda data: data["phases"].update(decode=[]),
        lambda data: data.update(phases=None),
        lambda data: data["made"].update(threads="many"),
    ],
)
def test_something_else_is_refused_in_one_line(damage):
    data = json.loads(json.dumps(TABLE.to_json()))
    damage(data)
    with pytest.raises(ConfigError, match=r"^some/file\.json is no latency table") as caught:
        LatencyTable.from_json(data, "some/file.json")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("data", [None, [], {}, 3, "text", {"made": 1}])
def test_json_of_another_shape_is_refused(data):
    with pytest.raises(ConfigError, match="is no latency table"):
        LatencyTable.from_json(data, "some/file.json")
