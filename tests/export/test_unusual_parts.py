"""Checkpoints of types whose blocks ask more of what stands for a part than a zero for a tensor."""

from __future__ import annotations

from pathlib import Path

import pytest
from export_cases import write

from evocompress.core.types import DROP, Level
from evocompress.testing.derived import typical_config, typical_loaded
from evocompress.testing.formats import assert_written, candidate_of

LEVELS = {
    # A short convolution behind each part keeps a state in the cache.
    "inkling_text": {"0.mlp": DROP, "1": DROP},
    # A block takes a tuple of a mixture only if that is of the class of mixtures. All of them go:
    # the kernel for all experts at once knows no float64.
    "ernie4_5_vl_moe": {
        "0.attention": Level(kv_groups=1, group_heads=2),
        "1.attention": DROP,
        **dict.fromkeys(("1.mlp", "2.mlp"), DROP),
    },
}


@pytest.mark.parametrize("name", LEVELS)
def test_what_is_left_out_stays_out(name: str, tmp_path: Path) -> None:
    loaded = typical_loaded(typical_config(name))
    candidate = candidate_of(loaded, LEVELS[name])
    assert_written(write(loaded, candidate, tmp_path / "out", "hf"), loaded, candidate)


def test_an_attention_stays_where_the_mlp_keeps_a_state() -> None:
    """A layer without an attention has no cache, in which that of the MLP would lie."""
    loaded = typical_loaded(typical_config("inkling_text"))
    droppable = {u.kind: u.droppable for u in loaded.family.units(loaded.model) if u.block == 0}
    assert (droppable["block"], droppable["attention"], droppable["mlp"]) == (True, False, True)
    assert any("mlp_sconv keeps a state" in limit for limit in loaded.family.limits)
