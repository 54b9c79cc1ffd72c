"""A search goes on under the circumstances that it began under, or is forced to and says so."""

import json
import sys

import pytest

from evocompress import api
from evocompress.cli import commands
from evocompress.core.circumstances import Facts, differences
from evocompress.core.config_file import load_config
from evocompress.core.errors import RunError
from evocompress.core.files import read_json, write_json
from evocompress.healing import distill
from evocompress.pipeline.journal import Journal
from evocompress.pipeline.journal_memory import Memory


def other_versions(run, **changes):
    known = read_json(run / "environment.json")
    known["versions"]["torch"] = "1.0"
    write_json(run / "environment.json", known | changes)


def resume(home, *words, monkeypatch):
    command = ["evocompress", "search", str(home / "trial.yaml"), "--resume", *words]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as stop:
        commands.main()
    return stop.value.code


def test_other_versions_are_refused_unless_forced_and_then_said(home, monkeypatch):
    run = home / "runs" / "trial"
    before = (run / "journal.jsonl").read_bytes()
    other_versions(run)
    assert "torch was 1.0, is" in resume(home, monkeypatch=monkeypatch)
    assert (run / "journal.jsonl").read_bytes() == before
    assert resume(home, "--force", monkeypatch=monkeypatch) == 0
    assert (run / "journal.jsonl").read_bytes().startswith(before)
    [forced] = Memory(run / "journal.jsonl").forced
    steps = len(Memory(run / "journal.jsonl").steps)
    assert (forced["step"], forced["circumstances"]["threads"]) == (steps, 1)
    marked = (run / "journal.jsonl").read_bytes()
    for words in ([], ["--force"]):
        assert resume(home, *words, monkeypatch=monkeypatch) == 0
        assert (run / "journal.jsonl").read_bytes() == marked
    api.report(run)
    said = f"From step {steps + 1} the search was made to go on under other circumstances"
    assert said in (run / "summary.md").read_text()
    assert "torch was 1.0" in (run / "summary.md").read_text()


def test_a_healing_goes_on_elsewhere_only_if_forced_and_that_is_said(home, monkeypatch):
    run = home / "runs" / "trial"
    changes = ["heal.steps=4"]
    with monkeypatch.context() as patch:
        patch.setattr(distill, "learning_rate", lambda step, _: [1e-3, 1e-3][step])
        with pytest.raises(IndexError):
            api.heal(run, changes)
    [state] = run.glob("heal/state/*/state.json")
    known = read_json(state)
    known["circumstances"]["versions"]["torch"] = "1.0"
    write_json(state, known)
    with pytest.raises(RunError, match="torch was 1.0, is"):
        api.heal(run, changes, resume=True)
    command = ["evocompress", "heal", str(run), *changes, "--resume", "--force"]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as stop:
        commands.main()
    assert stop.value.code == 0
    api.report(run)
    said = (
        "From step 3 the healing was made to go on under other circumstances (--force): torch was"
    )
    assert said in (run / "summary.md").read_text()
    (run / "heal" / "heal.json").unlink()  # of a healing that is not finished, the state says it
    api.report(run)
    assert said in (run / "summary.md").read_text()


def test_other_threads_are_refused_unless_forced(home, monkeypatch):
    run = home / "runs" / "trial"
    before = (run / "journal.jsonl").read_bytes()
    assert "threads was 1, is 2" in resume(home, "threads=2", monkeypatch=monkeypatch)
    assert (run / "journal.jsonl").read_bytes() == before
    for words in (["--force"], []):
        assert resume(home, "threads=2", *words, monkeypatch=monkeypatch) == 0
    assert len(Memory(run / "journal.jsonl").forced) == 1
    api.report(run)
    assert "threads was 1, is 2" in (run / "summary.md").read_text()
    assert "another configuration (seed" in resume(home, "seed=3", monkeypatch=monkeypatch)


def test_a_journal_compares_threads_on_every_device():
    begun = Facts(device="cuda: A", threads=1)
    assert differences(begun, Facts(device="cuda: A", threads=2)) == []
    assert differences(begun, Facts(device="cuda: A", threads=2), threads=True) != []


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("device", "cpu: Another One"),
        ("instructions", "NONE"),
        ("threads", 64),
        ("dtype", "float8"),
    ],
)
def test_another_device_is_refused_by_name(home, key, value):
    other = read_json(home / "runs" / "trial" / "environment.json") | {key: value}
    write_json(home / "runs" / "trial" / "environment.json", other)
    with pytest.raises(RunError, match=f"{key} was {value}, is"):
        api.search(load_config(home / "trial.yaml"), resume=True)


def test_an_evaluation_under_other_circumstances_is_said(home):
    run = home / "runs" / "trial"
    api.evaluate(run)
    said = "Evaluated under other circumstances than searched: torch was 1.0"
    api.report(run)
    assert said not in (run / "summary.md").read_text()
    other_versions(run)
    api.report(run)
    assert said in (run / "summary.md").read_text()


def test_what_an_earlier_version_did_not_write_down_is_not_compared(home):
    run = home / "runs" / "trial"
    known = read_json(run / "environment.json")
    for key in ("instructions", "executor"):
        del known[key]
    del known["versions"]["numba"]
    (run / "environment.json").write_text(json.dumps(known))
    api.search(load_config(home / "trial.yaml"), resume=True)


def test_a_lost_environment_is_no_known_one(home):
    run = home / "runs" / "trial"
    (run / "environment.json").unlink()
    with pytest.raises(RunError, match="environment.json is missing"):
        api.search(load_config(home / "trial.yaml"), resume=True)
    api.search(load_config(home / "trial.yaml"), resume=True, force=True)
    assert len(Memory(run / "journal.jsonl").forced) == 1
    api.search(load_config(home / "trial.yaml"), resume=True)


def test_damaged_circumstances_are_remedied_alike_everywhere(home):
    run = home / "runs" / "trial"
    for text in ("{", '{"threads": []}'):
        (run / "environment.json").write_text(text)
        for stage in (
            lambda: api.search(load_config(home / "trial.yaml"), resume=True),
            lambda: api.report(run),
        ):
            with pytest.raises(RunError, match="environment.json is damaged.*delete it and go on"):
                stage()
    (run / "environment.json").unlink()
    api.search(load_config(home / "trial.yaml"), resume=True, force=True)
    api.report(run)


def test_threads_and_the_like_of_the_header_may_be_forced(tmp_path):
    begun = {"model": "a", "threads": 1}
    Journal(tmp_path / "j", begun).close()
    now = begun | {"threads": 2}
    with pytest.raises(RunError, match="threads was 1, is 2"):
        Journal(tmp_path / "j", now)
    with pytest.raises(RunError, match="model was a, is b"):
        Journal(tmp_path / "j", now | {"model": "b"}, may_differ=("threads",))
    with Journal(tmp_path / "j", now, may_differ=("threads",)) as journal:
        journal.mark({"threads": 2}, {})
    Journal(tmp_path / "j", now).close()
    with pytest.raises(RunError, match="threads was 2, is 1"):
        Journal(tmp_path / "j", begun)
