"""The predictor of the default search."""

import numpy as np

from evocompress.core.config import SpaceConfig
from evocompress.core.requests import Evaluate, MicroBatchValue, Result
from evocompress.search.auto.predictor import Predictor
from evocompress.search.fidelity.racing import Scoreboard
from evocompress.search.fidelity.rungs import Rung
from evocompress.space.build import build_space
from evocompress.testing import examples
from evocompress.testing.decoders import Decoder


def space_of(**config):
    decoder = Decoder(layers=2)
    return build_space(decoder.units(), decoder.architecture(), SpaceConfig(**config))


def test_a_forecast_fills_in_what_was_not_tried():
    space = space_of(
        width={"channels": [0.25, 0.5, 0.75], "multiple_of": 8, "protect": []},
        drop={"protect": []},
        budget={"body_params": 0.6},
    )
    first = space.encoding.default
    gene = int(space.encoding.widths[-1])
    changed = first.copy()
    changed[gene] = len(space.levels[gene]) - 1
    forecast = Predictor(space, surrogate=False)
    results = [
        Result(Evaluate(space.candidate(genome), (0,)), (MicroBatchValue(0, (value,), (10,)),))
        for genome, value in ((first, 0.0), (changed, 4.0))
    ]
    forecast.learn_effects([first, changed], results)
    rows = np.tile(first, (len(space.levels[gene]), 1))
    rows[:, gene] = np.arange(len(rows))
    found = forecast.guide()[1].predict(rows)
    np.testing.assert_allclose(found, np.linspace(0, 0.4, len(rows)))


def test_a_model_guides_once_it_has_proved_itself():
    space, board = examples.space(), Scoreboard()
    rows = np.random.default_rng(0).permutation(64)[:, None] >> np.arange(6) & 1
    candidates = [space.candidate(row) for row in rows]
    for row, candidate in zip(rows, candidates, strict=True):
        value = MicroBatchValue(0, (float(10 * np.exp(row.sum())),), (10,))
        board.add([Result(Evaluate(candidate, (0,)), (value,))])
    genomes = {each.id: row for each, row in zip(candidates, rows, strict=True)}
    predictor, told = Predictor(space, surrogate=True), []
    assert predictor.guide() == ("unguided", None)
    for begin in range(0, 64, 16):
        raced = candidates[begin : begin + 16]
        predictor.learn(board, candidates[0], raced, genomes, [Rung(10, 1, (0,))])
        told.append(predictor.guide()[0])
    assert told == ["unguided", *3 * ["guided by a model (ridge) of what was measured"]]


def test_estimates_guide_until_another_prediction_is_given():
    predictor = Predictor(examples.space(), surrogate=False)
    predictor.expect([np.array([0.0, 1.0])] * 6)
    assert predictor.guide()[0] == "guided by estimates"
    predictor.believe("the weather", lambda rows: rows.sum(axis=1))
    name, guide = predictor.guide()
    assert name == "guided by the weather"
    assert guide.predict(np.eye(2, 6)).tolist() == [1.0, 1.0]
