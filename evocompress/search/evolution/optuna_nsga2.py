"""NSGA-II (Deb et al. 2002) as Optuna has it: uniform crossover and levels drawn anew.

Beside `nsga2`, which has pymoo's selection and this project's moves, it shows what the moves do:
here a child takes each level from either parent, and one level or so is drawn from all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from evocompress.core.arrays import Genome
from evocompress.core.fields import Size, Whole
from evocompress.search.bayesian.sampled import SampledSearcher
from evocompress.search.evolution.initial_population import even_ladder
from evocompress.search.fidelity.front_search import Share
from evocompress.search.objectives import choose_any
from evocompress.search.operators.mutation import distinct
from evocompress.space import sampling
from evocompress.space.repair import repair

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler


class OptunaNSGA2(SampledSearcher):
    """Evolves candidates with Optuna's NSGA-II sampler: one best candidate or a front.

    Half of the start of a front is a ladder of even candidates from the dense model to the
    smallest; the other half, and without a front all but one, are random.

    ```yaml
    space: {drop: {}, budget: {params: 0.8}}
    search: {name: optuna_nsga2, candidates: 100, population: 16, startup: 16}
    ```

    Examples:
        >>> from evocompress.testing.examples import winner
        >>> winner(OptunaNSGA2)
        {'1.attention': 'drop', '3.mlp': 'drop'}
    """

    class Settings(SampledSearcher.Settings):
        """Settings of `OptunaNSGA2`.

        Attributes:
            population: Candidates that survive a generation.
            startup: As in `SampledSearcher.Settings`; a whole generation is best.
            objectives: Costs that span a front with the proxy's value. Without objectives and
                range there is no front: the proxy's value alone is minimised under the budget.
            range: {objective: (lowest, highest)} that matters; see `nsga2`.
        """

        population: Annotated[Whole, Field(ge=2, le=10_000)] = 40
        startup: Size = 40
        objectives: tuple[str, ...] = ()
        range: dict[str, tuple[Share, Share]] = {}

    settings: Settings

    name = "optuna_nsga2"
    needs_budget = False

    def prepare(self) -> None:
        """Narrows the space to the range as well."""
        objectives, ends = self.settings.objectives, self.settings.range
        self.space, self._objectives = choose_any(self.space, objectives, ends)
        super().prepare()

    def _sampler(self, seed: int) -> BaseSampler:
        from optuna.samplers import NSGAIISampler

        return NSGAIISampler(population_size=self.settings.population, seed=seed)

    def _first(self, count: int) -> list[Genome]:
        if not self.objectives:
            return super()._first(count)
        ladder = even_ladder(self.space, self._objectives, (count + 1) // 2)
        more = distinct(lambda: sampling.random(self.space, self.rng), count - len(ladder))
        return list({genome.tobytes(): genome for genome in [*ladder, *more]}.values())

    def _complete(self, genome: Genome) -> Genome:
        """Below the budget; on a front what is left of it is not spent, as less is better."""
        if not self.objectives:
            return super()._complete(genome)
        return repair(self.space, genome, self.rng)
