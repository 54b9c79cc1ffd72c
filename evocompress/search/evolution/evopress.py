"""EvoPress (Sieberling et al. 2024, 2410.14649): mutation, staged selection, elitism."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import cycle
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from evocompress.core.arrays import Genome
from evocompress.core.fields import Positive, Size, Tokens, Whole
from evocompress.core.requests import Pool, Result
from evocompress.search.auto.sensitivity import approach
from evocompress.search.fidelity import batches
from evocompress.search.fidelity.rungs import Rung
from evocompress.search.fidelity.staged import Selection, StagedSearcher, StagedSettings
from evocompress.search.generator_searcher import AskTell
from evocompress.search.operators.mutation import distinct, exchange, mutate
from evocompress.space import sampling
from evocompress.space.repair import fill_budget, repair
from evocompress.space.space import SearchSpace


def uses_exchange(settings: EvoPress.Settings, space: SearchSpace) -> bool:
    """Whether mutations move cost between any units, instead of swapping levels of a kind."""
    genes = space.encoding
    joint = bool(genes.matrices.size and genes.droppable.size)
    wanted = settings.moves == "auto" and (joint or bool(genes.widths.size))
    return wanted or settings.moves == "exchange"


class EvoPress(StagedSearcher):
    """(1 + lambda) evolution by moves that keep the budget; no crossover.

    ```yaml
    space: {drop: {}, budget: {params: 0.8}}
    search: {name: evopress, generations: 10, survivors: [4, 1], stage_tokens: [2048, 16384]}
    ```

    Examples:
        >>> from evocompress.testing.examples import winner
        >>> winner(EvoPress)
        {'1.attention': 'drop', '3.mlp': 'drop'}
    """

    class Settings(StagedSettings):
        """Settings of `EvoPress`.

        Attributes:
            moves: ``swap`` raises one unit by a level and relaxes another of its kind, as
                published, which keeps a budget where levels are equal steps; ``exchange`` moves
                cost between any units. ``auto`` is exchange where there are widths, or several
                kinds of choices.
            initial: Random candidates of which the best is the first parent; 0 begins at the
                uniform one. Published: 64 for depth, 0 for sparsity and width.
            initial_tokens: Tokens on which they are compared; published: 2048.
            effect_rounds: Instead of these, rounds in which the effects of single changes are
                measured and summed up to the first parent; 0 is none.
            effect_levels: How many levels of each width or drop are tried in a round.
            effect_tokens: Tokens on which they are tried, the same ones in a round.
            max_level: Largest distance of a matrix from its target, in levels.
            max_total: Largest sum of these distances.
            windows: Generations take turns: in one all blocks may change, in the next all but the
                first of so many equal parts, at last only those of the last part. What candidates
                share is computed once, so generations of late changes take less time.
        """

        moves: Literal["auto", "swap", "exchange"] = "auto"
        initial: Annotated[Whole, Field(ge=0, le=10_000)] | None = None
        initial_tokens: Tokens | None = None
        effect_rounds: Annotated[Whole, Field(ge=0, le=10_000)] = 0
        effect_levels: Size = 3
        effect_tokens: Tokens | None = None
        max_level: Size | None = None
        max_total: Positive | None = None
        windows: Size = 1

    settings: Settings

    def prepare(self) -> None:
        """Completes the start and the moves as well."""
        super().prepare()
        settings, usual = self.settings, self._schedule.initial
        self._exchanges = uses_exchange(settings, self.space)
        self._initial = usual if settings.initial is None else settings.initial
        self._initial_tokens = _tokens(self.pool, settings.initial_tokens, "initial_tokens")
        self._fixed = cycle(_windows(self.space, settings.windows))
        self._effect_tokens = _tokens(self.pool, settings.effect_tokens, "effect_tokens")

    def _start(self) -> Selection:
        """What measured effects add up to, the best random genome, or the uniform one."""
        if self.settings.effect_rounds:
            return (yield from self._summed_effects())
        draw = partial(sampling.random, self.space, self.rng)
        genomes = distinct(lambda: self._capped(draw()), self._initial)
        best = yield from self._crown(genomes, Rung(self._initial_tokens))
        return sampling.uniform(self.space) if best is None else best

    def _summed_effects(self) -> AskTell[Genome]:
        genome = yield from approach(
            self.space,
            self._measure,
            rounds=self.settings.effect_rounds,
            per_gene=self.settings.effect_levels,
        )
        genome = repair(self.space, genome, self.rng)
        return fill_budget(self.space, genome, self.rng)

    def _measure(self, genomes: Sequence[Genome]) -> AskTell[list[Result]]:
        """Results of probes on freshly drawn tokens."""
        micro_batches = batches.draw(self.pool, self._effect_tokens, self.rng)
        return (yield from self.evaluate(genomes, micro_batches, probe=True))

    def _offspring(self, parent: Genome | None) -> list[Genome]:
        assert parent is not None
        for fixed in (next(self._fixed), []):
            child = partial(self._child, parent, fixed)
            if offspring := distinct(child, self._schedule.offspring, excluded=parent):
                return offspring
        return []

    def _child(self, parent: Genome, fixed: Sequence[int]) -> Genome | None:
        """A feasible mutation of the parent, or ``None`` if it goes too far from the start."""
        if self._exchanges:
            child = exchange(self.space, parent, self.rng, fixed)
        else:
            swapped = mutate(self.space, parent, self.rng, self.settings.max_level, fixed)
            child = repair(self.space, swapped, self.rng, fixed)
            if self.space.typed:  # whose steps are unequal, so that swaps leave some of the budget
                child = fill_budget(self.space, child, self.rng, fixed)
        return self._capped(child)

    def _capped(self, genome: Genome) -> Genome | None:
        genes = self.space.encoding
        distances = np.abs(genome - genes.default)[genes.matrices]
        farthest, total = distances.max(initial=0), distances.sum()
        capped = (farthest, self.settings.max_level), (total, self.settings.max_total)
        return genome if all(cap is None or far <= cap for far, cap in capped) else None


def _windows(space: SearchSpace, count: int) -> list[list[int]]:
    """For each of `count` windows, which begin ever later, the genes of the blocks before it."""
    blocks = np.array([unit.block for unit in space.encoding.units])
    begins = np.arange(count) * (blocks.max(initial=-1) + 1) / count
    return [np.flatnonzero(blocks < begin).tolist() for begin in begins]


def _tokens(pool: Pool, given: int | None, name: str) -> int:
    """A number of tokens that the pool can give; as published, 2048, where none is given."""
    if given is None:
        return batches.few(pool)
    return batches.checked_tokens(pool, given, f"search.{name}")
