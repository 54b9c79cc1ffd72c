"""Published heuristics that decide how sparse each matrix is: baselines, and starts for others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from evocompress.core.arrays import Floats, Genome
from evocompress.core.errors import ConfigError
from evocompress.core.fields import Number, Tokens
from evocompress.core.requests import Estimate
from evocompress.core.types import Candidate
from evocompress.search.allocation.knapsack import Harms, knapsack
from evocompress.search.allocation.sparsity_allocation import METHODS, Known
from evocompress.search.base import SearcherSettings
from evocompress.search.bisection import bisected, mean
from evocompress.search.generator_searcher import AskTell, GeneratorSearcher, estimated
from evocompress.space import sampling
from evocompress.space.budget import require
from evocompress.space.space import SearchSpace

MethodName = Literal["uniform", "erk", "lamp", "global_magnitude", "owl", "alpha", "ecoflap", "pq"]

_BISECTIONS = 20
"""The overall density is found to a millionth, far below a level's step."""

_BEYOND = 1e-3
"""So much more density is wanted than fits: what is half-way between levels takes the denser."""


class Allocation(GeneratorSearcher):
    """Measures the candidate of one heuristic and ends.

    ```yaml
    space: {sparsity: {match: ['*.o_proj'], target: 0.5, levels: 3}}
    search: {name: allocation, method: owl, estimate_tokens: 8192}
    ```

    Examples:
        >>> from evocompress.testing.examples import winner
        >>> winner(Allocation)
        {'0.self_attn.o_proj': 'zeros=128', '1.self_attn.o_proj': 'zeros=107',
        '2.self_attn.o_proj': 'zeros=149', '3.self_attn.o_proj': 'zeros=128'}
    """

    class Settings(SearcherSettings):
        """Settings of `Allocation`.

        Attributes:
            method: Which heuristic; see `evocompress.search.allocation.sparsity_allocation`.
            candidate_tokens: Tokens on which the result is measured; the whole pool if left out.
            estimate_tokens: Tokens on which ``owl`` and ``ecoflap`` look at the dense model;
                `candidate_tokens` if left out. They are asked for once by ``owl``, and twice for
                every matrix by ``ecoflap``.
            spread: How far apart densities may be: half of their range (``owl``), half of the range
                of sparsities as a share of the mean (``alpha``), or how much sparser than the mean
                a block may be (``ecoflap``). The published value if left out.
        """

        method: MethodName
        candidate_tokens: Tokens | None = None
        estimate_tokens: Tokens | None = None
        spread: Annotated[Number, Field(gt=0, lt=1)] | None = None

        @property
        def needs_next_token(self) -> bool:
            """Where the heuristic asks for gradients of the loss."""
            return METHODS[self.method].kind == "perturbation"

    settings: Settings

    def prepare(self) -> None:
        """Draws the tokens of the estimate."""
        tokens = self.settings.estimate_tokens
        self._estimate_batches = self.chosen(tokens, "search.estimate_tokens")

    def check(self) -> None:
        """Refuses a space without sparsities, and a spread where the method has none."""
        method = self.settings.method
        check_allocates(self.space, f"allocation ({method})")
        if self.settings.spread is not None and METHODS[method].spread is None:
            raise ConfigError(f"search.spread: {method} has no such setting; leave it out")

    def search(self) -> AskTell[None]:
        """The heuristic's allocation."""
        method, spread = self.settings.method, self.settings.spread
        genome = yield from allocated(self.space, method, self._estimate_batches, spread=spread)
        if genome is not None:
            yield from self.conclude(genome)


def check_typeless(space: SearchSpace, name: str) -> None:
    """Refuses a space with types, for a method that knows zeros alone."""
    if space.typed:
        raise ConfigError(
            f"search.name: {name} knows zeros, widths and drops, and no types: leave out "
            "space.bits and space.cache, or choose another searcher"
        )


def check_allocates(space: SearchSpace, name: str) -> None:
    """Refuses a space without a budget, or in which there are no sparsities to decide about."""
    require(space)
    check_typeless(space, name)
    if space.encoding.sizes[space.encoding.matrices].max(initial=0) < 2:
        raise ConfigError(
            f"search.name: {name} decides how sparse each matrix is, so it needs space.sparsity "
            "with several levels, and no pattern"
        )


def allocated(
    space: SearchSpace, name: str, micro_batches: tuple[int, ...], *, spread: float | None = None
) -> AskTell[Genome | None]:
    """The genome (U,) of a heuristic, for use within any searcher; it meets the budget.

    A searcher gets it by ``yield from allocated(space, "owl", micro_batches)``.
    What is no matrix is as in the space's uniform genome.

    Args:
        space: One that `check_allocates` lets through.
        name: A key of `evocompress.search.allocation.sparsity_allocation.METHODS`.
        micro_batches: On which an estimate is made, where it is not about weights alone.
        spread: The method's setting; the published value if left out.

    Returns:
        ``None`` where the estimate failed.
    """
    method = METHODS[name]
    rows: Mapping[str, Sequence[float]] = {}
    if method.kind is not None:
        matrices = sum(unit.kind == "matrix" for unit in space.encoding.tree)
        forwards = method.forwards + method.matrix_forwards * matrices
        tokens = micro_batches if forwards else ()
        request = Estimate(Candidate(), method.kind, tokens, max(forwards, 1))
        estimation = yield from estimated(request)
        if estimation.failed is not None:
            return None
        rows = estimation.by_unit
    decided = _Matrices(space)
    blocks = {unit.block: unit.name for unit in space.encoding.tree if unit.kind == "block"}
    known = Known(
        matrices=decided.units,
        blocks=tuple(blocks[unit.block] for unit in decided.units),
        rows=rows,
        spread=spread if spread is not None else method.spread or 0.0,
    )
    return _nearest(decided, lambda overall: method.densities(known, overall))


class _Matrices:
    """The matrices whose sparsities are decided; all else is as in the uniform genome."""

    def __init__(self, space: SearchSpace) -> None:
        genes, even = space.encoding, sampling.uniform(space)
        self.space = space
        self._genes = genes.matrices[~genes.inactive(even[None])[0][genes.matrices]].tolist()
        self.units = tuple(genes.units[gene] for gene in self._genes)
        self._fixed = [
            np.where(np.arange(size) == at, 0, np.inf)
            for size, at in zip(genes.sizes.tolist(), even.tolist(), strict=True)
        ]

    def harms(self, densities: Floats) -> Harms:
        """Squared distances of levels to the wanted sparsities, weighted by size."""
        harms = list(self._fixed)
        wanted = 1 - np.clip(densities, 0, 1)
        for gene, unit, goal in zip(self._genes, self.units, wanted, strict=True):
            own = np.array([level.zeros for level in self.space.levels[gene]]) / unit.numel
            harms[gene] = unit.numel * (own - goal) ** 2
        return harms

    def rounded(self, densities: Floats) -> Genome:
        """The genome (U,) of the nearest levels, whatever it costs."""
        return np.array([int(np.argmin(harm)) for harm in self.harms(densities)], dtype=np.int64)


def _nearest(matrices: _Matrices, densities: Callable[[float], Floats]) -> Genome:
    """The genome (U,) that meets the budget nearest to the wanted densities.

    The overall density is the least at which nearest levels would exceed the budget. From there
    the best levels within the budget use it up: where levels are equal steps, to the last.
    """

    def exceeds(overall: float) -> bool:
        return not matrices.space.feasible(matrices.rounded(densities(overall))[None])[0]

    if not exceeds(1.0):
        return matrices.rounded(densities(1.0))
    low, high = bisected(exceeds, 0.0, 1.0, _BISECTIONS, mean)
    under = matrices.rounded(densities(low))
    best = knapsack(matrices.space, matrices.harms(densities(min(high + _BEYOND, 1.0))), under)
    return under if best is None else best
