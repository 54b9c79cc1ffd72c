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
from evocompress.core.types import DROP, Level
from evocompress.export import materialize, read_record
from evocompress.export.reload import read_checkpoint
from evocompress.models.families import family_named, family_of
from evocompress.models.families.uneven import DERIVED, PREFIX
from evocompress.models.former import TYPES
from evocompress.models.loading import loaded
from evocompress.space.costs import cost_model
from evocompress.testing.formats import candidate_of, in_memory
from evocompress.testing.plain_library import PlainLibrary
from evocompress.testing.probes import answer, random_batch, random_ids
from evocompress.testing.tiny import declared

RECORDS = json.loads((Path(__file__).parent / "former.json").read_text())


def read(folder: Path, name: str) -> Any:
    """The model of a config, whose weights follow from the names of its tensors."""
    config = RECORDS[name]["config"]
    (folder / "config.json").write_text(json.dumps(config))
    auto = family_named(config["model_type"], config["architectures"]).task.auto
    model = auto.from_config(AutoConfig.from_pretrained(folder))
    assert type(model).__name__ == config["architectures"][0]
    model.double().eval().requires_grad_(False)
    for tensor_name, tensor in model.state_dict().items():
        if not tensor.is_floating_point():
            continue
        generator = torch.Generator().manual_seed(zlib.crc32(tensor_name.encode()))
        noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        tensor.copy_(noise / max(tensor.shape[-1], 1) ** 0.5)
    model.tie_weights()
    return model


def test_there_is_one_of_each_type() -> None:
    types = {record["config"]["model_type"] for record in RECORDS.values()}
    assert {f"{PREFIX}{name}" for name in TYPES} == types - {DERIVED}


@pytest.mark.parametrize("name", RECORDS)
def test_it_computes_what_its_own_class_did(name: str, tmp_path: Path) -> None:
    model, record = read(tmp_path, name), RECORDS[name]
    assert len(model.state_dict()) == record["tensors"]
    config = record["config"]
    task = family_named(config["model_type"], config["architectures"]).task
    image = torch.linspace(0, 1, 64, dtype=torch.float64).reshape(1, 1, 8, 8)
    output = task.run(model, torch.arange(1, 12)[None] if task.reads_text else image)
    found = task.pooled(output) if task.compared == "embeddings" else output.logits
    found = found[:, -1] if task.causal else found
    expected = torch.tensor(record["logits"], dtype=torch.float64)
    torch.testing.assert_close(found[0, :6], expected, rtol=0, atol=2e-6)


def test_it_is_saved_as_others_are(tmp_path: Path) -> None:
    model = read(tmp_path, "llama-hf")
    model.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again/config.json").read_text())["model_type"] == (
        "evocompress_derived"
    )
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again", trust_remote_code=False)
    assert torch.equal(again(random_ids()).logits, model(random_ids()).logits)


def test_it_can_be_compressed_again_where_others_can(tmp_path: Path) -> None:
    for name in ("gpt2", "bert", "xlm-roberta-classifier", "vit"):
        found = loaded(read(tmp_path, f"{name}-hf"), None, "former").family
        family = declared(name)
        assert (found.model_type, found.task) == (family.model_type, family.task)
        assert not getattr(found, "limits", ())
    mixture = loaded(read(tmp_path, "mixtral-hf"), None, "former")
    tree = mixture.family.units(mixture.model)
    assert [len(own) for own in tree.experts.values()] == [4, 4, 3]
    assert mixture.family.architecture(mixture.model).channels == (0, 24, 40, 64)
    with pytest.raises(ModelError, match="is of format 'folded'"):
        family_of(read(tmp_path, "llama-folded"))


@pytest.mark.parametrize("name", ["roberta-classifier", "deit-distilled", "qwen2_moe"])
def test_what_is_compressed_again_is_written_and_read(name: str, tmp_path: Path) -> None:
    former = read(tmp_path, f"{name}-hf").float()
    former.config.dtype = torch.float32
    again = loaded(former, None, "former")
    candidate = candidate_of(again, {"3.attention": DROP, "1.mlp": Level(channels=8)})
    batch = random_batch(again.family, again.model)
    expected = in_memory(again, candidate, batch)
    out = materialize(again, PlainLibrary(again), candidate, tmp_path / "out", format="hf")
    found = answer(again.family, read_checkpoint(out, again.model), batch)
    torch.testing.assert_close(found, expected)
    costs = cost_model(again.family.units(again.model), again.family.architecture(again.model))
    record, predicted = read_record(out), costs.of([candidate])
    assert record.measured == {key: predicted[key].item() for key in record.measured}
