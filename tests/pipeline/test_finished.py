"""What was searched with is what is loaded later, or the command says what is not."""

import json
import shutil
import sys

import pytest
import yaml
from transformers import AutoModelForCausalLM

from evocompress import api
from evocompress.cli import commands
from evocompress.core.circumstances import Facts, differences
from evocompress.core.config_file import dump_config, load_config
from evocompress.core.errors import EvoCompressError, RunError
from evocompress.core.files import read_json, write_json, write_sealed
from evocompress.core.progress import Silent
from evocompress.healing import distill
from evocompress.pipeline.journal import Journal
from evocompress.pipeline.journal_memory import Memory
from evocompress.pipeline.run_folder import RunFolder
from evocompress.report.data import read_run
from evocompress.testing.tiny import tiny_checkpoint

TEXT = " ".join(f"word{number * number % 97}" for number in range(3000))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A finished run with a checkpoint, its model and its text."""
    home = tmp_path_factory.mktemp("home")
    tiny_checkpoint(home / "model")
    (home / "text.txt").write_text(TEXT)
    (home / "run.yaml").write_text(yaml.safe_dump(run_file(home)))
    api.materialize(api.search(load_config(home / "run.yaml")))
    return home


def run_file(home):
    return {
        "name": "trial",
        "runs": str(home / "runs"),
        "model": {"source": str(home / "model")},
        "threads": 1,
        "calibration": {
            "source": str(home / "text.txt"),
            "library_sequences": 6,
            "search_sequences": 8,
            "heldout_sequences": 4,
            "length": 32,
            "micro_batch": 2,
        },
        "space": {"sparsity": {"target": 0.5, "step": 128, "levels": 3}},
        "search": {
            "name": "evopress",
            "generations": 8,
            "offspring": 4,
            "survivors": [2, 1],
            "stage_tokens": [64, 128],
            "tokens": 3000,
        },
        "heal": {"steps": 2, "evaluate_every": 2, "validation_sequences": 2},
        "evaluate": {"latency": False},
    }


@pytest.fixture
def home(made, tmp_path):
    """A copy of it all, which a test may change."""
    home = shutil.copytree(made, tmp_path / "home")
    (home / "run.yaml").write_text(yaml.safe_dump(run_file(home)))
    config = dump_config(load_config(home / "run.yaml"))
    write_sealed(home / "runs" / "trial" / "config.yaml", config)
    return home


def shift(home):
    (home / "text.txt").write_text("another beginning " + TEXT)


def change_a_weight(home):
    model = AutoModelForCausalLM.from_pretrained(home / "model")
    model.model.norm.weight.data[0] += 0.5
    model.save_pretrained(home / "model")


def rebuild_the_library(home):
    shutil.rmtree(home / "runs" / "trial" / "library")
    shift(home)
    api.build_library(load_config(home / "run.yaml"))
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


def other_versions(run, **changes):
    known = read_json(run / "environment.json")
    known["versions"]["torch"] = "1.0"
    write_json(run / "environment.json", known | changes)


def resume(home, *words, monkeypatch):
    command = ["evocompress", "search", str(home / "run.yaml"), "--resume", *words]
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
        api.search(load_config(home / "run.yaml"), resume=True)


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
    api.search(load_config(home / "run.yaml"), resume=True)


def test_a_lost_environment_is_no_known_one(home):
    run = home / "runs" / "trial"
    (run / "environment.json").unlink()
    with pytest.raises(RunError, match="environment.json is missing"):
        api.search(load_config(home / "run.yaml"), resume=True)
    api.search(load_config(home / "run.yaml"), resume=True, force=True)
    assert len(Memory(run / "journal.jsonl").forced) == 1
    api.search(load_config(home / "run.yaml"), resume=True)


def test_damaged_circumstances_are_remedied_alike_everywhere(home):
    run = home / "runs" / "trial"
    for text in ("{", '{"threads": []}'):
        (run / "environment.json").write_text(text)
        for stage in (
            lambda: api.search(load_config(home / "run.yaml"), resume=True),
            lambda: api.report(run),
        ):
            with pytest.raises(RunError, match="environment.json is damaged.*delete it and go on"):
                stage()
    (run / "environment.json").unlink()
    api.search(load_config(home / "run.yaml"), resume=True, force=True)
    api.report(run)


@pytest.mark.parametrize("damage", ["{}", "{", "null", ""])
def test_damaged_units_are_written_anew(home, damage):
    units = home / "runs" / "trial" / "units.json"
    whole = units.read_bytes()
    units.write_text(damage)
    api.search(load_config(home / "run.yaml"), resume=True)
    assert units.read_bytes() == whole
    api.report(units.parent)


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


def test_a_read_only_run_is_materialized_elsewhere(home, monkeypatch):
    run = home / "runs" / "trial"
    monkeypatch.setattr(RunFolder, "writable", False)
    state = {path: path.stat().st_mtime_ns for path in (run, *run.rglob("*"))}
    written = api.materialize(run, out=home / "elsewhere")
    assert AutoModelForCausalLM.from_pretrained(written).config.vocab_size > 0
    assert {path: path.stat().st_mtime_ns for path in (run, *run.rglob("*"))} == state


class Count:
    """Counts what a search really evaluates."""

    def __init__(self):
        self.evaluated = 0

    def __call__(self, progress):
        self.evaluated += progress.done == progress.total > 0 and progress.total


SEARCHES = {
    "ends by tokens": {},
    "plans with its tokens": {"name": "auto"},
}


@pytest.mark.parametrize("changes", SEARCHES.values(), ids=SEARCHES)
def test_more_tokens_end_as_if_they_had_been_there_from_the_start(made, tmp_path, changes):
    def search(name, tokens, **options):
        run = run_file(made) | {"name": name, "runs": str(tmp_path)}
        run["library"] = {"path": str(made / "runs" / "trial" / "library")}
        run["search"] = (changes or run["search"]) | {"tokens": tokens}
        (tmp_path / "run.yaml").write_text(yaml.safe_dump(run))
        count = Count()
        return api.search(load_config(tmp_path / "run.yaml"), listener=count, **options), count

    whole, evaluated = search("whole", 6000)
    run, first = search("more", 3000)
    with pytest.raises(RunError, match="begun with search.tokens=3000, and can go on with more"):
        search("more", 2000, resume=True)
    search("more", 6000, resume=True)
    for name in ("winner.json", "front.json"):
        assert (run / name).read_bytes() == (whole / name).read_bytes()
    assert Memory(run / "journal.jsonl").steps == Memory(whole / "journal.jsonl").steps
    assert Memory(whole / "journal.jsonl").steps[-1].requested > 3000
    again = search("more", 6000, resume=True)[1]
    assert again.evaluated == 0
    assert first.evaluated > 0 and evaluated.evaluated > 0


def test_known_values_are_not_made_again_with_more_tokens(home):
    changes = ["search.tokens=6000"]
    whole, more = Count(), Count()
    fresh = [*changes, "name=fresh", f"library.path={home / 'runs' / 'trial' / 'library'}"]
    api.search(load_config(home / "run.yaml", fresh), listener=whole)
    api.search(load_config(home / "run.yaml", changes), resume=True, listener=more)
    assert 0 < more.evaluated < whole.evaluated


def test_a_kill_while_tokens_are_added_loses_nothing(home):
    run = home / "runs" / "trial"
    before, winner = (run / "journal.jsonl").read_bytes(), (run / "winner.json").read_bytes()
    (run / "journal.jsonl").rename(run / "journal.before-001.jsonl")
    count = Count()
    api.search(load_config(home / "run.yaml"), resume=True, listener=count)
    assert count.evaluated == 0
    # Within a step known values come in the order asked, others as they are computed.
    assert sorted((run / "journal.jsonl").read_bytes().splitlines()) == sorted(before.splitlines())
    assert (run / "winner.json").read_bytes() == winner


def test_another_micro_batch_is_served_by_the_same_library(home):
    library = home / "runs" / "trial" / "library"
    state = {path: path.stat().st_mtime_ns for path in library.glob("*.*")}
    changes = ["name=other", "calibration.micro_batch=1", f"library.path={library}"]
    api.search(load_config(home / "run.yaml", changes))
    assert {path: path.stat().st_mtime_ns for path in library.glob("*.*")} == state


def test_a_library_of_an_earlier_version_still_serves(home):
    library = home / "runs" / "trial" / "library"
    header = Memory(home / "runs" / "trial" / "journal.jsonl").header
    manifest = read_json(library / "manifest.json")
    manifest["recipe"]["calibration"] = header["calibration"]
    (library / "manifest.json").write_text(json.dumps(manifest))
    api.search(load_config(home / "run.yaml"), resume=True)


class Told(Silent):
    """Keeps what is said."""

    def __init__(self):
        super().__init__()
        self.lines = []

    def say(self, text):
        self.lines.append(text)


def rows_of(run):
    return {row["name"]: row for row in read_json(run / "evaluation.json")["rows"]}


def test_another_candidate_than_the_winner_is_named_as_what_it_is(home):
    run = home / "runs" / "trial"
    shutil.rmtree(run / "checkpoint")
    api.materialize(run, candidate="uniform")
    found, winner = (
        read_json(run / name)["id"] for name in ("checkpoint/candidate.json", "winner.json")
    )
    assert found != winner
    told = Told()
    api.heal(run, reporter=told)
    assert f"is of candidate {found}, not of the winner {winner}" in " ".join(told.lines)
    api.evaluate(run)
    rows = rows_of(run)
    assert list(rows) == ["dense", "uniform", f"candidate {found}", f"candidate {found}, healed"]
    assert rows[f"candidate {found}"]["kl"] == rows["uniform"]["kl"]
    api.report(run)
    summary = (run / "summary.md").read_text()
    for what in ("comparison", "healing"):
        assert f"The {what} is of candidate {found}, not of the winner {winner}." in summary


def test_an_evaluation_of_a_former_winner_is_not_reported_as_the_present_ones(home):
    run = home / "runs" / "trial"
    api.heal(run)
    api.evaluate(run)
    former = read_json(run / "winner.json")
    other = read_json(
        api.materialize(run, candidate="uniform", out=home / "other") / "candidate.json"
    )
    write_json(run / "winner.json", former | {"id": other["id"], "levels": other["levels"]})
    api.report(run)
    names = [row.name for row in read_run(run).evaluation.rows]
    assert names == [
        "dense",
        "uniform",
        *(f"candidate {former['id']}{what}" for what in ("", ", healed")),
    ]
    note = f"is of candidate {former['id']}, not of the winner {other['id']}"
    assert (run / "summary.md").read_text().count(note) == 2
    api.evaluate(run)
    assert "searched" not in rows_of(run)


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
