"""What examples in docstrings begin with: a space, a level library and a search of tiny models."""

from __future__ import annotations

import re
from inspect import cleandoc
from pathlib import Path
from typing import Any

import numpy as np
import torch

from evocompress.compression.library import Library, build_library
from evocompress.core.config import LibraryConfig
from evocompress.core.requests import Pool
from evocompress.core.space_config import SpaceConfig
from evocompress.core.strict_yaml import read_yaml_text
from evocompress.core.types import Level
from evocompress.search.base import Problem, Searcher
from evocompress.space.build import build_space
from evocompress.space.space import SearchSpace
from evocompress.testing.decoders import Decoder
from evocompress.testing.searchers import Separable, run
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


def shown(text: str | None) -> list[dict[str, Any]]:
    """The run file's sections that a docstring shows as YAML."""
    blocks = re.findall(r"(?s)```yaml\n(.*?)```", cleandoc(text or ""))
    return [read_yaml_text(block, "docstring") for block in blocks]


def winner(searcher: type[Searcher]) -> dict[str, str]:
    """What the best candidate does to which unit, in the search that the class's docstring shows.

    The model is one of numbers alone with four blocks, or two with experts where these are dropped.
    """
    [sections] = shown(searcher.__doc__)
    config = SpaceConfig.model_validate(sections["space"])
    settings = {key: value for key, value in sections["search"].items() if key != "name"}
    tokens = settings.pop("tokens", None)
    mixture = config.drop is not None and "expert" in config.drop.units
    decoder = Decoder(layers=2, experts=4, active=1) if mixture else Decoder()
    space = build_space(decoder.units(), decoder.architecture(), config)
    problem = Problem(space, Pool((1024,) * 64), tokens)
    made = searcher(problem, searcher.Settings(**settings), np.random.default_rng(0))
    run(made, Separable.of(space))
    best = made.incumbent()
    assert best is not None
    return {name.split(".", 2)[2]: level.key for name, level in best.candidate.levels}
