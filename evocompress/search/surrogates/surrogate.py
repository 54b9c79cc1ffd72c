"""What a candidate's proxy value will be, learnt from those that were measured.

A prediction is an estimate, where there is one, corrected by a regression on the levels. It costs
nothing, so it can screen many candidates of which only the promising are measured (Luo et al.
2020, 2007.04785). Whether to believe it is for a `SurrogateGate` to say.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from evocompress.core.arrays import Floats, Genome
from evocompress.search.surrogates.regression import Fitting, Prediction, ridge, trees

_FOLDS = 5


@dataclass(frozen=True, eq=False)
class Prior:
    """The value as a straight line over the estimate: what is predicted before the levels.

    Attributes:
        intercept: The value where the estimate is 0.
        slope: What a unit of the estimate adds; never negative, as an estimate that would have to
            be turned round is of no use.
    """

    intercept: float
    slope: float

    def at(self, estimates: Floats) -> Floats:
        """The values (N,) at estimates (N,)."""
        return np.asarray(self.intercept + self.slope * estimates)


@dataclass(frozen=True, eq=False)
class Surrogate:
    """A model of the proxy's value, made by `Surrogate.fit`.

    Attributes:
        name: The regression on the levels: ``ridge``, or ``trees`` where they predict better;
            ``prior`` where the estimate alone does.
        skill: The rank correlation of its predictions with values that it was not shown, mean
            of five folds.
        error: The typical error of these predictions.
        prior: What the regression corrects.
        correction: The regression, of levels and estimate (N, U + 1); ``None``: no correction.
    """

    name: str
    skill: float
    error: float
    prior: Prior
    correction: Prediction | None

    @classmethod
    def fit(
        cls, genomes: Genome, values: Floats, estimates: Floats | None = None, *, seed: int = 0
    ) -> Surrogate:
        """Fits the regression that predicts best in cross-validation.

        A ridge is preferred: with few values what wins by less than twice the standard error
        of the difference has mostly been lucky.

        Args:
            genomes: What was measured (N, U).
            values: The proxy's values (N,); what is not finite, as it failed, is left out.
            estimates: What was expected of them beforehand (N,), on any scale.
            seed: Of the folds and the trees.

        Raises:
            ValueError: There is no finite value.
        """
        valid = np.isfinite(values)
        if not valid.any():
            raise ValueError("a surrogate needs at least one value")
        known = _known(genomes, estimates)[valid]
        values = values[valid]
        folds = np.random.default_rng(seed).permutation(len(values)) % _FOLDS
        fittings = _fittings(seed)
        trials = {name: _trial(way, known, values, folds) for name, way in fittings.items()}
        name = "ridge"
        for rival in fittings:
            if _surely_positive(trials[rival].skills - trials[name].skills):
                name = rival
        skills, errors = trials[name].skills, trials[name].errors
        skill = float(skills.mean()) if skills.size else 0.0
        error = float(np.sqrt((errors**2).mean())) if errors.size else float(values.std())
        return cls(name, skill, error, *_fitted(fittings[name], known, values))

    def refitted(
        self, genomes: Genome, values: Floats, estimates: Floats, *, seed: int = 0
    ) -> Surrogate:
        """The same kind of model of other measurements, without choosing anew between kinds."""
        known = _known(genomes, estimates)
        prior, correction = _fitted(_fittings(seed)[self.name], known, values)
        return replace(self, prior=prior, correction=correction)

    def predict(self, genomes: Genome, estimates: Floats | None = None) -> Floats:
        """The values (N,) expected of genomes (N, U).

        Args:
            genomes: Of the same space.
            estimates: Of the same kind (N,) as those that it was fitted with, if it was.
        """
        known = _known(genomes, estimates)
        return _predicted(self.prior, self.correction, known)


@dataclass(frozen=True)
class SurrogateGate:
    """Whether predictions have lately been in the order of what was then measured.

    Nothing is trusted before it was proved, and predictions go on being compared while they are
    not trusted: so screening switches itself on, off and on again.

    Attributes:
        window: How many of the last measurements count, and at least a quarter as many are
            needed.
        threshold: The rank correlation at which predictions are trusted.
        pairs: (predicted, measured), both from the mean of their batch, the latest last.
    """

    window: int = 64
    threshold: float = 0.3
    pairs: tuple[tuple[float, float], ...] = ()

    def after(self, predicted: Floats, measured: Floats) -> SurrogateGate:
        """The screen with one more batch, predicted and then measured (N,) on the same tokens.

        Only differences within a batch count: neither that a search gets ever better nor that
        other tokens are harder is any merit of the predictions. What is not finite is left out.
        """
        valid = np.isfinite(measured)
        if not valid.any():
            return self
        centred = [values[valid] - values[valid].mean() for values in (predicted, measured)]
        new = zip(*(values.tolist() for values in centred), strict=True)
        return replace(self, pairs=(*self.pairs, *new)[-self.window :])

    @property
    def correlation(self) -> float:
        """The rank correlation over the window."""
        predicted, measured = np.array(self.pairs, dtype=np.float64).reshape(-1, 2).T
        return rank_correlation(predicted, measured)

    @property
    def trusted(self) -> bool:
        """Whether predictions may decide what is measured."""
        return 4 * len(self.pairs) >= self.window and self.correlation >= self.threshold


def rank_correlation(first: Floats, second: Floats) -> float:
    """Spearman's correlation of two series (N,), equal values sharing their mean rank.

    0 where one of them is constant: it orders nothing.
    """
    ranks = [_ranks(series) for series in (first, second)]
    centred = [rank - rank.mean() for rank in ranks if rank.size]
    if len(centred) < 2:
        return 0.0
    norm = float(np.linalg.norm(centred[0]) * np.linalg.norm(centred[1]))
    return float(centred[0] @ centred[1]) / norm if norm else 0.0


def _ranks(series: Floats) -> Floats:
    _, places, counts = np.unique(series, return_inverse=True, return_counts=True)
    ranks: Floats = counts.cumsum() - (counts - 1) / 2
    return ranks[places]


def _fittings(seed: int) -> dict[str, Fitting | None]:
    return {"ridge": ridge, "trees": trees(seed), "prior": None}


def _known(genomes: Genome, estimates: Floats | None) -> Floats:
    """What is known of genomes (N, U): levels and estimate (N, U + 1), 0 for none."""
    last = np.zeros(len(genomes)) if estimates is None else estimates
    return np.column_stack([genomes.astype(np.float64), last])


def _predicted(prior: Prior, correction: Prediction | None, known: Floats) -> Floats:
    expected = prior.at(known[:, -1])
    return expected if correction is None else expected + correction(known)


def _fitted(
    fitting: Fitting | None, known: Floats, values: Floats
) -> tuple[Prior, Prediction | None]:
    """The prior, and the regression of what it leaves."""
    prior = _prior(known[:, -1], values)
    return prior, fitting(known, values - prior.at(known[:, -1])) if fitting else None


def _prior(estimates: Floats, values: Floats) -> Prior:
    """The line of least squares."""
    apart = estimates - estimates.mean()
    spread = float(apart @ apart)
    slope = max(float(apart @ values) / spread, 0.0) if spread else 0.0
    return Prior(float(values.mean()) - slope * float(estimates.mean()), slope)


@dataclass(frozen=True, eq=False)
class _Trial:
    """What fits predict of values that they were not shown.

    Attributes:
        skills: Rank correlation in each fold: not in all together, as fits differ in level.
        errors: Of every value.
    """

    skills: Floats
    errors: Floats


def _trial(
    fitting: Fitting | None, known: Floats, values: Floats, folds: NDArray[np.int64]
) -> _Trial:
    skills, errors = [], [np.zeros(0)]
    for held in (folds == fold for fold in range(_FOLDS)):
        if held.sum() > 1 and not held.all():
            fitted = _fitted(fitting, known[~held], values[~held])
            predicted = _predicted(*fitted, known[held])
            skills.append(rank_correlation(predicted, values[held]))
            errors.append(predicted - values[held])
    return _Trial(np.array(skills), np.concatenate(errors))


def _surely_positive(gains: Floats) -> bool:
    """Whether the mean of the gains is more than twice its standard error."""
    if gains.size < 2:
        return False
    return bool(gains.mean() > 2 * gains.std(ddof=1) / np.sqrt(gains.size))
