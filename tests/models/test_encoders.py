"""Whole runs of models that are no decoders, from a checkpoint on disk to the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers.models
from run_files import TEXT, tiny_run
from safetensors.torch import save_file

import evocompress.hf  # noqa: F401
from evocompress import api
from evocompress.core.config import LatencyConfig, RunConfig
from evocompress.core.errors import ConfigError, ModelError
from evocompress.core.files import read_json
from evocompress.core.types import Candidate
from evocompress.evaluation.profile import check_table, profile, table_rows
from evocompress.evaluation.proxies import kinds_for
from evocompress.export import materialize
from evocompress.models.families import family_of
from evocompress.models.loading import load
from evocompress.models.pooling import pooling_of
from evocompress.space.costs import CACHED, SERVED
from evocompress.testing.probes import answer, random_batch
from evocompress.testing.staged import require_packages
from evocompress.testing.tiny import declared, tiny_checkpoint, tiny_loaded

SENTENCE_TRANSFORMERS = {
    "modules.json": "[]",
    "config_sentence_transformers.json": "{}",
    "sentence_bert_config.json": "{}",
    "1_Pooling/config.json": '{"pooling_mode_mean_tokens": true}',
    "notes.txt": "of no use to anybody",
}


def run_of(folder: Path, name: str, **changes: Any) -> RunConfig:
    """A run of a tiny model whose data lie in a folder."""
    if declared(name).task.reads_text:
        (folder / "data").write_text(TEXT)
    else:
        (folder / "data").mkdir(exist_ok=True)
        size = read_json(folder / "model" / "config.json")["image_size"]
        images = {"pixel_values": torch.rand(36, 1, size, size), "labels": torch.arange(36) % 10}
        save_file(images, folder / "data" / "images.safetensors")
    run = tiny_run(
        folder,
        {"source": str(folder / "data"), "length": 16, "micro_batch": 4},
        space={
            "width": {"channels": [0.5, 0.25], "multiple_of": 8},
            "drop": {},
            "budget": {"flops": 0.6},
        },
        proxy={"kind": kinds_for(declared(name).task)[0]},
        search={"tokens": 3000},
        heal={"steps": 4, "evaluate_every": 2, "validation_sequences": 2},
        evaluate={"prefill": [1, 16], "repeats": 2, "latency_seconds": 0},
    )
    return RunConfig.model_validate(run | {"name": "trial"} | changes)


@pytest.mark.parametrize("name", ["bert", "vit", "resnet"])
def test_from_a_checkpoint_to_the_report(name: str, tmp_path: Path) -> None:
    require_packages(name)
    tiny_checkpoint(tmp_path / "model", name)
    run = api.search(run_of(tmp_path, name))
    winner = read_json(run / "winner.json")
    assert winner["costs"]["flops"] <= 0.6 * winner["dense_costs"]["flops"]
    assert not set(winner["costs"]) & set(CACHED)
    out = api.materialize(run)
    api.heal(run)
    rows = {row["name"]: row for row in read_json(api.evaluate(run))["rows"]}
    assert rows["searched"]["flops"] == winner["costs"]["flops"]
    assert rows["dense"]["flops"] == winner["dense_costs"]["flops"]
    assert rows["healed"]["prefill_ms"] and rows["healed"]["decode_ms_per_token"] is None
    measure = "distance" if name == "bert" else "kl"
    assert rows["dense"][measure] == pytest.approx(0, abs=1e-6) and rows["searched"][measure] > 0
    healing = read_json(run / "heal" / "heal.json")
    assert healing["tokens"] and healing["best_kl"] <= healing["initial_kl"] > 0
    if not healing["best_step"]:  # then the best is the model as it came
        assert rows["healed"][measure] == pytest.approx(rows["searched"][measure], rel=1e-3)
    assert (rows["dense"].get("accuracy") is not None) == (name != "bert")
    api.report(run)
    assert ("Perplexity" in (run / "summary.md").read_text()) is False
    auto = declared(name).task.auto.__name__
    assert f"from transformers import {auto}" in (out / "README.md").read_text()


def test_files_of_sentence_transformers_come_along(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "model", "bert")
    for path, text in SENTENCE_TRANSFORMERS.items():
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_text(text)
    out = materialize(load(str(folder)), None, Candidate(), tmp_path / "out")
    for path, text in SENTENCE_TRANSFORMERS.items():
        if path != "notes.txt":
            assert (out / path).read_text() == text
    assert not (out / "notes.txt").exists()


@pytest.mark.parametrize("name", ["bert", "vit"])
@pytest.mark.parametrize("cost", sorted({*CACHED} - {*SERVED}))
def test_costs_of_a_cache_are_refused_by_name(name: str, cost: str, tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path / "model", name)
    config = run_of(tmp_path, name, space={"drop": {}, "budget": {cost: 0.5}})
    with pytest.raises(ConfigError, match=f"'{cost}' is a cost of decoding with a key-value"):
        api.search(config)
    assert not config.folder.exists()


def test_memory_of_generating_is_refused_where_nothing_is_generated(tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path / "model", "bert")
    space = {"drop": {}, "budget": {"memory": 0.5}, "memory": {"context": 16}}
    config = run_of(tmp_path, "bert", space=space)
    with pytest.raises(ConfigError, match="no key-value cache and generates nothing"):
        api.search(config)
    assert not config.folder.exists()


def test_what_a_task_does_not_have_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path / "model", "bert")
    with pytest.raises(ConfigError, match="proxy.kind=kl is not for .*: choose embedding"):
        api.search(run_of(tmp_path, "bert", proxy={"kind": "kl"}))
    with pytest.raises(ModelError, match="search.name=darwinlm needs a model that tells the next"):
        api.search(run_of(tmp_path, "bert", search={"name": "darwinlm"}))
    shortened = {"name": "shortened_llama", "metric": "taylor"}
    with pytest.raises(ModelError, match="search.name=shortened_llama needs a model that tells"):
        api.search(run_of(tmp_path, "bert", search=shortened))
    sparse = {"sparsity": {"target": 0.5, "levels": 1}, "budget": {"nonzeros": 0.9}}
    allocation = {"name": "allocation", "method": "ecoflap"}
    with pytest.raises(ModelError, match="search.name=allocation needs a model that tells"):
        api.search(run_of(tmp_path, "bert", search=allocation, space=sparse))
    taylor = {"width_criterion": "taylor"}
    with pytest.raises(ModelError, match="library.width_criterion=taylor needs a model that"):
        api.search(run_of(tmp_path, "bert", library=taylor))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("name", ["bert", "vit"])
def test_a_latency_table_has_no_decoding_step(name: str, tmp_path: Path) -> None:
    loaded = tiny_loaded(name)
    config = LatencyConfig(prefill=(2, 16), repeats=3, validation=4, table=tmp_path / "table.json")
    table = profile(loaded, config, progress=lambda *_: None)
    assert table.decode is None and table.prefill.dense > 0
    again = profile(loaded, config, progress=lambda *_: None)
    assert again == table
    check_table(table, loaded, config, tmp_path / "table.json")
    assert all(row[2] == "" for row in table_rows(table))


def test_a_classifier_is_told_from_an_embedding_model_by_its_class(tmp_path: Path) -> None:
    for name in ("bert", "bert-classifier", "roberta-classifier", "deit", "deit-distilled"):
        loaded = load(str(tiny_checkpoint(tmp_path / name, name)))
        family, known = loaded.family, declared(name)
        assert (family.model_type, family.task) == (known.model_type, known.task)
        assert loaded.folder == tmp_path / name
        batch = random_batch(loaded.family, loaded.model)
        expected = answer(loaded.family, tiny_loaded(name).model, batch)
        torch.testing.assert_close(answer(loaded.family, loaded.model, batch), expected)


@pytest.mark.parametrize("pooling", [{"pooling_mode_max_tokens": True}, {"pooling_mode": "max"}])
def test_another_pooling_is_refused(pooling: dict[str, Any], tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "model", "bert")
    (folder / "1_Pooling").mkdir()
    file = folder / "1_Pooling" / "config.json"
    for mean in ({"pooling_mode_mean_tokens": True}, {"pooling_mode": "mean"}):
        file.write_text(json.dumps(mean | {"word_embedding_dimension": 64}))
        assert load(str(folder)).family.task == declared("bert").task
    file.write_text(json.dumps(pooling))
    with pytest.raises(ModelError, match=r"config\.json asks for embeddings by max"):
        load(str(folder))


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        ('[{"type": "sentence_transformers.models.Dense"}]', "puts Dense behind the model"),
        ('[{"type": "sentence_transf', "modules.json"),
        ('[{"path": "1_Pooling"}]', "is damaged"),
    ],
)
def test_other_steps_of_sentence_transformers_are_refused(
    modules: str, message: str, tmp_path: Path
) -> None:
    file = tmp_path / "modules.json"
    kinds = ("Transformer", "Pooling", "Normalize")
    file.write_text(json.dumps([{"type": f"sentence_transformers.models.{k}"} for k in kinds]))
    pooling_of(tmp_path)
    file.write_text(modules)
    with pytest.raises(ModelError, match=message) as caught:
        pooling_of(tmp_path)
    assert "modules.json" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("labels", [{"num_labels": 1}, {"problem_type": "regression"}])
def test_outputs_that_are_no_classes_are_scores_of_texts_alone(labels: dict[str, Any]) -> None:
    for name in ("bert-classifier", "vit"):
        model = tiny_loaded(name).model
        for key, value in labels.items():
            setattr(model.config, key, value)
        if name == "vit":
            with pytest.raises(ModelError, match="no distribution over classes"):
                family_of(model)
        else:
            assert family_of(model).task.compared == "scores"


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_embeddings_published_as_a_masked_language_model_are_served(
    name: str, tmp_path: Path
) -> None:
    bare = tiny_loaded(name)
    folder = tiny_checkpoint(tmp_path / "model", name)
    cls = getattr(transformers, type(bare.model).__name__.removesuffix("Model") + "ForMaskedLM")
    masked = cls(bare.model.config)
    masked.base_model.load_state_dict(bare.model.state_dict(), strict=False)
    masked.save_pretrained(folder)
    with pytest.raises(ModelError, match=f"models of class {cls.__name__} are not supported"):
        load(str(folder))
    (folder / "modules.json").write_text("[]")
    loaded = load(str(folder), device="cpu")
    assert loaded.family.task.compared == "embeddings"
    batch = random_batch(bare.family, bare.model)
    wanted = answer(bare.family, bare.model, batch)
    assert torch.equal(answer(loaded.family, loaded.model, batch), wanted)
