"""Reading a run's configuration from YAML with dotted overrides, and saying what is wrong."""

from __future__ import annotations

import difflib
import itertools
import os
import re
import reprlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from evocompress.core.config import RunConfig
from evocompress.core.errors import ConfigError
from evocompress.core.fields import SECRET
from evocompress.core.foreign_text import printable, shortened
from evocompress.core.strict_yaml import DEEPEST, read_yaml, read_yaml_text, to_yaml_text

SPACES = "search_spaces"
"""Name of the folder of shipped run files."""

PACKAGE = Path(__file__).parents[1]
SHIPPED = (PACKAGE / SPACES, PACKAGE.parent / SPACES)
"""Where they are: in the package of a wheel, or beside it in a checkout."""

Model = TypeVar("Model", bound=BaseModel)


def load_config(path: Path | str, overrides: Sequence[str] = ()) -> RunConfig:
    """The configuration in a YAML file, changed by ``key.key=value`` overrides.

    ``space`` may name another YAML file, relative to this one. ``name`` defaults to the
    file's stem. A file that is not there may be a shipped one, see `shipped`.

    Raises:
        ConfigError: The file is missing, is not YAML, or a key or value is wrong.
    """
    path = shipped(Path(path))
    data = read_yaml(path)
    if data.keys() >= {"run", "vary"}:
        raise ConfigError(f"{path} is a sweep: 'evocompress sweep {path}' makes all its runs")
    # The space's file comes first, so that the other overrides can change what is in it.
    first = [override for override in overrides if override.startswith("space=")]
    apply(data, first)
    if isinstance(data.get("space"), str):
        data["space"] = read_yaml(path.parent / data["space"])
    apply(data, [override for override in overrides if override not in first])
    data.setdefault("name", path.stem)
    return validate(RunConfig, data, str(path))


def shipped(path: Path) -> Path:
    """A file, or where there is none the one of that name that comes with the program.

    Args:
        path: Such as ``run.yaml``, or ``smollm2_sparsity_50`` with or without ``search_spaces/``
            before it and ``.yaml`` behind it.

    Raises:
        ConfigError: There is neither.
    """
    if os.path.exists(path) or path.parent not in (Path(), Path(SPACES)):
        return path
    names = (path.name, f"{path.name}.yaml")
    found = (folder / name for folder in SHIPPED for name in names)
    if (file := next((file for file in found if file.is_file()), None)) is not None:
        return file
    hint = nearest(path.name.removesuffix(".yaml"), shipped_files())
    raise ConfigError(f"{path}: no such configuration file, and none that is shipped: {hint}")


def shipped_files() -> dict[str, Path]:
    """{name: file} of the run files and sweeps that come with the program, in order of names.

    Examples:
        >>> "smollm2_sparsity_50" in shipped_files()
        True
    """
    found = {file.stem: file for folder in SHIPPED for file in folder.glob("*.yaml")}
    return dict(sorted(found.items()))


def first_sentence(file: Path) -> str:
    """The first sentence of the comment that a run file begins with.

    Examples:
        >>> first_sentence(shipped_files()["smollm2_width_70"])[:50]
        'SmolLM2-135M with 70% of the parameters of its blo'
    """
    comment = itertools.takewhile(
        lambda line: line.startswith("#"), file.read_text(encoding="utf-8").splitlines()
    )
    text = " ".join(line.removeprefix("#").strip() for line in comment)
    return re.split(r"(?<=[.:?]) ", text)[0].rstrip(".:")


def changed(config: RunConfig, overrides: Sequence[str]) -> RunConfig:
    """A configuration with ``key.key=value`` overrides applied.

    Raises:
        ConfigError: A key is unknown or a value wrong.
    """
    data = config.model_dump(mode="json")
    apply(data, overrides)
    return validate(RunConfig, data, "overrides")


def dump_config(config: BaseModel) -> str:
    """The resolved configuration as YAML, every default written out."""
    return to_yaml_text(config.model_dump(mode="json"))


def validate(model: type[Model], data: Any, where: str) -> Model:
    """Builds a configuration model; the first problem becomes one clear line, after `where`.

    Raises:
        ConfigError: A key is unknown (the nearest known one is suggested) or a value wrong.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise ConfigError(f"{where}: {_explain(model, error)}") from error


def nearest(word: str, known: Iterable[str]) -> str:
    """``; did you mean 'x'?`` for the closest known word, or the list of all of them."""
    choices = sorted(known)
    close = difflib.get_close_matches(word[:80], choices, n=1, cutoff=0.5)
    return f"did you mean '{close[0]}'?" if close else f"known: {', '.join(choices)}"


def apply(data: dict[str, Any], overrides: Iterable[str]) -> None:
    """Changes nested mappings by ``key.key=value`` overrides, one after the other.

    Raises:
        ConfigError: One of them has another form, or leads through what is not a mapping.
    """
    for override in overrides:
        _apply(data, override)


def _apply(data: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    what = f"override '{_shown(override)}'"
    if not separator or not key:
        raise ConfigError(f"{what} must look like key.key=value")
    put(data, key, read_yaml_text(text, what), what)


def put(data: dict[str, Any], key: str, value: Any, what: str) -> None:
    """Sets a dotted key of nested mappings, making those that are missing; errors name `what`.

    Raises:
        ConfigError: Something on the way is not a mapping.
    """
    *parents, last = key.split(".")
    if not all((*parents, last)) or len(parents) > DEEPEST:
        raise ConfigError(f"{what} must look like key.key=value")
    node = data
    for parent in parents:
        node = node.setdefault(parent, {})
        if not isinstance(node, dict):
            raise ConfigError(f"{what}: '{parent}' is not a mapping")
    node[last] = value


def _explain(model: type[BaseModel], error: ValidationError) -> str:
    found = error.errors(include_url=False)
    # A misspelt key also leaves the right one missing: its hint says more.
    first = next((each for each in found if each["type"] == "extra_forbidden"), found[0])
    location = [_shown(str(part)) for part in first["loc"]]
    while len(location) > 1 and _ALTERNATIVE.fullmatch(location[-1]):
        location.pop()
    dotted = ".".join(location)
    if first["type"] == "extra_forbidden":
        owner = _model_at(model, location[:-1])
        hint = nearest(location[-1], owner.model_fields) if owner else "remove it"
        return f"unknown key '{dotted}': {hint}"
    if first["type"] == "missing":
        return f"key '{dotted}' is missing"
    reason = printable(shortened(first["msg"].removeprefix("Value error, "), 300), "")
    where = f"key '{dotted}': " if dotted else ""
    if first["type"] == SECRET:
        return f"{where}{reason}"
    return f"{where}{reason}, got {_SHORT.repr(first['input'])}"


_ALTERNATIVE = re.compile(r"(constrained-)?(int|float|str)|(literal|tuple|function-.*)\[.*")
"""How pydantic names the alternatives of a type, which are no keys."""

_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother = 3, 80, 80
"""Writes no more than a line of any value."""


def _shown(text: str) -> str:
    """A key or an override as an error shows it."""
    return printable(shortened(text, 80), "")


def _model_at(model: type[BaseModel], location: Sequence[str]) -> type[BaseModel] | None:
    for part in location:
        field = model.model_fields.get(part)
        if field is None:
            return None
        kinds = [field.annotation, *getattr(field.annotation, "__args__", ())]
        found = [k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)]
        if not found:
            return None
        model = found[0]
    return model
