from __future__ import annotations

import pytest
import torch
from torch import Tensor

from evocompress.models.families.branches import ABSENT
from evocompress.models.loading import LoadedModel
from evocompress.testing.tiny import NAMES, declared, tiny_loaded

LAYERS = 4
HEADLESS = ("classifier", "embedding")


ALIKE = tuple(f"{name}-{kind}" for name in ("mistral", "qwen2", "gemma2") for kind in HEADLESS)
"""Written as others are with another head."""

TRANSFORMERS = sorted(
    name for name in NAMES if declared(name).attention is not ABSENT and name not in ALIKE
)
"""Checkpoints of the others, CNNs, have tests of their own."""


@pytest.fixture(params=TRANSFORMERS)
def loaded(request: pytest.FixtureRequest) -> LoadedModel:
    return tiny_loaded(request.param, layers=LAYERS)


@pytest.fixture
def llama() -> LoadedModel:
    return tiny_loaded("llama", layers=LAYERS)


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(1, 240, (2, 24), generator=torch.Generator().manual_seed(1))
