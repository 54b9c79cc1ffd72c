"""Types of stored weights beside everything else that a space has, from search to report."""

import shutil

import gguf
import numpy as np
import pytest
from dying import resumed
from run_files import assert_same_search, tiny_run, winner_of, written
from safetensors.torch import load_file

from evocompress import api
from evocompress.compression.quantization import ggml
from evocompress.core.config_file import load_config
from evocompress.core.errors import ConfigError, ExportError, LibraryError, ModelError
from evocompress.core.files import read_json
from evocompress.core.storage import STORAGE
from evocompress.export.record import read_record
from evocompress.pipeline.early_checks import check_early
from evocompress.testing.tiny import tiny_checkpoint

EVERYTHING = {
    "drop": {},
    "width": {"multiple_of": 32, "kv_groups": [1], "group_heads": [2]},
    "sparsity": {"target": 0.25, "levels": 1},
    "bits": {"types": ["q8_0", "q5_0", "q4_0"], "scope": ["matrices", "embeddings"]},
    "budget": {"bits_per_weight": 5.2, "weight_bytes": 0.2},
}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("home")
    tiny_checkpoint(folder / "model")
    return folder


def run_of(home, name, **changes):
    run = tiny_run(
        home,
        name=name,
        space=EVERYTHING,
        search={"name": "auto", "tokens": 3000},
        library={"path": str(home / "library")},
        heal={"steps": 2, "evaluate_every": 1, "validation_sequences": 2},
        evaluate={"latency": False},
    )
    return load_config(written(home / f"{name}.yaml", run | changes))


@pytest.fixture(scope="module")
def whole(home):
    return api.search(run_of(home, "whole"))


def test_a_search_that_was_killed_is_resumed_to_the_same_bytes(home, whole, monkeypatch):
    assert {level.bits for level in winner_of(whole).values()} & STORAGE.keys()
    evaluations = (whole / "journal.jsonl").read_text().count('"type":"candidate"')
    for after in (1, evaluations // 2):
        assert_same_search(resumed(run_of(home, f"cut{after}"), after, monkeypatch), whole)


@pytest.mark.cluster
@pytest.mark.timeout(300)
def test_workers_find_the_same(home, whole):
    pytest.importorskip("ray")
    found = api.search(run_of(home, "ray", executor="ray", ray={"workers": 2}))
    assert_same_search(found, whole, order=False)


def test_all_stages_keep_the_types(home, whole):
    assert api.materialize(whole).name == "checkpoint"
    api.heal(whole)
    api.evaluate(whole)
    rows = {row["name"]: row for row in read_json(whole / "evaluation.json")["rows"]}
    costs = read_json(whole / "winner.json")["costs"]
    assert rows["searched"]["weight_bytes"] == costs["weight_bytes"]
    assert rows["healed"]["weight_bytes"] == costs["weight_bytes"]
    assert rows["dense"]["weight_bytes"] == 4 * rows["dense"]["params"]
    assert "By type" in api.report(whole).read_text()
    files = [
        api.materialize(whole, out=home / name, form="gguf", healed=healed) / "model.gguf"
        for name, healed in (("plain", False), ("healed", True))
    ]
    types = [{t.name: t.tensor_type.name for t in gguf.GGUFReader(f).tensors} for f in files]
    assert types[0] == types[1]
    wanted = {level.bits.upper() for level in winner_of(whole).values() if level.bits}
    assert wanted <= set(types[0].values())


@pytest.mark.parametrize("more", [(), ("heal.tokens=auto", "heal.most_tokens=40_000")], ids=str)
def test_what_is_trained_through_its_rounding_is_written_as_it_is(home, whole, more, tmp_path):
    run = shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(run / "heal", ignore_errors=True)
    if not (run / "checkpoint").exists():
        api.materialize(run)
    words = ("heal.train=all,scales", "heal.straight_through=true", "heal.steps=12")
    api.heal(run, (*words, *more))
    out = api.materialize(run, out=tmp_path / "out", form="gguf", healed=True) / "model.gguf"
    weights = load_file(run / "heal" / "checkpoint" / "model.safetensors")
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(out).tensors}
    downs = [name for name in weights if name.endswith("down_proj.weight")]
    changed = 0
    for name in downs:
        stored = tensors[f"blk.{name.split('.')[2]}.ffn_down.weight"]
        read = gguf.dequantize(stored.data, stored.tensor_type)
        assert np.array_equal(read, weights[name].numpy()), name
        before = load_file(run / "checkpoint" / "model.safetensors")[name]
        changed += not np.array_equal(read, before.numpy())
    assert downs and changed


def test_adapters_are_refused_before_the_search(home):
    with pytest.raises(ConfigError, match="heal.train=lora: .* train norms, biases or head"):
        api.search(run_of(home, "lora", heal={"train": "lora"}))
    assert not (home / "runs" / "lora").exists()


def test_training_through_the_rounding_wants_types(home):
    plain = {"drop": {}, "budget": {"params": 0.9}}
    for heal, key in (({"train": "scales"}, "train=scales"), ({"straight_through": True}, "")):
        with pytest.raises(ConfigError, match=f"heal.{key}.* nothing has without space.bits"):
            api.search(run_of(home, "untyped", space=plain, heal=heal))
        tables = {"bits": {"types": ["iq4_nl"]}, "budget": {"weight_bytes": 0.9}}
        with pytest.raises(ConfigError, match=f"heal.{key}.* equal steps .* space.bits has none"):
            api.search(run_of(home, "untyped", space=tables, heal=heal))
    assert not (home / "runs" / "untyped").exists()


def test_types_that_need_ggml_are_refused_before_anything_is_loaded(home, monkeypatch):
    monkeypatch.setattr(ggml, "_ggml", lambda: None)
    space = {"bits": {"types": ["dense", "iq4_nl"]}, "budget": {"weight_bytes": 0.5}}
    with pytest.raises(LibraryError, match="type iq4_nl is made by ggml, which is not installed"):
        api.search(run_of(home, "codebook", space=space))
    assert not (home / "runs" / "codebook").exists()


def test_a_format_that_cannot_hold_them_is_refused(home, whole):
    with pytest.raises(ExportError, match="holds groups .* has llama.cpp's type"):
        api.materialize(whole, out=home / "words", form="compressed-tensors")
    assert not (home / "words").exists()


@pytest.mark.parametrize("scope", [["matrices", "embeddings"], ["matrices", "head"]], ids=str)
def test_types_of_the_embedding_want_a_budget_that_counts_it(home, scope):
    types = ["q8_0", "q5_0"]
    space = {"bits": {"types": types, "scope": scope}, "budget": {"bits_per_weight": 6}}
    message = (
        "space.budget: bits_per_weight counts no bytes of the embedding 'model.embed_tokens', "
        r"which would keep the largest of its types: bound weight_bytes \(or file_bytes, memory\)"
    )
    with pytest.raises(ConfigError, match=message):
        api.search(run_of(home, "unseen", space=space))
    assert not (home / "runs" / "unseen").exists()
    search = {"name": "nsga2", "tokens": 40000, "objectives": ["weight_bytes"]}
    for changes in (
        {"space": space, "search": search},
        {"space": {**space, "budget": {"bits_per_weight": 6, "weight_bytes": 0.21}}},
        {"space": {**space, "bits": {"types": ["dense", "q5_0"]}}},
        {"space": {"bits": {"types": ["q5_0"], "scope": scope}, "budget": {"bits_per_weight": 6}}},
    ):
        check_early(run_of(home, "seen", **changes))


def test_a_budget_of_the_file_is_met_to_the_byte(home):
    space = {
        "bits": {"types": ["dense", "q8_0", "q4_0"], "scope": ["matrices", "head"]},
        "fits": "gguf",
        "budget": {"file_bytes": 0.45},
    }
    search = {"name": "evopress_dp"}
    library = {"path": str(home / "other")}
    folder = api.search(run_of(home, "sized", space=space, search=search, library=library))
    assert winner_of(folder)["model.embed_tokens"].bits
    out = api.materialize(folder, form="gguf")
    record, size = read_record(out), (out / "model.gguf").stat().st_size
    assert record.predicted["file_bytes"] == record.measured["file_bytes"] == size
    assert "the embedding `model.embed_tokens` in q" in (out / "README.md").read_text()


@pytest.mark.parametrize(
    ("fits", "types"),
    [("gguf", ["q8_0", "q4_0"]), ("compressed-tensors", ["w8a8", "w4g32"])],
)
def test_what_the_space_fits_is_written_and_healing_wants_another(home, fits, types):
    space = {"bits": {"types": types}, "fits": fits, "budget": {"bits_per_weight": 6.2}}
    search, library = {"name": "evopress_dp"}, {"path": str(home / f"library-{fits}")}
    folder = api.search(run_of(home, fits, space=space, search=search, library=library))
    assert read_record(api.materialize(folder)).format == fits
    for stage in (api.heal, api.evaluate):
        with pytest.raises(ModelError, match=rf"of format {fits}, which heal .* --for transformer"):
            stage(folder)
    shutil.rmtree(folder / "checkpoint")
    assert read_record(api.materialize(folder, program="transformers")).format == "stock"
    api.heal(folder)
    out = api.materialize(folder, out=home / f"healed-{fits}", healed=True)
    assert read_record(out).format == fits
