"""winner.json as it is read back."""

import json

import pytest

from evocompress.core.errors import RunError
from evocompress.core.files import write_json
from evocompress.core.types import DROP, Candidate
from evocompress.pipeline.winner import read_winner

WHOLE = {
    "id": "w",
    "value": 0.5,
    "levels": {"model.layers.0.mlp": {"drop": True}},
    "costs": {"params": 3.0},
    "dense_costs": {"params": 4.0},
    "budget": {"params": 3.5},
    "front": None,
}


def test_a_winner_comes_back(tmp_path):
    write_json(tmp_path / "winner.json", WHOLE)
    winner = read_winner(tmp_path / "winner.json")
    assert winner.candidate == Candidate((("model.layers.0.mlp", DROP),))
    assert winner.by_name() == {"model.layers.0.mlp": DROP} and winner.value == 0.5


@pytest.mark.parametrize(
    "data",
    [
        {},
        None,
        [],
        7,
        WHOLE | {"levels": None},
        WHOLE | {"levels": {"model.layers.0.mlp": 3}},
        WHOLE | {"levels": {"model.layers.0.mlp": {"drop": "yes"}}},
        WHOLE | {"levels": {"model.layers.0.mlp": {"zeros": 0}}},
        WHOLE | {"levels": {"model.layers.0.mlp": {"zeros": 1.5}}},
        WHOLE | {"value": "small"},
        WHOLE | {"value": float("nan")},
        WHOLE | {"costs": {"params": float("inf")}},
        WHOLE | {"front": []},
    ],
)
def test_another_shape_is_one_line(tmp_path, data):
    path = tmp_path / "winner.json"
    path.write_text(json.dumps(data))
    with pytest.raises(RunError, match="winner.json is damaged.*search --resume") as caught:
        read_winner(path)
    assert "\n" not in str(caught.value)
