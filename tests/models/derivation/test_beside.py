"""What mixers of tokens take beside their matrices is what torch counts, and what a cache keeps."""

from __future__ import annotations

import pytest
import torch

from evocompress.core.beside import Beside
from evocompress.models.families import family_of
from evocompress.models.families.derivation.beside import LENGTHS, law
from evocompress.models.families.derivation.structure import Unclear
from evocompress.space.costs import cost_model
from evocompress.testing.costs import counted_decoding, counted_flops
from evocompress.testing.derived import typical_config, typical_model

LINE = {4: 10, 5: 12, 7: 16}


@pytest.mark.parametrize(
    "name",
    [
        *("lfm2", "qwen3_next", "mamba2", "diffllama", "deepseek_v3", "axk2", "zamba", "zamba2"),
        "minimax",
    ],
)
@pytest.mark.parametrize("length", [16, 150])
def test_operations_and_cache_are_those_that_are_counted(name: str, length: int) -> None:
    model = typical_model(typical_config(name)).float()
    family = family_of(model)
    architecture = family.architecture(model)
    costs = cost_model(family.units(model), architecture, length=length).dense()
    assert any(architecture.beside or architecture.latents) and not architecture.uncounted
    assert costs["params"] == sum(parameter.numel() for parameter in model.parameters())
    assert costs["flops"] == counted_flops(model, architecture, family, length)
    assert (costs["decode_flops"], costs["kv_bytes"]) == counted_decoding(model, length)


def test_a_state_takes_bytes_of_either_precision() -> None:
    """Half of the numbers of a gated delta net stay in float32 whatever the weights are."""
    model = typical_model(typical_config("qwen3_next")).to(torch.bfloat16)
    family = family_of(model)
    architecture = family.architecture(model)
    own = architecture.beside[0]
    costs = cost_model(family.units(model), architecture, length=16).dense()
    assert own and own.state and own.state_bytes
    assert costs["kv_bytes"] == counted_decoding(model, 16)[1]


def test_a_law_is_found_of_chunks_pairs_and_tokens() -> None:
    known = Beside(once=7, token=5, size=64, chunk=11, squared=3, pair=2)
    counts = {length: known.prefill(length) + 2 * length**2 for length in LENGTHS}
    found = law(counts, LINE, {4: 100, 5: 104, 7: 112}, {4: 60, 5: 62, 7: 66})
    assert found == Beside(
        *(7, 5, 64, 11, 3, 2), decoded=2, seen=2, state=16, state_bytes=20, kept=1
    )


def test_a_law_is_found_of_pairs_within_chunks() -> None:
    known = Beside(once=7, token=5, size=256, within=2)
    counts = {length: known.prefill(length) for length in LENGTHS}
    assert counts[600] == 7 + 5 * 600 + 2 * (2 * 256**2 + 88**2)
    found = law(counts, LINE, {4: 0, 5: 0, 7: 0}, {4: 0, 5: 0, 7: 0})
    assert found == Beside(7, 5, 256, within=2, decoded=2, seen=2)


def test_what_follows_no_law_is_refused() -> None:
    counts = {length: length**3 for length in LENGTHS}
    with pytest.raises(Unclear, match="no known law"):
        law(counts, LINE, LINE, LINE)
    with pytest.raises(Unclear, match="not linear"):
        law(counts, LINE | {7: 15}, LINE, LINE)
