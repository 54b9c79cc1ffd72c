"""What is remembered of one genome is what would be found anew."""

import numpy as np
import pytest

from evocompress.core.config import SpaceConfig
from evocompress.space.build import build_space
from evocompress.testing.decoders import Decoder

DECODER = Decoder(layers=4)
CONFIG = {
    "sparsity": {"target": 0.5, "levels": 2},
    "drop": {"protect": []},
    "budget": {"body_nonzeros": 0.4},
}


def space_of():
    config = SpaceConfig.model_validate(CONFIG)
    return build_space(DECODER.units(), DECODER.architecture(), config)


def answers(space, genomes):
    known = space.encoding
    return known.states(genomes), known.inactive(genomes), space.budget_usage(genomes)


def test_answers_about_one_genome_are_those_about_many():
    space = space_of()
    rng = np.random.default_rng(0)
    genomes = rng.integers(0, space.encoding.sizes, size=(20, len(space.units)))
    every = answers(space, genomes)
    for turn in range(2):
        for index in range(20):
            found = answers(space, genomes[index][None])
            again = answers(space, genomes[index][None].copy())
            for many, one, other in zip(every, found, again, strict=True):
                assert many[index].tolist() == one[0].tolist() == other[0].tolist(), turn


def test_a_genome_changed_in_place_is_asked_about_anew():
    space = space_of()
    genome = space.encoding.default.copy()
    answers(space, genome[None])
    genome[:] = space.encoding.sizes - 1
    found, fresh = answers(space, genome[None]), answers(space_of(), genome[None])
    assert [each.tolist() for each in found] == [each.tolist() for each in fresh]


def test_what_is_remembered_cannot_be_changed():
    space = space_of()
    for found in answers(space, space.encoding.default[None]):
        with pytest.raises(ValueError, match="read-only"):
            found[0, 0] = 1
