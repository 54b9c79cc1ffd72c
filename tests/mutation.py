"""How many small faults the tests find: each is put into the code alone, and the tests are run.

    python -m tests.mutation --sample 40 --seed 0 --against COMMIT

A mutant has one comparison, operation, condition or constant changed. All tests of its room are run
once on a copy of the tree without faults, where functions with mutants tell which tests call them.
Those tests are then run on the mutant, the fastest first, until one fails. With ``--against`` the
tree of a commit gets the same mutants as well, which are then taken of the lines that both have.
What was found is kept in ``--folder``: the same command goes on from there.
"""

from __future__ import annotations

import argparse
import builtins
import io
import json
import os
import pickle
import random
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Generator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.mutants import ROOMS, Mutant, mutants_of, told

ROOT = Path(__file__).parents[1]
ELSEWHERE = ("real", "cluster", "engines", "torture", "gpu")
"""Marks of tests that are never run here."""

LOADED = (
    "torch",
    "transformers",
    "numba",
    "scipy.stats",
    "pymoo",
    "lightgbm",
    "optuna",
    "pydantic",
)
"""Libraries that are loaded once, before the processes of the mutants are forked."""


class Plugin:
    """A plugin of pytest that knows the marks of today, which an older tree may not."""

    def pytest_configure(self, config: pytest.Config) -> None:
        for mark in (*ELSEWHERE, "long"):
            config.addinivalue_line("markers", mark)


class Record(Plugin):
    """A plugin of pytest: which functions each test calls, and how long it takes.

    What a module calls when it is loaded, and fixtures of a module call, counts for all its tests.
    A test that takes longer than `most` CPU seconds is stopped, and run on no mutant.
    """

    def __init__(self, most: float) -> None:
        self._most = most
        self._slow: set[str] = set()
        signal.signal(signal.SIGPROF, self._stop)
        self.seconds = Counter[str]()
        self.called = defaultdict[str, set[str]](set)
        self._now = "import"
        vars(builtins)["reached"] = lambda function: self.called[self._now].add(function)

    def pytest_collectstart(self, collector: pytest.Collector) -> None:
        self._now = collector.nodeid

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._now = nodeid
        signal.setitimer(signal.ITIMER_PROF, self._most)

    def _stop(self, *_: object) -> None:
        self._slow.add(self._now)
        pytest.fail("takes too long")

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(
        self, fixturedef: pytest.FixtureDef[object], request: pytest.FixtureRequest
    ) -> Generator[None, object, object]:
        now = self._now
        if fixturedef.scope != "function":
            self._now = request.node.nodeid
        try:
            return (yield)
        finally:
            self._now = now

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds[report.nodeid] += report.duration  # type: ignore[assignment]

    def of_tests(self) -> dict[str, tuple[float, set[str]]]:
        """By test, the fastest first."""
        tests = self.seconds.keys() - self._slow
        order = sorted(tests, key=lambda test: (self.seconds[test], test))
        return {test: (self.seconds[test], self._of(test)) for test in order}

    def _of(self, test: str) -> set[str]:
        parts = test.split("::")
        return set().union(*(self.called["::".join(parts[:n])] for n in range(1, len(parts) + 1)))


class Chosen(Plugin):
    """A plugin of pytest: the tests to run, in their order; those that fail are told."""

    def __init__(self, tests: list[str], tell: int) -> None:
        self._place = {test: place for place, test in enumerate(tests)}
        self._tell = tell

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        chosen = [item for item in items if item.nodeid in self._place]
        items[:] = sorted(chosen, key=lambda item: self._place[item.nodeid])

    def pytest_runtest_logreport(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if report.failed:
            os.write(self._tell, f"{report.nodeid}\n".encode())

    pytest_collectreport = pytest_runtest_logreport


@dataclass
class Suite:
    """A copy of the tree with the tests of one time.

    Attributes:
        name: Of the suite.
        tree: The copy.
        limit: CPU seconds that the tests of a mutant may take.
        left_out: Marks of tests that are not run.
        mutants: The chosen ones.
        tests: Seconds and called functions of each test, the fastest first.
        broken: Tests that fail without any mutant here, and are left out.
    """

    name: str
    tree: Path
    limit: int
    left_out: tuple[str, ...]
    mutants: list[Mutant]
    tests: dict[str, tuple[float, set[str]]] = field(default_factory=dict)
    broken: set[str] = field(default_factory=set)

    def work(self) -> None:
        """Finds all verdicts, and says them as they come."""
        self._record()
        total = sum(seconds for seconds, _ in self.tests.values())
        print(f"{self.name}: {len(self.tests)} tests in {total:.0f} s", flush=True)
        for number, mutant in enumerate(self.mutants, 1):
            outcome, seconds = self.known(mutant)
            told = f"{number}/{len(self.mutants)} {mutant}: {outcome} ({seconds:.0f} s)"
            print(f"{self.name} {told}", flush=True)

    def _record(self) -> None:
        """Runs all tests once, on code whose functions tell which test calls them."""
        kept = self.tree.with_suffix(".pickle")
        if not kept.exists():
            files = [f for room in ROOMS for f in (self.tree / "evocompress" / room).rglob("*.py")]
            codes = {file: file.read_bytes() for file in files}
            for file, code in codes.items():
                file.write_bytes(told(str(file.relative_to(self.tree)), code))
            done = succeeded(forked(lambda: self._write_record(kept)))
            for file, code in codes.items():
                file.write_bytes(code)
            if not done:
                raise SystemExit(f"{self.name}: the tests cannot be run")
        self.tests = pickle.loads(kept.read_bytes())

    def _write_record(self, kept: Path) -> None:
        record = Record(self.limit / 4)
        if (status := self._pytest([f"tests/{room}" for room in ROOMS], record)) > 1:
            raise SystemExit(f"pytest ends with {status}")
        kept.write_bytes(pickle.dumps(record.of_tests()))

    def known(self, mutant: Mutant) -> tuple[str, float]:
        """The verdict, from the file of those that were found before if it is there."""
        file = self.tree.with_suffix(".json")
        known = json.loads(file.read_text()) if file.exists() else {}
        if (key := f"{mutant} {mutant.begin}") not in known:
            known[key] = self.verdict(mutant)
            file.write_text(json.dumps(known))
        outcome, seconds = known[key]
        return outcome, seconds

    def verdict(self, mutant: Mutant) -> tuple[str, float]:
        """Whether the mutant was killed, survived or ran out of time; the CPU seconds taken."""
        room = next(r for r in ROOMS if mutant.path.startswith(f"evocompress/{r}/"))
        tests = [
            test
            for test, (_, called) in self.tests.items()
            if test.startswith(f"tests/{room}/")
            and test not in self.broken
            and mutant.functions & called
        ]
        file = self.tree / mutant.path
        code, status = file.read_bytes(), file.stat()
        file.write_bytes(mutant.code(self.tree))
        os.utime(file, (mutant.begin, mutant.begin))  # compiled anew, whatever is kept of others
        try:
            outcome, failed, seconds = self._run(tests) if tests else ("survived", "", 0.0)
        finally:
            file.write_bytes(code)
            os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
        if outcome == "killed" and "::" in failed and self._run([failed])[0] != "survived":
            self.broken.add(failed)
            return self.verdict(mutant)
        return outcome, seconds

    def _run(self, tests: list[str]) -> tuple[str, str, float]:
        """Pytest in a process of its own: the outcome, the test that failed, CPU seconds."""
        told, tell = os.pipe()
        if (pid := os.fork()) == 0:
            os.close(told)
            resource.setrlimit(resource.RLIMIT_CPU, (self.limit, self.limit + 5))
            signal.alarm(30 * self.limit)
            files = sorted({test.partition("::")[0] for test in tests})
            os._exit(self._pytest(["-x", *files], Chosen(tests, tell)))
        os.close(tell)
        with os.fdopen(told) as pipe:
            failed = pipe.read().partition("\n")[0]
        _, status, usage = os.wait4(pid, 0)
        seconds = usage.ru_utime + usage.ru_stime
        if os.WIFSIGNALED(status):
            return "out of time", "", seconds
        return ("survived" if os.WEXITSTATUS(status) in (0, 5) else "killed"), failed, seconds

    def _pytest(self, asked: list[str], plugin: Plugin) -> int:
        os.chdir(self.tree)
        sys.path[:] = [str(self.tree), *(p for p in sys.path if p not in ("", str(ROOT)))]
        options = ["-q", "-p", "no:cacheprovider", "-m", f"not ({' or '.join(self.left_out)})"]
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            return int(pytest.main([*asked, *options], plugins=[plugin]))


def forked(work: Callable[[], None]) -> int:
    """A process that does some work, and ends with 1 where that raises."""
    if pid := os.fork():
        return pid
    try:
        work()
    except BaseException as error:
        print(repr(error), file=sys.stderr, flush=True)
        os._exit(1)
    os._exit(0)


def succeeded(pid: int) -> bool:
    """Waits for a process."""
    return os.waitpid(pid, 0)[1] == 0


def copied(folder: Path, commit: str) -> Path:
    """The tree of a commit, without what an interrupted run left in it."""
    shutil.rmtree(folder, ignore_errors=True)
    archive = ["git", "archive", commit]
    packed = subprocess.run(archive, cwd=ROOT, check=True, capture_output=True).stdout
    with tarfile.open(fileobj=io.BytesIO(packed)) as files:
        files.extractall(folder, filter="data")
    subprocess.run([sys.executable, "-m", "compileall", "-q", str(folder)], check=False)
    return folder


def short(commit: str) -> str:
    """Its digits."""
    command = ["git", "rev-parse", "--short", commit]
    found = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return found.stdout.strip()


def main() -> None:
    """Samples mutants, runs the tests and prints the shares that were killed."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__)
    parser.add_argument("--sample", type=int, default=40, help="number of mutants")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--limit", type=int, default=120, help="CPU seconds for a mutant's tests")
    parser.add_argument("--commit", default="HEAD", help="whose code gets mutants")
    parser.add_argument("--against", help="a commit, whose tree gets the same mutants")
    parser.add_argument("--long", action="store_true", help="with tests that are marked as long")
    default = Path(tempfile.gettempdir()) / "mutation"
    parser.add_argument("--folder", type=Path, default=default, help="keeps what was found")
    asked = parser.parse_args()
    left_out = ELSEWHERE if asked.long else (*ELSEWHERE, "long")
    commits = [short(each) for each in (asked.commit, asked.against) if each]
    named = f"{asked.limit}{'-long' * asked.long}"
    trees = {each: copied(asked.folder / f"{each}-{named}", each) for each in commits}
    every = [mutants_of(tree) for tree in trees.values()]
    common = [key for key in every[0] if all(key in others for others in every)]
    chosen = random.Random(asked.seed).sample(common, asked.sample)
    sys.dont_write_bytecode = True
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    for name in LOADED:
        __import__(name)
    suites = [
        Suite(name, tree, asked.limit, left_out, [found[key] for key in chosen])
        for (name, tree), found in zip(trees.items(), every, strict=True)
    ]
    if not all([succeeded(pid) for pid in [forked(suite.work) for suite in suites]]):
        raise SystemExit("the tests cannot be run: see above")
    for suite in suites:
        count = Counter(outcome for outcome, _ in map(suite.known, suite.mutants))
        print(f"{suite.name}: {count['killed']} of {len(suite.mutants)} killed, {dict(count)}")


if __name__ == "__main__":
    main()
