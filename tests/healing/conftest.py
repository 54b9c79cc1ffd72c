from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from evocompress.core.types import DROP, Candidate, Level
from evocompress.export import materialize
from evocompress.models.loading import LoadedModel
from evocompress.testing.tiny import tiny_loaded


class HalfZeros:
    """Every second weight is zero."""

    fingerprint = "0123456789abcdef"

    def __init__(self, loaded: LoadedModel) -> None:
        self.model = loaded.model

    def load(self, unit_name: str, level: Level) -> dict[str, Tensor]:
        weight = self.model.get_parameter(f"{unit_name}.weight").detach().clone()
        weight.view(-1)[::2] = 0
        return {"weight": weight}


@pytest.fixture
def teacher() -> LoadedModel:
    return tiny_loaded("llama")


@pytest.fixture
def student(teacher: LoadedModel, tmp_path: Path) -> Path:
    """Half of the MLP weights are zero, and the middle block has no attention."""
    units = teacher.family.units(teacher.model)
    sparse = {
        unit.name: Level(zeros=unit.numel // 2)
        for unit in units
        if unit.kind == "matrix" and "mlp" in unit.name
    }
    levels = sparse | {"model.layers.1.attention": DROP}
    candidate = Candidate(tuple(sorted(levels.items())))
    return materialize(teacher, HalfZeros(teacher), candidate, tmp_path / "student")


def random_tokens(count: int, seed: int) -> Tensor:
    return torch.randint(1, 240, (count, 16), generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def train() -> Tensor:
    return random_tokens(8, seed=1)


@pytest.fixture
def validation() -> Tensor:
    return random_tokens(4, seed=2)
