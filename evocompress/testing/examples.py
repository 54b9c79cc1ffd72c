"""What examples in docstrings begin with: the space and the level library of a tiny model."""

from __future__ import annotations

from pathlib import Path

import torch

from evocompress.compression.library import Library, build_library
from evocompress.core.config import LibraryConfig
from evocompress.core.space_config import SpaceConfig
from evocompress.core.types import Level
from evocompress.space.build import build_space
from evocompress.space.space import SearchSpace
from evocompress.testing.tiny import tiny_loaded


def space(**budget: float) -> SearchSpace:
    """The drops of attentions and MLPs of a Llama with three blocks."""
    family, model = (loaded := tiny_loaded()).family, loaded.model
    config = SpaceConfig.model_validate({"drop": {}, "budget": budget})
    return build_space(family.units(model), family.architecture(model), config)


def library(path: Path) -> Library:
    """One matrix with half of its weights zero, written to a folder."""
    wanted = {"model.layers.0.mlp.up_proj": (Level(zeros=5632),)}
    config, tokens = LibraryConfig(criterion="magnitude"), torch.arange(64)[None]
    return build_library(tiny_loaded(), wanted, tokens, "text", config, path, batch=1)
