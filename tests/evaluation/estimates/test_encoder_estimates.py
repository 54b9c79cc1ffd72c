"""Slopes and curvatures of models with one output a sequence, against finite differences."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from evocompress.compression.live_model import LiveModel
from evocompress.core.errors import ModelError
from evocompress.core.types import Candidate, Level
from evocompress.evaluation.estimates import ESTIMATES
from evocompress.evaluation.estimates.base import Subject
from evocompress.evaluation.estimates.score import random_direction, sampled_score
from evocompress.models.backward import Outputs
from evocompress.models.dummy_inputs import random_batch
from evocompress.models.loading import LoadedModel
from evocompress.testing.plain_library import PlainLibrary
from evocompress.testing.probes import answer
from evocompress.testing.proxies import dropped
from evocompress.testing.tiny import ENCODERS, SCORER, tiny_loaded

STEP = 1e-4


class Case:
    """A double-precision model without one sub-layer, and a matrix with zeros in another."""

    def __init__(self, name: str) -> None:
        self.loaded: LoadedModel = tiny_loaded(name, dtype=torch.float64)
        self.library = PlainLibrary(self.loaded)
        self.candidate = dropped(self.loaded, "1.attention")
        family = self.loaded.family
        self.matrix = f"{family.layers_path}.0.{family.output('mlp').path}"
        self.level = Level(zeros=3000)
        batch = random_batch(family.task, self.loaded.model, 3, 12)
        self.sequences = [part.double() if part.is_floating_point() else part for part in batch]

    def estimate(self, kind: str) -> Tensor:
        """The values of the level for each sequence."""
        with LiveModel(self.loaded, self.library) as live:
            batch = torch.stack(self.sequences)
            subject = Subject(live, [batch], self.candidate, {self.matrix: [self.level]})
            return torch.tensor(ESTIMATES[kind](subject)[self.matrix], dtype=torch.float64)

    def outputs(self, candidate: Candidate, step: float = 0.0) -> Tensor:
        """The outputs with so much of the change of the matrix (3, V)."""
        with LiveModel(self.loaded, self.library) as live:
            live.apply(candidate)
            weight = self.loaded.model.get_parameter(f"{self.matrix}.weight")
            now, then = weight.data, self.library.load(self.matrix, self.level)["weight"]
            weight.data = now + step * (then - now)
            try:
                parts = [sequence[None] for sequence in self.sequences]
                model, family = self.loaded.model, self.loaded.family
                return torch.cat([answer(family, model, part) for part in parts])
            finally:
                weight.data = now

    def derivative(self, value: Callable[[Tensor], Tensor]) -> Tensor:
        """Of a value of the outputs, along the change of the matrix."""
        up, down = (value(self.outputs(self.candidate, step)) for step in (STEP, -STEP))
        return (up - down) / (2 * STEP)


def compared(case: Case) -> str:
    return case.loaded.family.task.compared


@pytest.mark.parametrize("name", [*ENCODERS, SCORER])
def test_the_slope_is_the_derivative_of_the_distance(name: str) -> None:
    case = Case(name)
    dense = case.outputs(Candidate())

    def distance(outputs: Tensor) -> Tensor:
        if compared(case) == "embeddings":
            return 1 - (outputs * dense).sum(-1)
        if compared(case) == "scores":
            return (outputs - dense).square().sum(-1) / 2
        p = dense.softmax(-1)
        return (p * (p.log() - outputs.log_softmax(-1))).sum(-1)

    expected = case.derivative(distance)
    torch.testing.assert_close(case.estimate("slope"), expected, rtol=1e-4, atol=1e-7)
    assert expected.abs().max() > 1e-4


@pytest.mark.parametrize("name", [*ENCODERS, SCORER])
def test_the_curvature_is_the_derivative_along_what_is_drawn(name: str) -> None:
    case = Case(name)
    now = case.outputs(case.candidate)
    directions = []
    for sequence, outputs in zip(case.sequences, now, strict=True):
        ids, given = sequence[None], Outputs(outputs[None])
        loss = sampled_score(ids, case.candidate, 1)
        if compared(case) != "logits":
            loss = random_direction(ids, case.candidate, outputs.shape[-1])
        directions.append(loss(given, slice(0, 1))[0].double())
    along = torch.stack(directions)
    if compared(case) == "logits":
        drawn = along.argmax(-1)
        expected = case.derivative(lambda outputs: outputs.log_softmax(-1)[range(3), drawn])
    else:
        expected = case.derivative(lambda outputs: (outputs * along).sum(-1))
    torch.testing.assert_close(case.estimate("curvature"), expected, rtol=1e-4, atol=1e-6)
    both = case.estimate("linearised").view(2, 3)
    torch.testing.assert_close(both[1], case.estimate("curvature"))
    torch.testing.assert_close(both[0], case.estimate("slope"))


@pytest.mark.parametrize("kind", ["taylor", "perturbation"])
def test_what_needs_a_next_token_is_refused(kind: str) -> None:
    with pytest.raises(ModelError, match="tells the next token, but tiny:vit is one for image"):
        Case("vit").estimate(kind)


@pytest.mark.parametrize("kind", ["block_influence", "angular_distance", "fluctuation", "outliers"])
@pytest.mark.parametrize("name", ENCODERS)
def test_what_looks_at_states_needs_no_head(kind: str, name: str) -> None:
    case = Case(name)
    with LiveModel(case.loaded, case.library) as live:
        rows = ESTIMATES[kind](Subject(live, [torch.stack(case.sequences)], case.candidate))
    assert rows and all(value == value for row in rows.values() for value in row)
