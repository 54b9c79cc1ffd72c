"""Checkpoints with a modeling file of their type are read as what they were.

``former.json`` has for each type the config of such a checkpoint, and what the file's own class
made of known weights. Those that end in ``-derived`` were written when their family was not yet.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import evocompress.hf  # noqa: F401
from evocompress.core.errors import ModelError
from evocompress.models.families import family_of
from evocompress.models.former import TYPES
from evocompress.models.loading import loaded
from evocompress.testing.probes import random_ids

RECORDS = json.loads((Path(__file__).parent / "former.json").read_text())


def read(folder: Path, name: str) -> Any:
    """The model of a config, whose weights follow from the names of its tensors."""
    (folder / "config.json").write_text(json.dumps(RECORDS[name]["config"]))
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    model.double().eval().requires_grad_(False)
    for tensor_name, tensor in model.state_dict().items():
        generator = torch.Generator().manual_seed(zlib.crc32(tensor_name.encode()))
        noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        tensor.copy_(noise / max(tensor.shape[-1], 1) ** 0.5)
    model.tie_weights()
    return model


def test_there_is_one_of_each_type() -> None:
    assert {name.removesuffix("-hf") for name in RECORDS if name.endswith("-hf")} == {*TYPES}


@pytest.mark.parametrize("name", RECORDS)
def test_it_computes_what_its_own_class_did(name: str, tmp_path: Path) -> None:
    model, record = read(tmp_path, name), RECORDS[name]
    assert len(model.state_dict()) == record["tensors"]
    logits = model(torch.arange(1, 12)[None], use_cache=False).logits[0, -1, :6]
    expected = torch.tensor(record["logits"], dtype=torch.float64)
    torch.testing.assert_close(logits, expected, rtol=0, atol=2e-6)


def test_it_is_saved_as_others_are(tmp_path: Path) -> None:
    model = read(tmp_path, "llama-hf")
    model.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again/config.json").read_text())["model_type"] == (
        "evocompress_derived"
    )
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again", trust_remote_code=False)
    assert torch.equal(again(random_ids()).logits, model(random_ids()).logits)


def test_it_can_be_compressed_again_where_others_can(tmp_path: Path) -> None:
    family = loaded(read(tmp_path, "gpt2-hf"), None, "former").family
    assert family.model_type == "gpt2" and family.limits == []
    with pytest.raises(ModelError, match="cannot be compressed again"):
        family_of(read(tmp_path, "mixtral-hf"))
    with pytest.raises(ModelError, match="is of format 'folded'"):
        family_of(read(tmp_path, "llama-folded"))
