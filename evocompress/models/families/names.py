"""What the blocks of a model are called."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence


class BlockNames:
    """The names of a family's blocks by index: those of a list of modules."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __getitem__(self, index: int) -> str:
        return f"{self._path}.{index}"

    @property
    def pattern(self) -> str:
        """A regular expression that matches every name, also in models with other blocks."""
        return rf"{re.escape(self._path)}\.\d+"

    def renamed(self, kept: Sequence[int]) -> Callable[[str], str]:
        """What a parameter of a model of fewer blocks is called in the dense one.

        Args:
            kept: For each block of the new model its index in the dense one.
        """
        block = re.compile(rf"^{re.escape(self._path)}\.(\d+)\.")
        return lambda name: block.sub(lambda match: f"{self[kept[int(match[1])]]}.", name)
