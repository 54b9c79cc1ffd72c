"""Removal of one window of blocks by angular distance (Gromov et al. 2024, 2403.17887)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from evocompress.core.arrays import Genome, Integers
from evocompress.search.base import CandidateSettings
from evocompress.search.baselines.removal import Removal, without
from evocompress.search.generator_searcher import AskTell, first_feasible


class Window(Removal):
    """Removes the shortest window of blocks that suffices, where its ends differ least.

    The distance is that of the dense model's residual stream before the window and behind it.
    A protected block is in no window. Where even the longest window does not suffice,
    `SearchSpace.repair` compresses what is left.

    ```yaml
    space: {drop: {units: [block]}, budget: {params: 0.8}}
    search: {name: window, positions: all}
    ```

    Examples:
        >>> from evocompress.testing.examples import winner
        >>> winner(Window)
        {'2.attention': 'drop', '2.mlp': 'drop'}
    """

    class Settings(CandidateSettings):
        """Settings of `Window`.

        Attributes:
            positions: The tokens whose distance counts: the ``last`` of each sequence, as
                published, or ``all``.
        """

        positions: Literal["last", "all"] = "last"

    settings: Settings

    name = "window"
    kinds = ("block",)

    def search(self) -> AskTell[None]:
        """The distances, and the nearest window."""
        last = self.settings.positions == "last"
        kind = "last_angular_distance" if last else "angular_distance"
        start = self.space.encoding.default
        distances = yield from self.estimate(start, kind, self.micro_batches)
        if distances.failed is None:
            yield from self.conclude(self._nearest(distances.by_unit))

    def _nearest(self, distances: Mapping[str, Sequence[float]]) -> Genome:
        """The genome (U,) without the nearest of the shortest windows that suffice."""
        genes = self.space.encoding
        path = [genes.default]
        for length in range(1, len(genes.droppable) + 1):
            # A window's row tells how far apart its ends are, entry by entry for each length.
            windows = sorted(
                self._windows(length),
                key=lambda window: distances[self.space.units[window[0]].name][len(window) - 1],
            )
            path += [without(self.space, genes.default, window) for window in windows]
        return first_feasible(self.space, np.stack(path))

    def _windows(self, length: int) -> list[Integers]:
        """The droppable genes of every run of a number of neighbouring blocks."""
        genes = self.space.encoding.droppable
        blocks = np.array([self.space.units[gene].block for gene in genes])
        return [
            genes[first : first + length]
            for first in range(len(genes) + 1 - length)
            if blocks[first + length - 1] - blocks[first] == length - 1
        ]
