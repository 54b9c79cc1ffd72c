"""Caches of few bits beside everything else that a space has, from search to report."""

import pytest
from dying import resumed
from run_files import assert_same_search, tiny_run, winner_of, written

from evocompress import api
from evocompress.core.config_file import load_config
from evocompress.core.errors import ConfigError, ExportError, ModelError
from evocompress.core.files import read_json
from evocompress.core.storage import CACHES
from evocompress.core.types import DROP
from evocompress.export.reload import read_checkpoint
from evocompress.models.loading import load
from evocompress.testing.tiny import stock_model, tiny_checkpoint, tiny_tokenizer

TORCH = {
    "drop": {"units": ["attention"]},
    "width": {"units": ["mlp"], "multiple_of": 32},
    "bits": {"types": ["w8g32", "w4g32"]},
    "cache": {"types": ["dense", "kv8", "kv4", "kv2"]},
    "budget": {"weight_bytes": 0.25, "kv_bytes": 0.16},
}

LLAMA_CPP = {
    "bits": {"types": ["q8_0", "q4_0"]},
    "cache": {"types": ["dense", "q8_0", "q4_0"]},
    "budget": {"kv_bytes": 0.2},
    "fits": "gguf",
}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("home")
    stock_model("llama", hidden=128).save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    return folder


def run_of(home, name, space=TORCH, **changes):
    run = tiny_run(
        home,
        name=name,
        space=space,
        search={"name": "auto", "tokens": 3000},
        library={"path": str(home / f"library{space.get('fits', '')}")},
        heal={"train": "norms", "steps": 2, "evaluate_every": 1, "validation_sequences": 2},
        evaluate={"latency": False},
    )
    return load_config(written(home / f"{name}.yaml", run | changes))


@pytest.fixture(scope="module")
def whole(home):
    return api.search(run_of(home, "whole"))


def test_a_search_that_was_killed_is_resumed_to_the_same_bytes(home, whole, monkeypatch):
    assert_same_search(resumed(run_of(home, "cut"), 2, monkeypatch), whole)


@pytest.mark.cluster
@pytest.mark.timeout(300)
def test_workers_find_the_same(home, whole):
    pytest.importorskip("ray")
    found = api.search(run_of(home, "ray", executor="ray", ray={"workers": 2}))
    assert_same_search(found, whole, order=False)


def test_all_stages_compute_with_the_caches(home, whole):
    winner = winner_of(whole)
    caches = {name: level.cache for name, level in winner.items() if level.cache}
    assert caches and set(caches.values()) <= CACHES.keys()
    checkpoint = api.materialize(whole)
    assert "Attentions by type of their cache" in (checkpoint / "README.md").read_text()
    dense = load(str(home / "model"))
    rounded = [
        name.removesuffix(".cache_rounding")
        for name, _ in read_checkpoint(checkpoint, dense.model).named_modules()
        if name.endswith("cache_rounding")
    ]
    kept = [block for block in range(3) if winner.get(f"model.layers.{block}.attention") != DROP]
    assert len(rounded) == len(caches) <= len(kept)
    api.heal(whole)
    api.evaluate(whole)
    rows = {row["name"]: row for row in read_json(whole / "evaluation.json")["rows"]}
    assert rows["searched"]["kl"] > 0 and rows["healed"]["kl"] > 0
    page = api.report(whole).read_text()
    assert next(iter(caches)) in page and "By type" in page
    for form in ("hf", "gguf"):
        with pytest.raises(ExportError, match=f"'{form}' cannot express '{min(caches)}' at kv"):
            api.materialize(whole, out=home / form, form=form)
    with pytest.raises(ExportError, match="no such caches"):
        api.materialize(whole, out=home / "vllm", program="vllm")


def test_llama_cpp_is_told_the_type_of_all_caches(home):
    run = api.search(run_of(home, "gguf", LLAMA_CPP))
    found = {level.cache for level in winner_of(run).values() if level.cache}
    assert found == {"q4_0"}
    out = api.materialize(run, out=home / "file", form="gguf")
    assert "--cache-type-k q4_0 --cache-type-v q4_0" in (out / "README.md").read_text()
    with pytest.raises(ConfigError, match="kv8.*llama.cpp has no such type of caches"):
        api.search(run_of(home, "other", {**TORCH, "bits": None, "fits": "gguf"}))


def test_an_encoder_is_refused_which_caches_nothing(home):
    tiny_checkpoint(home / "bert", "bert")
    space = {"cache": {"types": ["kv4"]}, "budget": {"params": 0.9}}
    model, proxy = {"source": str(home / "bert")}, {"kind": "embedding"}
    run = run_of(home, "encoder", space, model=model, proxy=proxy)
    with pytest.raises(ModelError, match="space.cache: .* does not tell the next token"):
        api.search(run)
