"""Reading a run's configuration from YAML with dotted overrides, and saying what is wrong."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from evocompress.config import RunConfig
from evocompress.errors import ConfigError

Model = TypeVar("Model", bound=BaseModel)


def load_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The configuration in a YAML file, changed by ``key.key=value`` overrides.

    ``space`` may name another YAML file, relative to this one. ``name`` defaults to the
    file's stem.

    Raises:
        ConfigError: The file is missing, is not YAML, or a key or value is wrong.
    """
    data = read_yaml(path)
    # The space's file comes first, so that the other overrides can change what is in it.
    first = [override for override in overrides if override.startswith("space=")]
    apply(data, first)
    if isinstance(data.get("space"), str):
        data["space"] = read_yaml(path.parent / data["space"])
    apply(data, [override for override in overrides if override not in first])
    data.setdefault("name", path.stem)
    return validate(RunConfig, data, str(path))


def changed(config: RunConfig, overrides: Sequence[str]) -> RunConfig:
    """A configuration with ``key.key=value`` overrides applied.

    Raises:
        ConfigError: A key is unknown or a value wrong.
    """
    data = config.model_dump(mode="json")
    apply(data, overrides)
    return validate(RunConfig, data, "overrides")


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        ConfigError: The file is missing or does not hold a mapping.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError) as error:
        raise ConfigError(f"{path}: no such configuration file") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not a text file") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path} must hold a mapping of keys to values")
    return data


def dump_config(config: BaseModel) -> str:
    """The resolved configuration as YAML, every default written out."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def validate(model: type[Model], data: Any, where: str) -> Model:
    """Builds a configuration model; the first problem becomes one clear line.

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
    close = difflib.get_close_matches(word, choices, n=1, cutoff=0.5)
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
    if not separator or not key:
        raise ConfigError(f"override '{override}' must look like key.key=value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"override '{override}': the value is not valid YAML") from error
    put(data, key, value, f"override '{override}'")


def put(data: dict[str, Any], key: str, value: Any, what: str) -> None:
    """Sets a dotted key of nested mappings; what is missing on the way there is made.

    Args:
        data: The outer mapping.
        key: Such as ``space.budget``.
        value: The new value.
        what: Names the change in an error.

    Raises:
        ConfigError: Something on the way is not a mapping.
    """
    *parents, last = key.split(".")
    node = data
    for parent in parents:
        node = node.setdefault(parent, {})
        if not isinstance(node, dict):
            raise ConfigError(f"{what}: '{parent}' is not a mapping")
    node[last] = value


def _explain(model: type[BaseModel], error: ValidationError) -> str:
    first = error.errors()[0]
    location = [str(part) for part in first["loc"]]
    dotted = ".".join(location)
    if first["type"] == "extra_forbidden":
        owner = _model_at(model, location[:-1])
        hint = nearest(location[-1], owner.model_fields) if owner else "remove it"
        return f"unknown key '{dotted}': {hint}"
    if first["type"] == "missing":
        return f"key '{dotted}' is missing"
    return f"key '{dotted}': {first['msg']}, got {first['input']!r}"


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
