"""A journal as a study of Optuna, written for people only."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from evocompress.core.errors import RunError
from evocompress.core.types import Candidate

SCRIPT = Path(__file__).parents[2] / "examples" / "optuna_mirror.py"
mirror = runpy.run_path(str(SCRIPT))["mirror"]


def value(candidate, micro_batch, total, count, treatment="none"):
    owner = {"candidate": candidate, "treatment": treatment}
    return {
        "type": "value",
        **owner,
        "micro_batch": micro_batch,
        "sums": [total],
        "counts": [count],
    }


LEVELS = (
    {"mlp": {"channels": 64}, "q": {"zeros": 9}},
    {"mlp": {"drop": True}},
    {"mlp": {"channels": 128}, "q": {"zeros": 10}},
)
A, B, C = (Candidate.from_json(levels).id for levels in LEVELS)
LINES = [
    {"type": "run", "seed": 0},
    *({"type": "candidate", "id": i, "levels": s} for i, s in zip((A, B, C), LEVELS, strict=True)),
    value(B, 0, 8.0, 10),
    value(A, 0, 1.0, 10),
    value(A, 1, 5.0, 20),
    {"type": "failure", "candidate": C, "treatment": "none", "reason": "NaN"},
    {"type": "step", "step": 0, "requested": 1, "computed": 1, "incumbent": A, "value": 0.2},
    value(A, 0, 0.5, 10, treatment="tuned"),
    value(C, 2, 3.0, 10, treatment="tuned"),
    {
        "type": "censored",
        "candidate": C,
        "treatment": "tuned",
        "asked": [2, 3],
        "stop_above": 0.1,
        "done": [2],
    },
]


@pytest.fixture
def folder(tmp_path):
    run = tmp_path / "demo"
    run.mkdir()
    text = "".join(json.dumps(line) + "\n" for line in LINES)
    (run / "journal.jsonl").write_text(text + '{"type":"value","cand')
    return run


def study_in(path):
    return optuna.load_study(study_name="demo", storage=JournalStorage(JournalFileBackend(path)))


def test_trials_are_what_was_measured(folder, tmp_path):
    assert mirror(folder, tmp_path / "study.log") == 5
    trials = study_in(str(tmp_path / "study.log")).trials
    notes = [(trial.user_attrs["candidate"], trial.user_attrs["treatment"]) for trial in trials]
    assert notes == [(B, "none"), (A, "none"), (C, "none"), (A, "tuned"), (C, "tuned")]
    assert [trial.value for trial in trials] == [0.8, 0.2, None, 0.05, None]
    assert [trial.state for trial in trials] == [
        TrialState.COMPLETE,
        TrialState.COMPLETE,
        TrialState.FAIL,
        TrialState.COMPLETE,
        TrialState.PRUNED,
    ]
    assert trials[1].user_attrs["positions"] == 30
    assert trials[2].user_attrs["failure"] == "NaN"


def test_parameters_are_the_levels_from_dense_to_dropped(folder, tmp_path):
    mirror(folder, tmp_path / "study.log")
    first, second, *_ = study_in(str(tmp_path / "study.log")).trials
    assert first.params == {"mlp": "drop", "q": "dense"}
    assert second.params == {"mlp": "channels=64", "q": "zeros=9"}
    assert first.distributions["mlp"].choices == ("dense", "channels=128", "channels=64", "drop")
    assert first.distributions["q"].choices == ("dense", "zeros=9", "zeros=10")


def test_is_made_anew_and_leaves_nothing_else(folder, tmp_path):
    before = (folder / "journal.jsonl").read_bytes()
    for _ in range(2):
        mirror(folder, tmp_path / "study.log")
    assert len(study_in(str(tmp_path / "study.log")).trials) == 5
    assert (folder / "journal.jsonl").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["demo", "study.log"]
    assert [path.name for path in folder.iterdir()] == ["journal.jsonl"]


def test_refuses_what_is_no_run_and_the_journal_itself(folder, tmp_path):
    with pytest.raises(RunError, match="is not a run folder"):
        mirror(tmp_path, tmp_path / "study.log")
    with pytest.raises(RunError, match="is the journal itself"):
        mirror(folder, folder / "journal.jsonl")


def test_an_answer_without_its_candidate_is_one_line(folder, tmp_path):
    lines = [json.dumps(line) + "\n" for line in LINES]
    (folder / "journal.jsonl").write_text("".join([lines[0], *lines[2:]]))
    with pytest.raises(RunError, match="line 5"):
        mirror(folder, tmp_path / "study.log")
    assert not (tmp_path / "study.log").exists()


def test_the_command_mirrors_a_run_or_says_why_not_in_one_line(folder, tmp_path):
    target = str(tmp_path / "study.log")
    command = [sys.executable, str(SCRIPT)]
    done = subprocess.run([*command, str(folder), target], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"5 trials in {target}\n")
    failed = subprocess.run([*command, str(tmp_path), target], capture_output=True, text=True)
    assert failed.returncode == 1 and failed.stderr.startswith("error: ")
    assert failed.stderr.count("\n") == 1
