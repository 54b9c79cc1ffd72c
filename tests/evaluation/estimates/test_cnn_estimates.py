"""Estimates of CNNs: norms of branches, and channels that come twice."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace

import pytest
import torch

from evocompress.compression.live_model import LiveModel
from evocompress.core.errors import ModelError
from evocompress.core.types import DROP, Candidate, Level
from evocompress.evaluation.estimates import ESTIMATES
from evocompress.evaluation.estimates.base import Subject
from evocompress.evaluation.estimates.changes import wide_form
from evocompress.models.loading import LoadedModel
from evocompress.testing.plain_library import PlainLibrary
from evocompress.testing.probes import answer
from evocompress.testing.staged import require_packages
from evocompress.testing.tiny import tiny_resnet

STAGES = "resnet.encoder.stages"
UNIT = f"{STAGES}.1.layers.1.mlp"
LEVELS = [Level(channels=3), Level(channels=2, bias=True), DROP]
CANDIDATE = Candidate(((UNIT, Level(channels=4)),))
STEP = 1e-4


@pytest.fixture(params=["basic", "bottleneck"])
def loaded(request: pytest.FixtureRequest) -> LoadedModel:
    require_packages("resnet")
    return tiny_resnet(request.param, layers=3)


@pytest.fixture
def pixels() -> torch.Tensor:
    return torch.randn(3, 1, 32, 32, generator=torch.Generator().manual_seed(3))


def moved(loaded: LoadedModel, pixels: torch.Tensor, level: Level, step: float) -> torch.Tensor:
    """The outputs of the candidate with so much of what a level changes."""
    model = loaded.model
    with (
        LiveModel(loaded, PlainLibrary(loaded)) as live,
        wide_form(live, CANDIDATE, {UNIT: [level]}) as wide,
        ExitStack() as undo,
    ):
        now = wide.values(live.units[UNIT], wide.current(UNIT))
        then = wide.values(live.units[UNIT], level)
        for name in {*now, *then}:
            parameter = model.get_parameter(name)
            undo.callback(setattr, parameter, "data", parameter.data)
            zero = torch.zeros_like(parameter)
            one, other = (v[name].whole(zero) if name in v else zero for v in (now, then))
            parameter.data = one + step * (other - one)
        return answer(loaded.family, model, pixels)


@pytest.mark.parametrize("level", LEVELS, ids=str)
def test_all_that_a_level_changes_makes_the_level(
    loaded: LoadedModel, pixels: torch.Tensor, level: Level
) -> None:
    with LiveModel(loaded, PlainLibrary(loaded)) as live:
        live.apply(Candidate(((UNIT, level),)))
        expected = answer(loaded.family, loaded.model, pixels)
    torch.testing.assert_close(moved(loaded, pixels, level, 1), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("level", LEVELS, ids=str)
def test_the_slope_is_the_derivative(
    loaded: LoadedModel, pixels: torch.Tensor, level: Level
) -> None:
    loaded, pixels = replace(loaded, model=loaded.model.double()), pixels.double()
    dense = answer(loaded.family, loaded.model, pixels).softmax(-1)
    with LiveModel(loaded, PlainLibrary(loaded)) as live:
        subject = Subject(live, [pixels], CANDIDATE, {UNIT: [CANDIDATE.by_name[UNIT], level]})
        rows = torch.tensor(ESTIMATES["slope"](subject)[UNIT], dtype=torch.float64)
    now, slopes = rows.view(2, -1)
    assert not now.any()

    def distance(step: float) -> torch.Tensor:
        log_q = moved(loaded, pixels, level, step).log_softmax(-1)
        return (dense * (dense.log() - log_q)).sum(-1)

    expected = (distance(STEP) - distance(-STEP)) / (2 * STEP)
    torch.testing.assert_close(slopes, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("kind", ["block_influence", "fluctuation", "magnitude", "linearised"])
def test_they_are_about_every_unit(loaded: LoadedModel, pixels: torch.Tensor, kind: str) -> None:
    with LiveModel(loaded, PlainLibrary(loaded)) as live:
        rows = ESTIMATES[kind](Subject(live, [pixels], Candidate(), {UNIT: LEVELS}))
    assert UNIT in rows or f"{STAGES}.1.layers.1.layer.0.convolution" in rows
    assert not any(name.endswith(".attention") for name in rows)
    if kind == "fluctuation":
        architecture = loaded.family.architecture(loaded.model)
        assert [len(row) for row in rows.values()] == list(architecture.channels)


def test_angular_distances_need_one_shape(loaded: LoadedModel, pixels: torch.Tensor) -> None:
    with LiveModel(loaded, PlainLibrary(loaded)) as live:
        subject = Subject(live, [pixels], Candidate(), {})
        with pytest.raises(ModelError, match="need a state of one shape"):
            ESTIMATES["angular_distance"](subject)
