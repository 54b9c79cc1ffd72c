"""Decoders that are no language models: reward models, rerankers and embedding models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_encoders import run_of
from transformers import AutoModel, AutoModelForSequenceClassification, PreTrainedModel

import evocompress.hf  # noqa: F401
from evocompress import api
from evocompress.core.errors import DataError, ModelError
from evocompress.core.files import read_json
from evocompress.core.types import DROP, Candidate
from evocompress.evaluation.calibration.calibration import load_calibration
from evocompress.evaluation.heldout import count_flops
from evocompress.export import choose_for, materialize
from evocompress.models.families.derivation.from_config import class_for
from evocompress.models.families.derivation.shrink import random_model, shrunk
from evocompress.models.loading import load, loaded
from evocompress.models.tasks import OTHER_DECODER_TASKS, Task
from evocompress.space.costs import cost_model
from evocompress.testing.derived import typical_config
from evocompress.testing.formats import in_memory
from evocompress.testing.probes import answer, random_batch
from evocompress.testing.tiny import NAMES, SCORER, declared, tiny_checkpoint, tiny_loaded

HEADLESS = [n for n in NAMES if declared(n).task.cached and not declared(n).task.causal]
LAST = {"pooling_mode_lasttoken": True, "pooling_mode_mean_tokens": False}
MEAN = {"pooling_mode_lasttoken": False, "pooling_mode_mean_tokens": True}


def edit(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def with_pooling(folder: Path, pooling: dict[str, Any]) -> Path:
    """Adds the files of sentence-transformers to a checkpoint."""
    steps = [
        {"type": f"sentence_transformers.models.{kind}"} for kind in ("Transformer", "Pooling")
    ]
    (folder / "modules.json").write_text(json.dumps(steps))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return folder


def reward_model(folder: Path, name: str = "llama-classifier") -> Path:
    """A checkpoint of a classifier with one output."""
    tiny_checkpoint(folder, name)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors["score.weight"] = tensors["score.weight"][:1].clone()
    save_file(tensors, file, metadata={"format": "pt"})
    edit(folder, id2label={"0": "LABEL_0"}, label2id={"LABEL_0": 0})
    return folder


def read(out: Path, auto: Any) -> PreTrainedModel:
    """What transformers reads of a checkpoint, of which nothing is missing or left over."""
    model, info = auto.from_pretrained(out, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    model.eval()
    return model


@pytest.mark.parametrize("kind", ["reward model", "reranker", "embeddings"])
def test_a_run_from_the_checkpoint_to_the_report(kind: str, tmp_path: Path) -> None:
    name = "qwen3-embedding" if kind == "embeddings" else "llama-classifier"
    folder = tmp_path / "model"
    if kind == "reward model":
        reward_model(folder)
    else:
        tiny_checkpoint(folder, name)
    if kind == "embeddings":
        with_pooling(folder, LAST)
        edit(folder, architectures=["Qwen3ForCausalLM"])
    proxies = {"reward model": "score", "reranker": "kl", "embeddings": "embedding"}
    run = api.search(run_of(tmp_path, name, proxy={"kind": proxies[kind]}))
    out = api.materialize(run)
    api.heal(run)
    rows = {row["name"]: row for row in read_json(api.evaluate(run))["rows"]}
    measure = {"reward model": "score_error", "reranker": "kl", "embeddings": "distance"}[kind]
    assert rows["dense"][measure] == pytest.approx(0, abs=1e-6)
    assert rows["searched"][measure] > 0
    assert rows["searched"]["flops"] == read_json(run / "winner.json")["costs"]["flops"]
    assert rows["searched"]["decode_ms_per_token"] is None
    api.report(run)
    auto = AutoModel if kind == "embeddings" else AutoModelForSequenceClassification
    cls = "Qwen3Model" if kind == "embeddings" else "LlamaForSequenceClassification"
    assert type(read(out, auto)).__name__.removeprefix("Evocompress") == cls
    assert f"from transformers import {auto.__name__}" in (out / "README.md").read_text()
    if kind == "embeddings":
        assert json.loads((out / "1_Pooling" / "config.json").read_text()) == LAST


@pytest.mark.parametrize("form", ["stock", "hf", "padded"])
@pytest.mark.parametrize("name", HEADLESS)
def test_what_is_written_is_of_the_same_class(name: str, form: str, tmp_path: Path) -> None:
    family = declared(name)
    folder = tiny_checkpoint(tmp_path / "model", name)
    if family.task.compared == "embeddings":
        with_pooling(folder, LAST)
    loaded = load(str(folder), device="cpu")
    assert loaded.family.task == family.task
    out = materialize(loaded, None, Candidate(), tmp_path / "out", format=form)
    model = read(out, family.task.auto)
    (cls,) = family.task.class_names(family.model_type)
    assert model.config.architectures == [f"Evocompress{cls}" if form == "hf" else cls]
    assert not any("lm_head" in key for key in load_file(out / "model.safetensors"))
    batch = random_batch(family, loaded.model)
    expected = in_memory(loaded, Candidate(), batch)
    torch.testing.assert_close(answer(family, model, batch), expected, rtol=0, atol=1e-5)


def test_a_classifier_reads_the_last_token_that_is_no_padding() -> None:
    """As transformers does, which looks at the ids."""
    loaded = tiny_loaded("llama-classifier")
    batch = random_batch(loaded.family, loaded.model)
    alone = [answer(loaded.family, loaded.model, row[None]) for row in batch]
    assert torch.allclose(answer(loaded.family, loaded.model, batch), torch.cat(alone), atol=1e-5)
    assert loaded.model.config.pad_token_id is None
    outputs = loaded.family.outputs(loaded.model, loaded.family.hidden_states(loaded.model, batch))
    loaded.model.config.pad_token_id = 255
    assert torch.equal(loaded.model(batch).logits, outputs)
    padded = torch.cat([batch, torch.full((len(batch), 3), 255)], dim=1)
    torch.testing.assert_close(loaded.model(padded).logits, outputs, rtol=0, atol=1e-5)


def test_text_that_ends_with_the_padding_token_is_refused(tmp_path: Path) -> None:
    folder = reward_model(tmp_path / "model")
    edit(folder, pad_token_id=98)  # "a"
    config = run_of(tmp_path, "llama-classifier", proxy={"kind": "score"})
    (tmp_path / "data").write_text("a" * 2000)
    with pytest.raises(DataError, match="end with the padding token 98"):
        load_calibration(config.calibration, load(str(folder), device="cpu"))


def test_one_output_or_independent_ones_are_scores() -> None:
    assert tiny_loaded(SCORER).family.task.compared == "scores"
    loaded = tiny_loaded("llama-classifier")
    assert loaded.family.task.compared == "logits"
    loaded.model.config.problem_type = "multi_label_classification"
    assert loaded.family.bound(loaded.model).task.compared == "scores"


@pytest.mark.parametrize("cls", ["Qwen3Model", "Qwen3ForCausalLM"])
def test_an_embedding_model_is_one_whatever_class_its_config_names(
    cls: str, tmp_path: Path
) -> None:
    folder = with_pooling(tiny_checkpoint(tmp_path, "qwen3-embedding"), LAST)
    edit(folder, architectures=[cls], tie_word_embeddings=True)
    last = load(str(folder), device="cpu")
    assert type(last.model).__name__ == "Qwen3Model"
    assert last.family.task.pooling == "last"
    mean = load(str(with_pooling(folder, MEAN)), device="cpu")
    assert mean.family.task.pooling == "mean" and mean.fingerprint != last.fingerprint
    batch = random_batch(mean.family, mean.model)
    states = mean.model(batch).last_hidden_state
    for one, pooled in ((last, states[:, -1]), (mean, states.mean(1))):
        found = one.family.outputs(one.model, states)
        torch.testing.assert_close(found, pooled / pooled.norm(dim=-1, keepdim=True))


def test_a_decoder_without_a_head_must_say_how_it_pools(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path, "llama-embedding")
    with pytest.raises(ModelError, match="a decoder without a head, and no 1_Pooling"):
        load(str(folder))
    with_pooling(folder, {"pooling_mode_weightedmean_tokens": True})
    with pytest.raises(ModelError, match="asks for embeddings by weightedmean_tokens"):
        load(str(folder))
    bert = with_pooling(tiny_checkpoint(tmp_path / "bert", "bert"), LAST)
    with pytest.raises(ModelError, match="lasttoken, which is not supported of bert models"):
        load(str(bert))


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("llama-embedding", {"is_causal": False}),
        ("gemma3_text-embedding", {"use_bidirectional_attention": True}),
        ("qwen3-embedding", {}),
    ],
)
def test_operations_are_those_of_the_attention_that_the_class_computes(
    name: str, setting: dict[str, bool], tmp_path: Path
) -> None:
    folder = with_pooling(tiny_checkpoint(tmp_path, name), MEAN)
    edit(folder, **setting)
    loaded = load(str(folder), device="cpu")
    architecture = loaded.family.architecture(loaded.model)
    assert architecture.one_way == (not setting)
    units = loaded.family.units(loaded.model)
    predicted = cost_model(units, architecture, length=6).dense()["flops"]
    assert predicted == count_flops(loaded.model, 6, loaded.family.task)


@pytest.mark.parametrize("name", ["llama-classifier", "llama-embedding"])
def test_engines_of_language_models_are_refused(name: str) -> None:
    loaded = tiny_loaded(name)
    for program in ("vllm", "llama.cpp"):
        with pytest.raises(Exception, match="only causal language models"):
            choose_for(loaded, Candidate(), program)


@pytest.mark.parametrize("task", OTHER_DECODER_TASKS, ids=lambda task: task.compared)
@pytest.mark.parametrize("kind", ["glm", "gpt_neox", "mixtral"])
def test_those_of_other_types_are_derived(kind: str, task: Task, tmp_path: Path) -> None:
    config = typical_config(kind)
    small = shrunk(config, 3)
    small.pad_token_id = None
    model = random_model(class_for(config, task), small).float()
    found = loaded(model, None, f"tiny:{kind}")
    assert found.family.task == task
    candidate = Candidate(((f"{found.family.block_names[1]}.attention", DROP),))
    out = materialize(found, None, candidate, tmp_path / "out", format="hf")
    batch = random_batch(found.family, model)
    written = read(out, task.auto)
    assert type(written).__name__ == f"Evocompress{type(model).__name__}"
    expected = in_memory(found, candidate, batch)
    torch.testing.assert_close(answer(found.family, written, batch), expected)
