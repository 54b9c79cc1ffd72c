"""Healing in two processes, as torchrun and accelerate start them, on a CPU."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from run_files import small_run

from evocompress import api
from evocompress.core.config import RunConfig
from evocompress.testing.tiny import tiny_checkpoint

pytestmark = pytest.mark.long

TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc-per-node")
STEPS = ("heal.steps=6", "heal.learning_rate=0.003")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("together")
    tiny_checkpoint(home / "model")
    settings = small_run(home)
    settings["heal"] |= {"batch": 2, "accumulate": 2}
    run = api.search(RunConfig.model_validate(settings))
    api.materialize(run)
    return run


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy, which is healed in two processes."""
    return shutil.copytree(finished, tmp_path / "run")


def command(*words: str, count: int = 2) -> list[str]:
    return [sys.executable, "-m", *TORCHRUN, str(count), "-m", "evocompress", *words]


def together(*words: str, count: int = 2) -> subprocess.CompletedProcess[str]:
    """A command in several processes."""
    return subprocess.run(
        command(*words, count=count), capture_output=True, text=True, timeout=300, check=False
    )


def errors(done: subprocess.CompletedProcess[str]) -> list[str]:
    assert done.returncode
    return [line for line in done.stderr.splitlines() if line.startswith("error:")]


def alone(finished: Path, tmp_path: Path, *words: str) -> Path:
    """The same healed in one process."""
    run = shutil.copytree(finished, tmp_path / "alone")
    api.heal(run, words)
    return run / "heal"


def files(folder: Path) -> dict[str, bytes]:
    """Those of a healing, but for the seconds that it took."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in ("heal.json", "state.json")
    }


@pytest.mark.smoke
def test_the_result_is_that_of_one_process(finished: Path, run: Path, tmp_path: Path) -> None:
    done = together("heal", str(run), *STEPS)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [str(run / "heal" / "checkpoint")]
    assert done.stderr.count("text for healing ...") == 1
    one = alone(finished, tmp_path, *STEPS)
    assert files(run / "heal") == files(one)
    reports = [json.loads((folder / "heal.json").read_text()) for folder in (run / "heal", one)]
    assert [report["circumstances"]["processes"] for report in reports] == [2, 1]
    assert {path.name for path in run.iterdir()} == {path.name for path in one.parent.iterdir()}


@pytest.mark.parametrize(
    "words",
    [
        ("heal.train=head",),
        ("heal.train=lora,norms", "heal.checkpointing=true"),
        ("heal.tokens=auto", "heal.train=norms"),
        ("heal.top_k=32", "heal.average=2", "heal.adapt_teacher=200"),
    ],
    ids=" ".join,
)
def test_each_way_of_healing_ends_in_the_same_bytes(
    finished: Path, run: Path, tmp_path: Path, words: tuple[str, ...]
) -> None:
    done = together("heal", str(run), *words)
    assert done.returncode == 0, done.stderr
    assert files(run / "heal") == files(alone(finished, tmp_path, *words))


@pytest.mark.parametrize(
    "words",
    [("heal.train=scales,norms",), ("heal.train=all,scales", "heal.straight_through=true")],
    ids=" ".join,
)
def test_training_through_the_rounding_ends_in_the_same_bytes(
    finished: Path, tmp_path: Path, words: tuple[str, ...]
) -> None:
    settings = small_run(finished.parent.parent)
    settings["heal"] |= {"batch": 2, "accumulate": 2, "learning_rate": 1e-3}
    settings |= {
        "runs": str(tmp_path),
        "space": {"bits": {"types": ["q8_0", "q5_1"]}, "budget": {"bits_per_weight": 7.5}},
    }
    run = api.search(RunConfig.model_validate(settings))
    api.materialize(run)
    one = shutil.copytree(run, tmp_path / "one")
    api.heal(one, words)
    done = together("heal", str(run), *words)
    assert done.returncode == 0, done.stderr
    assert (one / "heal" / "checkpoint" / "types.parts").is_file()
    assert files(run / "heal") == files(one / "heal")


def test_more_micro_batches_than_processes_add_up_in_another_order(
    finished: Path, run: Path, tmp_path: Path
) -> None:
    """Two sums of two gradients are not quite one of four."""
    words = (*STEPS, "heal.accumulate=4")
    assert together("heal", str(run), *words).returncode == 0
    histories = [
        [json.loads(line) for line in (folder / "heal.jsonl").read_text().splitlines()]
        for folder in (run / "heal", alone(finished, tmp_path, *words))
    ]
    for key in ("train_loss", "validation_kl", "learning_rate"):
        ours, theirs = ([line[key] for line in history] for history in histories)
        assert ours == [value and pytest.approx(value, rel=1e-4) for value in theirs]


def test_all_end_when_one_is_stopped_and_go_on_to_the_same_bytes(
    finished: Path, run: Path, tmp_path: Path
) -> None:
    words = ("heal.steps=40", "heal.evaluate_every=2")
    begun = subprocess.Popen(
        command("heal", str(run), *words), stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    states = run / "heal" / "state"
    while begun.poll() is None and not list(states.glob("step-*")):
        time.sleep(0.01)
    workers = psutil.Process(begun.pid).children()
    second = next(one for one in workers if one.environ().get("RANK") == "1")
    second.terminate()
    _, said = begun.communicate(timeout=120)
    assert begun.returncode and not any(one.is_running() for one in workers), said
    assert not (run / "heal" / "heal.json").exists(), "it was over before it was stopped"
    assert said.count("search, heal, rounds and sweep go on with --resume") <= 1

    with pytest.raises(Exception, match="processes was 2, is 1"):
        api.heal(run, words, resume=True)
    other = shutil.copytree(run, tmp_path / "other")
    api.heal(other, words, resume=True, force=True)
    known = json.loads((other / "heal" / "heal.json").read_text())["circumstances"]
    assert (known["processes"], known["changes"][0]["processes"]) == (2, 1)

    done = together("heal", str(run), *words, "--resume")
    assert done.returncode == 0, done.stderr
    assert files(run / "heal") == files(alone(finished, tmp_path, *words))


def test_what_cannot_be_shared_out_is_one_line(run: Path) -> None:
    before = sorted(run.rglob("*"))
    assert errors(together("heal", str(run), count=3)) == [
        "error: heal.accumulate=2 is how many micro-batches a step has, and they are shared out "
        "among 3 processes: set it to a multiple of 3"
    ]
    assert errors(together("evaluate", str(run))) == [
        "error: evocompress evaluate works in one process, and 2 were started: only 'evocompress "
        "heal' shares its work out among several"
    ]
    assert errors(together("heal", str(run), "--ray", "auto")) == [
        "error: with Ray a healing is one task: start one process, or leave out --ray"
    ]
    assert sorted(run.rglob("*")) == before


def test_accelerate_starts_them_as_well(run: Path) -> None:
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu"]
    launch += ["--num_processes", "2", "--num_machines", "1", "--main_process_port", "0"]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no", "-m", "evocompress"]
    done = subprocess.run(
        [*launch, "heal", str(run), *STEPS],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((run / "heal" / "heal.json").read_text())
    assert report["circumstances"]["processes"] == 2
