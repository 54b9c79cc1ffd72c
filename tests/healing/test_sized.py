"""How many sequences a micro-step has where nobody says so."""

import pytest

from evocompress.core.config import HealConfig
from evocompress.healing.recipe import sized_for
from evocompress.testing.tiny import tiny_loaded


@pytest.mark.parametrize(
    ("length", "sequences"), [(2048, 1), (512, 1), (256, 2), (170, 3), (128, 4), (16, 4)]
)
def test_it_has_512_tokens_but_one_sequence_at_least_and_four_at_most(length, sequences):
    sized = sized_for(tiny_loaded("llama"), HealConfig(), length)
    assert sized.micro_batch == sequences and sized.accumulate == 1


def test_a_model_with_one_output_a_sequence_has_four():
    assert sized_for(tiny_loaded("gpt2-classifier"), HealConfig(), 512).micro_batch == 4


def test_what_is_said_stays():
    assert sized_for(tiny_loaded("llama"), HealConfig(batch=7), 512).micro_batch == 7
    assert HealConfig(batch=2).sized(512) == HealConfig(batch=2)
