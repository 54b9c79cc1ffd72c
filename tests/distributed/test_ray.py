"""Ray: the same answers from any number of workers, whatever dies meanwhile."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

import psutil
import pytest
import ray_fakes
import torch
from ray_fakes import Refusing, ask, executor, expected
from run_files import tiny_run, written

from evocompress import api
from evocompress.core.circumstances import read_environment
from evocompress.core.config import RayConfig
from evocompress.core.config_file import load_config
from evocompress.core.environment import machine
from evocompress.core.errors import ConfigError, RunError
from evocompress.core.requests import Estimate, Result
from evocompress.core.types import Candidate
from evocompress.distributed import queue as queues
from evocompress.distributed.cluster import _check_address, places, start
from evocompress.testing.tiny import tiny_checkpoint

ray = pytest.importorskip("ray")

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def cluster():
    """A cluster of one node, larger than this machine: its workers share the cores."""
    ray.cloudpickle.register_pickle_by_value(ray_fakes)
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    ray.init(num_cpus=8, include_dashboard=False, log_to_driver=False, _node_ip_address="127.0.0.1")
    yield
    ray.shutdown()
    ray.cloudpickle.unregister_pickle_by_value(ray_fakes)


def pids(executor):
    return [ray.get(worker.actor.ready.remote())["pid"] for worker in executor._workers]


@pytest.mark.parametrize("workers", [1, 3])
def test_every_request_is_answered_once(cluster, tmp_path, workers):
    requests = [ask(f"u{n}", (0, 1)) for n in range(40)]
    requests.append(Estimate(Candidate(), "taylor", (0,)))
    with closing(executor(tmp_path, workers)) as many:
        for _ in range(2):
            answers = list(many.map(requests))
            assert len(answers) == 41 and {answer.request for answer in answers} == set(requests)
            assert all(a == expected(a.request) for a in answers if isinstance(a, Result))


def test_one_request_is_shared_by_all_workers(cluster, tmp_path):
    with closing(executor(tmp_path, 4, seconds=0.3)) as many:
        list(many.map([ask("first")]))
        wide = ask("wide", tuple(range(8)))
        assert list(many.map([wide])) == [expected(wide)]


def test_a_request_that_kills_is_given_up_and_no_other(cluster, tmp_path):
    requests = [ask("poison" if n == 5 else f"u{n}") for n in range(12)]
    with closing(executor(tmp_path, 2)) as many:
        answers = {answer.request: answer for answer in many.map(requests)}
        assert answers.pop(requests[5]).failed == "3 workers died of it"
        assert all(answer == expected(request) for request, answer in answers.items())
        assert list(many.map([ask("after")])) == [expected(ask("after"))]


def test_what_hangs_is_ended(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(queues, "LEAST_PATIENCE", 0.2)
    monkeypatch.setattr(queues, "FIRST_PATIENCE", 2.0)
    monkeypatch.setattr(queues, "DEATHS", 1)
    requests = [ask("hang"), *(ask(f"u{n}") for n in range(6))]
    with closing(executor(tmp_path, 2)) as many:
        answers = {answer.request: answer for answer in many.map(requests)}
    assert answers[requests[0]].failed
    assert all(answers[request] == expected(request) for request in requests[1:])


def test_killed_workers_are_replaced(cluster, tmp_path):
    requests = [ask(f"u{n}") for n in range(60)]
    rng, stop = random.Random(0), threading.Event()
    with closing(executor(tmp_path, 3, seconds=0.1)) as many:
        list(many.map([ask("first")]))
        victims = pids(many)

        def kill():
            for pid in rng.sample(victims, 2):
                stop.wait(0.7)
                os.kill(pid, signal.SIGKILL)

        killer = threading.Thread(target=kill)
        killer.start()
        answers = list(many.map(requests))
        killer.join()
        assert len(answers) == 60 and all(a == expected(a.request) for a in answers)
        list(many.map(requests))
        assert len(set(pids(many)) & set(victims)) == 1


def test_a_bug_in_a_worker_is_one_line_with_its_log(cluster, tmp_path):
    with closing(executor(tmp_path, 1)) as many, pytest.raises(RunError) as caught:
        list(many.map([ask("bug")]))
    assert "\n" not in str(caught.value)
    assert "a bug" in str(caught.value)
    log = re.search(r"see (\S+) on \S+$", str(caught.value))
    assert log and Path(log[1]).exists()


def test_what_workers_print_is_kept_with_the_run(cluster, tmp_path):
    with closing(executor(tmp_path / "workers", 2, seconds=0.2)) as many:
        list(many.map([ask("first")]))
        victim, other = pids(many)
        list(many.map([ask("both are ready")]))
        list(many.map([ask("print", tuple(range(8)))]))
        os.kill(victim, signal.SIGKILL)
        list(many.map([ask("after")]))
    node = ray.util.get_node_ip_address()
    for pid in (victim, other):
        log = tmp_path / "workers" / f"{node}-{pid}.log"
        assert "printed by a worker" in log.read_text()


def test_what_workers_do_is_measured(cluster, tmp_path, monkeypatch):
    told = Counter()

    class Meter:
        def __init__(self, name, description, tag_keys):
            self.name, self.keys = name, set(tag_keys)

        def inc(self, value, tags):
            assert value >= 0 and tags["run"] == "fakes" and tags.keys() == self.keys
            told[self.name] += value

        set = inc

    monkeypatch.setattr("ray.util.metrics.Counter", Meter)
    monkeypatch.setattr("ray.util.metrics.Gauge", Meter)
    with closing(executor(tmp_path, 2, seconds=0.2)) as many:
        list(many.map([ask(f"u{n}") for n in range(10)]))
    assert told["evocompress_answers"] == 10 and told["evocompress_tokens"] == 100
    assert told["evocompress_busy_seconds"] >= 1.9
    assert {"evocompress_workers", "evocompress_waiting"} <= told.keys()


def test_a_worker_that_differs_is_refused(cluster, tmp_path):
    with closing(executor(tmp_path, 1, Refusing)) as many, pytest.raises(RunError, match="differs"):
        list(many.map([ask("u")]))


def test_a_worker_that_is_not_admitted_answers_nothing(cluster, tmp_path):
    def admit(who):
        raise RunError(f"process {who['pid']} is on another machine")

    with (
        closing(executor(tmp_path, 2, admit=admit)) as many,
        pytest.raises(RunError, match="is on another machine"),
    ):
        next(many.map([ask("u")]))


def test_workers_that_never_start_are_given_up(cluster, tmp_path):
    with (
        closing(executor(tmp_path, 1, die_at_start=True)) as many,
        pytest.raises(RunError, match="5 workers"),
    ):
        list(many.map([ask("u")]))


def test_whoever_stops_listening_frees_the_workers(cluster, tmp_path):
    with closing(executor(tmp_path, 2, seconds=0.2)) as many:
        answers = many.map([ask(f"u{n}") for n in range(50)])
        next(answers)
        answers.close()
        began = time.monotonic()
        assert list(many.map([ask("next")])) == [expected(ask("next"))]
        assert time.monotonic() - began < 30


def test_places_follow_the_cluster(cluster):
    assert places(RayConfig(cpus=2)) == 4
    assert places(RayConfig(workers=3, cpus=2)) == 3
    assert start(RayConfig())() is None  # a cluster that is there is joined, and left alone
    assert ray.is_initialized()


# ---- whole searches


@pytest.fixture(scope="module")
def run_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    tiny_checkpoint(folder / "model")
    run = tiny_run(
        folder,
        {"library_sequences": 4, "search_sequences": 12, "heldout_sequences": 2},
        space={
            "width": {"multiple_of": 8, "channels": [0.5, 0.75]},
            "drop": {},
            "budget": {"body_params": 0.7},
        },
        # Built once, in this process: see test_libraries.py for the workers.
        library={"path": str(folder / "library")},
        search={"name": "auto", "tokens": 9000},
    )
    return written(folder / "run.yaml", run)


def found(folder):
    """The journal's records in any order, without what says how far it was, and the winner."""
    lines = (folder / "journal.jsonl").read_text().splitlines()
    return sorted(lines), json.loads((folder / "winner.json").read_text())


@pytest.fixture(scope="module")
def local(run_file):
    return found(api.search(load_config(run_file, ["name=local"])))


@pytest.mark.parametrize("workers", [1, 2])
def test_any_number_of_workers_finds_the_same(cluster, run_file, local, workers):
    changes = [f"name=ray{workers}", "executor=ray", f"ray.workers={workers}"]
    folder = api.search(load_config(run_file, changes))
    assert found(folder) == local
    made = read_environment(folder / "environment.json")
    assert made.workers == (machine(torch.device("cpu")),)


def test_workers_with_copies_of_the_library_find_the_same(cluster, tmp_path, run_file, local):
    secret = f"secret-{os.getpid()}"
    environment = {"env_vars": {"EVOCOMPRESS_CACHE": str(tmp_path / "cache"), "TOKEN": secret}}
    changes = ["name=copies", "executor=ray", "ray.workers=4"]
    changes += [f"ray.storage={tmp_path / 'shared'}", f"ray.runtime_env={json.dumps(environment)}"]
    folder = api.search(load_config(run_file, changes))
    assert found(folder) == local
    logs = Path(ray._private.worker.global_worker.node.address_info["session_dir"]) / "logs"
    for file in (*folder.rglob("*"), *logs.rglob("*")):
        assert file.is_dir() or secret.encode() not in file.read_bytes(), file
    (stored,) = (tmp_path / "shared").iterdir()
    copy = tmp_path / "cache" / "libraries" / stored.name
    assert {file.name for file in copy.iterdir()} == {file.name for file in stored.iterdir()}


def test_a_search_whose_workers_are_killed_finds_the_same(cluster, run_file, local):
    stop, killed = threading.Event(), []
    journal = Path(load_config(run_file, []).runs) / "killed" / "journal.jsonl"

    def kill():
        rng, seen = random.Random(1), 0
        while not stop.wait(0.2):
            size = journal.stat().st_size if journal.exists() else 0
            workers = [p for p in psutil.process_iter(["name"]) if "ray::Worker" in p.info["name"]]
            # The next one only after another result, as a worker may take long to begin, and fewer
            # than a request is given up after.
            if workers and size > seen and len(killed) < queues.DEATHS - 1:
                seen = size
                killed.append(rng.choice(workers))
                killed[-1].kill()

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        changes = ["name=killed", "executor=ray", "ray.workers=2"]
        outcome = found(api.search(load_config(run_file, changes)))
    finally:
        stop.set()
        killer.join()
    assert killed and outcome == local


def test_a_driver_that_is_killed_goes_on(cluster, run_file, local):
    folder = Path(load_config(run_file, []).runs) / "driver"
    command = [sys.executable, "-m", "evocompress", "search", str(run_file), "name=driver"]
    command += ["--workers", "2"]
    driver = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    journal, lines = folder / "journal.jsonl", 0
    deadline = time.monotonic() + 240
    while lines < 40 and time.monotonic() < deadline and driver.poll() is None:
        time.sleep(0.05)
        lines = len(journal.read_text().splitlines()) if journal.exists() else 0
    driver.kill()
    driver.wait()
    assert lines >= 40 and not (folder / "winner.json").exists()
    subprocess.run([*command, "--resume"], check=True, timeout=300)
    assert found(folder) == local


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nonsense"])
def test_an_address_where_nobody_listens_is_refused_at_once(address):
    with pytest.raises(ConfigError, match=f"ray.address={address}: no cluster answers there"):
        _check_address(address)


def test_a_cluster_of_its_own_is_reached_by_this_machine_only():
    code = (
        "from evocompress.core.config import RayConfig\n"
        "from evocompress.distributed.cluster import start\n"
        "stop = start(RayConfig())\n"
        "import ray, psutil\n"
        "node = ray.nodes()[0]['NodeManagerAddress']\n"
        "own = psutil.Process()\n"
        "mine = [own, *own.children(recursive=True)]\n"
        "hosts = {c.laddr.ip.removeprefix('::ffff:') for p in mine\n"
        "         for c in p.net_connections('tcp') if c.status == 'LISTEN'}\n"
        "print(node, *hosts)\n"
        "stop()"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.splitlines()[-1] == "127.0.0.1 127.0.0.1"
