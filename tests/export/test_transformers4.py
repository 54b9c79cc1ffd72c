"""Configs hold the settings of transformers 4 beside those of version 5."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from export_cases import write
from transformers import AutoConfig

import evocompress.hf  # noqa: F401
from evocompress.testing.formats import candidate_of
from evocompress.testing.rotary import FULL, KINDS, WINDOWED, rotary_loaded
from evocompress.testing.tiny import tiny_loaded

OLD: dict[str, dict[str, Any]] = {
    "llama-default": {"rope_theta": 5000.0, "rope_scaling": None},
    "llama-linear": {
        "rope_theta": 5000.0,
        "rope_scaling": {"rope_type": "linear", "factor": 4.0},
    },
    "phi3-longrope": {
        "rope_theta": 5000.0,
        "rope_scaling": {
            "type": "longrope",
            "short_factor": KINDS["longrope"]["short_factor"],
            "long_factor": KINDS["longrope"]["long_factor"],
        },
        "original_max_position_embeddings": 16,
    },
    "gemma3_text-linear": {
        "rope_theta": FULL,
        "rope_scaling": {"rope_type": "linear", "factor": 4.0},
        "rope_local_base_freq": WINDOWED,
    },
    "gemma3_text-default": {
        "rope_theta": FULL,
        "rope_scaling": None,
        "rope_local_base_freq": WINDOWED,
    },
    "starcoder2-yarn": {
        "rope_theta": 5000.0,
        "rope_scaling": KINDS["yarn"],
    },
}


@pytest.mark.parametrize("case", OLD)
@pytest.mark.parametrize("form", ["stock", "padded"])
def test_the_old_settings_are_beside_the_new_ones(case: str, form: str, tmp_path: Path) -> None:
    loaded = rotary_loaded(*case.split("-"))
    out = write(loaded, candidate_of(loaded, {}), tmp_path / "out", form)
    settings = json.loads((out / "config.json").read_text())
    assert {key: settings[key] for key in OLD[case]} == OLD[case]
    read = dict(AutoConfig.from_pretrained(out).rope_parameters)
    read.pop("type", None)  # of Phi-3's old form, the same as rope_type
    assert read == loaded.model.config.rope_parameters


def test_experts_are_counted_by_the_old_name_too(tmp_path: Path) -> None:
    loaded = tiny_loaded("qwen3_moe")
    out = write(loaded, candidate_of(loaded, {}), tmp_path / "out", "stock")
    settings = json.loads((out / "config.json").read_text())
    assert settings["num_experts"] == settings["num_local_experts"] == 5
