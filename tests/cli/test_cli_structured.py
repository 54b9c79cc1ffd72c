"""Widths, latencies and fronts from the command line, on a tiny model."""

import json
import sys

import pytest
import torch
from dying import Killed, dying
from run_files import EVOPRESS, tiny_run, written
from transformers import AutoModelForCausalLM

from evocompress import api
from evocompress.cli import commands
from evocompress.core.config_file import load_config
from evocompress.core.files import read_json, write_json
from evocompress.core.progress import Silent
from evocompress.evaluation.profile import write_table
from evocompress.evaluation.profile.tables import circumstances
from evocompress.pipeline import context
from evocompress.pipeline.context import Local, RunContext
from evocompress.pipeline.run_folder import RunFolder
from evocompress.space.costs.latency import LatencyTable, Phase
from evocompress.testing.tiny import tiny_checkpoint

IDS = torch.arange(20)[None]
FRONT = {
    "name": "nsga2",
    "objectives": ["params"],
    "range": {"params": [0.5, 1.0]},
    "population": 6,
    "generations": 2,
    "candidate_tokens": 64,
    "front_tokens": 128,
    "front_size": 4,
    "rungs": 3,
    "reference": ["uniform"],
}
LATENCY_FRONT = FRONT | {"objectives": ["latency"], "range": {"latency": [0.4, 0.9]}}


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def table_file(tmp_path_factory, model_folder):
    """A latency table of the tiny model: so much for each head and channel, 3 s in all."""
    folder = tmp_path_factory.mktemp("table")
    config = load_config(write_run(folder, model_folder))
    loaded = RunContext(config, RunFolder(config.folder), Silent()).loaded
    heads = {(g, q): 0.1 * g * q for g in (1, 2) for q in (1, 2)}
    phase = Phase(1, 8, 3.0, 0.6, heads, {16: 0.05, 128: 0.4})
    table = LatencyTable(circumstances(loaded, config.latency), phase, phase)
    write_table(config.latency.table, table)
    return config.latency.table


@pytest.fixture
def run_file(tmp_path, model_folder):
    return write_run(tmp_path, model_folder)


@pytest.fixture
def timed_file(tmp_path, model_folder, table_file):
    """A run with a latency budget, for which there is a table."""
    return write_run(tmp_path, model_folder, table_file, budget={"latency": 0.7})


@pytest.fixture
def no_measuring(monkeypatch):
    """Whoever measures a latency table fails."""

    def refuse(*_, **__):
        raise AssertionError("a latency table is measured")

    monkeypatch.setattr(context, "profile", refuse)


def write_run(folder, model, table=None, budget=None):
    run = tiny_run(
        folder,
        name="trial",
        model={"source": str(model)},
        latency={
            "prefill": [1, 8],
            "decode": [1, 8],
            "repeats": 3,
            "validation": 4,
            "table": str(table or folder / "table.json"),
        },
        space={"width": {"multiple_of": 8}, "budget": budget or {"body_params": 0.7}},
        search=EVOPRESS | {"generations": 2},
        evaluate={"prefill": [1, 16], "decode": [8, 4], "repeats": 2, "latency_seconds": 0},
    )
    return written(folder / "trial.yaml", run)


def call(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["evocompress", *map(str, words)])
    with pytest.raises(SystemExit) as stop:
        commands.main()
    return stop.value.code


def refused(monkeypatch, *words):
    """The one line with which a command ends."""
    code = call(monkeypatch, *words)
    assert isinstance(code, str) and code.startswith("error: ") and "\n" not in code
    return code


def given(**settings):
    """Settings as words of the command line."""
    return [f"{key}={json.dumps(value)}" for key, value in settings.items()]


def evaluated(folder):
    return {row["name"]: row for row in read_json(folder / "evaluation.json")["rows"]}


def test_narrow_models_from_search_to_report(monkeypatch, run_file, tmp_path):
    folder, padded = tmp_path / "runs" / "trial", tmp_path / "padded"
    assert call(monkeypatch, "search", run_file) == 0
    assert call(monkeypatch, "materialize", folder, "--format", "hf") == 0
    assert call(monkeypatch, "materialize", folder, "--format", "padded", "--out", padded) == 0
    for command in ("evaluate", "report"):
        assert call(monkeypatch, command, folder) == 0, command
    searched = evaluated(folder)["searched"]
    assert searched["params"] < evaluated(folder)["dense"]["params"]
    for cost in ("params", "flops"):
        assert searched[cost] == searched["predicted"][cost]
    assert "kv_groups" in (folder / "winner.json").read_text()
    assert not (folder / "latency.json").exists()
    narrow = AutoModelForCausalLM.from_pretrained(folder / "checkpoint", trust_remote_code=True)
    full = AutoModelForCausalLM.from_pretrained(padded)
    assert full.num_parameters() > narrow.num_parameters()
    torch.testing.assert_close(full(IDS).logits, narrow(IDS).logits, rtol=1e-4, atol=1e-4)


def test_a_format_that_cannot_express_the_candidate(monkeypatch, run_file, tmp_path):
    folder, out = tmp_path / "runs" / "trial", tmp_path / "out"
    assert call(monkeypatch, "search", run_file) == 0
    message = refused(monkeypatch, "materialize", folder, "--format", "stock", "--out", out)
    assert "format 'stock'" in message and "'hf'" in message
    assert not out.exists()
    monkeypatch.setattr(context, "load_as", None)
    assert "unknown format 'foo'" in refused(monkeypatch, "materialize", folder, "--format", "foo")


def test_profile_measures_once_and_anew_on_demand(monkeypatch, capsys, run_file, tmp_path):
    table = tmp_path / "table.json"
    assert call(monkeypatch, "profile", run_file) == 0
    assert "dense model" in capsys.readouterr().out
    first = table.stat().st_mtime_ns
    assert call(monkeypatch, "profile", run_file) == 0
    assert table.stat().st_mtime_ns == first
    assert call(monkeypatch, "profile", run_file, "--anew") == 0
    assert table.stat().st_mtime_ns > first
    assert not (tmp_path / "runs").exists()


def test_a_latency_budget_from_search_to_report(monkeypatch, run_file, tmp_path):
    """The search measures the table; later stages read the run's own."""
    folder = tmp_path / "runs" / "trial"
    # So small a model saves little by narrower sub-layers.
    words = given(**{"space.budget": {"latency": 0.95}, "space.drop": {}})
    assert call(monkeypatch, "search", run_file, *words) == 0
    winner = read_json(folder / "winner.json")
    assert winner["costs"]["latency"] <= 0.95 * winner["dense_costs"]["latency"] * (1 + 1e-9)
    assert (folder / "latency.json").read_bytes() == (tmp_path / "table.json").read_bytes()
    (tmp_path / "table.json").unlink()
    for command in ("materialize", "evaluate", "report"):
        assert call(monkeypatch, command, folder) == 0, command
    assert evaluated(folder)["searched"]["predicted"]["latency"] == winner["costs"]["latency"]
    assert not (tmp_path / "table.json").exists()


@pytest.fixture
def timed_run(monkeypatch, timed_file, tmp_path):
    """The folder of a finished run with a latency budget."""
    assert call(monkeypatch, "search", timed_file) == 0
    return tmp_path / "runs" / "trial"


def test_a_finished_run_without_its_table_measures_no_other(monkeypatch, timed_run, no_measuring):
    (timed_run / "latency.json").unlink()
    for command in ("materialize", "evaluate"):
        assert "latency.json is missing" in refused(monkeypatch, command, timed_run)
    assert not (timed_run / "checkpoint").exists()


def test_a_search_goes_on_with_its_own_table_only(monkeypatch, timed_run, timed_file):
    path = timed_run / "latency.json"
    table = read_json(path)
    assert call(monkeypatch, "search", timed_file, "--resume") == 0
    write_json(path, table | {"made": table["made"] | {"device": "cuda: H200"}})
    assert "device cuda: H200, here " in refused(monkeypatch, "search", timed_file, "--resume")
    assert call(monkeypatch, "materialize", timed_run) == 0
    table["phases"]["prefill"]["attention"][0][-1] *= 1.01
    write_json(path, table)
    message = refused(monkeypatch, "search", timed_file, "--resume")
    assert "belongs to another run: latency was" in message


def test_a_library_needs_no_latencies(monkeypatch, timed_file, tmp_path, no_measuring):
    path = f"latency.table={tmp_path / 'none.json'}"
    assert call(monkeypatch, "library", "build", timed_file, path) == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"space.budget": {"latency": 0.7, "parms": 0.5}}, "did you mean 'params'"),
        ({"space.budget": {"latency": 0.7, "body_params": 0.01}}, "space.budget.body_params"),
        ({"space.width.kv_groups": [5]}, "kv_groups"),
        ({"search.stage_tokens": [64, 4096]}, "4096"),
        ({"search": LATENCY_FRONT | {"front_tokens": 4096}}, "4096"),
        ({"search": LATENCY_FRONT | {"objectives": ["params"]}}, "'latency' is no objective"),
        ({"search": LATENCY_FRONT | {"range": {"latency": [0.5, 0.4]}}}, "0.5 is not below 0.4"),
        ({"search": LATENCY_FRONT | {"objectives": ["latenzy"]}}, "did you mean 'latency'"),
        ({"latency.prefill": [1, 99999]}, "99999"),
        ({"latency.decode": [1, 512]}, "latency.decode"),
        ({"calibration.length": 100000}, "100000"),
        ({"calibration.source": "/nowhere/text.txt"}, "/nowhere/text.txt"),
    ],
)
def test_what_can_be_told_at_once_is_told_before_measuring(
    monkeypatch, timed_file, tmp_path, no_measuring, settings, message
):
    words = given(**{"latency.table": str(tmp_path / "none.json"), **settings})
    assert message in refused(monkeypatch, "search", timed_file, *words)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"space.budget": {"latency": 0.05}}, "space.budget.latency"),
        ({"space.width.kv_groups": [5]}, "kv_groups"),
        ({"space.width.group_heads": [3]}, "group_heads"),
        ({"space.width.multiple_of": 1000}, "multiple_of"),
        ({"model.dtype": "bfloat16"}, "dtype float32, here bfloat16"),
    ],
)
def test_what_does_not_fit_the_model_is_one_line(
    monkeypatch, timed_file, tmp_path, settings, message
):
    assert message in refused(monkeypatch, "search", timed_file, *given(**settings))
    assert not (tmp_path / "runs").exists()


def test_a_table_of_another_dtype_can_be_forced(monkeypatch, timed_file):
    words = given(**{"model.dtype": "bfloat16", "latency.force": True})
    assert call(monkeypatch, "search", timed_file, *words) == 0
    assert call(monkeypatch, "search", timed_file, *words, "--resume") == 0


def test_a_front_of_latencies(monkeypatch, timed_file, tmp_path):
    folder = tmp_path / "runs" / "trial"
    words = given(search=LATENCY_FRONT, **{"space.budget": {"body_params": 0.9}})
    assert call(monkeypatch, "search", timed_file, *words) == 0
    winner, rows = read_json(folder / "winner.json"), read_json(folder / "front.json")
    assert len(rows) > 2 and "uniform width" in {row.get("label") for row in rows}
    assert winner["front"]["axes"] == ["latency", "body_params"]
    for command in ("materialize", "evaluate", "report"):
        assert call(monkeypatch, command, folder) == 0, command
    predicted = {name: row["predicted"] for name, row in evaluated(folder).items()}
    assert predicted["uniform"]["latency"] <= predicted["searched"]["latency"] * (1 + 1e-9)
    assert predicted["uniform"]["body_params"] <= winner["budget"]["body_params"] * (1 + 1e-9)
    assert "hypervolume" in (folder / "report.html").read_text()


def test_flap_from_search_to_report(monkeypatch, run_file, tmp_path):
    folder = tmp_path / "runs" / "trial"
    search = {"name": "flap", "candidate_tokens": 128}
    words = given(search=search, **{"library.width_criterion": "flap"})
    assert call(monkeypatch, "search", run_file, *words) == 0
    for command in ("materialize", "evaluate", "report"):
        assert call(monkeypatch, command, folder) == 0, command
    searched = evaluated(folder)["searched"]
    assert searched["params"] == searched["predicted"]["params"]


def test_a_front_that_was_killed_is_resumed_to_the_same_bytes(monkeypatch, run_file, tmp_path):
    def config(name):
        words = [f"name={name}", f"library.path={tmp_path / 'library'}"]
        return load_config(run_file, [*words, *given(search=FRONT)])

    whole = api.search(config("whole"))
    evaluations = (whole / "journal.jsonl").read_text().count('"type":"candidate"')
    for after in (0, 1, evaluations // 2, evaluations - 2):
        name = f"cut{after}"
        with monkeypatch.context() as patch:
            patch.setattr(Local, "executor", dying(after))
            with pytest.raises(Killed):
                api.search(config(name))
        cut = tmp_path / "runs" / name
        assert not (cut / "winner.json").exists()
        api.search(config(name), resume=True)
        for file in ("journal.jsonl", "winner.json", "front.json"):
            assert (cut / file).read_bytes() == (whole / file).read_bytes(), (name, file)
