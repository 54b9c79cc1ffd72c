"""Spaces that fit a format: whatever is sampled from them, the format can express."""

from __future__ import annotations

from functools import cache, partial

import numpy as np
import pytest

from evocompress.core.config import SpaceConfig
from evocompress.core.errors import ConfigError
from evocompress.core.types import DROP
from evocompress.export import FORMATS
from evocompress.models.loading import LoadedModel
from evocompress.space import sampling
from evocompress.space.build import build_space
from evocompress.space.space import SearchSpace
from evocompress.testing.tiny import tiny_loaded

LAYERS = 3
WIDTH = {"multiple_of": 8, "protect": []}
SPACES = {
    "all": {"width": WIDTH, "drop": {"protect": []}, "sparsity": {"target": 0.5, "levels": 1}},
    "blocks": {"width": WIDTH, "drop": {"units": ["block"], "protect": []}},
    "uniform": {
        "width": {"multiple_of": 8, "uniform": True},
        "drop": {"units": ["block"], "protect": []},
    },
}


@cache
def model(family: str) -> LoadedModel:
    return tiny_loaded(family, layers=LAYERS)


def space_of(
    settings: dict, fits: str, family: str = "llama", *, bias: bool = False
) -> SearchSpace:
    loaded = model(family)
    return build_space(
        loaded.family.units(loaded.model),
        loaded.family.architecture(loaded.model),
        SpaceConfig.model_validate(settings | {"fits": fits}),
        adds_bias=bias,
        obstacle=partial(FORMATS[fits].obstacle, loaded),
    )


def any_genomes(space: SearchSpace, count: int) -> np.ndarray:
    """Any levels at all, of which sampling, mutation and repair only choose some."""
    rng = np.random.default_rng(0)
    genomes = rng.integers(0, space.encoding.sizes, size=(count, len(space.units)))
    return genomes[space.encoding.keep_attention(genomes)]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", SPACES)
@pytest.mark.parametrize("fits", sorted(FORMATS.built_in))
def test_every_candidate_can_be_written(fits: str, kind: str, bias: bool) -> None:
    loaded, space = model("llama"), space_of(SPACES[kind], fits, bias=bias)
    rng = np.random.default_rng(1)
    genomes = [
        *any_genomes(space, 30),
        *(sampling.random(space, rng) for _ in range(3)),
        sampling.uniform(space),
    ]
    candidates = {space.candidate(genome) for genome in genomes}
    assert len(candidates) > 4
    assert [c for c in candidates if FORMATS[fits].obstacle(loaded, c)] == []


@pytest.mark.parametrize("fits", ["gguf", "deci"])
def test_only_the_first_attention_is_protected(fits: str) -> None:
    space = space_of(SPACES["all"], fits)
    droppable = [
        unit.name for unit, levels in zip(space.units, space.levels, strict=True) if DROP in levels
    ]
    parts = [f"model.layers.{i}.{kind}" for i in range(LAYERS) for kind in ("attention", "mlp")]
    assert droppable == parts[1:]


def test_a_format_that_expresses_all_takes_nothing_away() -> None:
    free, bound = (space_of(SPACES["all"], fits) for fits in ("padded", "folded"))
    assert free.levels == bound.levels and free.units == bound.units


@pytest.mark.parametrize(
    ("settings", "fits", "family", "message"),
    [
        (
            {"drop": {}},
            "stock",
            "llama",
            "space.fits: format 'stock' cannot leave out model.layers.0.mlp alone, and so on: it "
            "can express nothing of this space",
        ),
        (
            {"drop": {}},
            "gguf",
            "opt",
            "space.fits: format 'gguf' cannot hold opt models",
        ),
        ({"drop": {}}, "deci", "mistral", "whose attention window is 8 tokens; choose another"),
    ],
)
def test_what_does_not_fit_is_told(settings: dict, fits: str, family: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        space_of(settings, fits, family)
    assert message in str(caught.value) and "\n" not in str(caught.value)
