"""Sweeps on Ray Tune: whatever is killed, every trial comes out as the run that it is."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import yaml
from run_files import EVOPRESS, SIZES, TEXT

from evocompress import api
from evocompress.core.config import RayConfig
from evocompress.core.config_file import changed, load_config
from evocompress.core.errors import ConfigError, RunError
from evocompress.core.progress import Silent
from evocompress.distributed import sweep as sweeps
from evocompress.distributed.sweep_cluster import check_trials_fit, start_for_trials
from evocompress.distributed.trial import TrialTask, run_trial, settings_of
from evocompress.distributed.tuner import _params, new_tuner
from evocompress.pipeline import search_stage, stages
from evocompress.pipeline.sweep import (
    SweepConfig,
    SweepFolder,
    begin_sweep,
    check_sweep,
    load_sweep,
)
from evocompress.pipeline.sweep.outcome import outcomes
from evocompress.testing.tiny import tiny_checkpoint

pytest.importorskip("ray")

pytestmark = pytest.mark.timeout(600)

BASE = {"model": {"source": "m"}, "space": {"drop": {}}}


@pytest.fixture
def sweep_file(tmp_path):
    """Two tiny models, two budgets, two seeds; a trial takes about a second."""
    (tmp_path / "text.txt").write_text(TEXT)
    run = {
        "model": {"source": "none"},
        "calibration": {"source": str(tmp_path / "text.txt")} | SIZES,
        "space": {"width": {"channels": [0.75, 0.5, 0.25], "multiple_of": 8}, "drop": {}},
        "search": EVOPRESS | {"generations": 8, "initial": 4},
    }
    models = [str(tiny_checkpoint(tmp_path / kind, kind)) for kind in ("llama", "qwen2")]
    vary = {
        "model.source": models,
        "space.budget": [{"body_params": 0.7}, {"body_params": 0.5}],
        "seed": {"low": 0, "high": 1},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run))
    path = tmp_path / "many.yaml"
    sweep = {"run": "run.yaml", "runs": str(tmp_path / "runs"), "vary": vary}
    path.write_text(yaml.safe_dump(sweep, sort_keys=False))
    return path


@pytest.mark.cluster
def test_a_sweep_that_is_killed_in_the_middle_ends_as_undisturbed_runs(sweep_file, tmp_path):
    folder = tmp_path / "runs" / "many"
    command = [sys.executable, "-m", "evocompress", "sweep", str(sweep_file)]
    driver = subprocess.Popen(command, start_new_session=True)
    before = wait_for_some(folder, driver)
    kill_all(driver)
    assert 0 < len(before) < 8 and not (folder / "sweep.json").exists()
    done = subprocess.run([*command, "--resume"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("finished") == 8 and "Traceback" not in done.stderr
    trials = json.loads((folder / "sweep.json").read_text())["trials"]
    assert [trial["status"] for trial in trials] == ["finished"] * 8
    assert len({json.dumps(trial["settings"]) for trial in trials}) == 8
    assert winners(folder).items() >= before.items(), "what was finished is not done again"
    assert len(list((folder / "libraries").iterdir())) == 2, "one for each model"
    alone = [f"runs={tmp_path / 'alone'}", "library.path=null"]
    for trial in trials:
        made = folder / trial["name"]
        run = api.search(changed(load_config(made / "config.yaml"), alone))
        for file in ("journal.jsonl", "winner.json", "front.json"):
            assert (made / file).read_bytes() == (run / file).read_bytes(), (made, file)
        assert trial["value"] == json.loads((run / "winner.json").read_text())["value"]


def winners(folder):
    """{path: when it was written} of each winner."""
    return {path: path.stat().st_mtime_ns for path in folder.glob("*/winner.json")}


def wait_for_some(folder, driver):
    """The winners at the moment when two trials are over and another one is at work."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and driver.poll() is None:
        found, begun = winners(folder), list(folder.glob("*/journal.jsonl"))
        if len(found) >= 2 and len(begun) > len(found):
            return found
        time.sleep(0.02)
    raise AssertionError("the sweep was over before it was killed")


def kill_all(driver):
    """SIGKILL for a driver and all that it started, Ray's processes among them."""
    own = psutil.Process(driver.pid)
    family = [own, *own.children(recursive=True)]
    for process in family:
        process.kill()
    psutil.wait_procs(family, timeout=30)
    driver.wait()


@pytest.fixture(scope="module")
def cluster():
    import ray

    os.environ.update(sweeps.QUIET)
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, _node_ip_address="127.0.0.1")
    yield
    ray.shutdown()
    ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


def slow_learner(params):
    """Comes down to its seed's place among ten, and says so ten times."""
    from ray import tune

    place = 100.0 * params["model.source"] + params["seed"]
    for step in range(1, 11):
        tune.report({"value": place + 1 / step, "tokens": 10 * step})


def quadratic(params):
    from ray import tune

    tune.report({"value": (params["search.a"] - 3) ** 2 + params["search.b"] + params["seed"]})


@pytest.mark.cluster
def test_early_stopping_compares_within_a_group_only(cluster, tmp_path):
    sweep = SweepConfig(
        name="asha",
        run=BASE,
        vary={"model.source": ["easy", "hard"], "seed": list(range(5))},
        asha={"grace_tokens": 20, "max_tokens": 100, "reduction": 2},
        ray={"workers": 1},
    )
    results = new_tuner(sweep, tmp_path / "tune", slow_learner).fit()
    told = {(r.config["model.source"], r.config["seed"]): r.metrics["tokens"] for r in results}
    for model in (0, 1):
        # The best of each model goes on to the end, however bad that model is.
        assert told[model, 0] == 100 and told[model, 4] == 20


@pytest.mark.cluster
def test_optuna_proposes_from_lists_and_ranges(cluster, tmp_path):
    vary = {
        "search.a": {"low": 0.0, "high": 8.0, "step": 0.5},
        "search.b": {"low": 1, "high": 3},
        "seed": [5, 6],
    }
    sweep = SweepConfig(name="o", run=BASE, vary=vary, mode="optuna", trials=9)
    results = new_tuner(sweep, tmp_path / "tune", quadratic).fit()
    found = [settings_of(sweep, result.config) for result in results]
    assert len(found) == 9 and results.num_errors == 0
    assert {f["search.b"] for f in found} <= {1, 2, 3} and {f["seed"] for f in found} == {5, 6}
    assert all(0 <= f["search.a"] <= 8 and f["search.a"] % 0.5 == 0 for f in found)


@pytest.mark.parametrize(
    ("axis", "known"),
    [
        ({"low": 0.4, "high": 0.75, "step": 0.1}, {0.4, 0.5, 0.6, 0.7}),
        ({"low": 1, "high": 6, "step": 2}, {1, 3, 5}),
        ({"low": 2, "high": 4}, {2, 3, 4}),
    ],
)
def test_optuna_proposes_every_step_of_a_range_counted_from_its_low_end(axis, known):
    from ray.tune.search.optuna import OptunaSearch

    sweep = SweepConfig(name="o", run=BASE, vary={"a.b": axis}, mode="optuna", trials=30)
    search = OptunaSearch(space=_params(sweep), metric="value", mode="min", seed=0)
    found = [settings_of(sweep, search.suggest(f"trial{n}")) for n in range(30)]
    assert {settings["a.b"] for settings in found} == known


@pytest.fixture
def one_trial(sweep_file, monkeypatch):
    """Runs one trial in this process; returns what Tune was told."""
    told = []
    monkeypatch.setattr("ray.tune.report", told.append)
    monkeypatch.chdir(sweep_file.parent)

    def run(*overrides, session="first", force=False, **params):
        told.clear()
        sweep = load_sweep(sweep_file, [*overrides, "run.search.generations=2"])
        begin_sweep(SweepFolder(sweep.folder), sweep)
        places = {"model.source": 0, "space.budget": 0, "seed": 0} | params
        task = TrialTask(sweep.model_dump_json(), str(sweep_file.parent), session, force=force)
        run_trial(places, task)
        return list(told), SweepFolder(sweep.folder)

    return run


def test_a_trial_tells_its_winners_value_and_a_finished_one_nothing_else(one_trial, monkeypatch):
    told, folder = one_trial()
    found = [json.loads(path.read_text()) for path in folder.path.glob("*/winner.json")]
    assert told == [{"value": found[0]["value"]}]
    monkeypatch.setattr(stages, "search", None)
    assert one_trial()[0] == told


def test_a_trial_goes_on_under_other_circumstances_by_force_only(one_trial, monkeypatch):
    told, folder = one_trial()
    for name in ("winner.json", "front.json"):
        [path] = folder.path.glob(f"*/{name}")
        path.unlink()
    true = search_stage.environment
    monkeypatch.setattr(
        search_stage, "environment", lambda *given: true(*given) | {"dtype": "bfloat16"}
    )
    with pytest.raises(RunError, match="begun under other circumstances: .*--force"):
        one_trial(session="second")
    assert one_trial(session="third", force=True)[0] == told


def test_a_sweep_is_forced_by_its_option(sweep_file, monkeypatch):
    forced = []
    monkeypatch.setattr(sweeps, "run_sweep", lambda *given, force: forced.append(force))
    monkeypatch.setattr(api, "report", lambda path: None)
    for force in (True, False):
        api.sweep(load_sweep(sweep_file), force=force)
    assert forced == [True, False]


def test_with_early_stopping_every_step_is_told_and_a_stop_leaves_the_journal(
    one_trial, monkeypatch
):
    asha = "asha={grace_tokens: 9, max_tokens: 99}"
    told, folder = one_trial(asha)
    steps = told[:-1]
    assert len(steps) >= 2 and all(step.keys() == {"value", "tokens"} for step in steps)
    assert [step["tokens"] for step in steps] == sorted({step["tokens"] for step in steps})

    def stop(metrics):
        raise SystemExit

    monkeypatch.setattr("ray.tune.report", stop)
    with pytest.raises(SystemExit):
        one_trial(asha, "name=stopped")
    stopped = SweepFolder(folder.path.with_name("stopped"))
    (record,) = stopped.records.all().values()
    assert record.failed is None and record.seconds > 0
    assert list(stopped.path.glob("*/journal.jsonl")) and not winners(stopped.path)


def test_a_trial_fails_once_in_a_session_with_its_reason(one_trial, monkeypatch):
    bad = "vary.model.source=[/nowhere/model]"
    tries = []
    search = stages.search
    monkeypatch.setattr(stages, "search", lambda *a, **k: tries.append(1) or search(*a, **k))
    for session, expected in (("first", 1), ("first", 1), ("second", 2)):
        with pytest.raises(RunError, match="no model at '/nowhere/model'") as caught:
            one_trial(bad, "name=bad", session=session)
        assert "\n" not in str(caught.value) and len(tries) == expected
    sweep = load_sweep(next((Path.cwd() / "runs").glob("bad/sweep.yaml")))
    found = outcomes(SweepFolder(sweep.folder), sweep)
    assert [each.status for each in found] == ["failed", *["waiting"] * 3]
    assert "/nowhere/model" in found[0].reason


class Said(Silent):
    """A reporter that remembers."""

    def __init__(self):
        self.lines = []

    def say(self, text):
        self.lines.append(text)


def test_no_room_for_a_trial_is_said_at_once(monkeypatch):
    import ray

    node = {"Alive": True, "Resources": {"CPU": 4.0, "GPU": 1.0}}
    monkeypatch.setattr(ray, "nodes", lambda: [node, {"Alive": False, "Resources": {"CPU": 64.0}}])
    reporter, config = Said(), RayConfig(cpus=4, gpus=0.5)
    check_trials_fit(config, reporter)
    too_large = config.model_copy(update={"cpus": 5, "gpus": 0})
    with pytest.raises(ConfigError, match=r"no node has so many \(at most 4 CPUs, 1 GPUs\)"):
        check_trials_fit(too_large, reporter)
    assert not reporter.lines
    check_trials_fit(too_large.model_copy(update={"address": "auto"}), reporter)
    assert len(reporter.lines) == 1 and "trials wait until" in reporter.lines[0]


def test_the_processes_of_trials_get_the_runtime_environment(monkeypatch):
    asked = []
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.init", lambda **options: asked.append(options))
    own = {"working_dir": "/code"}
    for runtime_env in ({}, own, own | {"env_vars": {"A": "1"}}):
        start_for_trials(RayConfig(runtime_env=runtime_env))
    assert "runtime_env" not in asked[0]
    assert [options["runtime_env"] for options in asked[1:]] == [own, own]


def test_a_runtime_environment_that_cannot_be_had_is_refused(monkeypatch):
    monkeypatch.setattr("ray.is_initialized", lambda: True)
    with pytest.raises(ConfigError, match="has joined a cluster already"):
        start_for_trials(RayConfig(runtime_env={"working_dir": "/code"}))


def test_a_sweep_that_another_process_began_meanwhile_is_left_alone(tmp_path, monkeypatch):
    sweep = SweepConfig(name="s", runs=tmp_path, run=BASE, vary={"seed": [0]})
    folder = check_sweep(sweep, resume=False)

    def start(config):
        """Takes a while, in which somebody else is faster."""
        begin_sweep(folder, sweep.model_copy(update={"vary": {"seed": (1,)}}))
        return lambda: None

    monkeypatch.setattr(sweeps, "start_for_trials", start)
    monkeypatch.setattr(sweeps, "check_trials_fit", lambda *_: None)
    monkeypatch.setattr(sweeps, "_run", None)
    for resume, message in ((False, "exists already"), (True, "another configuration")):
        with pytest.raises(RunError, match=message):
            sweeps.run_sweep(sweep, folder, resume, Silent())


def test_trials_that_failed_before_their_search_began_have_failed(tmp_path):
    from ray.exceptions import RayActorError, RayTaskError

    sweep = SweepConfig(name="s", runs=tmp_path, run=BASE, vary={"seed": [3, 4, 5, 6]})
    folder = SweepFolder(sweep.folder)
    begin_sweep(folder, sweep)
    own = RayTaskError("train", "trace", RunError("a node cannot enter /there"), "p", 1, "ip")
    strange = RayTaskError("train", "trace", ImportError("no torch"), "p", 1, "ip")
    errors = [own, strange, RayActorError(), None]
    sweeps._conclude(
        sweep,
        folder,
        [SimpleNamespace(config={"seed": n}, error=error) for n, error in enumerate(errors)],
    )
    found = outcomes(folder, sweep)
    assert [each.status for each in found] == ["failed", "failed", "failed", "waiting"]
    assert found[0].reason == "a node cannot enter /there"
    assert found[1].reason == "it failed (ImportError: no torch)"
    assert found[2].reason.startswith("its process died (") and "\n" not in found[2].reason
    assert folder.records.read(found[0].name).settings == {"seed": 3}
