"""The dynamic-programming baseline of EvoPress (2410.14649), after SPDY (2201.13096)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from evocompress.core.errors import ConfigError
from evocompress.core.requests import Estimate
from evocompress.core.types import Candidate
from evocompress.search.allocation.knapsack import Harms, knapsack
from evocompress.search.base import CandidateSettings
from evocompress.search.generator_searcher import AskTell, GeneratorSearcher, estimated
from evocompress.space.space import SearchSpace


class EvoPressDP(GeneratorSearcher):
    """Takes the relative output errors of all levels to add up, and measures their least sum.

    The errors are those of the level library, so that nothing is measured before.

    ```yaml
    space: {width: {multiple_of: 4}, budget: {body_params: 0.7}}
    search: {name: evopress_dp, candidate_tokens: 8192}
    ```

    Examples:
        >>> from evocompress.testing.examples import winner
        >>> winner(EvoPressDP)
        {'0.mlp': 'channels=16', '1.mlp': 'channels=16', '2.mlp': 'channels=16',
        '3.mlp': 'channels=20'}
    """

    class Settings(CandidateSettings):
        """Settings of `EvoPressDP`."""

        @property
        def needs_output_errors(self) -> bool:
            """They are all that it goes by."""
            return True

    def check(self) -> None:
        """Refuses a space in which units can only be dropped."""
        if not (self.space.encoding.matrices.size or self.space.encoding.widths.size):
            raise ConfigError(
                "search.name: evopress_dp compares output errors, which are the same for every "
                "removed unit: it needs space.sparsity or space.width"
            )
        if any(level.cache for levels in self.space.levels for level in levels):
            raise ConfigError(
                "search.name: evopress_dp compares output errors of matrices, which caches have "
                "none of: leave out space.cache, or choose another searcher"
            )

    def search(self) -> AskTell[None]:
        """The least sum of the library's errors."""
        space = self.space
        errors = yield from estimated(Estimate(Candidate(), "output_error", ()))
        if errors.failed is not None:
            return
        best = knapsack(space, summed_errors(space, errors.by_unit), space.encoding.default)
        yield from self.conclude(space.encoding.default if best is None else best)


def summed_errors(space: SearchSpace, errors: Mapping[str, Sequence[float]]) -> Harms:
    """The summed errors of each gene's units at each of its levels.

    A drop removes all that has errors below the unit, each with the error 1, as `errors` has it.
    """
    found = []
    for members, levels in zip(space.encoding.members, space.encoding.levels, strict=True):
        drops = np.array([level.drop for level in levels])
        rows = [
            np.where(drops, _removed(space, unit.name), 1) * np.array(errors[unit.name])
            for unit in members
        ]
        found.append(np.sum(rows, axis=0))
    return found


def _removed(space: SearchSpace, name: str) -> int:
    """How many units with errors of their own go with a unit: the lowest ones below it."""
    decided = {unit.name for members in space.encoding.members for unit in members}
    counts = sum(_removed(space, child.name) for child in space.encoding.tree.children[name])
    return counts or int(name in decided)
