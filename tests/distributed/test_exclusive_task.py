"""Profiling and healing on Ray: alone on their device, and as in one process."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial

import pytest
from run_files import EVOPRESS, tiny_run, written

from evocompress import api
from evocompress.cli import commands
from evocompress.core.config import RayConfig, RunConfig
from evocompress.core.config_file import load_config
from evocompress.core.errors import ConfigError, EvoCompressError, ModelError, RunError
from evocompress.distributed import RayBackend, exclusive_task, profiling
from evocompress.distributed.cluster import whole_gpus
from evocompress.distributed.exclusive_task import ExclusiveTask, run_alone, run_beside
from evocompress.evaluation.profile import path_of, read_table
from evocompress.evaluation.profile.tables import circumstances
from evocompress.space.costs.latency import LatencyTable, Phase
from evocompress.testing.tiny import tiny_checkpoint, tiny_loaded

ray = pytest.importorskip("ray")

clustered = pytest.mark.cluster
pytestmark = pytest.mark.timeout(300)

TIMED = {"prefill": [1, 16], "decode": [1, 8], "repeats": 3, "validation": 4}
ON_RAY = ("executor=ray", "ray.workers=2")


@pytest.fixture(scope="module")
def cluster():
    """A cluster of one node, larger than this machine: its workers share the cores."""
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, _node_ip_address="127.0.0.1")
    yield
    ray.shutdown()
    ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


@pytest.fixture(scope="module")
def run_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    tiny_checkpoint(folder / "model")
    run = tiny_run(
        folder,
        {"library_sequences": 4, "heldout_sequences": 2},
        space={"drop": {}, "budget": {"latency": 9.0}},
        latency=TIMED,
        search=EVOPRESS | {"generations": 2},
        heal={"steps": 4, "evaluate_every": 2, "validation_sequences": 2},
    )
    return written(folder / "run.yaml", run)


@pytest.fixture(scope="module")
def searched(run_file):
    """A finished run with a checkpoint, and no healing."""
    changes = ["name=searched", "space.budget={body_params: 0.8}"]
    folder = api.search(load_config(run_file, changes))
    api.materialize(folder)
    return folder


def task(job, *, quiet_node=False):
    return ExclusiveTask(job, name="the job", quiet_node=quiet_node, again="try again")


def config_of(**ray_settings):
    space = {"drop": {}}
    return RunConfig(name="r", model={"source": "m"}, space=space, ray=RayConfig(**ray_settings))


def free_cpus(expected, tell):
    """What the cluster has left for others while a job works; Ray says it some time later."""
    tell("at work")
    deadline = time.monotonic() + 20
    while (free := ray.available_resources().get("CPU", 0)) != expected:
        time.sleep(0.1)
        if time.monotonic() > deadline:
            break
    return free


def fail(error, tell):
    raise error


def die(tell):
    os._exit(1)


# ---- one task


@clustered
@pytest.mark.parametrize(("quiet_node", "left"), [(True, 0), (False, 2)])
def test_only_a_quiet_node_is_taken_whole(cluster, quiet_node, left):
    heard = []
    job = task(partial(free_cpus, left), quiet_node=quiet_node)
    assert run_alone(config_of(cpus=2), job, heard.append, print) == left
    assert heard == ["at work"]


@clustered
def test_an_error_of_the_job_is_raised_as_it_is(cluster):
    job = task(partial(fail, ModelError("no such model: give another one")))
    with pytest.raises(ModelError, match="^no such model: give another one$"):
        run_alone(config_of(), job, print, print)


@clustered
@pytest.mark.parametrize(
    ("job", "reason"), [(partial(fail, ZeroDivisionError("a bug")), "a bug"), (die, "died")]
)
def test_a_bug_or_a_death_is_one_line_with_the_log(cluster, job, reason):
    with pytest.raises(RunError, match=rf"the job failed on a worker \(.*{reason}") as caught:
        run_alone(config_of(), task(job), print, print)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith("; try again") and ": see /" in str(caught.value)


@clustered
def test_what_no_node_has_is_refused(cluster, monkeypatch):
    many, said = {"cpus": 5}, []
    with pytest.raises(ConfigError, match=r"ray.cpus=5, .*no node has so many \(at most 4 CPUs"):
        run_alone(config_of(**many), task(die), print, said.append)
    assert not said
    monkeypatch.setattr(exclusive_task, "GROW_SECONDS", 0.5)
    monkeypatch.setattr(exclusive_task, "POLL_SECONDS", 0.2)
    with pytest.raises(ConfigError, match="no node has so many"):
        run_alone(config_of(**many, address="auto"), task(die), print, said.append)
    assert len(said) == 1 and "waits" in said[0]


@clustered
def test_a_job_that_has_to_wait_says_so(cluster, monkeypatch):
    monkeypatch.setattr(exclusive_task, "LONG_SECONDS", 0.2)
    monkeypatch.setattr(exclusive_task, "POLL_SECONDS", 0.2)
    others = ray.remote(num_cpus=3)(lambda: time.sleep(3)).remote()
    ray.wait([others], timeout=1)
    said = []
    job = task(partial(free_cpus, 0), quiet_node=True)
    assert run_alone(config_of(), job, print, said.append) == 0
    assert len(said) == 1 and "has not begun" in said[0]


@pytest.mark.parametrize(
    ("device", "gpus", "there", "expected"),
    [
        ("auto", None, 2, 1),
        ("auto", None, 0, 0),
        ("auto", 0.5, 2, 1),
        ("auto", 0, 2, 1),
        ("cpu", None, 2, 0),
        ("cuda", None, 0, 1),
    ],
)
def test_a_gpu_is_had_whole_or_not_at_all(monkeypatch, device, gpus, there, expected):
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 4.0, "GPU": float(there)})
    config = config_of(gpus=gpus)
    model = config.model.model_copy(update={"device": device})
    assert whole_gpus(config.model_copy(update={"model": model})) == expected


# ---- profiling


@clustered
def test_a_search_counts_with_the_table_that_ray_measured(cluster, run_file, tmp_path, monkeypatch):
    monkeypatch.setenv("EVOCOMPRESS_CACHE", str(tmp_path))
    config = load_config(run_file, ["name=timed", "executor=ray", "ray.workers=1"])
    folder = api.search(config)
    (stored,) = (tmp_path / "latency").iterdir()
    table = read_table(stored)
    assert read_table(folder / "latency.json") == table
    # Where a table measured in this process would be; so it is not measured again.
    assert api.profile(load_config(run_file)) == (stored, table)
    assert api.profile(config) == (stored, table)


def elsewhere(backend, context):
    """Stands for a cluster of other devices, and measures nothing."""
    attention = {(groups, heads): 0.1 * groups * heads for groups in (1, 2) for heads in (1, 2)}
    phase = Phase(1, 16, 1.0, 0.1, attention, {32: 0.05, 128: 0.1})

    def measure(loaded, latency, progress):
        made = replace(circumstances(loaded, latency), device="cuda: NVIDIA H200")
        return LatencyTable(made, phase, replace(phase, tokens=8))

    return measure


def test_a_table_of_another_device_is_kept_under_its_name_and_told_no_search(
    run_file, tmp_path, monkeypatch
):
    monkeypatch.setenv("EVOCOMPRESS_CACHE", str(tmp_path))
    monkeypatch.setattr(RayBackend, "table", elsewhere)
    config = load_config(run_file, ["name=elsewhere", *ON_RAY])
    path, table = api.profile(config)
    assert path.name.startswith("cuda-nvidia-h200-float32-") and read_table(path) == table
    assert path == path_of(table.made, config.latency)
    with pytest.raises(ConfigError, match="device cuda: NVIDIA H200, here cpu: .*like those of"):
        api.search(config)
    assert not config.folder.exists()


@clustered
def test_a_worker_with_another_model_measures_nothing(cluster, run_file, tmp_path):
    config = load_config(run_file, [f"latency.table={tmp_path / 'table.json'}", *ON_RAY])
    loaded = replace(tiny_loaded(), fingerprint="another")
    with pytest.raises(ModelError, match="give all nodes the same model"):
        profiling.ray_table(config, print)(loaded, config.latency, print)


def test_progress_is_told_seldom(monkeypatch):
    now, told = [0.0], []
    monkeypatch.setattr(profiling.time, "monotonic", lambda: now[0])
    advance = profiling._seldom(told.append)
    for step in range(100):
        now[0] = step / 10
        advance(step, 100, "text")
    assert [step for step, _, _ in told] == [20, 40, 60, 80]


# ---- healing


def files(folder):
    """Of a healing, but for its time and the place of its checkpoint."""
    found = {
        str(file.relative_to(folder)): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file() and file.name not in ("heal.json", ".lock")
    }
    report = json.loads((folder / "heal.json").read_text())
    return found, {key: report[key] for key in report.keys() - {"seconds", "checkpoint", "xxh3"}}


def copy(searched, name):
    return shutil.copytree(searched, searched.parent / name)


@clustered
def test_healing_on_ray_ends_in_the_same_files(cluster, searched):
    here, there = copy(searched, "here"), copy(searched, "there")
    api.heal(here)
    assert api.heal(there, ON_RAY) == there / "heal" / "checkpoint"
    assert files(there / "heal") == files(here / "heal")
    log = (there / "log.txt").read_text()
    assert log.count("heal: ") == (here / "log.txt").read_text().count("heal: ") == 1


@clustered
def test_healings_that_are_averaged_are_made_beside_each_other(cluster, searched):
    here, there = copy(searched, "average-here"), copy(searched, "average-there")
    changes = ["heal.average=2", "heal.learning_rate=0.003"]
    api.heal(here, changes)
    api.heal(there, [*changes, *ON_RAY])
    assert files(there / "heal") == files(here / "heal")
    members = sorted(path.name for path in (there / "heal" / "members").iterdir())
    assert members == ["0", "1"]
    with pytest.raises(EvoCompressError, match="exists: resume it, or remove it"):
        api.heal(there, [*changes, *ON_RAY])


@clustered
def test_a_healing_that_is_there_is_not_averaged_over(cluster, searched):
    run = copy(searched, "healed-once")
    api.heal(run)
    with pytest.raises(EvoCompressError, match="exists: resume it, or remove it"):
        api.heal(run, ["heal.average=2", *ON_RAY])
    assert not (run / "heal" / "members").exists()


@clustered
def test_the_last_candidates_are_healed_beside_each_other(cluster, run_file):
    """The values, and so the winner, are those of healings in one process."""
    changes = ["space.budget={body_params: 0.8}", "search.heal_last={candidates: 3, tokens: 500}"]
    here = api.search(load_config(run_file, ["name=last-here", *changes]))
    there = api.search(load_config(run_file, ["name=last-there", *changes, *ON_RAY]))
    assert (there / "winner.json").read_bytes() == (here / "winner.json").read_bytes()
    winner = json.loads((there / "winner.json").read_text())
    assert len(winner["healed_last"]) == 3 and not (there / "last_candidates").exists()
    own, other = ((run / "journal.jsonl").read_bytes().splitlines() for run in (here, there))
    assert own[-3:] == other[-3:] and all(b'"type":"healed"' in line for line in own[-3:])


def wait_long(tell):
    tell("waiting")
    time.sleep(600)


@clustered
def test_the_first_failure_ends_the_others(cluster):
    began, jobs = time.monotonic(), [wait_long, partial(fail, RunError("broken"))]
    with pytest.raises(RunError, match="broken"):
        run_beside(config_of(), [task(job) for job in jobs], print, print)
    assert time.monotonic() - began < 120


@clustered
def test_results_are_in_order(cluster):
    jobs = [partial(number, value) for value in (3, 1, 2)]
    assert run_beside(config_of(), [task(job) for job in jobs], print, print) == [3, 1, 2]


def number(value, tell):
    time.sleep(value / 10)
    return value


@clustered
def test_healing_that_is_interrupted_goes_on(cluster, searched, monkeypatch, capsys):
    """First on a cluster of the command's own."""
    whole, cut = copy(searched, "whole"), copy(searched, "cut")
    words = [str(cut), *ON_RAY, "heal.steps=300", "heal.evaluate_every=10"]
    command = [sys.executable, "-m", "evocompress", "heal", *words]
    driver = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not list(cut.glob("heal/state/step-*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    driver.send_signal(signal.SIGINT)
    _, said = driver.communicate(timeout=60)
    assert driver.returncode == 130 and "go on with --resume" in said
    assert not (cut / "heal" / "heal.json").exists()

    monkeypatch.setattr(sys, "argv", ["evocompress", "heal", *words])
    with pytest.raises(SystemExit) as stop:
        commands.main()
    assert str(stop.value.code).startswith("error: ") and "\n" not in str(stop.value.code)
    assert "exists: resume it, or remove it" in str(stop.value.code)

    monkeypatch.setattr(sys, "argv", ["evocompress", "heal", *words, "--resume"])
    with pytest.raises(SystemExit) as stop:
        commands.main()
    assert stop.value.code == 0 and "heal: " in capsys.readouterr().err
    api.heal(whole, ["heal.steps=300", "heal.evaluate_every=10", "executor=local"])
    assert files(cut / "heal") == files(whole / "heal")
    assert not [path for path in cut.rglob("*") if path.name.endswith((".tmp", ".old"))]
