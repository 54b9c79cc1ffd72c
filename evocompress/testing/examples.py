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

DROPS = SpaceConfig.model_validate({"drop": {}, "budget": {"body_params": 0.7}})
"""The space of examples that name none: what is left has 70% of the parameters."""


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


def yaml_sections(text: str | None) -> list[dict[str, Any]]:
    """The run file's sections that a docstring shows as YAML."""
    blocks = re.findall(r"(?s)```yaml\n(.*?)```", cleandoc(text or ""))
    return [read_yaml_text(block, "docstring") for block in blocks]


def searcher(made: type[Searcher], space: SpaceConfig = DROPS, **settings: Any) -> Searcher:
    """A searcher of a model of numbers alone with four blocks, and 64 times 1,024 tokens.

    The model has two blocks with experts where these are dropped, and is wider where matrices have
    types.
    """
    tokens = settings.pop("tokens", None)
    mixture = space.drop is not None and "expert" in space.drop.units
    decoder = Decoder(layers=2, experts=4, active=1) if mixture else Decoder()
    decoder = Decoder(hidden=64) if space.bits else decoder
    found = build_space(decoder.units(), decoder.architecture(), space)
    problem = Problem(found, Pool((1024,) * 64), tokens)
    return made(problem, made.Settings(**settings), np.random.default_rng(0))


def winner(made: type[Searcher]) -> dict[str, str]:
    """What the best candidate of the search that a class's docstring shows does to which unit."""
    [sections] = yaml_sections(made.__doc__)
    told = {key: value for key, value in sections["search"].items() if key != "name"}
    search = searcher(made, SpaceConfig.model_validate(sections["space"]), **told)
    run(search, Separable.of(search.space))
    best = search.incumbent()
    assert best is not None
    return {name.split(".", 2)[2]: level.key for name, level in best.candidate.levels}
