"""Who may import whom; and nothing executable is ever loaded."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from house import (
    BELOW,
    PACKAGE,
    circles,
    files,
    floors,
    imported,
    modules,
    name_of,
    room_of,
    rooms,
)

NUMPY_ONLY = ("evocompress.space", "evocompress.search", "evocompress.pipeline.sweep")
"""Parts that know neither torch nor models."""

HOMES = {
    "ray": {"distributed"},
    "optuna": {"distributed", "search"},
    "pymoo": {"core", "search"},
}
"""Libraries that only some rooms may import."""

MOST_ENTRIES, MOST_FLOORS = 16, 12


def libraries(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imported(path)} - {"evocompress"}


@pytest.mark.parametrize("room", BELOW)
def test_a_room_imports_only_what_lies_below(room):
    assert rooms()[room] <= set(BELOW[room].split())


def test_the_table_names_every_room_and_no_arrow_that_is_not_there():
    assert {room: set(below.split()) for room, below in BELOW.items()} == rooms()
    assert len(BELOW) <= MOST_ENTRIES and floors(rooms()) <= MOST_FLOORS


def test_there_are_no_circles():
    assert circles(rooms()) == []
    assert circles(modules()) == []


@pytest.mark.parametrize("room", [name for name in BELOW if (PACKAGE / name).is_dir()])
def test_a_room_has_a_page(room):
    """Its docstring says what it is for, what its interface is and who may import it."""
    text = ast.get_docstring(ast.parse((PACKAGE / room / "__init__.py").read_text())) or ""
    assert "Interface:" in text and "Imported by:" in text
    named = text.split("Imported by:")[1].split(".")[0]
    importers = {name for name, others in rooms().items() if room in others}
    assert {word.strip(" `\n") for word in named.split(",")} == importers or "nobody" in named


def test_the_layers_of_the_search_are_numpy_only():
    for path in files():
        if name_of(path).startswith(NUMPY_ONLY):
            assert not libraries(path) & {"torch", "transformers", "safetensors"}, path


def test_criteria_know_no_model():
    for path in (PACKAGE / "compression" / "criteria").glob("*.py"):
        below = {name.split(".")[1] for name in imported(path) if name.startswith("evocompress.")}
        assert below <= {"core", "compression"} and "transformers" not in libraries(path), path


@pytest.mark.parametrize("library", HOMES)
def test_library_is_imported_only_at_home(library):
    for path in files():
        if room_of(name_of(path)) not in HOMES[library]:
            assert library not in libraries(path), path


def test_types_need_the_standard_library_only():
    assert libraries(PACKAGE / "core" / "types.py") <= sys.stdlib_module_names


def test_nothing_executable_is_loaded():
    for path in files():
        assert not libraries(path) & {"pickle", "cPickle", "dill", "cloudpickle", "joblib"}, path
        assert not list(calls(path, {"torch.load", "numpy.load", "np.load", "eval", "exec"})), path


def calls(path: Path, names: set[str]) -> Iterator[str]:
    """Those of the dotted names that a file calls."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in names:
            yield ast.unparse(node.func)


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("evocompress.space", {"torch", "transformers", "ray"}),
        ("evocompress.search", {"torch", "transformers", "ray", "optuna", "pymoo"}),
        ("evocompress.pipeline.loop", {"torch", "transformers", "ray"}),
        ("evocompress.pipeline.sweep", {"torch", "transformers", "ray", "optuna"}),
    ],
)
def test_import_stays_light(module, absent):
    code = f"import sys, {module}; print(*sorted(set(sys.modules) & {absent!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_the_check_sees_imports_inside_functions(tmp_path):
    probe = tmp_path / "probe.py"
    probe.write_text(
        "def f():\n    import ray.tune\n    from torch import load\n    torch.load(1)\n"
    )
    assert set(imported(probe)) == {"ray.tune", "torch.load"}
    assert list(calls(probe, {"torch.load"})) == ["torch.load"]


def test_the_check_sees_a_circle():
    assert set(circles({"a": {"b"}, "b": {"c"}, "c": {"b"}})) == {"b", "c"}
    assert circles({"a": {"b"}, "b": {"c"}}) == [] and floors({"a": {"b"}, "b": {"c"}}) == 3
