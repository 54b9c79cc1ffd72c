"""Examples in docstrings are run, as a user would type them; what texts name is there."""

import ast
import doctest
import re
from importlib import import_module
from inspect import isclass
from pathlib import Path

import pytest

import evocompress
from evocompress.compression.criteria import CRITERIA, STRUCTURED
from evocompress.core.config import RunConfig
from evocompress.core.config_file import validate
from evocompress.pipeline.resolve import check_names
from evocompress.search import SEARCHERS
from evocompress.testing.examples import yaml_sections

PACKAGE = Path(evocompress.__file__).parent
REST = {
    "name": "run",
    "space": {"drop": {}},
    "model": {"source": "model"},
    "calibration": {"source": "text.txt"},
}
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


def texts():
    root = PACKAGE.parent
    pages = [*root.glob("*.md"), *root.glob("docs/**/*.md"), *PACKAGE.rglob("*.md")]
    return [path for path in (*PACKAGE.rglob("*.py"), *pages) if path.name != "CHANGELOG.md"]


def found(name):
    """What a dotted name stands for, or None."""
    try:
        return import_module(name)
    except ModuleNotFoundError:
        above, _, last = name.rpartition(".")
        return getattr(found(above), last, None) if above else None


@pytest.mark.filterwarnings("error::FutureWarning")  # a former name of a module
def test_what_texts_name_in_full_is_there():
    named = {
        name: path.name
        for path in texts()
        for name in re.findall(r"`(evocompress(?:\.\w+)+)(?:\(\))?`", path.read_text("utf-8"))
    }
    assert not {name: file for name, file in named.items() if found(name) is None}


def public_classes():
    """Those that a module exports, and those on the pages of the reference."""
    exporting = [
        import_module(module_of(path))
        for path in PACKAGE.rglob("*.py")
        if "__all__ = " in path.read_text("utf-8") and path.parent.name != "modeling"
    ]
    shown = [
        found(name)
        for page in (PACKAGE.parent / "docs" / "reference").glob("*.md")
        for name in re.findall(r"(?m)^::: ([\w.]+)", page.read_text("utf-8"))
    ]
    exported = [getattr(module, name) for module in exporting for name in module.__all__]
    own = [
        value
        for module in shown
        if not isclass(module)
        for name, value in getattr(module, "__dict__", {}).items()
        if getattr(value, "__module__", "") == module.__name__ and not name.startswith("_")
    ]
    every = {each for each in (*exported, *shown, *own) if isclass(each)}
    return {each for each in every if each.__module__.startswith("evocompress.")}


def test_every_public_class_has_an_example():
    classes = public_classes()
    assert len(classes) > 70
    assert not sorted(each.__name__ for each in classes if ">>> " not in (each.__doc__ or ""))


def methods():
    """(section, key, name, docstring) of each method that a run file names."""
    for name in SEARCHERS.built_in:
        yield "search", "name", name, SEARCHERS[name].__doc__
    for name in CRITERIA.built_in:
        text = import_module(CRITERIA[name].compress.__module__).__doc__
        yield "library", "criterion", name, text
    for name in STRUCTURED.built_in:
        text = import_module(STRUCTURED[name].cut.__module__).__doc__
        yield "library", "width_criterion", name, text


@pytest.mark.parametrize(
    ("section", "key", "name", "text"),
    [pytest.param(*each, id=f"{each[1]}-{each[2]}") for each in methods()],
)
def test_a_method_shows_its_section_of_a_run_file(section, key, name, text):
    sections = yaml_sections(text)
    assert name in [data.get(section, {}).get(key) for data in sections]
    for data in sections:
        check_names(validate(RunConfig, REST | data, name))
