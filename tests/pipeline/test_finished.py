"""What was searched with is what is loaded later, or the command says what is not."""

import json
import shutil

import pytest
from run_files import TEXT
from transformers import AutoModelForCausalLM

from evocompress import api
from evocompress.core.config_file import load_config
from evocompress.core.errors import EvoCompressError, RunError
from evocompress.core.files import read_json, write_json
from evocompress.pipeline.journal_memory import Memory
from evocompress.pipeline.run_folder import RunFolder


def shift(home):
    (home / "text.txt").write_text("another beginning " + TEXT)


def change_a_weight(home):
    model = AutoModelForCausalLM.from_pretrained(home / "model")
    model.model.norm.weight.data[0] += 0.5
    model.save_pretrained(home / "model")


def rebuild_the_library(home):
    shutil.rmtree(home / "runs" / "trial" / "library")
    shift(home)
    api.build_library(load_config(home / "trial.yaml"))
    (home / "text.txt").write_text(TEXT)


STAGES = {
    "materialize": lambda run: api.materialize(run, out=run / "again"),
    "heal": api.heal,
    "evaluate": api.evaluate,
}


@pytest.mark.parametrize(
    ("change", "stage", "what"),
    [
        (shift, "heal", "the text of"),
        (shift, "evaluate", "the text of"),
        (change_a_weight, "materialize", "the model"),
        (change_a_weight, "heal", "the model"),
        (change_a_weight, "evaluate", "the model"),
        (rebuild_the_library, "materialize", "the level library"),
        (rebuild_the_library, "evaluate", "the level library"),
    ],
)
def test_what_has_changed_since_the_search_is_named(home, change, stage, what):
    change(home)
    run = home / "runs" / "trial"
    with pytest.raises(RunError, match=what):
        STAGES[stage](run)
    for name in ("again", "heal", "evaluation.json"):
        assert not (run / name).exists()


def test_what_has_not_changed_goes_through(home):
    run = home / "runs" / "trial"
    for stage in STAGES.values():
        stage(run)
    assert (run / "evaluation.json").exists()


@pytest.mark.parametrize(
    ("stage", "override", "name"),
    [
        (api.evaluate, "space.sparsity.target=0.6", "space.sparsity.target"),
        (api.evaluate, "calibration.library_sequences=5", "calibration.library_sequences"),
        (api.heal, "calibration.library_sequences=9", "calibration.library_sequences"),
        (api.heal, "calibration.heldout_sequences=2", "calibration.heldout_sequences"),
        (api.heal, "seed=1", "seed"),
    ],
)
def test_what_decided_the_search_stays_as_it_was(home, stage, override, name):
    with pytest.raises(RunError, match=f"^{name} decided the search"):
        stage(home / "runs" / "trial", [override])


def test_an_evaluation_may_take_other_held_out_text(home):
    (home / "more.txt").write_text(" ".join(reversed(TEXT.split())))
    changes = [f"calibration.heldout_source={home / 'more.txt'}", "calibration.heldout_sequences=3"]
    found = read_json(api.evaluate(home / "runs" / "trial", changes))["heldout"]
    assert (found["source"], found["sequences"]) == (str(home / "more.txt"), 3)
    shift(home)
    with pytest.raises(RunError, match="the text of"):
        api.evaluate(home / "runs" / "trial", changes)


@pytest.mark.parametrize("damage", ["{}", "{", "null", ""])
def test_damaged_units_are_written_anew(home, damage):
    units = home / "runs" / "trial" / "units.json"
    whole = units.read_bytes()
    units.write_text(damage)
    api.search(load_config(home / "trial.yaml"), resume=True)
    assert units.read_bytes() == whole
    api.report(units.parent)


def test_a_read_only_run_is_materialized_elsewhere(home, monkeypatch):
    run = home / "runs" / "trial"
    monkeypatch.setattr(RunFolder, "writable", False)
    state = {path: path.stat().st_mtime_ns for path in (run, *run.rglob("*"))}
    written = api.materialize(run, out=home / "elsewhere")
    assert AutoModelForCausalLM.from_pretrained(written).config.vocab_size > 0
    assert {path: path.stat().st_mtime_ns for path in (run, *run.rglob("*"))} == state


def test_another_micro_batch_is_served_by_the_same_library(home):
    library = home / "runs" / "trial" / "library"
    state = {path: path.stat().st_mtime_ns for path in library.glob("*.*")}
    changes = ["name=other", "calibration.micro_batch=1", f"library.path={library}"]
    api.search(load_config(home / "trial.yaml", changes))
    assert {path: path.stat().st_mtime_ns for path in library.glob("*.*")} == state


def test_a_library_of_an_earlier_version_still_serves(home):
    library = home / "runs" / "trial" / "library"
    header = Memory(home / "runs" / "trial" / "journal.jsonl").header
    manifest = read_json(library / "manifest.json")
    manifest["recipe"]["calibration"] = header["calibration"]
    (library / "manifest.json").write_text(json.dumps(manifest))
    api.search(load_config(home / "trial.yaml"), resume=True)


@pytest.mark.parametrize("key", ["model", "library"])
def test_a_checkpoint_of_another_model_or_library_is_refused(home, key):
    run = home / "runs" / "trial"
    api.heal(run)
    for folder in (run / "heal" / "checkpoint", run / "checkpoint"):
        record = folder / "candidate.json"
        data = read_json(record)
        write_json(record, data | {f"{key}_fingerprint": "f" * 16})
        with pytest.raises(RunError, match=f"made from another {key}"):
            api.evaluate(run)
        if folder.parent == run:
            with pytest.raises(RunError, match=f"made from another {key}"):
                api.heal(run)
        else:
            with pytest.raises(RunError, match=f"made from another {key}"):
                api.materialize(run, out=home / "healed", healed=True)
        write_json(record, data)


@pytest.mark.parametrize(
    ("asked", "told"),
    [({"candidate": "zip"}, "has no candidate 'zip'"), ({}, "exists: choose another folder")],
)
def test_what_cannot_be_written_is_told_before_the_model_is_loaded(made, monkeypatch, asked, told):
    monkeypatch.setattr("evocompress.pipeline.context.load_as", pytest.fail)
    other = {"out": made / "elsewhere"} if asked else {}
    with pytest.raises(EvoCompressError, match=told):
        api.materialize(made / "runs" / "trial", **asked, **other)
    assert not (made / "elsewhere").exists()
