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
from evocompress.models.families.derivation.block_kind import Kind
from evocompress.models.families.derivation.encoders import DerivedEncoder
from evocompress.models.families.derivation.family import Derived
from evocompress.models.families.derivation.purpose import TASKS, Ending
from evocompress.models.families.logits import LogitKeys


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
    calls: tuple[int, ...]
    sharing: tuple[int, ...]
    body: str
    task: str
    ending: Ending | None

    @property
    def family(self) -> Derived:
        """The family."""
        parts = {name: getattr(self, name) for name in _OF_ALL} | {"task": TASKS[self.task]}
        if self.ending is None:
            return Derived(**parts)
        del parts["handed"], parts["sharing"], parts["body"]
        return DerivedEncoder(**parts, ending=self.ending)


_OF_ALL = tuple(name for name in Reading.__dataclass_fields__ if name not in ("task", "ending"))


def reading_of(family: Derived) -> Reading:
    """What a family is made of."""
    task = next(key for key, one in TASKS.items() if one == family.task)
    own = {name: getattr(family, name) for name in _OF_ALL}
    return Reading(**own, task=task, ending=getattr(family, "ending", None))


def kept(key: str) -> Derived | None:
    """The family that is kept under a key; none where there is no such file, or a damaged one."""
    try:
        return read_as(_path(key), Reading).family
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
