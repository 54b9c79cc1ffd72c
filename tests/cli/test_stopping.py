"""Signals end a command as Ctrl-C does; what a killed one left, the next one clears."""

import contextlib
import os
import signal
import subprocess
import sys
import time

import pytest
from test_cli import TEXT, call, write_run

from evocompress.cli import commands
from evocompress.core import stopping
from evocompress.pipeline import compared_models
from evocompress.testing.tiny import tiny_checkpoint


@pytest.fixture(autouse=True)
def handlers():
    """Those of the test run are there again afterwards."""
    before = {number: signal.getsignal(number) for number in stopping.SIGNALS}
    yield
    stopping._came = None
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with a winner and a checkpoint."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "text.txt").write_text(TEXT)
    file = write_run(folder, tiny_checkpoint(folder / "tiny"))
    with pytest.MonkeyPatch.context() as patch:
        assert call(patch, "search", file) == 0
        assert call(patch, "materialize", folder / "runs" / "trial") == 0
    return folder / "runs" / "trial"


def hidden(folder):
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


@pytest.mark.parametrize("number", stopping.SIGNALS)
def test_a_signal_in_evaluate_leaves_nothing(run, number, monkeypatch, capsys):
    before = sorted(run.iterdir())
    seen = []

    def stopped(path, like):
        seen.extend(path.parent.iterdir())
        os.kill(os.getpid(), number)
        time.sleep(10)

    with monkeypatch.context() as patch:
        patch.setattr(compared_models, "read_candidate_model", stopped)
        assert call(monkeypatch, "evaluate", run) == 128 + number
    said = capsys.readouterr().err.splitlines()
    assert said[-1].endswith("search, heal, rounds and sweep go on with --resume")
    assert said[-1].startswith(stopping.SIGNALS[number]) and "Traceback" not in str(said)
    assert seen, "there was a folder with a whole checkpoint"
    assert sorted(run.iterdir()) == before


def test_what_a_killed_command_left_is_cleared_by_the_next(run, monkeypatch):
    before = sorted(run.iterdir())
    (run / ".winner.json.12.tmp").write_text("half")
    (run / ".uniform.12.0123abcd.tmp" / "uniform").mkdir(parents=True)
    (run / ".checkpoint.12.0123abcd.tmp").mkdir()
    assert call(monkeypatch, "evaluate", run, "evaluate.latency=false") == 0
    assert sorted(run.iterdir()) == sorted([*before, run / "evaluation.json"])


def test_a_terminated_search_resumed_is_the_undisturbed_one(run, monkeypatch):
    file, cut = run.parents[1] / "trial.yaml", run.parent / "cut"
    command = [sys.executable, "-m", "evocompress", "search", str(file), "name=cut"]
    begun = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    journal = cut / "journal.jsonl"
    while begun.poll() is None and not (journal.exists() and '"value"' in journal.read_text()):
        time.sleep(0.005)
    begun.terminate()
    _, said = begun.communicate(timeout=60)
    assert begun.returncode == 143, said
    assert said.splitlines()[-1] == "terminated: search, heal, rounds and sweep go on with --resume"
    assert "Traceback" not in said
    assert not (cut / "winner.json").exists(), "the search was over before it was stopped"
    assert hidden(cut) == [".lock"]
    assert call(monkeypatch, "search", file, "name=cut", "--resume") == 0
    for name in ("winner.json", "front.json"):
        assert (cut / name).read_bytes() == (run / name).read_bytes()


def test_ignored_signals_stay_ignored_and_taken_ones_come_back():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    stopping.stop_on_signals()
    with stopping.signals_kept():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # as Ray does
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)
    assert stopping.signal_that_came() == signal.SIGTERM


@pytest.mark.parametrize("number", stopping.SIGNALS)
def test_what_a_library_makes_of_an_interrupt_is_told_as_the_interrupt(number, monkeypatch, capsys):
    def swallow():
        with contextlib.suppress(KeyboardInterrupt):
            os.kill(os.getpid(), number)
        raise ValueError("could not determine the shape of object type 'UntypedStorage'")

    monkeypatch.setattr(commands, "app", swallow)
    with pytest.raises(SystemExit) as ended:
        commands.main()
    assert ended.value.code == 128 + number
    assert capsys.readouterr().err.startswith(stopping.SIGNALS[number])


class _Interrupted:
    """Something in whose end a signal comes, where no exception can be raised."""

    def __init__(self, number):
        self._number = number

    def __del__(self):
        os.kill(os.getpid(), self._number)
        time.sleep(0.001)


@pytest.mark.parametrize("number", stopping.SIGNALS)
def test_an_interrupt_that_is_lost_in_a_destructor_comes_again(number, monkeypatch, capsys):
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    stopping.stop_on_signals()
    with pytest.raises(KeyboardInterrupt):
        _Interrupted(number)
        time.sleep(10)
    assert stopping.signal_that_came() == number
    assert "Traceback" not in capsys.readouterr().err
