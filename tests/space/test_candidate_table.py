"""Candidates put together from a table are those that the canonical form of the levels gives."""

import numpy as np
import pytest

from evocompress.core.canonical import canonical, merge_levels
from evocompress.core.config import SpaceConfig
from evocompress.core.errors import ConfigError
from evocompress.space import encoding
from evocompress.space.build import build_space
from evocompress.testing.decoders import Decoder

DECODER = Decoder(layers=4, heads=4, kv_heads=2, ffn=48)
MIXTURE = Decoder(layers=3, experts=4, active=2, shared=24)
SPARSITY = {"sparsity": {"target": 0.5, "levels": 3}}
WIDTH = {"width": {"channels": [0.75, 0.5], "multiple_of": 4, "protect": []}}
DROP = {"drop": {"units": ["attention", "mlp"], "protect": []}}
BUDGET = {"budget": {"body_nonzeros": 0.9}}
SPACES = {
    "sparsity": (DECODER, SPARSITY),
    "widths": (DECODER, WIDTH | BUDGET),
    "all": (DECODER, SPARSITY | WIDTH | DROP | BUDGET),
    "blocks": (
        DECODER,
        SPARSITY | {"drop": {"units": ["block"], "protect": []}} | BUDGET,
    ),
    "merged": (DECODER, {"drop": {"units": ["block"], "merge": True, "protect": []}} | BUDGET),
    "removed experts": (
        MIXTURE,
        {"drop": {"units": ["expert", "block"], "protect": []}} | BUDGET,
    ),
    "uniform": (
        DECODER,
        {"width": {"channels": [0.5], "multiple_of": 4, "uniform": True}} | BUDGET,
    ),
    "experts": (
        MIXTURE,
        SPARSITY
        | {"width": {"units": ["mlp"], "channels": [0.5], "multiple_of": 4, "protect": []}}
        | {"drop": {"units": ["expert", "mlp"], "protect": []}}
        | BUDGET,
    ),
}


@pytest.fixture(params=SPACES)
def space(request):
    decoder, config = SPACES[request.param]
    return build_space(decoder.units(), decoder.architecture(), SpaceConfig.model_validate(config))


def defined(space, genome):
    """The candidate as the words define it, or what is wrong with the genome."""
    known = space.encoding
    levels = {
        unit.name: known.levels[gene][index]
        for gene, index in enumerate(genome.tolist())
        for unit in known.members[gene]
    }
    if known.merges:
        levels |= merge_levels(known.tree, {name for name, level in levels.items() if level.drop})
    return _or_error(canonical, levels, known.tree)


def _or_error(make, *arguments):
    try:
        return make(*arguments)
    except ConfigError as error:
        return str(error)


def test_candidates_are_as_defined(space):
    rng = np.random.default_rng(0)
    for genome in rng.integers(0, space.encoding.sizes, size=(60, len(space.units))):
        wanted = defined(space, genome)
        assert _or_error(space.candidate, genome) == wanted
        assert _or_error(space.candidate, genome) == wanted  # remembered


def test_a_genome_that_is_changed_in_place_is_another_candidate(space):
    genome = space.encoding.default.copy()
    before = space.candidate(genome)
    genome[0] = (genome[0] + 1) % space.encoding.sizes[0]
    assert space.candidate(genome) == defined(space, genome) != before


def test_only_so_many_candidates_are_remembered(space, monkeypatch):
    monkeypatch.setattr(encoding, "_KNOWN", 2)
    changed = np.tile(space.encoding.default, (2, 1))
    changed[[0, 1], [0, -1]] = (changed[0, [0, -1]] + 1) % space.encoding.sizes[[0, -1]]
    kept = space.candidate(space.encoding.default)
    assert space.candidate(space.encoding.default.copy()) is kept
    for genome in changed:
        space.candidate(genome)
    again = space.candidate(space.encoding.default)
    assert again == kept
    assert again is not kept
