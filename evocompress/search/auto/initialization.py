"""Where the default search begins: at what estimates or measured effects make of the budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np

from evocompress.core.arrays import Floats, Genome
from evocompress.core.requests import Result
from evocompress.search.allocation.flap import thresholds, trajectory
from evocompress.search.allocation.knapsack import knapsack
from evocompress.search.auto.evaluation_client import EvaluationClient
from evocompress.search.auto.predictor import Predictor
from evocompress.search.auto.sensitivity import (
    approach,
    changes,
    effect_curves,
    sensitivities,
)
from evocompress.search.baselines.lazy_greedy import lazily_removed
from evocompress.search.baselines.removal import drop_harms, without_least_blocks
from evocompress.search.fidelity.token_budget import EFFECT_ROUNDS, RETRIES
from evocompress.search.generator_searcher import AskTell, Probe, first_feasible
from evocompress.search.surrogates.second_order import (
    Tables,
    best_coupling,
    expansion,
    isotonic,
    step,
)
from evocompress.space import sampling
from evocompress.space.repair import fill_budget, repair

Named = dict[str, Genome]
"""Genomes (U,) by what they stand for."""

_TRIED_LEVELS = 2
"""Levels of a width or drop that are measured in each round of a measured start."""

_ONE_PASS = 50
"""What one forward pass tells is taken from one token of so many of the whole search."""


class Starts:
    """The first genomes of a search; which there are follows from the space.

    Drops are found by greedy removal, too, on demand where there are drops alone.

    Attributes:
        scores: Those of the estimate at the dense model, if one was made.
        influence: What dropping each unit does to the hidden states (U,); zeros: not known.

    Examples:
        >>> from evocompress.search.auto.auto import Auto
        >>> from evocompress.testing.examples import searcher
        >>> client = EvaluationClient(searcher(Auto))
        >>> starts = Starts(client, Predictor(client.space, surrogate=False), removal=False)
        >>> next(starts.found())[0].kind
        'block_influence'
    """

    def __init__(self, client: EvaluationClient, predictor: Predictor, *, removal: bool) -> None:
        self._space, self._client, self._predictor = client.space, client, predictor
        self._removal = removal
        self.scores: Tables | None = None
        self.influence = np.zeros(len(client.space.encoding.units))

    def found(self) -> AskTell[Named]:
        """All of them, by name."""
        genes, named = self._space.encoding, Named()
        smooth = bool(genes.matrices.size or genes.widths.size)
        if genes.droppable.size:
            named |= yield from self._least_influence(alone=not smooth)
            if self._space.bounds_bytes:
                named |= yield from self._effects_and_estimates()
            elif smooth:
                named |= yield from self._measured_effects()
            elif self._removal:
                named |= yield from self._removed()
        else:
            named |= yield from self._estimated()
        if genes.widths.size:
            named |= yield from self._least_fluctuation()
        return named

    def _estimated(self) -> AskTell[Named]:
        """The best genomes by the estimate at the dense model."""
        client, space = self._client, self._space
        micro_batches = client.next(client.budget.start(client.estimated, 3))
        if not micro_batches:
            return {}
        doing = "second-order start: an estimate"
        estimation = yield from client.estimate(doing, "curvature", micro_batches, 3)
        if estimation.failed is not None:
            return {}
        found = expansion(space, estimation)
        harms = found.harms()
        tables = {"second order": harms, "second order, monotone": self._monotone(harms)}
        start = space.encoding.default
        picks = {name: knapsack(space, harms, start) for name, harms in tables.items()}
        if coupling := best_coupling(space, start, found):
            picks[f"second order, coupled by {coupling}"] = step(space, start, found, coupling)
        self.scores = found.scores
        return {name: genome for name, genome in picks.items() if genome is not None}

    def _monotone(self, harms: Sequence[Floats]) -> list[Floats]:
        """Harms that do not fall, but for those of matrices whose levels are in no one order."""
        genes = self._space.encoding
        mixed = np.setdiff1d(genes.matrices, np.flatnonzero(genes.ordinal)).tolist()
        return [
            harm if gene in mixed else risen
            for gene, (harm, risen) in enumerate(zip(harms, isotonic(harms), strict=True))
        ]

    def _measured_effects(self) -> AskTell[Named]:
        """The best sum of single changes, measured in rounds (`sensitivity`)."""
        rounds, probe = self._effects(EFFECT_ROUNDS)
        if not rounds:
            return {}
        genome = yield from approach(self._space, probe, rounds=rounds, per_gene=_TRIED_LEVELS)
        return {"measured effects": self._made_feasible(genome)}

    def _effects(self, most: int) -> tuple[int, Probe]:
        """In how many rounds single changes can be measured, at `most`, and how that is done."""
        client = self._client
        tries = 1 + len(changes(self._space, self._space.encoding.default, _TRIED_LEVELS))
        rounds, micro_batches = client.budget.effects(client.shuffled(), tries, most)
        client.doing = (
            f"measured start: {tries - 1} single changes, {rounds} times on "
            f"{client.tokens(micro_batches)}"
        )
        return rounds, partial(self._measured, lambda: micro_batches)

    def _effects_and_estimates(self) -> AskTell[Named]:
        """The least sum of estimates of types, with and without measured widths and drops.

        The budget may be met by types alone, so it is not approached by widths and drops. Where
        there are too few tokens to measure these, the search begins without them.
        """
        client, space, named = self._client, self._space, Named()
        micro_batches = client.next(client.budget.start(client.estimated, 3))
        if not micro_batches:
            return named
        doing = "second-order start: an estimate of types"
        estimation = yield from client.estimate(doing, "curvature", micro_batches, 3)
        if estimation.failed is not None:
            return named
        start, harms = space.encoding.default, expansion(space, estimation).harms()
        for gene in np.setdiff1d(np.arange(len(start)), space.encoding.matrices).tolist():
            harms[gene] = np.where(np.arange(len(harms[gene])) == start[gene], 0.0, np.inf)
        picks = {"estimates of types": knapsack(space, harms, start)}
        rounds, probe = self._effects(1)
        measured = (
            (yield from sensitivities(space, start, probe, _TRIED_LEVELS)) if rounds else None
        )
        if measured is not None:
            for gene, (levels, _, effect) in effect_curves(space, start, measured).items():
                harms[gene] = np.full(len(harms[gene]), np.inf)
                harms[gene][levels] = effect
            picks["effects and estimates"] = knapsack(space, harms, sampling.uniform(space))
        return {name: genome for name, genome in picks.items() if genome is not None}

    def _least_fluctuation(self) -> AskTell[Named]:
        """FLAP's ranking of all heads and channels (`evocompress.search.allocation.flap`)."""
        doing, micro_batches = "fluctuation of heads and channels", self._for_one_pass()
        estimation = yield from self._client.estimate(doing, "fluctuation", micro_batches, 1)
        if estimation.failed is not None:
            return {}
        path = trajectory(self._space, thresholds(self._space, estimation.by_unit))
        genome = first_feasible(self._space, path)
        return {"least fluctuation": self._made_feasible(genome)}

    def _least_influence(self, *, alone: bool) -> AskTell[Named]:
        """Whole blocks, and units, without which the hidden states change least.

        Where the space has nothing `alone` but drops, this is then expected of them.
        """
        space, named, micro_batches = self._space, Named(), self._for_one_pass()
        estimation = yield from self._client.estimate(
            "influence of blocks", "block_influence", micro_batches, 1
        )
        if estimation.failed is not None:
            return named
        influence = dict(estimation.by_unit)
        if {space.units[gene].kind for gene in space.encoding.droppable} != {"expert"}:
            blocks = without_least_blocks(space, influence)
            named["blocks of least influence"] = self._made_feasible(blocks)
        influence |= yield from self._of_experts(influence)
        harms = drop_harms(space, influence)
        if alone:
            self.influence = np.array([float(harm.max()) for harm in harms])
            self._predictor.expect(harms)
        units = knapsack(space, harms, space.encoding.default)
        if units is not None:
            named["units of least influence"] = units
        return named

    def _of_experts(
        self, influence: Mapping[str, Sequence[float]]
    ) -> AskTell[dict[str, tuple[float, ...]]]:
        """The influence of every expert: of what its MLP does the share that changes without it."""
        tree = self._space.encoding.tree
        if not self._space.encoding.mixtures:
            return {}
        micro_batches, forwards = self._for_one_pass(), 1 + max(unit.active for unit in tree)
        estimation = yield from self._client.estimate(
            "errors without single experts", "expert_output_error", micro_batches, forwards
        )
        return {
            unit.name: (influence[unit.owner][0] * estimation.by_unit.get(unit.name, (1.0,))[0],)
            for unit in tree
            if unit.kind == "expert"
        }

    def _removed(self) -> AskTell[Named]:
        """Units one after the other by measured harm."""
        client, space = self._client, self._space
        needed = int(space.encoding.dropped(sampling.uniform(space)[None]).sum())
        tokens, take = client.budget.removals(space.encoding.droppable.size, needed)
        if not tokens:
            return {}

        client.doing = f"greedy removal, {tokens:,} tokens a trial, {take} at a time"
        probe = partial(self._measured, lambda: client.budget.some(client.shuffled(), tokens))
        genome = yield from lazily_removed(space, probe, tries=RETRIES, take=take)
        return {"greedy removal": self._made_feasible(genome)}

    def _measured(
        self, micro_batches: Callable[[], tuple[int, ...]], genomes: Sequence[Genome]
    ) -> AskTell[list[Result]]:
        """Results of probes, from which the predictor learns."""
        results = yield from self._client.probe(genomes, micro_batches())
        self._predictor.learn_effects(genomes, results)
        return results

    def _for_one_pass(self) -> tuple[int, ...]:
        """The next micro-batches for what one forward pass tells."""
        budget = self._client.budget
        some = budget.some(self._client.estimated, budget.limit // _ONE_PASS)
        return self._client.next(len(some))

    def _made_feasible(self, genome: Genome) -> Genome:
        """A genome that keeps the budget, and uses it up."""
        return fill_budget(
            self._space, repair(self._space, genome, self._client.rng), self._client.rng
        )
