"""Mixtures of experts from the search to the checkpoint, on a model that has learnt something."""

import sys
from math import comb

import pytest
import torch
from run_files import tiny_run, written
from transformers import AutoModelForCausalLM

import evocompress.hf  # noqa: F401
from evocompress.cli import commands
from evocompress.compression.library import build_library
from evocompress.compression.live_model import LiveModel
from evocompress.core.canonical import canonical
from evocompress.core.config import LibraryConfig
from evocompress.core.errors import ExportError
from evocompress.core.files import read_json
from evocompress.core.types import DROP, Candidate, Level
from evocompress.evaluation.estimates import ESTIMATES
from evocompress.evaluation.estimates.base import Subject
from evocompress.export import choose_format, materialize, read_record
from evocompress.healing.student import load_student, write_student
from evocompress.models.stored_tensors import stored_tensors
from evocompress.pipeline.journal import read_candidates
from evocompress.space.costs import cost_model
from evocompress.testing.plain_library import PlainLibrary
from evocompress.testing.tiny import MIXTURES, tiny_checkpoint, tiny_loaded
from tests.models.trained_mixture import dialect_text, trained_checkpoint, trained_mixture


@pytest.fixture(scope="module")
def trained():
    return trained_mixture()


def tokens(loaded, words=400):
    ids = loaded.tokenizer(dialect_text(words, seed=9), verbose=False)["input_ids"]
    return torch.tensor(ids[: len(ids) // 32 * 32]).view(-1, 32)


def loss(loaded, ids):
    with torch.no_grad():
        return float(loaded.model(ids, labels=ids).loss)


def test_the_least_used_expert_is_missed_less_than_the_most_used(trained):
    ids = tokens(trained)
    with LiveModel(trained) as live:
        used = ESTIMATES["routing_frequency"](Subject(live, [ids], Candidate()))
        dense = loss(trained, ids)
        for layer in range(2):
            own = [unit for unit in used if unit.startswith(f"model.layers.{layer}.")]
            order = sorted(own, key=lambda unit: used[unit][0])
            harms = []
            for unit in (order[0], order[-1]):
                live.apply(canonical({unit: DROP}, live.units.values()))
                harms.append(loss(trained, ids) - dense)
            # How much harm it is depends on what a machine's rounding makes of the training.
            assert harms[1] > 5 * abs(harms[0])


def test_experts_that_no_token_reaches_are_compressed_by_their_weights(tmp_path, trained, caplog):
    narrow, zeros = Level(channels=8), Level(zeros=300)
    units = {unit.name: unit for unit in trained.family.units(trained.model)}
    wanted = {name: (narrow,) for name, unit in units.items() if unit.kind == "expert"}
    wanted |= {name: (zeros,) for name in units if name.endswith("up_proj")}
    few = tokens(trained, 20)[:1, :8]
    for criterion, structured in (("sparsegpt", "obs_structured"), ("wanda", "minitron")):
        config = LibraryConfig(criterion=criterion, width_criterion=structured)
        path = tmp_path / criterion
        library = build_library(trained, wanted, few, "few", config, path, batch=1)
        records = library.manifest.blocks[1].inputs
        counts = {word: record.tokens for word, record in records.items() if "experts" in word}
        assert 0 in counts.values() and max(counts.values()) <= 8
        assert "no calibration token is sent to" in caplog.text
        for name, levels in wanted.items():
            assert library.load(name, levels[0])["weight"].isfinite().all()


@pytest.mark.parametrize("name", MIXTURES)
def test_stock_has_the_tensors_of_a_checkpoint_of_the_type(tmp_path, name):
    whole = tiny_checkpoint(tmp_path / "whole", name)
    stock = materialize(tiny_loaded(name), None, Candidate(), tmp_path / "stock", format="stock")
    written, wanted = (stored_tensors(folder.glob("*.safetensors")) for folder in (stock, whole))
    assert written == wanted
    assert any(".experts.0." in tensor for tensor in written)


@pytest.mark.parametrize("name", MIXTURES)
def test_checkpoints_generate_what_the_candidate_does(tmp_path, name):
    loaded = tiny_loaded(name)
    library, path = PlainLibrary(loaded), "model.layers"
    uneven = {f"{path}.0.mlp.experts.1": DROP, f"{path}.2.mlp": Level(channels=20)}
    uneven |= {f"{path}.2.mlp.experts.0": DROP, f"{path}.2.mlp.experts.3": DROP}
    uneven |= {f"{path}.1.attention": DROP}
    even = {f"{path}.{i}.mlp.experts.{i}": DROP for i in range(3)}
    even |= {f"{path}.{i}.mlp": Level(channels=24) for i in range(3)}
    costs = cost_model(library.units.values(), loaded.family.architecture(loaded.model))
    shared = [unit for unit in library.units.values() if ".shared_expert." in unit.name]
    for levels in (uneven, even):
        levels |= {unit.name: Level(zeros=unit.numel // 2) for unit in shared}
    for form, levels in (("hf", uneven), ("stock", even)):
        candidate = canonical(levels, library.units.values())
        assert choose_format(loaded, candidate) == form
        out = materialize(loaded, library, candidate, tmp_path / form)
        model = AutoModelForCausalLM.from_pretrained(out)
        assert type(model).__module__.startswith("transformers.") == (form == "stock")
        ids = torch.arange(5, 13)[None]
        with LiveModel(loaded, library) as live:
            live.apply(candidate)
            expected = greedy(loaded.model, ids, cache=False)
        assert torch.equal(greedy(model, ids, cache=True), expected)
        record = read_record(out)
        assert record.measured["params"] == sum(p.numel() for p in model.parameters())
        predicted = costs.of([candidate])
        assert all(predicted[cost].item() == count for cost, count in record.measured.items())
    healed = tmp_path / "healed"
    student = load_student(tmp_path / "stock", loaded)
    write_student(student.requires_grad_(False), tmp_path / "stock", healed, "nothing")
    again = AutoModelForCausalLM.from_pretrained(healed)
    torch.testing.assert_close(again(ids).logits, model(ids).logits)
    with pytest.raises(ExportError, match=r"cannot give model.layers.0.mlp fewer experts"):
        dropped = {f"{path}.0.mlp.experts.1": DROP}
        choose_format(loaded, canonical(dropped, library.units.values()), "stock")
    with pytest.raises(ExportError, match="'padded' cannot leave out experts of model.layers.0"):
        choose_format(loaded, canonical(dropped, library.units.values()), "padded")
    with pytest.raises(ExportError, match=f"'deci' cannot hold {name} models"):
        choose_format(loaded, Candidate(), "deci")
    with pytest.raises(ExportError, match=r"cannot give model.layers.0.mlp fewer experts, because"):
        choose_format(loaded, canonical(dropped, library.units.values()), "folded")


def greedy(model, ids, *, cache):
    mask = torch.ones_like(ids)
    return model.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=8,
        min_new_tokens=8,
        do_sample=False,
        use_cache=cache,
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixture")
    trained_checkpoint(folder / "model")
    tiny_checkpoint(folder / "shared", "qwen2_moe")
    (folder / "text.txt").write_text(dialect_text(1500, seed=5))
    return folder


def call(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["evocompress", *map(str, words)])
    with pytest.raises(SystemExit) as stop:
        commands.main()
    return stop.value.code


def write_run(place, name, space, search, model="model"):
    run = tiny_run(
        place,
        {"library_sequences": 8, "search_sequences": 16, "heldout_sequences": 8, "micro_batch": 8},
        name=name,
        model={"source": str(place / model)},
        space=space,
        search=search,
        heal={"steps": 4, "evaluate_every": 2, "validation_sequences": 2},
        evaluate={"latency": False},
    )
    return written(place / f"{name}.yaml", run)


@pytest.mark.parametrize("model", ["model", "shared"])
def test_the_command_line_takes_a_mixture_all_the_way(place, monkeypatch, model):
    space = {
        "drop": {"units": ["expert", "mlp"]},
        "width": {"units": ["mlp"], "channels": [0.5], "multiple_of": 4, "protect": []},
        "sparsity": {"target": 0.5, "levels": 1},
        "budget": {"active_params": 0.9, "nonzeros": 0.45},
    }
    search = {"name": "evopress", "generations": 2, "offspring": 4, "survivors": [2, 1]}
    search |= {"stage_tokens": [256, 512]}
    file = write_run(place, f"all-{model}", space, search, model)
    run = place / "runs" / f"all-{model}"
    assert call(monkeypatch, "search", file) == 0
    for stage in ("materialize", "heal", "evaluate", "report"):
        assert call(monkeypatch, stage, run) == 0
    record = read_record(run / "checkpoint")
    shared = record.measured.keys() & record.predicted.keys()
    assert {"params", "nonzeros"} <= shared
    assert all(record.measured[cost] == record.predicted[cost] for cost in shared)
    assert (run / "report.html").stat().st_size > 1000


def test_a_search_of_every_choice_is_at_least_as_good_as_the_routing_frequency(place, monkeypatch):
    """Both are compared where both are measured; on other text either may be luckier."""
    drop = {"units": ["expert"], "protect": ["model.layers.0"]}
    space = {"drop": drop, "budget": {"body_params": 0.75}}
    every = {"generations": 10, "offspring": 14, "survivors": [1], "stage_tokens": [512]}
    values = {}
    for name, settings in (("routing_frequency", {}), ("evopress", every)):
        file = write_run(place, name, space, {"name": name} | settings)
        assert call(monkeypatch, "search", file) == 0
        run = place / "runs" / name
        values[name] = read_json(run / "winner.json")["value"]
    searched = [c for c in read_candidates(run / "journal.jsonl").values() if c.levels]
    assert sorted(len(candidate.levels) for candidate in searched) == [4] * comb(6, 4)
    assert values["evopress"] <= values["routing_frequency"]


def test_latency_is_refused(place, monkeypatch):
    space = {"drop": {"units": ["expert"]}, "budget": {"latency": 0.8}}
    file = write_run(place, "latency", space, {"name": "uniform"})
    for command in ("search", "profile"):
        assert "depends on the routing" in call(monkeypatch, command, file)
