"""Attentions of kinds of their own with fewer heads, in checkpoints of the formats for them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from export_cases import write

from evocompress.core.types import DROP, Level
from evocompress.export import read_record
from evocompress.models.families.derivation.defaults import default_config
from evocompress.models.loading import load
from evocompress.space.costs import cost_model
from evocompress.testing.derived import typical_config, typical_loaded
from evocompress.testing.formats import assert_written, candidate_of, reload

GROUP = Level(kv_groups=1, group_heads=2)
HEADS = Level(kv_groups=4, group_heads=1)

UNEVEN = {
    "gpt_oss": {"0.attention": GROUP, "1.attention": Level(kv_groups=2, group_heads=1)},
    "qwen3_next": {"1.attention": GROUP},
    "gemma4_text": {"0.attention": GROUP, "1.attention": Level(kv_groups=2, group_heads=1)},
    "laguna": {"0.attention": GROUP, "1.attention": Level(kv_groups=2, group_heads=3)},
    "mimo_v2_flash": {"0.attention": Level(kv_groups=1, group_heads=3), "1.attention": HEADS},
    "deepseek_v32": {"0.attention": HEADS, "2.attention": Level(kv_groups=1, group_heads=1)},
    "youtu": {"0.attention": HEADS, "2.attention": Level(kv_groups=1, group_heads=1)},
    "recurrent_gemma": {"0.attention": HEADS, "2.attention": Level(kv_groups=1, group_heads=1)},
    "recurrent_gemma sharing one head": {"0.attention": GROUP, "2.attention": GROUP},
}
"""Sinks; gates beside the queries; heads of two widths; other numbers of heads in some layers;
latents in place of keys and values, with an indexer that chooses tokens and without; a recurrence
by heads, beside attentions whose heads share keys and values and such where they do not."""


@pytest.mark.parametrize("name", UNEVEN)
def test_fewer_heads_in_some_layers(name: str, tmp_path: Path) -> None:
    loaded = typical_loaded(typical_config(name))
    candidate = candidate_of(loaded, UNEVEN[name] | {"1.mlp": DROP})
    out = write(loaded, candidate, tmp_path / "first", "hf")
    assert_written(out, loaded, candidate)
    costs = cost_model(loaded.family.units(loaded.model), loaded.family.architecture(loaded.model))
    measured = read_record(out).measured
    assert measured == {key: costs.of([candidate])[key].item() for key in measured}


@pytest.mark.parametrize("name", ["granite_swa", "youtu", "falcon_h1"])
def test_a_second_round(name: str, tmp_path: Path) -> None:
    loaded = typical_loaded(typical_config(name))
    first = HEADS if name == "youtu" else GROUP
    out = write(loaded, candidate_of(loaded, {"0.attention": first}), tmp_path / "first", "hf")
    again = load(str(out), device="cpu")
    candidate = candidate_of(again, {"0.attention": Level(kv_groups=1, group_heads=1)})
    assert_written(write(again, candidate, tmp_path / "second", "hf"), again, candidate)


@pytest.mark.parametrize("name", ["granite_swa", "minicpm3", "falcon_h1"])
@pytest.mark.parametrize("format", ["stock", "padded"])
def test_alike_layers_in_the_class_itself(name: str, format: str, tmp_path: Path) -> None:
    loaded = typical_loaded(typical_config(name))
    level = HEADS if name == "minicpm3" else Level(kv_groups=2, group_heads=2)
    levels = {f"{index}.attention": level for index in range(3)}
    if format == "padded":
        levels["1.attention"] = DROP
    candidate = candidate_of(loaded, levels)
    assert_written(write(loaded, candidate, tmp_path / "out", format), loaded, candidate)


def test_buffers_that_the_model_fills_are_made_when_a_checkpoint_is_read(tmp_path: Path) -> None:
    """Falcon-H1's multipliers of a mixer are not stored; a block may have lost its mixer."""
    multipliers = [0.5, 0.7, 0.9, 1.1, 1.3]
    loaded = typical_loaded(default_config("falcon_h1", ssm_multipliers=multipliers))
    candidate = candidate_of(loaded, {"0.attention": GROUP, "1.attention": DROP, "2.mlp": DROP})
    out = write(loaded, candidate, tmp_path / "out", "hf")
    vector = reload(out).model.layers[2].mamba.mup_vector
    assert vector.unique().numel() == len(multipliers)
    assert torch.equal(vector, loaded.model.model.layers[2].mamba.mup_vector)
    assert_written(out, loaded, candidate)


def test_alike_layers_where_heads_are_listed(tmp_path: Path) -> None:
    loaded = typical_loaded(default_config("laguna", num_hidden_layers=3))
    levels = {f"{index}.attention": Level(kv_groups=2, group_heads=2) for index in range(3)}
    candidate = candidate_of(loaded, levels)
    out = write(loaded, candidate, tmp_path / "out", "stock")
    config = json.loads((out / "config.json").read_text())
    assert config["num_attention_heads_per_layer"] == [4, 4, 4]
