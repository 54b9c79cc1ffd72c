"""Examples in docstrings are run, as a user would type them."""

import ast
import doctest
from importlib import import_module
from pathlib import Path

import pytest

import evocompress

PACKAGE = Path(evocompress.__file__).parent
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def docstrings(path):
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    return [ast.get_docstring(node) or "" for node in nodes if isinstance(node, kinds)]


def module_of(path):
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


EXAMPLES = {
    module_of(path): count
    for path in sorted(PACKAGE.rglob("*.py"))
    if (count := sum(">>> " in text for text in docstrings(path)))
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_examples_of_a_module_hold(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = import_module(name)
    tests = [test for test in doctest.DocTestFinder().find(module) if test.examples]
    assert len(tests) == EXAMPLES[name]
    runner = doctest.DocTestRunner(optionflags=FLAGS)
    for test in tests:
        told = []
        assert not runner.run(test, out=told.append).failed, "".join(told)


def test_there_are_examples():
    assert "evocompress.api" in EXAMPLES
