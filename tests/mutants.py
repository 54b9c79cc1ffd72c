"""Small faults in the code: one comparison, operation, condition or constant changed in each."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOMS = ("search", "space", "compression/criteria")
"""Where faults are put."""

SWAPPED = {
    **{ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt},
    **{ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.In: ast.NotIn, ast.NotIn: ast.In},
    **{ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.And: ast.Or, ast.Or: ast.And},
    **{ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult},
    **{ast.FloorDiv: ast.Mult, ast.Mod: ast.FloorDiv, ast.USub: ast.UAdd},
}


@dataclass(frozen=True)
class Mutant:
    """One change of one file: the text between two places is another one.

    Attributes:
        functions: Functions of the file that tests must call to see the change: the one around it,
            and all where it is in none that can tell.
    """

    path: str
    functions: frozenset[str]
    line: int
    begin: int
    end: int
    text: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line} {self.text}"

    def code(self, tree: Path) -> bytes:
        code = (tree / self.path).read_bytes()
        return code[: self.begin] + f"({self.text})".encode() + code[self.end :]


Key = tuple[str, bytes, str, int]
"""What tells a mutant apart in two trees: file, line, change, and which of several like it."""


def mutants_of(tree: Path) -> dict[Key, Mutant]:
    """All mutants of a tree."""
    found: dict[Key, Mutant] = {}
    seen = Counter[tuple[str, bytes, str]]()
    for file in (f for room in ROOMS for f in sorted((tree / "evocompress" / room).rglob("*.py"))):
        lines = file.read_bytes().splitlines()
        for mutant in mutants(file, tree):
            alike = (mutant.path, lines[mutant.line - 1].strip(), mutant.text)
            found[*alike, seen[alike]] = mutant
            seen[alike] += 1
    return found


def mutants(path: Path, tree: Path) -> Iterator[Mutant]:
    """All mutants of a file but those in annotations, which nothing computes with."""
    code, name = path.read_bytes(), str(path.relative_to(tree))
    starts = [0]
    for line in code.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    functions = telling(code)
    for node in _computing(ast.parse(code)):
        if (text := _changed(node)) is not None:
            assert isinstance(node, ast.expr) and node.end_lineno and node.end_col_offset
            begin = starts[node.lineno - 1] + node.col_offset
            end = starts[node.end_lineno - 1] + node.end_col_offset
            around = [
                f for f in functions if f.body[0].lineno <= node.lineno <= (f.end_lineno or 0)
            ]
            called = around[-1:] or functions
            told = frozenset(f"{name}:{function.lineno}" for function in called)
            yield Mutant(name, told, node.lineno, begin, end, text)


def telling(code: bytes) -> list[ast.FunctionDef]:
    """Functions of a file, the inner after the outer, but compiled ones and those without lines."""
    lines = code.splitlines()
    return sorted(
        (
            node
            for node in ast.walk(ast.parse(code))
            if isinstance(node, ast.FunctionDef)
            and not lines[node.body[0].lineno - 1][: node.body[0].col_offset].strip()
            and "compiled" not in map(ast.unparse, node.decorator_list)
        ),
        key=lambda function: function.lineno,
    )


def told(path: str, code: bytes) -> bytes:
    """The code of a file whose functions tell that they are called."""
    lines = code.decode().splitlines(keepends=True)
    for function in reversed(telling(code)):
        first = function.body[0]
        if ast.get_docstring(function) is None:
            at = min([first.lineno, *(d.lineno for d in getattr(first, "decorator_list", []))]) - 1
        else:
            at = first.end_lineno or 0
        lines.insert(at, f'{" " * first.col_offset}reached("{path}:{function.lineno}")\n')
    return "".join(lines).encode()


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
