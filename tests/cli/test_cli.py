"""The command line on a tiny model: what a user does, and what a user does wrong."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import run_files
import torch
import yaml
from rich.table import Table
from run_files import TEXT
from transformers import AutoModelForCausalLM

import evocompress
from evocompress.cli import commands as cli
from evocompress.core.terminal import print_table
from evocompress.pipeline.sweep import SweepFolder, TrialOutcome
from evocompress.pipeline.sweep.outcome import write_outcomes
from evocompress.testing.tiny import tiny_checkpoint


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def run_file(tmp_path, model_folder):
    (tmp_path / "text.txt").write_text(TEXT)
    return write_run(tmp_path, model_folder)


def write_run(folder, model, **changes):
    run = {
        "model": {"source": str(model)},
        "heal": {"steps": 4, "evaluate_every": 2, "validation_sequences": 2},
        "evaluate": {"prefill": [1, 16], "decode": [8, 4], "repeats": 2, "latency_seconds": 0},
    }
    return run_files.write_run(folder, **run | changes)


def call(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["evocompress", *map(str, words)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return stop.value.code


def journal(folder):
    return [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]


def test_the_whole_job(monkeypatch, capsys, run_file, tmp_path):
    folder = tmp_path / "runs" / "trial"
    assert call(monkeypatch, "search", run_file) == 0
    for command in ("materialize", "heal", "evaluate", "report"):
        assert call(monkeypatch, command, folder) == 0, command
    assert call(monkeypatch, "library", "inspect", folder / "library", "--verify") == 0
    assert "healed" in capsys.readouterr().out
    rows = {r["name"]: r for r in json.loads((folder / "evaluation.json").read_text())["rows"]}
    assert list(rows) == ["dense", "uniform", "searched", "healed"]
    assert rows["dense"]["kl"] == pytest.approx(0, abs=1e-6)
    assert rows["searched"]["nonzeros"] == rows["searched"]["predicted"]["nonzeros"]
    assert rows["searched"]["flops"] == rows["searched"]["predicted"]["flops"]
    assert (folder / "report.html").stat().st_size > 1_000_000
    assert "searched" in (folder / "summary.md").read_text()
    healed = AutoModelForCausalLM.from_pretrained(folder / "heal" / "checkpoint")
    searched = AutoModelForCausalLM.from_pretrained(folder / "checkpoint")
    zeros = [
        (torch.count_nonzero(p) < p.numel()).item() and torch.all(q[p == 0] == 0).item()
        for (name, p), q in zip(searched.named_parameters(), healed.parameters(), strict=True)
        if "proj" in name
    ]
    assert all(zeros)


def test_a_killed_search_resumed_is_the_undisturbed_one(monkeypatch, run_file, tmp_path):
    assert call(monkeypatch, "search", run_file, "name=whole") == 0
    whole, cut = tmp_path / "runs" / "whole", tmp_path / "runs" / "cut"
    command = [sys.executable, "-m", "evocompress", "search", str(run_file), "name=cut"]
    begun = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while begun.poll() is None and not _has_values(cut / "journal.jsonl"):
        time.sleep(0.005)
    begun.send_signal(signal.SIGKILL)
    begun.wait()
    assert not (cut / "winner.json").exists(), "the search was over before it was killed"
    assert call(monkeypatch, "search", run_file, "name=cut", "--resume") == 0
    assert journal(cut) == journal(whole)
    assert (cut / "winner.json").read_bytes() == (whole / "winner.json").read_bytes()
    assert (cut / "front.json").read_bytes() == (whole / "front.json").read_bytes()


def _has_values(path):
    return path.exists() and '"value"' in path.read_text()


def test_depth_drops_what_it_should_and_generates(monkeypatch, model_folder, tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    space = {"drop": {"units": ["attention", "mlp"]}, "budget": {"body_params": 0.7}}
    run_file = write_run(tmp_path, model_folder, space=space)
    folder = tmp_path / "runs" / "trial"
    assert call(monkeypatch, "search", run_file, "search.initial=4") == 0
    for command in ("materialize", "evaluate", "report"):
        assert call(monkeypatch, command, folder) == 0
    assert not (folder / "library").exists()
    rows = {r["name"]: r for r in json.loads((folder / "evaluation.json").read_text())["rows"]}
    assert rows["searched"]["params"] == rows["searched"]["predicted"]["params"]
    assert rows["searched"]["flops"] == rows["searched"]["predicted"]["flops"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["search.generatoins=2"], "did you mean 'generations'"),
        (["search.tokns=2"], "did you mean 'tokens'"),
        (["executor=locl"], "did you mean 'local'"),
        (["evaluate.prefill=[1, 99999]"], "99999"),
        (["search.name=evopres"], "did you mean 'evopress'"),
        (["library.criterion=sparsgpt"], "did you mean 'sparsegpt'"),
        (["model.source=/nowhere/model"], "/nowhere/model"),
        (["space.sparsity.match=['*.nothing']"], "*.nothing"),
        (["space.budget={matrix_nonzeros: 0.01}"], "matrix_nonzeros"),
        (["space.budget={parms: 0.5}"], "did you mean 'params'"),
        (["search.stage_tokens=[64, 4096]"], "4096"),
        (["calibration.length=100000"], "100000"),
        (["calibration.source=/nowhere/text.txt"], "/nowhere/text.txt"),
        (["calibration.search_sequences=100000"], "sequences"),
        (["calibration.source=datasets:nobody/nothing"], "nobody/nothing"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(monkeypatch, run_file, tmp_path, words, message):
    code = call(monkeypatch, "search", run_file, *words)
    assert isinstance(code, str) and code.startswith("error: ")
    assert message in code and "\n" not in code
    assert not (tmp_path / "runs").exists()


def test_what_can_be_done_to_a_model_is_shown(monkeypatch, capsys, model_folder, tmp_path):
    assert call(monkeypatch, "models", model_folder) == 0
    assert "in 3 of 3 blocks" in capsys.readouterr().out
    assert call(monkeypatch, "models", model_folder / "config.json", "--json") == 0
    [found] = json.loads(capsys.readouterr().out)
    assert found["model_type"] == "llama" and found["actions"]["heads"] == 3
    (tmp_path / "bart").mkdir()
    config = {"model_type": "bart", "architectures": ["BartForCausalLM"]}
    (tmp_path / "bart" / "config.json").write_text(json.dumps(config))
    assert call(monkeypatch, "models", tmp_path / "bart", "--json") == 0
    assert "a block has modules that are not run" in capsys.readouterr().out
    (tmp_path / "blip").mkdir()
    config = {"model_type": "blip", "architectures": ["BlipForConditionalGeneration"]}
    (tmp_path / "blip" / "config.json").write_text(json.dumps(config))
    (tmp_path / "own").mkdir()
    config = {"model_type": "own_code", "auto_map": {"AutoModelForCausalLM": "code.Model"}}
    (tmp_path / "own" / "config.json").write_text(json.dumps(config))
    refused = {
        "none can be derived: it reads pixel_values beside input_ids": [tmp_path / "blip"],
        "has no such type, and code that comes with a model is not used": [tmp_path / "own"],
        "of type 'olmoo', and no family is of that type": ["--type", "olmoo"],
        "/nowhere/model": ["/nowhere/model"],
        "leave out --type": [model_folder, "--type", "olmo"],
    }
    for message, words in refused.items():
        code = call(monkeypatch, "models", *words)
        assert code.startswith("error: ") and message in code and "\n" not in code


def test_an_existing_run_is_not_touched(monkeypatch, run_file, tmp_path):
    assert call(monkeypatch, "search", run_file) == 0
    folder = tmp_path / "runs" / "trial"
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.name != ".lock"}
    assert "--resume" in call(monkeypatch, "search", run_file)
    assert "seed" in call(monkeypatch, "search", run_file, "seed=1", "--resume")
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.name != ".lock"} == before
    assert call(monkeypatch, "search", run_file, "--resume") == 0


def test_a_foreign_library_is_refused(monkeypatch, run_file, tmp_path):
    library = f"library.path={tmp_path / 'library'}"
    assert call(monkeypatch, "library", "build", run_file, library) == 0
    other = tiny_checkpoint(tmp_path / "other", "qwen2")
    code = call(monkeypatch, "search", run_file, library, f"model.source={other}")
    assert "made with model" in code
    assert not (tmp_path / "runs").exists()
    assert call(monkeypatch, "search", run_file, library) == 0


def test_a_library_built_first_is_used_by_the_search(monkeypatch, run_file, tmp_path):
    folder = tmp_path / "runs" / "trial"
    assert call(monkeypatch, "library", "build", run_file) == 0
    files = {p: p.stat().st_mtime_ns for p in (folder / "library").glob("block*")}
    assert files and call(monkeypatch, "search", run_file) == 0
    assert {p: p.stat().st_mtime_ns for p in (folder / "library").glob("block*")} == files


def test_a_folder_that_a_kill_left_empty_can_be_used(monkeypatch, run_file, tmp_path):
    (tmp_path / "runs" / "trial").mkdir(parents=True)
    (tmp_path / "runs" / "trial" / ".config.yaml.1.tmp").touch()
    assert call(monkeypatch, "search", run_file) == 0


def test_what_was_said_is_in_the_log(monkeypatch, run_file, tmp_path):
    assert call(monkeypatch, "search", run_file) == 0
    log = (tmp_path / "runs" / "trial" / "log.txt").read_text()
    assert "level library" in log and "search: evopress" in log


def test_any_candidate_of_the_journal_can_be_written(monkeypatch, run_file, tmp_path):
    folder = tmp_path / "runs" / "trial"
    assert call(monkeypatch, "search", run_file) == 0
    ids = [record["id"] for record in journal(folder) if record["type"] == "candidate"]
    for name in ("uniform", ids[0]):
        out = tmp_path / name
        words = ["materialize", folder, "--candidate", name, "--out", out]
        assert call(monkeypatch, *words) == 0
    assert json.loads((tmp_path / ids[0] / "candidate.json").read_text())["id"] == ids[0]
    code = call(
        monkeypatch, "materialize", folder, "--candidate", "nothing", "--out", tmp_path / "x"
    )
    assert "nothing" in code


def test_damaged_weights_are_named(monkeypatch, run_file, tmp_path):
    broken = tiny_checkpoint(tmp_path / "broken")
    weights = broken / "model.safetensors"
    os.truncate(weights, weights.stat().st_size // 2)
    assert "model.safetensors" in call(monkeypatch, "search", run_file, f"model.source={broken}")


def test_stages_in_the_wrong_order_say_what_is_missing(monkeypatch, run_file, tmp_path):
    folder = tmp_path / "runs" / "trial"
    assert "not a run folder" in call(monkeypatch, "materialize", folder)
    assert call(monkeypatch, "search", run_file) == 0
    assert "materialize" in call(monkeypatch, "heal", folder)
    assert "materialize" in call(monkeypatch, "evaluate", folder)
    assert call(monkeypatch, "materialize", folder) == 0
    assert "exists" in call(monkeypatch, "materialize", folder)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["vary.sede=[0]"], "unknown key 'sede': did you mean 'seed'"),
        (["vary.seed=[]"], "vary.seed: the list is empty"),
        (["vary.search.offsprin=[2]"], "did you mean 'offspring'"),
        (["run.search.offsprin=2"], "did you mean 'offspring'"),
        (["run.library.criterion=sparsgpt"], "did you mean 'sparsegpt'"),
        (["ray.address=127.0.0.1:1"], "no cluster answers there"),
        (["tirals=3"], "did you mean 'trials'"),
    ],
)
def test_a_bad_sweep_is_one_line(monkeypatch, run_file, tmp_path, words, message):
    sweep = tmp_path / "many.yaml"
    parts = {"run": run_file.name, "runs": str(tmp_path / "runs"), "vary": {"seed": [0, 1]}}
    sweep.write_text(yaml.safe_dump(parts))
    code = call(monkeypatch, "sweep", sweep, *words)
    assert isinstance(code, str) and code.startswith("error: ")
    assert message in code and "\n" not in code
    assert not (tmp_path / "runs").exists()


def test_a_sweep_with_a_failed_trial_shows_all_and_ends_with_an_error(
    monkeypatch, capsys, run_file, tmp_path
):
    sweep, folder = tmp_path / "many.yaml", SweepFolder(tmp_path / "runs" / "many")
    sweep.write_text(yaml.safe_dump({"run": run_file.name, "vary": {"seed": [0, 1]}}))
    folder.path.mkdir(parents=True)
    good = TrialOutcome("good", {"seed": 0}, "finished", value=0.5)
    write_outcomes(folder, [good, TrialOutcome("bad", {"seed": 1}, "failed", "no disk")])
    monkeypatch.setattr("evocompress.api.sweep", lambda config, **options: folder.path)
    code = call(monkeypatch, "sweep", sweep)
    assert code.startswith("error: 1 of 2 trials failed (bad: no disk)") and "--resume" in code
    out = capsys.readouterr().out
    assert "0.5000" in out and "failed: no disk" in out and "sweep.html" in out


def test_help_names_every_command_with_an_example(monkeypatch, capsys):
    commands = [
        *("demo", "search", "sweep", "profile", "plan"),
        *("materialize", "heal", "evaluate", "report"),
    ]
    spaces = Path(evocompress.__file__).parents[1] / "search_spaces"
    for words in [[c] for c in commands] + [["library", "build"], ["library", "inspect"]]:
        assert call(monkeypatch, *words, "--help") == 0
        shown = capsys.readouterr().out
        assert "Example" in shown, words
        for name in re.findall(r"search_spaces/(\w+\.yaml)", shown):
            assert (spaces / name).is_file(), name


def test_a_piped_table_is_as_wide_as_its_content(capsys):
    table = Table()
    for column in ("label", *"abcdef"):
        table.add_column(column, no_wrap=True)
    label = "Similarities, Spearman's rank correlation"
    table.add_row(label, *("predicted 1,234.56 of dense" for _ in range(6)))
    print_table(table)
    printed = capsys.readouterr().out
    assert label in printed and printed.count("predicted 1,234.56 of dense") == 6
