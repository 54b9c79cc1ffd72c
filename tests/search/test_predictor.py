"""The predictor of the default search."""

import numpy as np

from evocompress.core.config import SpaceConfig
from evocompress.core.requests import Evaluate, MicroBatchValue, Result
from evocompress.search.auto.predictor import Predictor
from evocompress.space.build import build_space
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
