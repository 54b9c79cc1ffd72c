"""What is kept of a sweep and its trials."""

import json
from dataclasses import replace

import pytest

from evocompress.core.errors import RunError
from evocompress.pipeline.sweep import SweepConfig, SweepFolder, begin_sweep, check_sweep, failures
from evocompress.pipeline.sweep.outcome import outcomes, read_outcomes, write_outcomes
from evocompress.pipeline.sweep.record import Clock
from evocompress.pipeline.sweep.trials import trial_of

RUN = {"model": {"source": "m"}, "space": {"drop": {}, "budget": {"params": 0.5}}}


@pytest.fixture
def sweep(tmp_path):
    seeds = {"seed": {"low": 0, "high": 4}}
    return SweepConfig(name="many", runs=tmp_path / "runs", run=RUN, vary=seeds)


@pytest.fixture
def folder(sweep):
    found = check_sweep(sweep, resume=False)
    begin_sweep(found, sweep)
    return found


def test_a_sweep_goes_on_only_when_asked_and_only_as_the_same_one(sweep, folder):
    with pytest.raises(RunError, match="--resume"):
        check_sweep(sweep, resume=False)
    assert check_sweep(sweep, resume=True) == folder
    elsewhere = sweep.ray.model_copy(update={"address": "auto", "workers": 3})
    assert check_sweep(sweep.model_copy(update={"ray": elsewhere}), resume=True) == folder
    larger = sweep.ray.model_copy(update={"cpus": 2})
    with pytest.raises(RunError, match=r"another configuration \(ray.cpus differ\)"):
        check_sweep(sweep.model_copy(update={"ray": larger}), resume=True)
    with pytest.raises(RunError, match=r"another configuration \(seed differ\)"):
        check_sweep(sweep.model_copy(update={"seed": 1}), resume=True)
    assert folder.config() == sweep


def test_what_a_kill_left_before_the_first_file_can_be_used(sweep):
    SweepFolder(sweep.folder).records.path.mkdir(parents=True)
    check_sweep(sweep, resume=False)
    (sweep.folder / "notes.txt").touch()
    with pytest.raises(RunError, match="exists already"):
        check_sweep(sweep, resume=False)


def test_only_one_process_makes_a_sweep(folder):
    with folder.locked(), pytest.raises(RunError, match="in use"), folder.locked():
        pass


def test_the_time_of_all_attempts_is_kept_and_a_failure_only_until_the_next(sweep, folder):
    trial = trial_of(sweep, {"seed": 0})
    Clock(folder.records, trial).keep(failed="no disk", session="one")
    first = folder.records.read(trial.name)
    assert first.failed == "no disk" and first.session == "one" and first.settings == {"seed": 0}
    folder.records.keep(trial.name, replace(first, seconds=10.0))
    Clock(folder.records, trial)
    second = folder.records.read(trial.name)
    assert second.failed is None and second.seconds >= 10.0 and second.begun == first.begun


def test_a_damaged_record_is_named(folder):
    (folder.records.path / "t.json").write_text('{"nothing": 1}')
    with pytest.raises(RunError, match=r"t\.json is damaged"):
        folder.records.read("t")


@pytest.mark.parametrize("text", ["{}", "null", '{"trials": null}', '{"trials": [{}]}', "[1]", ""])
def test_a_damaged_summary_is_named(folder, text):
    folder.summary.write_text(text)
    with pytest.raises(RunError, match=r"sweep\.json is damaged.*'evocompress report'"):
        read_outcomes(folder)


def test_what_became_of_each_trial_is_read_from_its_folder(sweep, folder):
    names = [trial_of(sweep, {"seed": seed}).name for seed in range(5)]
    for name in names[:4]:
        (folder.path / name).mkdir()
        trial = trial_of(sweep, {"seed": names.index(name)})
        Clock(folder.records, trial)
    step = {"type": "step", "step": 3, "requested": 90, "computed": 80, "incumbent": "i"}
    line = json.dumps(step | {"value": 0.5, "phase": ""}, separators=(",", ":"))
    for name in names[:3]:
        (folder.path / name / "journal.jsonl").write_text(line + "\n")
    costs = {"costs": {"params": 4.0}, "dense_costs": {"params": 9.0}, "budget": {"params": 4.5}}
    winner = {"id": "w", "value": 0.25, "levels": {}, "front": None, **costs}
    (folder.path / names[0] / "winner.json").write_text(json.dumps(winner))
    (folder.path / names[1] / "winner.json").write_text(json.dumps(winner))
    (folder.path / names[0] / "front.json").write_text("[]")
    stopped, failed = folder.records.read(names[2]), folder.records.read(names[3])
    folder.records.keep(names[2], replace(stopped, stopped=True))
    folder.records.keep(names[3], replace(failed, failed="no disk"))
    found = outcomes(folder, sweep)
    assert [each.name for each in found] == names
    expected = ["finished", "unfinished", "stopped", "failed", "waiting"]
    assert [each.status for each in found] == expected, "the front is the last file of a search"
    assert found[0].value == 0.25 and found[0].axes == ("params",) and found[0].requested == 90
    assert found[2].value == 0.5 and found[3].value is None and found[3].reason == "no disk"
    write_outcomes(folder, found)
    assert read_outcomes(folder) == found
    assert failures(folder.path) == f"1 of 5 trials failed ({names[3]}: no disk)"
