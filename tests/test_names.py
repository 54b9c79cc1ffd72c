"""One name of a public class, function or type has one meaning in the whole package."""

import ast
from collections import defaultdict

from tests.house import files, name_of

COMMANDS = (
    "build_library demo evaluate heal main materialize plan profile report rounds search sweep"
)
"""One thing each, as a command, in Python and where it is done."""

INTERFACES = "candidate_of check_matches_reference compress cut random_batch"
"""What each criterion, contract or record has a function of."""

COPIED = "shape_layers"
"""What each modeling file that goes into checkpoints has."""


def defined(path):
    """Names of the public classes, functions and types of a file; constants and ``T`` are not."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [target.id for target in targets if isinstance(target, ast.Name)]
        else:
            names = [node.name] if isinstance(node, ast.ClassDef | ast.FunctionDef) else []
        yield from (name for name in names if not name.isupper() and not name.startswith("_"))


def test_one_name_has_one_meaning():
    homes = defaultdict(list)
    for path in files():
        for name in defined(path):
            homes[name].append(name_of(path))
    allowed = f"{COMMANDS} {INTERFACES} {COPIED}".split()
    assert {name: at for name, at in homes.items() if len(at) > 1} == {
        name: homes[name] for name in allowed
    }
