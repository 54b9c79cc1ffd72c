from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from evocompress.core import progress
from evocompress.core.progress import LOG_INTERVAL, Reporter, Silent


class Clock:
    """Time that passes when the test says so."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress.time, "monotonic", clock)
    return clock


@pytest.fixture
def log():
    return StringIO()


@pytest.fixture
def reporter(log):
    return Reporter(Console(file=log, force_terminal=False, width=40))


def test_a_stage_in_a_log_has_a_beginning_and_an_end(clock, log, reporter):
    with reporter.stage("build"):
        assert log.getvalue() == "build ...\n"
        clock.now += 12.34
    assert log.getvalue() == "build ...\nbuild: 12.3 s\n"


def test_lines_are_throttled_and_estimate_what_is_left(clock, log, reporter):
    with reporter.stage("build") as advance:
        for done in range(1, 11):
            clock.now += LOG_INTERVAL / 4
            advance(done, 20, f"block {done}")
    left = [LOG_INTERVAL / 4 * (20 - done) for done in (4, 8)]
    assert log.getvalue().splitlines() == [
        "build ...",
        f"  build: 20%, about {left[0]:.0f} s left; block 4",
        f"  build: 40%, about {left[1]:.0f} s left; block 8",
        f"build: {10 * LOG_INTERVAL / 4:.1f} s",
    ]


def test_an_unknown_total_has_no_percentage(clock, log, reporter):
    with reporter.stage("search") as advance:
        clock.now += LOG_INTERVAL
        advance(4096, None, "step 3")
    assert log.getvalue().splitlines()[1] == "  search: step 3"


def test_nothing_done_is_not_reported(clock, log, reporter):
    with reporter.stage("search") as advance:
        clock.now += 2 * LOG_INTERVAL
        advance(0, 20, "step 0")
    assert len(log.getvalue().splitlines()) == 2


def test_a_stage_that_fails_has_no_end(log, reporter):
    with pytest.raises(ZeroDivisionError), reporter.stage("build"):
        raise ZeroDivisionError
    assert log.getvalue() == "build ...\n"


def test_names_are_not_read_as_markup_and_long_lines_are_not_broken(log, reporter):
    reporter.say("[red]x[/red] " + "long " * 20)
    assert log.getvalue() == "[red]x[/red] " + "long " * 20 + "\n"


def test_silent_prints_nothing(capfd):
    with Silent().stage("build") as advance:
        advance(1, 2, "half")
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a full disk")
def test_a_log_that_cannot_be_written_is_gone_without(capfd, monkeypatch):
    monkeypatch.setattr(progress.LOG, "handlers", [])
    reporter = Silent()
    reporter.log_to(Path("/dev/full"))
    reporter.say("a line")
    assert capfd.readouterr().err == ""
