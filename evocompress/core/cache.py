"""A cache that forgets what was not used for longest when its memory is full."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


class Cache:
    """Values by key, up to a number of bytes; a larger value is made anew each time."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.bytes = 0
        self._values: OrderedDict[str, tuple[Any, int]] = OrderedDict()

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def get(self, key: str, make: Callable[[], T], size: Callable[[T], int]) -> T:
        """The value of a key, made by `make` where it is not kept; `size` tells its bytes.

        The same key must always come with values of the same type.
        """
        if key in self._values:
            self._values.move_to_end(key)
            kept: T = self._values[key][0]
            return kept
        value = make()
        if size(value) <= self.limit:
            self._keep(key, value, size(value))
        return value

    def make_room(self, size: int) -> None:
        """Forgets values until a new one of `size` bytes, at most `limit`, fits."""
        while self.bytes + size > self.limit:
            _, (_, freed) = self._values.popitem(last=False)
            self.bytes -= freed

    def _keep(self, key: str, value: object, size: int) -> None:
        self.make_room(size)
        self._values[key] = (value, size)
        self.bytes += size
