"""A Bayesian regression on which units are gone: what each does to a logarithm, and each two.

Dropped units are no small changes, and what they do to a divergence does not add up. In logarithms
it nearly does, with a term for each two of them: the model of BOCS (Baptista & Poloczek 2018,
1806.08838), from whose posterior a plausible optimum is drawn as easily as the likeliest one. Each
value is of one short text, whose own effect on all values is part of the model; so many genomes
measured on little text each say more than few on much.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import product

import numpy as np
from numpy.typing import NDArray

from evocompress.core.arrays import Floats

_SINGLES = (0.01, 0.05, 0.2)
_PAIRS = (0.0005, 0.002, 0.008)
"""Variances of the effect of a unit, and of two beyond the sum of both, that are compared.

A unit's factor on a divergence is then typically 1.1 to 1.6, and that of a pair 1.02 to 1.09."""

_MIDDLE = 1
_UNUSUAL = 3.0
"""What the logarithm of the likelihood must gain for a variance beside the one in the middle: few
observations hardly tell variances apart, and too large ones send a search astray."""

_LEVEL, _TEXT = 0.25, 0.09
"""Variances of the level of all values, and of what a text is unlike others."""

_NOISES = (0.002, 0.006, 0.02)
"""Variances of a value around model and text that are compared."""

_SMALLEST = 1e-9


@dataclass(frozen=True, eq=False)
class Effects:
    """What is expected of every set of units that are gone, as a logarithm.

    Attributes:
        singles: Of each unit (U,).
        pairs: Of each two beyond that (U, U); symmetric, and zero on the diagonal.
    """

    singles: Floats
    pairs: Floats

    def values(self, gone: Floats) -> Floats:
        """The values (N,) of sets (N, U) of zeros and ones, up to a constant."""
        return np.asarray(gone @ self.singles + ((gone @ self.pairs) * gone).sum(axis=1) / 2)

    def gains(self, gone: Floats) -> Floats:
        """What it changes (U + 1, U + 1) to remove unit i and restore unit j; the last is none.

        Args:
            gone: One set (U,). Infinite where i is gone already, or j is not.
        """
        more = self.singles + self.pairs @ gone
        change = np.zeros((len(gone) + 1, len(gone) + 1))
        change[:-1, :-1] = more[:, None] - more[None, :] - self.pairs
        change[:-1, -1], change[-1, :-1] = more, -more
        change[:-1][gone > 0] = np.inf
        change[:, :-1][:, gone == 0] = np.inf
        change[-1, -1] = np.inf
        return change


@dataclass(frozen=True, eq=False)
class Observations:
    """What was measured.

    Attributes:
        gone: Which units each measured genome is without, zeros and ones (N, U).
        texts: The text of each (N,).
        values: The logarithm of each value (N,).
        slopes: What is expected of each unit beforehand (U,).
    """

    gone: Floats
    texts: NDArray[np.int64]
    values: Floats
    slopes: Floats

    @cached_property
    def likeness(self) -> tuple[Floats, Floats]:
        """How many units (N, N), and how many pairs of them, two observations have in common."""
        common = self.gone @ self.gone.T
        return common, common * (common - 1) / 2

    @cached_property
    def level(self) -> float:
        """The mean of what the slopes leave."""
        return float((self.values - self.gone @ self.slopes).mean())

    @cached_property
    def rest(self) -> Floats:
        """What slopes and level leave (N,)."""
        return np.asarray(self.values - self.gone @ self.slopes - self.level)

    @cached_property
    def fixed(self) -> Floats:
        """The part (N, N) of the covariance that is in no question."""
        return np.asarray(_LEVEL + _TEXT * (self.texts[:, None] == self.texts[None, :]))


@dataclass(frozen=True)
class Variances:
    """How much is expected of effects before anything is measured.

    Attributes:
        single: Of a unit.
        pair: Of two units beyond the sum of both.
        noise: Of a value around the model.
    """

    single: float
    pair: float
    noise: float


@dataclass(frozen=True, eq=False)
class Interactions:
    """The posterior of the effects.

    Attributes:
        seen: The observations.
        variances: Of the prior.
        precision: The inverse of the covariance of the observations (N, N).
        chosen_with: How many observations the variances were chosen by.
    """

    seen: Observations
    variances: Variances
    precision: Floats
    chosen_with: int

    @classmethod
    def fitted(cls, seen: Observations) -> Interactions:
        """With those variances of a few that are likeliest after the observations."""
        trials = {
            Variances(*(value for _, value in each)): sum(place != _MIDDLE for place, _ in each)
            for each in product(*map(enumerate, (_SINGLES, _PAIRS, _NOISES)))
        }
        best = max(trials, key=lambda one: _likelihood(seen, one) - _UNUSUAL * trials[one])
        return cls(seen, best, _inverse(_covariance(seen, best)), len(seen.values))

    def updated(self, seen: Observations) -> Interactions:
        """With other observations, and the same variances."""
        precision = _inverse(_covariance(seen, self.variances))
        return Interactions(seen, self.variances, precision, self.chosen_with)

    @cached_property
    def mean(self) -> Effects:
        """The likeliest effects."""
        return self._pulled(self.seen.rest)

    def drawn(self, rng: np.random.Generator, boldness: float = 1.0) -> Effects:
        """Effects drawn from the posterior; with less boldness closer to the likeliest ones.

        By drawing effects and observations beforehand, and correcting the former by what the
        latter missed (Matheron's rule).
        """
        units = self.seen.gone.shape[1]
        above = np.triu(rng.normal(0.0, np.sqrt(self.variances.pair), (units, units)), 1)
        singles = np.asarray(rng.normal(0.0, np.sqrt(self.variances.single), units))
        prior = Effects(singles, above + above.T)
        missed = self.seen.rest - prior.values(self.seen.gone) - self._disturbed(rng)
        pulled, mean = self._pulled(missed), self.mean
        singles = prior.singles + pulled.singles - mean.singles
        pairs = prior.pairs + pulled.pairs - mean.pairs
        return Effects(mean.singles + boldness * singles, mean.pairs + boldness * pairs)

    def _disturbed(self, rng: np.random.Generator) -> Floats:
        """Levels, texts and noise as they might have been (N,)."""
        _, places = np.unique(self.seen.texts, return_inverse=True)
        texts = rng.normal(0.0, np.sqrt(_TEXT), places.max() + 1)[places]
        noise = rng.normal(0.0, np.sqrt(self.variances.noise), len(places))
        return np.asarray(rng.normal(0.0, np.sqrt(_LEVEL)) + texts + noise)

    def _pulled(self, rest: Floats) -> Effects:
        """The likeliest effects after some rests (N,), and the slopes."""
        weights = self.precision @ rest
        gone = self.seen.gone
        pairs = self.variances.pair * (gone.T @ (gone * weights[:, None]))
        np.fill_diagonal(pairs, 0.0)
        return Effects(self.seen.slopes + self.variances.single * (gone.T @ weights), pairs)


def exchanges(effects: Effects, gone: Floats) -> NDArray[np.int64]:
    """Exchanges (K, 2) by which a set (U,) gets better: i goes, j comes back; the best first.

    Args:
        effects: What is expected.
        gone: The set; a unit of index U is none, but none goes for nothing: that this should be
            better is an error of the model more often than true.
    """
    change = effects.gains(gone)[:, :-1]
    order = np.argsort(change, axis=None, kind="stable")
    better = order[: int((change < -_SMALLEST).sum())]
    return np.column_stack(np.divmod(better, len(gone)))


def _covariance(seen: Observations, variances: Variances) -> Floats:
    singles, pairs = seen.likeness
    noise = variances.noise * np.eye(len(seen.values))
    return seen.fixed + variances.single * singles + variances.pair * pairs + noise


def _inverse(covariance: Floats) -> Floats:
    return np.asarray(np.linalg.inv(covariance), dtype=np.float64)


def _likelihood(seen: Observations, variances: Variances) -> float:
    """The logarithm of the marginal likelihood, up to a constant."""
    lower = np.linalg.cholesky(_covariance(seen, variances))
    half = np.linalg.solve(lower, seen.rest)
    return float(-half @ half / 2 - np.log(lower.diagonal()).sum())
