"""Checkpoints of encoders without a family of their own, from disk to a compressed checkpoint."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from run_files import TEXT, tiny_run
from safetensors.torch import save_file
from torch import nn
from torch.nn.functional import normalize
from transformers import CONFIG_MAPPING, AutoModelForMaskedLM, T5Config, T5Model

import evocompress.hf  # noqa: F401
from evocompress import api
from evocompress.core.config import RunConfig
from evocompress.core.errors import ModelError
from evocompress.core.files import read_json
from evocompress.evaluation.proxies import kinds_for
from evocompress.models.families.derivation.encoders import DerivedEncoder
from evocompress.models.families.derivation.from_config import class_for
from evocompress.models.families.derivation.shrink import random_model, shrunk
from evocompress.models.loading import load
from evocompress.models.tasks import (
    EMBEDDINGS,
    IMAGE_CLASSES,
    IMAGE_EMBEDDINGS,
    TEXT_CLASSES,
    Task,
)
from evocompress.testing.probes import random_ids
from evocompress.testing.tiny import tiny_tokenizer


def checkpoint(folder: Path, name: str, task: Task, cls: Any = None) -> Path:
    """A tiny random model of a type, by default of the class for a task."""
    config = shrunk(CONFIG_MAPPING[name](), 4)
    model = random_model(cls or class_for(config, task), config)
    nn.Module.float(model)
    model.config.dtype = torch.float32
    model.save_pretrained(folder)
    if task.reads_text:
        tiny_tokenizer().save_pretrained(folder)
    return folder


def for_sentence_transformers(folder: Path, **pooling: bool) -> Path:
    """The folder with files that say how embeddings are pooled."""
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    kinds = ("Transformer", "Pooling", "Normalize")
    modules = [{"type": f"sentence_transformers.models.{kind}"} for kind in kinds]
    (folder / "modules.json").write_text(json.dumps(modules))
    return folder


@pytest.mark.parametrize(
    ("name", "pooling"),
    [
        ("mpnet", {"pooling_mode_mean_tokens": True}),
        ("modernbert", {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}),
        ("nomic_bert", {"pooling_mode_mean_tokens": True}),
    ],
)
@torch.no_grad()
def test_embeddings_are_pooled_as_the_files_say(
    name: str, pooling: dict[str, bool], tmp_path: Path
) -> None:
    """Also of a checkpoint that is written as a masked language model, with a head of that."""
    config = shrunk(CONFIG_MAPPING[name](), 2)
    masked = AutoModelForMaskedLM._model_mapping[type(config)]
    folder = for_sentence_transformers(
        checkpoint(tmp_path / "model", name, EMBEDDINGS, masked), **pooling
    )
    loaded = load(str(folder), device="cpu")
    assert isinstance(loaded.family, DerivedEncoder) and loaded.family.two_way
    ids = random_ids()
    states = loaded.model(ids).last_hidden_state
    pooled = states[:, 0] if "pooling_mode_cls_token" in pooling else states.mean(1)
    found = loaded.family.outputs(loaded.model, loaded.family.hidden_states(loaded.model, ids))
    torch.testing.assert_close(found, normalize(pooled, dim=-1))


def run_of(folder: Path, task: Task, **drop: Sequence[str]) -> RunConfig:
    """A run of the model in a folder, in which something may be dropped."""
    if task.reads_text:
        (folder / "data").write_text(TEXT)
    else:
        (folder / "data").mkdir()
        size = read_json(folder / "model" / "config.json")["image_size"]
        images = {"pixel_values": torch.rand(36, 3, size, size), "labels": torch.arange(36) % 2}
        save_file(images, folder / "data" / "images.safetensors")
    run = tiny_run(
        folder,
        {"source": str(folder / "data"), "length": 16, "micro_batch": 4},
        space={"width": {"multiple_of": 8}, "drop": drop, "budget": {"flops": 0.6}},
        proxy={"kind": kinds_for(task)[0]},
        search={"tokens": 3000},
        heal={"steps": 2, "evaluate_every": 2, "validation_sequences": 2},
        evaluate={"latency": False},
    )
    return RunConfig.model_validate(run | {"name": "trial"})


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("distilbert", TEXT_CLASSES),
        ("albert", EMBEDDINGS),
        ("siglip_vision_model", IMAGE_EMBEDDINGS),
        pytest.param("modernbert", EMBEDDINGS, marks=pytest.mark.long),
        pytest.param("dinov2", IMAGE_CLASSES, marks=pytest.mark.long),
    ],
)
def test_from_a_checkpoint_to_the_report(name: str, task: Task, tmp_path: Path) -> None:
    checkpoint(tmp_path / "model", name, task)
    # All layers of an ALBERT are one block, so that must stay.
    parts = {"units": ["attention", "mlp"]} if name == "albert" else {}
    run = api.search(run_of(tmp_path, task, **parts))
    winner = read_json(run / "winner.json")
    assert winner["costs"]["flops"] <= 0.6 * winner["dense_costs"]["flops"]
    out = api.materialize(run)
    assert load(str(out), device="cpu").family.task.name == task.name
    api.heal(run)
    rows = {row["name"]: row for row in read_json(api.evaluate(run))["rows"]}
    assert rows["searched"]["flops"] == winner["costs"]["flops"]
    measure = "kl" if task.compared == "logits" else "distance"
    assert rows["dense"][measure] == pytest.approx(0, abs=1e-6) and rows["searched"][measure] > 0
    api.report(run)
    assert f"from transformers import {task.auto.__name__}" in (out / "README.md").read_text()


def test_an_encoder_with_a_decoder_is_refused_in_one_line(tmp_path: Path) -> None:
    config = T5Config(vocab_size=256, d_model=16, d_ff=32, d_kv=4, num_layers=1, num_heads=4)
    T5Model(config).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="'t5' .* an encoder with a decoder, whose blocks") as one:
        load(str(tmp_path))
    assert "\n" not in str(one.value)
