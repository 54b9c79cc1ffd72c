"""YAML in which nothing surprises: every scalar is what it looks like, and sizes are bounded.

Numbers, truths and null are those of YAML's core schema (1.2), so that ``2:4``, ``2024-01-15``
and ``010`` are text. A key stands once in a mapping and is text. Tags, references of a
node to itself, infinities and control characters are refused, and so is what is too long, too
deep or, once its aliases are written out, too large.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import yaml

from evocompress.core.errors import ConfigError
from evocompress.core.foreign_text import controls, printable, shortened
from evocompress.core.regular import check_regular

MOST_CHARACTERS = 2**20
MOST_NODES = 20_000
DEEPEST = 40
MOST_DIGITS = 400

_WHOLE = "(?:0|[1-9][0-9_]*)"

_CORE: tuple[tuple[str, str, str], ...] = (
    ("null", r"^(?:~|null|Null|NULL|)$", "~nN\0"),
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
    ("int", rf"^[-+]?{_WHOLE}$", "-+0123456789"),
    ("float", rf"^[-+]?(?:\.[0-9]+|{_WHOLE}(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$", "-+.0123456789"),
    ("float", r"^[-+]?\.(?:inf|Inf|INF)$|^\.(?:nan|NaN|NAN)$", "-+."),
    ("merge", r"^<<$", "<"),
)
"""Kind, form and first characters of plain scalars that are no text."""


def read_yaml_text(text: str, where: str) -> Any:
    """The data of a YAML text, which errors call `where`.

    Raises:
        ConfigError: It is not YAML, or holds something that is refused.
    """
    if (size := len(text)) > MOST_CHARACTERS:
        raise ConfigError(f"{where}: {size:,} characters, at most {MOST_CHARACTERS:,} are read")
    if found := next(controls(text, "\n\r\t\x85"), None):
        raise ConfigError(f"{where} holds the control character {printable(found, '')}: remove it")
    loader = _Loader(text)
    try:
        return loader.get_single_data()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        problem = shortened(printable(error.problem or error.context or "", ""), 200)
        raise ConfigError(f"{where} is not valid YAML: {place}{problem}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{where} is not valid YAML: {shortened(str(error), 200)}") from None
    finally:
        loader.dispose()


def to_yaml_text(data: Any) -> str:
    """Data as YAML that `read_yaml_text` reads back the same."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        ConfigError: The file is missing or does not hold a mapping.
    """
    where = shortened(printable(str(path), ""), 300)
    try:
        size = path.stat().st_size
        if size > 4 * MOST_CHARACTERS:
            raise ConfigError(f"{where} has {size:,} bytes: no such file is a configuration")
        check_regular(path, ConfigError)
        data = read_yaml_text(path.read_text(encoding="utf-8-sig"), where)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise ConfigError(f"{where}: no such configuration file") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{where} is not a text file") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"{where} cannot be read: {reason}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{where} must hold a mapping of keys to values")
    return data


class _Loader(yaml.SafeLoader):
    """Refuses while it reads, so that nothing of what is refused is ever built."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0
        self._read = 0
        self._sizes: dict[int, int] = {}
        """Nodes of each whole node by its identity, aliases counted as often as they stand."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """A node whose size, depth and tag are allowed."""
        event: yaml.Event = self.peek_event()  # type: ignore[no-untyped-call]
        self._read += 1
        if getattr(event, "tag", None) is not None:
            self._refuse("tags (!...) are not taken, write the value without one", event.start_mark)
        if self._depth >= DEEPEST:
            self._refuse(f"more than {DEEPEST} levels deep", event.start_mark)
        if self._read > MOST_NODES:
            self._refuse(f"more than {MOST_NODES:,} values", event.start_mark)
        self._depth += 1
        node: yaml.Node | None = super().compose_node(parent, index)
        self._depth -= 1
        if isinstance(event, yaml.AliasEvent):
            if id(node) not in self._sizes:
                self._refuse("an alias of what it is in", event.start_mark)
        elif node is not None:
            self._sizes[id(node)] = self._size(node)
        return node

    def _size(self, node: yaml.Node) -> int:
        """Nodes that are in a node."""
        if isinstance(node, yaml.ScalarNode):
            return 1
        children = node.value
        if isinstance(node, yaml.MappingNode):
            self._check_keys(node)
            children = [child for pair in node.value for child in pair]
        size = 1 + sum(self._sizes[id(child)] for child in children)
        if size > MOST_NODES:
            self._refuse(f"more than {MOST_NODES:,} values, aliases written out", node.start_mark)
        return size

    def _check_keys(self, node: yaml.MappingNode) -> None:
        """Refuses a key that stands twice or is no text; what looks like a number is text."""
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                self._refuse("a key must be a word", key.start_mark)
            if key.tag == "tag:yaml.org,2002:merge":
                continue
            if key.value in seen:
                self._refuse(f"the key '{shortened(key.value, 80)}' stands twice", key.start_mark)
            seen.add(key.value)
            key.tag = "tag:yaml.org,2002:str"

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """The value of a node; a number must be finite and of a sensible length."""
        if isinstance(node, yaml.ScalarNode):
            self._check_scalar(node)
        return super().construct_object(node, deep)

    def _check_scalar(self, node: yaml.ScalarNode) -> None:
        kind = node.tag.rsplit(":", 1)[-1]
        if kind in ("int", "float") and len(node.value) > MOST_DIGITS:
            self._refuse(f"a number of {len(node.value):,} characters", node.start_mark)
        if kind == "float" and not math.isfinite(self.construct_yaml_float(node)):
            what = shortened(node.value, 40)
            self._refuse(f"{what} is no finite number", node.start_mark)
        if found := next(controls(node.value, "\n\t"), None):
            self._refuse(f"the control character {printable(found, '')}", node.start_mark)

    @staticmethod
    def _refuse(problem: str, mark: Any) -> None:
        raise yaml.MarkedYAMLError(problem=problem, problem_mark=mark)


class _Dumper(yaml.SafeDumper):
    """Quotes what the loader would not take for text; writes out what is there twice."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}

    def ignore_aliases(self, data: Any) -> bool:
        """Whether an object that is there twice is written twice."""
        return True


for _kind, _form, _first in _CORE:
    for _each in (_Loader, _Dumper):
        _each.add_implicit_resolver(
            f"tag:yaml.org,2002:{_kind}",
            re.compile(_form),
            [character.replace("\0", "") for character in _first],
        )
