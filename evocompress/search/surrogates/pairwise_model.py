"""A Bayesian regression on which units are gone: what each does to a logarithm, and each two.

Dropped units are no small changes, and what they do to a divergence does not add up. In logarithms
it nearly does, with a term for each two of them: the model of BOCS (Baptista & Poloczek 2018,
1806.08838), from whose posterior a plausible optimum is drawn as easily as the likeliest one. Each
value is of one short text, whose own effect on all values is part of the model; so many genomes
measured on little text each say more than few on much.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cached_property
from operator import ne
from typing import NamedTuple

import numpy as np

from evocompress.core.arrays import Floats, Integers

_LEVEL, _TEXT = 0.25, 0.09
"""Variances of the level of all values, and of what a text is unlike others: factors of about 1.6
and 1.35 on a divergence."""

_UNUSUAL = 3.0
"""What the logarithm of the likelihood must gain for a variance that is not the usual one: few
observations hardly tell variances apart, and too large ones send a search astray."""

_SMALLEST = 1e-9
"""Rounding: less than it is no gain."""


class Variances(NamedTuple):
    """How much is expected of effects before anything is measured, as logarithms.

    Attributes:
        single: Of a unit: a factor of 1.1 to 1.6 on a divergence.
        pair: Of two units beyond the sum of both: a factor of 1.02 to 1.09.
        noise: Of a value around the model.

    Examples:
        >>> Variances(single=0.2)
        Variances(single=0.2, pair=0.002, noise=0.006)
    """

    single: float = 0.05
    pair: float = 0.002
    noise: float = 0.006


_GRID = ((0.01, 0.05, 0.2), (0.0005, 0.002, 0.008), (0.002, 0.006, 0.02))
"""The values of `Variances` that are compared."""


@dataclass(frozen=True, eq=False)
class Effects:
    """The expected logarithm of the value of every set of dropped units.

    Attributes:
        singles: Of each unit (U,).
        pairs: Of each two beyond that (U, U); symmetric, and zero on the diagonal.

    Examples:
        >>> effects = Effects(np.array([1.0, 2.0]), np.array([[0.0, 0.5], [0.5, 0.0]]))
        >>> effects.values(np.array([[1.0, 0.0], [1.0, 1.0]])).tolist()
        [1.0, 3.5]
    """

    singles: Floats
    pairs: Floats

    def values(self, gone: Floats) -> Floats:
        """The values (N,), up to a constant, of sets (N, U): 1 where a unit is gone, else 0."""
        return np.asarray(gone @ self.singles + ((gone @ self.pairs) * gone).sum(axis=1) / 2)

    def gains(self, gone: Floats) -> Floats:
        """The change (U + 1, U + 1) of removing unit i and restoring unit j; the last is none.

        Infinite where i is gone (U,) already, or j is not.
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
    """Logarithms of proxy values, each of one genome on one text.

    Attributes:
        gone: Which units each measured genome is without, zeros and ones (N, U).
        texts: The text of each (N,).
        values: The logarithm of each value (N,).
        slopes: What is expected of each unit beforehand (U,).

    Examples:
        >>> gone = np.array([[1.0, 0.0], [0.0, 1.0]])
        >>> seen = Observations(gone, np.array([0, 0]), np.array([1.0, 3.0]), np.zeros(2))
        >>> seen.level, seen.rest.tolist()
        (2.0, [-1.0, 1.0])
    """

    gone: Floats
    texts: Integers
    values: Floats
    slopes: Floats

    @cached_property
    def likeness(self) -> tuple[Floats, Floats]:
        """How many units (N, N), and how many pairs of them, two observations have in common."""
        common = self.gone @ self.gone.T
        return common, common * (common - 1) / 2

    @cached_property
    def level(self) -> float:
        """The mean of the values without their slopes."""
        return float((self.values - self.gone @ self.slopes).mean())

    @cached_property
    def rest(self) -> Floats:
        """The values (N,) without slopes and level."""
        return np.asarray(self.values - self.gone @ self.slopes - self.level)

    @cached_property
    def fixed(self) -> Floats:
        """The part (N, N) of the covariance that is in no question."""
        return np.asarray(_LEVEL + _TEXT * (self.texts[:, None] == self.texts[None, :]))


@dataclass(frozen=True, eq=False)
class Posterior:
    """The posterior of the effects.

    Attributes:
        seen: The observations.
        variances: Of the prior.
        chosen_with: How many observations the variances were chosen by.

    Examples:
        >>> gone = np.array([[1.0, 0.0], [0.0, 1.0]])
        >>> seen = Observations(gone, np.array([0, 0]), np.array([1.0, 3.0]), np.zeros(2))
        >>> Posterior(seen, Variances(), chosen_with=2).mean.singles.round(2).tolist()
        [-0.89, 0.89]
    """

    seen: Observations
    variances: Variances
    chosen_with: int

    @classmethod
    def fitted(cls, seen: Observations) -> Posterior:
        """With those variances of a few that are likeliest after the observations."""

        def score(variances: Variances) -> float:
            unusual = sum(map(ne, variances, Variances()))
            return float(_likelihood(seen, variances) - _UNUSUAL * unusual)

        best = max(itertools.starmap(Variances, itertools.product(*_GRID)), key=score)
        return cls(seen, best, len(seen.values))

    @cached_property
    def precision(self) -> Floats:
        """The inverse of the covariance of the observations (N, N)."""
        return np.asarray(np.linalg.inv(_covariance(self.seen, self.variances)), dtype=np.float64)

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


def improving_exchanges(effects: Effects, gone: Floats) -> Integers:
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


def _likelihood(seen: Observations, variances: Variances) -> float:
    """The logarithm of the marginal likelihood, up to a constant."""
    lower = np.linalg.cholesky(_covariance(seen, variances))
    half = np.linalg.solve(lower, seen.rest)
    return float(-half @ half / 2 - np.log(lower.diagonal()).sum())
