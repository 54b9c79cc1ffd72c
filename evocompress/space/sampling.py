"""Genomes to begin with: even ones, and random ones."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from evocompress.core.arrays import Floats, Genome, Integers
from evocompress.space.budget import minimal_genomes
from evocompress.space.encoding import Encoding
from evocompress.space.repair import fill_budget, repair
from evocompress.space.space import SearchSpace

Shares = Mapping[int, Floats]
"""{gene: for each of its levels but the drop the fraction of the weights that it leaves}."""


def uniform(space: SearchSpace) -> Genome:
    """The even genome (U,) that meets the budget with the least compression.

    Matrices are at their target. Where they have types of stored weights, and the budget is about
    these, they become coarser together, before anything is cut. Then all sub-layers are narrowed
    together: each has its widest level that keeps at most a fraction of its weights, the same
    fraction for all. Where two neighbouring types or fractions lie on both sides of the budget,
    some have the finer type or the wider level, as many as fit, at even distances over the depth;
    and where a bound is about one kind of sub-layer only, the other kind is widened again, as
    caches are refined where none is about them, or matrices where all are about caches. Where
    the narrowest widths are not enough, or there are none, the same number of units of each
    droppable kind is removed, at even distances. Where removing all of them is not enough, all
    matrices are raised together, level by level.
    """
    shares = _shares(space)
    tries = [space.encoding.default]
    for coarser in _coarsened(space) if space.bounds_bytes else ():
        tries += [*_mixed(tries[-1], coarser), coarser]
    for fraction in _fractions(shares):
        narrowed = _narrowed(tries[-1], shares, fraction)
        tries += [*_mixed(tries[-1], narrowed), narrowed]
    tries += _emptied(space.encoding, tries[-1])
    genomes = np.concatenate([space.deactivate(np.stack(tries)), minimal_genomes(space)])
    even: Genome = genomes[int(np.argmax(space.feasible(genomes)))]
    return _refined(space, _widened(space, even, shares))


def ladder(space: SearchSpace, count: int) -> list[Genome]:
    """Up to `count` different even genomes (U,) from the least compressed to the most.

    All sub-layers keep the same fraction of their weights, less and less; then ever more
    units are dropped as in `uniform`, and then matrices are raised. Where they have types of stored
    weights these become coarser before all that, which comes twice, in the finest and in the
    coarsest. There is no regard to the budget; but none drops all attentions.
    """
    shares = _shares(space)
    rungs: list[Genome] = []
    starts = [space.encoding.default, *_coarsened(space)]
    for start in dict.fromkeys((0, len(starts) - 1)):
        rungs += starts[start:] if start == 0 else []
        cut = [_narrowed(starts[start], shares, fraction) for fraction in _fractions(shares)]
        rungs += [*cut, *_emptied(space.encoding, [starts[start], *cut][-1])]
    genomes = space.deactivate(np.stack(rungs))
    genomes = genomes[space.encoding.admissible(genomes)]
    genomes = genomes[np.sort(np.unique(genomes, axis=0, return_index=True)[1])]
    places = np.linspace(0, len(genomes) - 1, min(count, len(genomes)))
    return list(genomes[places.round().astype(np.int64)])


def random(space: SearchSpace, rng: np.random.Generator) -> Genome:
    """A random feasible genome (U,) that uses the budget.

    Sub-layers with widths get independent uniform levels, their drop among them. Of each kind
    that can only be dropped as many units are removed as in the even genome, every such mask
    being equally likely; without a budget each is removed or not. Matrices get independent
    uniform levels. Then the genome is compressed and relaxed in random order to where the budget
    is met without waste; where units are of unequal cost, so many more may be kept.
    """
    genes = space.encoding
    genome = rng.integers(0, genes.sizes)
    masks = _only_dropped(genes) if space.budget else []
    even = uniform(space) if masks else genes.default
    for units in masks:
        genome[units] = 0
        genome[rng.permutation(units)[: int(even[units].sum())]] = 1
    return fill_budget(space, repair(space, genome, rng), rng)


def _shares(space: SearchSpace) -> Shares:
    """For each gene with widths what its levels leave of its weights that a token meets."""
    genes = space.encoding
    parts = {part.unit.name: part for part in space.cost_model.parts}
    shares = {}
    for gene in genes.widths.tolist():
        part = parts[genes.units[gene].name]
        kept = [part.left(level) for level in genes.levels[gene] if not level.drop]
        weights = np.array([left.used for left in kept])
        shares[gene] = weights / weights[0]
    return shares


def _fractions(shares: Shares) -> list[float]:
    """Every share below 1, from the largest downwards."""
    found = {share for levels in shares.values() for share in levels.tolist()}
    return sorted(found - {1.0}, reverse=True)


def _narrowed(genome: Genome, shares: Shares, fraction: float) -> Genome:
    """Each gene of `shares` at its widest level of at most a fraction of its parameters."""
    narrowed = genome.copy()
    for gene, levels in shares.items():
        fits = levels <= fraction
        narrowed[gene] = np.argmax(fits) if fits.any() else len(levels) - 1
    return narrowed


def _widened(space: SearchSpace, genome: Genome, shares: Shares) -> Genome:
    """The feasible genome with all sub-layers of a kind as wide as the budget allows."""
    for kind in ("attention", "mlp"):
        present = space.encoding.by_kind.get(kind, np.empty(0, dtype=np.int64))
        present = present[genome[present] != space.encoding.drop_index[present]]
        mine = {gene: shares[gene] for gene in present.tolist() if gene in shares}
        wide = [np.minimum(genome, _narrowed(genome, mine, f)) for f in (1.0, *_fractions(mine))]
        tries = np.stack([*wide, genome])
        genome = tries[int(np.argmax(space.feasible(tries)))]
    return genome


def _refined(space: SearchSpace, genome: Genome) -> Genome:
    """The feasible genome with caches, or matrices, as they were at first where that fits."""
    genes = space.encoding
    caches = np.array([unit.kind == "cache" for unit in genes.units])
    for own in (np.flatnonzero(caches), genes.matrices[~caches[genes.matrices]]):
        finer = genome.copy()
        finer[own] = genes.default[own]
        finer = space.deactivate(finer[None])[0]
        if caches.any() and space.feasible(finer[None])[0]:
            genome = finer
    return genome


def _mixed(wide: Genome, narrow: Genome) -> Genome:
    """The narrow genome with all but one, ... one of its changed genes wide, evenly spread."""
    differ = np.flatnonzero(wide != narrow)
    counts = range(len(differ) - 1, 0, -1)
    mixed = np.tile(narrow, (len(counts), 1))
    for genome, count in zip(mixed, counts, strict=True):
        wider = differ[_spread(count, len(differ))]
        genome[wider] = wide[wider]
    return mixed


def _emptied(genes: Encoding, genome: Genome) -> list[Genome]:
    """Ever more units dropped, of each kind as many, then matrices raised together."""
    kinds = _droppable(genes)
    tries = []
    for count in range(1, max((len(units) for units in kinds), default=0) + 1):
        shorter = genome.copy()
        for units in kinds:
            dropped = units[_spread(min(count, len(units)), len(units))]
            shorter[dropped] = genes.drop_index[dropped]
        tries.append(shorter)
    return tries + _raised(genes, tries[-1] if tries else genome)


def _coarsened(space: SearchSpace) -> list[Genome]:
    """The default genome (U,) with all matrices and caches in ever coarser types."""
    found = [space.encoding.default]
    for _ in range(max(len({level.type for level in levels}) for levels in space.levels) - 1):
        found.append(_coarser(space.encoding, found[-1]))
    return found[1:]


def _coarser(genes: Encoding, genome: Genome) -> Genome:
    """The genome (U,) with each matrix and cache in its next coarser type, with its zeros."""
    coarser = genome.copy()
    for gene in genes.matrices.tolist():
        now = genes.levels[gene][genome[gene]]
        later = enumerate(genes.levels[gene][genome[gene] :], int(genome[gene]))
        found = (i for i, lv in later if lv.zeros == now.zeros and lv.type != now.type)
        coarser[gene] = next(found, genome[gene])
    return coarser


def _raised(genes: Encoding, genome: Genome) -> list[Genome]:
    """All matrices level by level at their last."""
    tries, matrices = [genome], genes.matrices
    for _ in range(int(genes.sizes[matrices].max(initial=0))):
        raised = tries[-1].copy()
        raised[matrices] = np.minimum(raised[matrices] + 1, genes.sizes[matrices] - 1)
        tries.append(raised)
    return tries[1:]


def _spread(count: int, places: int) -> Integers:
    """`count` of a number of places, at even distances."""
    return ((np.arange(count) + 0.5) * places / max(count, 1)).astype(np.int64)


def _droppable(genes: Encoding) -> list[Integers]:
    """For each kind of droppable unit its genes."""
    kinds = [units[genes.drop_index[units] >= 0] for units in genes.by_kind.values()]
    return [units for units in kinds if units.size]


def _only_dropped(genes: Encoding) -> list[Integers]:
    """For each kind of unit the genes that know only dense and drop."""
    kinds = [units[~np.isin(units, genes.widths)] for units in _droppable(genes)]
    return [units for units in kinds if units.size]
