"""Derived families in the cache folder, so that the same model is not tried again."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from evocompress.core.errors import RunError
from evocompress.core.files import cache_folder, read_as, write_json
from evocompress.core.sources import digest_of, versions_of
from evocompress.models.families.derivation.family import Derived, Kind
from evocompress.models.families.logits import LogitKeys
from evocompress.models.tasks import Task


@dataclass(frozen=True)
class Reading:
    """What a derived family is made of; see `Derived`."""

    model_type: str
    layers_path: str
    norm_path: str
    among: int
    logit_keys: LogitKeys
    kinds: tuple[Kind, ...]
    order: tuple[int, ...]
    two_way: bool
    handed: str

    def family(self, task: Task) -> Derived:
        """The family of models for a task."""
        return Derived(
            **{name: getattr(self, name) for name in self.__dataclass_fields__}, task=task
        )


def reading_of(family: Derived) -> Reading:
    """What a family is made of."""
    return Reading(*(getattr(family, name) for name in Reading.__dataclass_fields__))


def kept(key: str, task: Task) -> Derived | None:
    """The family that is kept under a key; none where there is no such file, or a damaged one."""
    try:
        return read_as(_path(key), Reading).family(task)
    except (RunError, OSError):
        return None


def keep(key: str, family: Derived) -> None:
    """Keeps a family, where the cache folder can be written and it is read back as it was."""
    reading = reading_of(family)
    adapter: TypeAdapter[Any] = TypeAdapter(Reading)
    data = adapter.dump_python(reading, mode="json")
    if adapter.validate_python(data) != reading:
        return
    path = _path(key)
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, data)


def _path(key: str) -> Path:
    """The file of a key; its name tells the versions with which it was found as well."""
    versions = versions_of("core", "models")
    return cache_folder() / "families" / f"{digest_of(' '.join((*versions, key)))}.json"
