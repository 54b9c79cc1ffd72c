"""How many small faults the tests find: each is put into the code alone, and the tests are run.

    python -m tests.mutation --sample 60 --seed 0 --against COMMIT

A mutant has one comparison, operation, condition or constant changed. The tests of its room are run
on a copy of the tree, those that name the mutated module first, until one fails. With ``--against``
the tests and `evocompress.testing` of a commit are run on the same mutants of the same code.
"""

from __future__ import annotations

import argparse
import ast
import io
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("search", "space", "compression/criteria")
ELSEWHERE = "not (real or cluster or engines or torture or gpu)"
SWAPPED = {
    **{ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt},
    **{ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.In: ast.NotIn, ast.NotIn: ast.In},
    **{ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.And: ast.Or, ast.Or: ast.And},
    **{ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult},
    **{ast.FloorDiv: ast.Mult, ast.Mod: ast.FloorDiv, ast.USub: ast.UAdd},
}
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


@dataclass(frozen=True)
class Mutant:
    """One change of one file: the text between two places is another one."""

    path: str
    line: int
    begin: int
    end: int
    text: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line} {self.text}"

    def code(self, tree: Path) -> bytes:
        code = (tree / self.path).read_bytes()
        return code[: self.begin] + f"({self.text})".encode() + code[self.end :]


def mutants(path: Path) -> Iterator[Mutant]:
    """All mutants of a file but those in annotations, which nothing computes with."""
    code = path.read_bytes()
    starts = [0]
    for line in code.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    for node in _computing(ast.parse(code)):
        if (text := _changed(node)) is not None:
            assert isinstance(node, ast.expr) and node.end_lineno and node.end_col_offset
            begin = starts[node.lineno - 1] + node.col_offset
            end = starts[node.end_lineno - 1] + node.end_col_offset
            yield Mutant(str(path.relative_to(ROOT)), node.lineno, begin, end, text)


def _computing(node: ast.AST) -> Iterator[ast.AST]:
    yield node
    for name, value in ast.iter_fields(node):
        if name not in ("annotation", "returns"):
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST) and not isinstance(child, ast.JoinedStr):
                    yield from _computing(child)


def _changed(node: ast.AST) -> str | None:
    match node:
        case ast.Compare(ops=[op]) if type(op) in SWAPPED:
            return ast.unparse(ast.Compare(node.left, [SWAPPED[type(op)]()], node.comparators))
        case ast.BinOp(op=op) if type(op) in SWAPPED:
            return ast.unparse(ast.BinOp(node.left, SWAPPED[type(op)](), node.right))
        case ast.BoolOp(op=op):
            return ast.unparse(ast.BoolOp(SWAPPED[type(op)](), node.values))
        case ast.UnaryOp(op=ast.Not()):
            return ast.unparse(node.operand)
        case ast.UnaryOp(op=ast.USub()):
            return ast.unparse(node.operand)
        case ast.Constant(value=bool(value)):
            return str(not value)
        case ast.Constant(value=int(value) | float(value)):
            return repr(value + 1)
    return None


@dataclass
class Suite:
    """A copy of the tree with the tests of one time.

    Attributes:
        name: Of the suite.
        tree: The copy.
        limit: CPU seconds that the tests of a mutant may take.
        broken: Tests that fail without any mutant here, and are left out.
    """

    name: str
    tree: Path
    limit: int
    broken: set[str] = field(default_factory=set)

    def verdict(self, mutant: Mutant) -> tuple[str, float]:
        """Whether the mutant was killed, survived or ran out of time; the CPU seconds taken."""
        file = self.tree / mutant.path
        code, status = file.read_bytes(), file.stat()
        file.write_bytes(mutant.code(self.tree))
        os.utime(file, (1, 1))  # compiled anew, whatever is in __pycache__
        total, outcome, failed = 0.0, "survived", ""
        try:
            for files in self._files(mutant):
                outcome, failed, seconds = self._run(files, self.limit)
                total += seconds
                if outcome != "survived":
                    break
        finally:
            file.write_bytes(code)
            os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
        if outcome == "killed" and self._run([failed], self.limit)[0] != "survived":
            self.broken.add(failed)
            return self.verdict(mutant)
        return outcome, total

    def _files(self, mutant: Mutant) -> Iterator[list[str]]:
        """First the test files that name the module, then the others of its room."""
        room = next(r for r in ROOMS if mutant.path.startswith(f"evocompress/{r}/"))
        path = Path(mutant.path).with_suffix("")
        parent, name = ".".join(path.parts[:-1]), path.name
        every = sorted((self.tree / "tests" / room).rglob("test_*.py"))
        named = [
            file
            for file in every
            if f"{parent}.{name} " in (text := file.read_text())
            or any(name in line for line in text.splitlines() if f"from {parent} import" in line)
        ]
        for files in (named, [file for file in every if file not in named]):
            if files:
                yield [str(file.relative_to(self.tree)) for file in files]

    def _run(self, tests: list[str], limit: int) -> tuple[str, str, float]:
        """Pytest in a process of its own: the outcome, the test that failed, CPU seconds."""
        told, tell = os.pipe()
        if (pid := os.fork()) == 0:
            os.close(told)
            resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 5))
            signal.alarm(30 * limit)
            os._exit(self._child(tests, tell))
        os.close(tell)
        with os.fdopen(told) as pipe:
            failed = pipe.read().partition("\n")[0]
        _, status, usage = os.wait4(pid, 0)
        seconds = usage.ru_utime + usage.ru_stime
        if os.WIFSIGNALED(status):
            return "out of time", "", seconds
        return ("survived" if os.WEXITSTATUS(status) in (0, 5) else "killed"), failed, seconds

    def _child(self, tests: list[str], tell: int) -> int:
        class Told:
            def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
                if report.failed:
                    os.write(tell, f"{report.nodeid}\n".encode())

            def pytest_collectreport(self, report: pytest.CollectReport) -> None:
                if report.failed:
                    os.write(tell, f"{report.nodeid}\n".encode())

        os.chdir(self.tree)
        sys.path[:] = [str(self.tree), *(p for p in sys.path if p not in ("", str(ROOT)))]
        out = [f"--{'deselect' if '::' in name else 'ignore'}={name}" for name in self.broken]
        options = ["-x", "-q", "-p", "no:cacheprovider", "-m", ELSEWHERE]
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            return int(pytest.main([*tests, *options, *out], plugins=[Told()]))


def copied(folder: Path, commit: str | None) -> Path:
    """The tracked and new files of this tree, with the tests of a commit if one is named."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    if commit is not None:
        of_tests = ["tests", "evocompress/testing"]
        for name in of_tests:
            shutil.rmtree(folder / name)
        archive = ["git", "archive", commit, *of_tests]
        packed = subprocess.run(archive, cwd=ROOT, check=True, capture_output=True).stdout
        with tarfile.open(fileobj=io.BytesIO(packed)) as tests:
            tests.extractall(folder, filter="data")
    subprocess.run([sys.executable, "-m", "compileall", "-q", str(folder)], check=False)
    return folder


def main() -> None:
    """Samples mutants, runs the tests and prints the shares that were killed."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__)
    parser.add_argument("--sample", type=int, default=60, help="number of mutants")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--limit", type=int, default=120, help="CPU seconds for a mutant's tests")
    parser.add_argument("--against", help="a commit, whose tests are run on the same mutants")
    asked = parser.parse_args()
    files = [f for room in ROOMS for f in sorted((ROOT / "evocompress" / room).rglob("*.py"))]
    every = [mutant for file in files for mutant in mutants(file)]
    chosen = random.Random(asked.seed).sample(every, asked.sample)
    with tempfile.TemporaryDirectory() as home:
        commits = {"now": None} | ({asked.against: asked.against} if asked.against else {})
        suites = [Suite(n, copied(Path(home) / n, c), asked.limit) for n, c in commits.items()]
        sys.dont_write_bytecode = True
        for name in LOADED:
            __import__(name)
        counts = {suite.name: Counter[str]() for suite in suites}
        for number, mutant in enumerate(chosen, 1):
            found = {suite.name: suite.verdict(mutant) for suite in suites}
            for name, (outcome, seconds) in found.items():
                counts[name].update({outcome: 1, "seconds": round(seconds)})
            told = ", ".join(f"{name}: {o} ({s:.0f} s)" for name, (o, s) in found.items())
            print(f"{number}/{len(chosen)} {mutant} | {told}", flush=True)
    for name, count in counts.items():
        print(f"{name}: {count['killed']} of {len(chosen)} killed, {dict(count)}")


if __name__ == "__main__":
    main()
