"""A prediction of a candidate's proxy value, learnt from measured ones.

A prediction is an estimate, where there is one, corrected by a regression on the levels, a ridge or
boosted trees. It costs nothing, so it can screen many candidates of which only the promising are
measured (Luo et al. 2020, 2007.04785). Whether to believe it is for a `SurrogateGate` to say.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import sqrt

import numpy as np

from evocompress.core.arrays import Floats, Genome, Integers

Prediction = Callable[[Floats], Floats]
"""The values (N,) that a fit expects of features (N, F)."""

Regression = Callable[[Floats, Floats], Prediction]
"""Fits features (N, F) and values (N,)."""

_PENALTIES = np.logspace(-4, 3, 15)
"""From next to none to one that leaves only the mean, as features have the variance 1."""

_SMALLEST = 1e-12
"""Floor of a standard deviation, by which is divided."""

_TREES = {
    "objective": "regression",
    "num_leaves": 31,
    "learning_rate": 0.05,
    "feature_fraction": 0.9,
    "bagging_fraction": 0.8,
    "bagging_freq": 5,
}
"""Those of LightGBM's first example of a regression, `simple_example.py`."""

_ROUNDS = 100
_SMALLEST_LEAF = 5
"""LightGBM's 20 would leave next to nothing to split with a hundred values."""


def likeness(first: Floats, second: Floats) -> Floats:
    """Inner products (N, M) of two sets of scaled features with their squares and pair products.

    `first` is (N, F), `second` (M, F).


    So a ridge over it is a quadratic curve for each feature and a product for each two, the
    products being held smaller: there are many of them.
    """
    products = first @ second.T / first.shape[1]
    bends = (first**2 - 1) @ (second**2 - 1).T / first.shape[1]
    return np.asarray(products + bends / 2 + products**2 / 2)


def ridge(features: Floats, values: Floats) -> Prediction:
    """Quadratic ridge regression of values (N,) on features (N, F).

    The penalty is the one with the least leave-one-out error (Allen 1974).

    Many features cost little: all is done in the (N, N) matrix of likenesses.
    """
    mean, scale = features.mean(axis=0), features.std(axis=0)
    # What never changed says nothing, wherever it is later.
    weight = np.where(scale > _SMALLEST, 1 / np.maximum(scale, _SMALLEST), 0.0)
    known = (features - mean) * weight
    level = values.mean()
    factors = _dual(likeness(known, known), values - level)

    def predict(wanted: Floats) -> Floats:
        return np.asarray(level + likeness((wanted - mean) * weight, known) @ factors)

    return predict


def _dual(products: Floats, values: Floats) -> Floats:
    """The factors (N,) of the rows of inner products (N, N), with the best of the penalties."""
    sizes, basis = np.linalg.eigh(products)
    turned = basis.T @ values
    best, least = np.zeros_like(values), np.inf
    for penalty in _PENALTIES:
        shrunk = 1 / (np.maximum(sizes, 0.0) + penalty)
        factors = basis @ (shrunk * turned)
        left_out = factors / (basis**2 @ shrunk)
        error = float((left_out**2).mean())
        if error < least:
            best, least = factors, error
    return best


def trees(seed: int) -> Regression:
    """Gradient-boosted trees as in GBDT-NAS (Luo et al. 2020, 2007.04785), by LightGBM.

    The seed chooses the features and values that each tree is shown.
    """

    def fit(features: Floats, values: Floats) -> Prediction:
        import lightgbm

        mean, scale = values.mean(), max(float(values.std()), _SMALLEST)
        settings = {
            **_TREES,
            "min_data_in_leaf": _SMALLEST_LEAF,
            "seed": seed,
            "deterministic": True,
            "force_row_wise": True,
            "num_threads": 1,
            "verbosity": -1,
        }
        shown = lightgbm.Dataset(features, (values - mean) / scale, params=settings)
        booster = lightgbm.train(settings, shown, num_boost_round=_ROUNDS)

        def predict(wanted: Floats) -> Floats:
            return np.asarray(mean + scale * np.asarray(booster.predict(wanted, num_threads=1)))

        return predict

    return fit


_FOLDS = 5


@dataclass(frozen=True, eq=False)
class Surrogate:
    """A model of the proxy's value, made by `Surrogate.fit`.

    Attributes:
        name: The regression on the levels: ``ridge``, or ``trees`` where they predict better;
            ``prior`` where the estimate alone does.
        skill: The rank correlation of its predictions with values that it was not shown, mean
            of five folds.
        error: The typical error of these predictions.
        model: The values (N,) that it predicts of levels and estimates (N, U + 1).

    Examples:
        >>> genomes = np.random.default_rng(0).integers(0, 5, (60, 4))
        >>> surrogate = Surrogate.fit(genomes, (genomes**2).sum(axis=1) / 10)
        >>> surrogate.name, surrogate.predict(np.array([[2, 0, 0, 4]])).round(2).tolist()
        ('ridge', [2.0])
    """

    name: str
    skill: float
    error: float
    model: Prediction

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
        known, values = _known(genomes, estimates)[valid], values[valid]
        folds = np.random.default_rng(seed).permutation(len(values)) % _FOLDS
        regressions = _regressions(seed)
        trials = {name: _trial(way, known, values, folds) for name, way in regressions.items()}
        name = "ridge"
        for rival in regressions:
            if _surely_positive(trials[rival][0] - trials[name][0]):
                name = rival
        skills, errors = trials[name]
        skill = float(skills.mean()) if skills.size else 0.0
        error = float(np.sqrt((errors**2).mean())) if errors.size else float(values.std())
        return cls(name, skill, error, _fitted(regressions[name], known, values))

    def refitted(
        self, genomes: Genome, values: Floats, estimates: Floats, *, seed: int = 0
    ) -> Surrogate:
        """The same kind of model of other measurements, without choosing anew between kinds.

        They are genomes (N, U) with measured values (N,) and estimates (N,) of each.
        """
        known = _known(genomes, estimates)
        return replace(self, model=_fitted(_regressions(seed)[self.name], known, values))

    def predict(self, genomes: Genome, estimates: Floats | None = None) -> Floats:
        """The values (N,) expected of genomes (N, U), with estimates (N,) if it was fitted so."""
        return self.model(_known(genomes, estimates))


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

    Examples:
        >>> predicted, measured = np.array([1.0, 2.0, 4.0]), np.array([0.1, 0.3, 0.9])
        >>> gate = SurrogateGate(window=4).after(predicted, measured)
        >>> gate.correlation, gate.trusted
        (1.0, True)
    """

    window: int = 64
    threshold: float = 0.3
    pairs: tuple[tuple[float, float], ...] = ()

    def after(self, predicted: Floats, measured: Floats) -> SurrogateGate:
        """The gate with one more batch, predicted and then measured (N,) on the same tokens.

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
    """Spearman's correlation of two series (N,); 0 where one is constant: it orders nothing."""
    if len(first) < 2 or not (np.ptp(first) and np.ptp(second)):
        return 0.0
    # Loading it takes longer than everything else of the package.
    from scipy.stats import spearmanr  # type: ignore[import-untyped]

    return float(spearmanr(first, second).statistic)


def nonnegative_slope(sizes: Floats, values: Floats) -> float:
    """By how much values (N,) rise with sizes (N,), around 0 by least squares; never negative.

    A line that would have to fall says nothing.
    """
    total = float(sizes @ sizes)
    return max(float(sizes @ values) / total, 0.0) if total > 0 else 0.0


def _regressions(seed: int) -> dict[str, Regression | None]:
    return {"ridge": ridge, "trees": trees(seed), "prior": None}


def _known(genomes: Genome, estimates: Floats | None) -> Floats:
    """Features (N, U + 1) of genomes (N, U): levels and estimate, 0 for none."""
    last = np.zeros(len(genomes)) if estimates is None else estimates
    return np.column_stack([genomes.astype(np.float64), last])


def _fitted(regression: Regression | None, known: Floats, values: Floats) -> Prediction:
    """A line over the estimates, and the regression of its residuals."""
    estimates = known[:, -1]
    rise = nonnegative_slope(estimates - estimates.mean(), values)
    start = float(values.mean()) - rise * float(estimates.mean())

    def line(known: Floats) -> Floats:
        return np.asarray(start + rise * known[:, -1])

    if regression is None:
        return line
    correction = regression(known, values - line(known))
    return lambda known: line(known) + correction(known)


def _trial(
    regression: Regression | None, known: Floats, values: Floats, folds: Integers
) -> tuple[Floats, Floats]:
    """Predictions of fits for values that they were not shown.

    The rank correlation in each fold, not in all together, as fits differ in level; and the
    error of every value.
    """
    skills, errors = [], [np.zeros(0)]
    for held in (folds == fold for fold in range(_FOLDS)):
        if held.sum() > 1 and not held.all():
            predicted = _fitted(regression, known[~held], values[~held])(known[held])
            skills.append(rank_correlation(predicted, values[held]))
            errors.append(predicted - values[held])
    return np.array(skills), np.concatenate(errors)


def _surely_positive(gains: Floats) -> bool:
    """Whether the mean of the gains is more than twice its standard error."""
    return gains.size > 1 and bool(gains.mean() > 2 * gains.std(ddof=1) / sqrt(gains.size))
