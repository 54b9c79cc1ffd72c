"""How dense published heuristics leave each matrix, for any overall density. No torch here.

A density is the share of a matrix's weights that stays. Heuristics rank or weigh matrices, or
whole blocks; how much stays overall is handed to them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evocompress.core.arrays import Floats
from evocompress.core.types import Unit
from evocompress.search.bisection import bisected, mean

_BISECTIONS = 60
"""More than the 53 binary digits of a number: the threshold is as exact as it can be."""

_FLOOR = 0.0005
"""Share of all weights that stays in every matrix at least: 0.05 percent (2209.14624)."""

_OUTLIERS_ABOVE = 5
"""Multiples of the mean above which an activation is an outlier (OWL, 2310.05175)."""

_LEAST = 1e-300
"""Floor of a score, by whose sum is divided."""


@dataclass(frozen=True, eq=False)
class Known:
    """The data that a heuristic decides by.

    Attributes:
        matrices: The M matrices whose densities are wanted.
        blocks: For each of them the unit of its block.
        rows: {unit: its estimated values}.
        spread: How far densities may be apart, where the method has such a setting.

    Example:
        >>> matrices = [Unit("", "matrix", "0", 0, "", shape) for shape in ((8, 4), (4, 24))]
        >>> known = Known(tuple(matrices), blocks=("0", "0"), rows={}, spread=0.0)
        >>> METHODS["erk"].densities(known, 0.4).round(2).tolist()
        [0.48, 0.37]
    """

    matrices: tuple[Unit, ...]
    blocks: tuple[str, ...]
    rows: Mapping[str, Sequence[float]]
    spread: float

    @property
    def sizes(self) -> Floats:
        """Weights of each matrix (M,)."""
        return np.array([unit.numel for unit in self.matrices], dtype=np.float64)

    @property
    def places(self) -> NDArray[np.int64]:
        """For each matrix the place of its block among the B blocks (M,)."""
        order = {name: place for place, name in enumerate(dict.fromkeys(self.blocks))}
        return np.array([order[name] for name in self.blocks], dtype=np.int64)

    @property
    def first(self) -> Floats:
        """The first value of each matrix (M,)."""
        return np.array([self.rows[unit.name][0] for unit in self.matrices])

    def block_sums(self, values: Floats) -> Floats:
        """Sums (B,) over the values (M,) of the matrices of each block."""
        sums = np.zeros(len(set(self.blocks)))
        np.add.at(sums, self.places, values)
        return sums


Densities = Callable[[Known, float], Floats]
"""The density of each matrix (M,) for an overall density; it may leave [0, 1], to be cut there."""


@dataclass(frozen=True)
class Method:
    """A heuristic and the estimate that it needs.

    Attributes:
        densities: What it decides.
        kind: The estimate at the dense model that it needs, if any.
        forwards: Forward passes that the estimate takes; 0 where it looks at weights alone.
        matrix_forwards: How many more it takes for every matrix.
        spread: The published value of the setting, where the method has it.

    Example:
        >>> METHODS["owl"].kind, METHODS["owl"].spread
        ('outliers', 0.08)
    """

    densities: Densities
    kind: str | None = None
    forwards: int = 0
    matrix_forwards: int = 0
    spread: float | None = None


def uniform_densities(known: Known, overall: float) -> Floats:
    """The density `overall` in every matrix (M,)."""
    return np.full(len(known.matrices), overall)


def erk_densities(known: Known, overall: float) -> Floats:
    """Erdos-Renyi kernel (Evci et al. 2019, 1911.11134): in proportion to (out + in)/(out * in)."""
    scores = np.array([sum(unit.shape or ()) / unit.numel for unit in known.matrices])
    return proportional(scores, known.sizes, overall)


def lamp_densities(known: Known, overall: float) -> Floats:
    """LAMP (Lee et al. 2020, 2010.07611): the densities above one threshold on all scores."""
    return _at_threshold(known, overall, np.zeros(len(known.matrices)))


def global_magnitude_densities(known: Known, overall: float) -> Floats:
    """One threshold on magnitudes, and a floor (Gupta et al. 2022, 2209.14624).

    As many weights stay in every matrix: 0.05% of the weights of all; a smaller matrix stays
    dense. The threshold is the one with which this gives the overall density.
    """
    floor = int(_FLOOR * known.sizes.sum()) / known.sizes
    return _at_threshold(known, overall, np.minimum(floor, 1.0))


def owl_densities(known: Known, overall: float) -> Floats:
    """OWL (Yin et al. 2023, 2310.05175): denser where a block has more outliers.

    The densities of blocks span twice the spread around their mean, the overall density.
    """
    names = dict.fromkeys(known.blocks)
    ratios = np.array([known.rows[name][_OUTLIERS_ABOVE - 1] for name in names])
    offsets = 2 * known.spread * _rescaled(ratios)
    densities: Floats = (overall + offsets - offsets.mean())[known.places]
    return densities


def alpha_densities(known: Known, overall: float) -> Floats:
    """AlphaPruning (Lu et al. 2024, 2410.10912): sparser where spectra have lighter tails.

    The sparsities of blocks are in proportion to numbers from 1 - spread to 1 + spread, linear
    in the mean of the exponents of a block's matrices.
    """
    exponents = known.block_sums(known.first) / known.block_sums(np.ones_like(known.first))
    ratios = (1 - known.spread + 2 * known.spread * _rescaled(exponents))[known.places]
    weighted = (known.sizes * ratios).sum() / known.sizes.sum()
    densities: Floats = 1 - (1 - overall) * ratios / weighted
    return densities


def ecoflap_densities(known: Known, overall: float) -> Floats:
    """ECoFLaP, zeroth order (Sung et al. 2023, 2310.02998): denser where the loss is steeper.

    No block is sparser than the overall sparsity and the spread. What stays beyond that is dealt
    out in proportion to the sums of a block's slopes.
    """
    sizes, slopes = known.block_sums(known.sizes), known.block_sums(known.first)
    floor = max(overall - known.spread, 0.0)
    densities: Floats = floor + proportional(slopes / sizes, sizes, overall - floor, 1 - floor)
    return densities[known.places]


def pq_densities(known: Known, overall: float) -> Floats:
    """PQ index (Diao et al. 2023, 2302.05601): in proportion to the bound on what must stay.

    That share is 1 - index for p = 1/2, q = 1 and eta = 0. Published as rounds of pruning and
    training; here the bounds of the dense model are scaled once to the overall density.
    """
    return proportional(1 - known.first, known.sizes, overall)


METHODS: dict[str, Method] = {
    "uniform": Method(uniform_densities),
    "erk": Method(erk_densities),
    "lamp": Method(lamp_densities, "lamp"),
    "global_magnitude": Method(global_magnitude_densities, "magnitude"),
    "owl": Method(owl_densities, "outliers", forwards=1, spread=0.08),
    "alpha": Method(alpha_densities, "tail_exponent", spread=0.3),
    "ecoflap": Method(ecoflap_densities, "perturbation", matrix_forwards=2, spread=0.1),
    "pq": Method(pq_densities, "pq_index"),
}


def proportional(scores: Floats, sizes: Floats, mean: float, most: float = 1.0) -> Floats:
    """Shares (M,) in proportion to scores, none above `most`, of a mean weighted by sizes."""
    if mean >= most:
        return np.full(len(scores), most)
    scores = np.maximum(scores, _LEAST)
    full = np.zeros(len(scores), dtype=bool)
    while True:
        left = mean * sizes.sum() - most * sizes[full].sum()
        shares = np.where(full, most, left * scores / (sizes * scores)[~full].sum())
        if not (shares > most).any():
            return shares
        full |= shares > most


def _at_threshold(known: Known, overall: float, floor: Floats) -> Floats:
    """The densities (M,) above one threshold, at least `floor` (M,), with the mean `overall`.

    Rows are evenly spaced quantiles of what the threshold is about.
    """
    table = np.array([(0.0, *known.rows[unit.name]) for unit in known.matrices])
    sizes = known.sizes / known.sizes.sum()

    def densities(threshold: float) -> Floats:
        return np.maximum(1 - _share_below(table, threshold), floor)

    def enough(threshold: float) -> bool:
        return not densities(threshold) @ sizes > overall

    return densities(bisected(enough, 0.0, float(table.max()), _BISECTIONS, mean)[1])


def _share_below(table: Floats, threshold: float) -> Floats:
    """Which share of each row of ascending quantiles (M, Q + 1) lies below a threshold (M,)."""
    count = (table <= threshold).sum(axis=1)
    last = table.shape[1] - 1
    rows = np.arange(len(table))
    before, behind = table[rows, count - 1], table[rows, np.minimum(count, last)]
    between = (threshold - before) / np.where(behind > before, behind - before, np.inf)
    share: Floats = (count - 1 + between) / last
    return share


def _rescaled(values: Floats) -> Floats:
    """Floats from 0 for the lowest to 1 for the highest; all 0 where they are equal."""
    span = np.ptp(values)
    rescaled: Floats = (values - values.min()) / (span if span else 1.0)
    return rescaled
