"""Regressions of few and noisy values on many levels: a quadratic ridge and boosted trees.

Both are deterministic, and each a `Fitting`: of features and values it makes a prediction.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from evocompress.core.arrays import Floats

Prediction = Callable[[Floats], Floats]
"""The values (N,) that a fit expects of features (N, F)."""

Fitting = Callable[[Floats, Floats], Prediction]
"""Fits features (N, F) and values (N,)."""

_PENALTIES = np.logspace(-4, 3, 15)
_SMALLEST = 1e-12

_TREES = {
    "objective": "regression",
    "num_leaves": 31,
    "learning_rate": 0.05,
    "feature_fraction": 0.9,
    "bagging_fraction": 0.8,
    "bagging_freq": 5,
}
_ROUNDS = 100
_SMALLEST_LEAF = 5
"""LightGBM's 20 would leave next to nothing to split with a hundred values."""


def likeness(first: Floats, second: Floats) -> Floats:
    """Inner products (N, M) of scaled features (N, F) and (M, F) with squares and pair products.

    So a ridge over it is a quadratic curve for each feature and a product for each two, the
    products being held smaller: there are many of them.
    """
    products = first @ second.T / first.shape[1]
    bends = (first**2 - 1) @ (second**2 - 1).T / first.shape[1]
    return np.asarray(products + bends / 2 + products**2 / 2)


def ridge(features: Floats, values: Floats) -> Prediction:
    """Quadratic ridge regression; the penalty has the least leave-one-out error (Allen 1974).

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


def trees(seed: int) -> Fitting:
    """Gradient-boosted trees as in GBDT-NAS (Luo et al. 2020, 2007.04785), by LightGBM.

    Args:
        seed: Of the features and values that each tree is shown.
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
