"""What run files name: the searchers, criteria and so on of this package and of installed ones.

Another package offers its own by entry points, in its pyproject.toml::

    [project.entry-points."evocompress.searchers"]
    hill_climb = "my_package.hill_climb:HillClimb"
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import suppress
from functools import cache
from importlib.metadata import EntryPoint, EntryPoints, entry_points
from typing import TypeVar

from evocompress.core.config_file import nearest
from evocompress.core.errors import ConfigError, one_line

T = TypeVar("T")


class UnknownName(ConfigError, KeyError):
    """Nothing has that name, here and now."""

    __str__ = Exception.__str__


class Registry(MutableMapping[str, T]):
    """Members by name: built in, of installed packages, and given by `give`.

    The code of another package is loaded when its name is looked up, and not before; to list all
    names only what is written of the packages is read.

    Args:
        kind: What a member is, in words.
        group: The entry points of other packages.
        built_in: Members of this package.
        is_one: Whether an object can be a member.
    """

    def __init__(
        self,
        kind: str,
        group: str,
        built_in: Mapping[str, T],
        is_one: Callable[[object], bool] = callable,
    ) -> None:
        self._kind = kind
        self.built_in = tuple(built_in)
        self._group = group
        self._members = dict(built_in)
        self._is_one = is_one

    def __getitem__(self, name: str) -> T:
        if name not in self._members:
            self._members[name] = self._load(name)
        return self._members[name]

    def __setitem__(self, name: str, member: T) -> None:
        self._members[name] = member

    def __delitem__(self, name: str) -> None:
        del self._members[name]

    def __contains__(self, name: object) -> bool:
        return name in self._members or name in self._installed

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys((*self._members, *self._installed)))

    def __len__(self) -> int:
        return len(self._members.keys() | self._installed.keys())

    def give(self, member: T) -> str:
        """Has an object that is not installed as a member, in this process.

        Returns:
            The name that it gets: that of its module and, behind a colon, its own.

        Raises:
            ConfigError: It cannot be a member, or has no name of its own.
        """
        own = getattr(member, "__qualname__", None)
        if own is None or not self._is_one(member):
            raise ConfigError(f"{member!r} cannot be a {self._kind}: give a class")
        name = f"{getattr(member, '__module__', '')}:{own}"
        self._members[name] = member
        return name

    def is_given(self, name: str) -> bool:
        """Whether a member is an object that is not installed."""
        return ":" in name and name in self._members

    def check(self, name: str, key: str) -> None:
        """Refuses a name that no member has; nothing is loaded."""
        if name not in self:
            unknown = f"unknown {self._kind} '{name}': {nearest(name, self)}"
            raise ConfigError(f"{key}: {self._absent(name) if ':' in name else unknown}")

    def usable(self) -> dict[str, T]:
        """All members but those of packages that cannot be imported, which are looked over."""
        found: dict[str, T] = {}
        for name in self:
            with suppress(ConfigError):
                found[name] = self[name]
        return found

    def packages(self, *names: str | None) -> set[str]:
        """The installed packages that offer members; what is built in is of none."""
        found = {self._installed.get(name) for name in {*names} - {None, *self.built_in} if name}
        return {entry.dist.name for entry in found if entry is not None and entry.dist is not None}

    @property
    def _installed(self) -> dict[str, EntryPoint]:
        """What other packages offer."""
        found: dict[str, EntryPoint] = {}
        for entry in _entry_points(self._group):
            other = found.get(entry.name)
            if entry.name in self.built_in or other is not None:
                whose = "evocompress itself" if other is None else _offered_by(other)
                raise ConfigError(
                    f"{_offered_by(entry)} has a {self._kind} '{entry.name}', as {whose} has: "
                    "uninstall one of them"
                )
            found[entry.name] = entry
        return found

    def _load(self, name: str) -> T:
        """A member that another package offers."""
        entry = self._installed.get(name)
        if entry is None:
            raise UnknownName(self._absent(name))
        who = f"the {self._kind} '{name}' of {_offered_by(entry)} ({entry.value})"
        try:
            member: T = entry.load()
        except Exception as error:
            raise ConfigError(
                f"{who} cannot be imported ({one_line(error)}): mend that package or uninstall it"
            ) from error
        if not self._is_one(member):
            raise ConfigError(f"{who} is none: mend that package or uninstall it")
        return member

    def _absent(self, name: str) -> str:
        """Why there is no member of a name, and what is to be done."""
        if ":" in name:
            return (
                f"the {self._kind} '{name}' is an object that evocompress.api.search was given: "
                "give it again"
            )
        return f"there is no {self._kind} '{name}' here: install the package that has it"


@cache
def _entry_points(group: str) -> EntryPoints:
    """Those of all installed packages, whose files are read once."""
    return entry_points(group=group)


def _offered_by(entry: EntryPoint) -> str:
    """A package and its version, in words."""
    return "a package" if entry.dist is None else f"{entry.dist.name} {entry.dist.version}"
