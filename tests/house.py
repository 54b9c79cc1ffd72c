"""The rooms of the package and who imports whom. ``python -m tests.house`` prints their figures."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "evocompress"

BELOW = {
    "core": "",
    "space": "core",
    "search": "core space",
    "models": "core",
    "compression": "core models",
    "export": "core space models compression",
    "healing": "core models compression export",
    "evaluation": "core space models compression healing",
    "pipeline": "core space search models compression export healing evaluation",
    "report": "core space evaluation pipeline",
    "distributed": "core space models compression evaluation pipeline",
    "api": "core space search export evaluation pipeline report distributed",
    "cli": "core compression export evaluation pipeline report api",
    "hf": "models",
    "testing": "core space search models compression export evaluation hf",
    "__main__": "cli",
}
"""The rooms, and which others each may import."""

Graph = Mapping[str, set[str]]


def files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    """The dotted name of a module."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module: str) -> str:
    """The room of a module; empty for the package itself."""
    return module.split(".")[1] if "." in module else ""


@cache
def imported(path: Path) -> tuple[str, ...]:
    """Dotted names of everything that a file imports, wherever in it."""
    return tuple(_imported(path))


def _imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = ["evocompress", *path.parts[len(PACKAGE.parts) : -1]]
            above = package[: len(package) + 1 - node.level] if node.level else []
            home = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{home}.{alias.name}" for alias in node.names)


def modules() -> Graph:
    """For each module those of the package that it imports, for type checkers too."""
    paths = {name_of(path): path for path in files()}

    def module(name: str) -> str:
        while name and name not in paths:
            name = name.rpartition(".")[0]
        return name

    return {
        name: {found for found in map(module, imported(path)) if found not in ("", name)}
        for name, path in paths.items()
    }


def rooms() -> Graph:
    """For each room those that it imports."""
    found: dict[str, set[str]] = {}
    for name, others in modules().items():
        own = found.setdefault(room_of(name), set())
        own |= {room_of(other) for other in others} - {room_of(name), ""}
    return {name: others for name, others in found.items() if name}


def circles(graph: Graph) -> list[str]:
    """The nodes of a circle, if there is one."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def floors(graph: Graph) -> int:
    """Nodes of the longest path."""

    @cache
    def height(node: str) -> int:
        return 1 + max((height(below) for below in graph.get(node, ())), default=0)

    return max(map(height, graph))


def main() -> None:
    entries = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or path.is_dir()}
    lines = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in files())
    print(f"entries at the top: {len(entries - {'__init__', '__pycache__'})}")
    print(f"circles of rooms: {circles(rooms()) or 0}, of modules: {circles(modules()) or 0}")
    print(f"floors: {floors(rooms())}, arrows: {sum(map(len, rooms().values()))}")
    print(f"files: {len(files())}, lines: {lines:,}")


if __name__ == "__main__":
    sys.exit(main())
