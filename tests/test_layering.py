"""Who may import whom; and nothing executable is ever loaded."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import evocompress

PACKAGE = Path(evocompress.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

# The lower layers, and which modules of the package each may import.
LOWER = {"types", "errors", "config", "config_file", "fields", "foreign_text", "strict_yaml"}
LOWER |= {"pareto", "regular", "space_config"}
SPACE = LOWER | {
    "space",
    "canonical",
    "genes",
    "admissible",
    "budget",
    "repair",
    "sampling",
    "costs",
}
SPACE |= {"fitting", "expert_genes", "single_changes", "arrays", "build"}
ALLOWED = {
    "types": set(),
    "foreign_text": set(),
    "errors": {"foreign_text"},
    "fields": {"foreign_text"},
    "space_config": {"fields"},
    "config": {"fields", "space_config"},
    "regular": {"errors"},
    "strict_yaml": {"errors", "foreign_text", "regular"},
    "config_file": {"config", "errors", "fields", "foreign_text", "strict_yaml"},
    "pareto": set(),
    "costs": {"types", "errors", "costs"},
    "canonical": {"types", "errors"},
    "expert_genes": SPACE,
    "genes": SPACE,
    "single_changes": SPACE,
    "admissible": SPACE,
    "budget": SPACE,
    "repair": SPACE,
    "sampling": SPACE,
    "arrays": set(),
    "build": SPACE,
    "fitting": SPACE,
    "space": SPACE,
    "treatments": {"types"},
    "search": SPACE | {"search", "treatments"},
    "criteria": {"types", "errors", "criteria"},
    "run": SPACE | {"search", "journal"},
    "sweep": LOWER | {"sweep", "run_folder", "files", "journal", "winner"},
}
NUMPY_ONLY = sorted(set(ALLOWED) - {"criteria", "run"})

# Libraries that only some parts may import.
HOMES = {
    "ray": {"distributed"},
    "optuna": {"distributed", "search"},
    "pymoo": {"search", "pareto"},
}


def part(path: Path) -> str:
    """The part of the package that a file belongs to: its folder or its module."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[str]:
    """Dotted names of everything that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = ["evocompress", *path.parts[len(PACKAGE.parts) : -1]]
            above = package[: len(package) + 1 - node.level] if node.level else []
            home = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{home}.{alias.name}" for alias in node.names)


def own_parts(path: Path) -> set[str]:
    """Parts of the package that a file imports."""
    names = [name.split(".") for name in imports(path)]
    return {name[1] for name in names if name[0] == "evocompress" and len(name) > 1}


def libraries(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imports(path)} - {"evocompress"}


def files_of(*parts: str) -> list[Path]:
    return [path for path in FILES if part(path) in parts]


@pytest.mark.parametrize("name", ALLOWED)
def test_a_layer_imports_only_what_lies_below(name):
    for path in files_of(name):
        assert own_parts(path) <= ALLOWED[name], path


def test_only_the_command_line_is_above_the_loop():
    for path in FILES:
        if part(path) not in ("cli", "__main__"):
            assert "cli" not in own_parts(path), path


def test_the_layers_of_the_search_are_numpy_only():
    for path in files_of(*NUMPY_ONLY):
        assert not libraries(path) & {"torch", "transformers", "safetensors"}, path


def test_criteria_know_no_model():
    for path in files_of("criteria"):
        assert "transformers" not in libraries(path), path


@pytest.mark.parametrize("library", HOMES)
def test_library_is_imported_only_at_home(library):
    for path in FILES:
        if part(path) not in HOMES[library]:
            assert library not in libraries(path), path


def test_types_need_the_standard_library_only():
    assert libraries(PACKAGE / "types.py") <= sys.stdlib_module_names


def test_nothing_executable_is_loaded():
    for path in FILES:
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
        ("evocompress.build", {"torch", "transformers", "ray"}),
        ("evocompress.search", {"torch", "transformers", "ray", "optuna", "pymoo"}),
        ("evocompress.run", {"torch", "transformers", "ray"}),
        ("evocompress.sweep", {"torch", "transformers", "ray", "optuna"}),
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
    assert set(imports(probe)) == {"ray.tune", "torch.load"}
    assert list(calls(probe, {"torch.load"})) == ["torch.load"]
