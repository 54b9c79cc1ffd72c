"""The model of dropped units against the same regression on explicit features."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from evocompress.search.surrogates.pairwise_model import (
    Effects,
    Observations,
    Posterior,
    improving_exchanges,
)

UNITS, COUNT, TEXTS = 5, 60, 4
FIRST, SECOND = np.triu_indices(UNITS, 1)


@pytest.fixture
def seen():
    rng = np.random.default_rng(0)
    gone = (rng.random((COUNT, UNITS)) < 0.4).astype(float)
    return Observations(
        gone, rng.integers(0, TEXTS, COUNT), rng.normal(0, 0.3, COUNT), rng.random(UNITS)
    )


def features(gone):
    return np.hstack([gone, gone[:, FIRST] * gone[:, SECOND]])


def expected(model):
    """Mean and covariance of the weights of explicit features."""
    seen, variances = model.seen, model.variances
    prior = np.diag([variances.single] * UNITS + [variances.pair] * len(FIRST))
    known = features(seen.gone)
    same = seen.texts[:, None] == seen.texts[None, :]
    covariance = known @ prior @ known.T + 0.25 + 0.09 * same + variances.noise * np.eye(COUNT)
    rest = seen.values - seen.gone @ seen.slopes
    gain = prior @ known.T @ np.linalg.inv(covariance)
    mean = gain @ (rest - rest.mean())
    mean[:UNITS] += seen.slopes
    return mean, prior - gain @ known @ prior


def weights(effects):
    return np.concatenate([effects.singles, effects.pairs[FIRST, SECOND]])


class TestPosterior:
    def test_the_mean_is_that_of_explicit_features(self, seen):
        model = Posterior.fitted(seen)
        np.testing.assert_allclose(weights(model.mean), expected(model)[0], atol=1e-10)
        np.testing.assert_allclose(model.mean.pairs, model.mean.pairs.T, rtol=1e-12)

    def test_draws_have_the_mean_and_covariance_of_the_posterior(self, seen):
        model, rng = Posterior.fitted(seen), np.random.default_rng(1)
        drawn = np.stack([weights(model.drawn(rng)) for _ in range(20_000)])
        mean, covariance = expected(model)
        errors = np.sqrt(covariance.diagonal() / len(drawn))
        assert (np.abs(drawn.mean(axis=0) - mean) < 5 * errors).all()
        largest = covariance.diagonal().max()
        np.testing.assert_allclose(np.cov(drawn.T), covariance, atol=0.05 * largest)

    def test_less_bold_draws_are_closer_to_the_mean(self, seen):
        model = Posterior.fitted(seen)
        whole, half = (model.drawn(np.random.default_rng(2), boldness) for boldness in (1.0, 0.5))
        mean = weights(model.mean)
        np.testing.assert_allclose(weights(half) - mean, (weights(whole) - mean) / 2, atol=1e-12)

    def test_variances_fit_what_was_seen(self):
        rng = np.random.default_rng(3)
        gone = (rng.random((400, 12)) < 0.4).astype(float)
        texts, found = rng.integers(0, 8, 400), []
        for pair in (0.0, 0.1):
            above = np.triu(rng.normal(0, pair, (12, 12)), 1)
            truth = Effects(rng.normal(0, 0.3, 12), above + above.T)
            values = truth.values(gone) + rng.normal(0, 0.05, 400)
            found.append(Posterior.fitted(Observations(gone, texts, values, np.zeros(12))))
        assert found[0].variances.pair < found[1].variances.pair
        assert all(model.variances.single >= 0.05 for model in found)
        assert np.corrcoef(found[1].mean.singles, truth.singles)[0, 1] > 0.95

    @pytest.mark.parametrize(("pairs", "noise"), [(0.0, 0.02), (0.15, 0.3), (0.05, 0.1)])
    def test_the_variances_are_the_likeliest_by_the_density_of_the_values(self, pairs, noise):
        rng = np.random.default_rng(5)
        gone = (rng.random((COUNT, UNITS)) < 0.4).astype(float)
        effects = np.concatenate([rng.normal(0, 0.3, UNITS), rng.normal(0, pairs, len(FIRST))])
        values = features(gone) @ effects + rng.normal(0, noise, COUNT)
        model = Posterior.fitted(Observations(gone, np.zeros(COUNT, int), values, np.zeros(UNITS)))

        def score(variances):
            single, pair, own = variances
            prior = np.diag([single] * UNITS + [pair] * len(FIRST))
            covariance = features(gone) @ prior @ features(gone).T + 0.25 + 0.09
            covariance += own * np.eye(COUNT)
            density = multivariate_normal(np.zeros(COUNT), covariance).logpdf(
                values - values.mean()
            )
            usual = np.equal(variances, (0.05, 0.002, 0.006))
            return density + 3 * usual.sum()

        grid = itertools.product(*((0.01, 0.05, 0.2), (0.0005, 0.002, 0.008), (0.002, 0.006, 0.02)))
        assert model.variances == max(grid, key=score)

    def test_an_update_keeps_the_variances(self, seen):
        model = Posterior.fitted(seen)
        fewer = Observations(seen.gone[:30], seen.texts[:30], seen.values[:30], seen.slopes)
        updated = replace(model, seen=fewer)
        assert updated.variances == model.variances
        assert updated.chosen_with == COUNT
        assert updated.precision.shape == (30, 30)


def test_exchanges_are_all_that_get_better_the_best_first():
    rng = np.random.default_rng(4)
    pairs = np.triu(rng.normal(0, 0.3, (UNITS, UNITS)), 1)
    effects = Effects(rng.normal(0, 0.3, UNITS), pairs + pairs.T)
    gone = np.array([1.0, 0.0, 1.0, 0.0, 0.0])
    before, found = effects.values(gone[None])[0], {}
    for goes, returns in itertools.product(range(UNITS + 1), range(UNITS)):
        changed = gone.copy()
        if (goes < UNITS and gone[goes]) or not gone[returns]:
            continue
        changed[returns : returns + 1] = 0.0
        changed[goes : goes + 1] = 1.0
        found[goes, returns] = effects.values(changed[None])[0] - before
    better = [pair for pair in sorted(found, key=found.get) if found[pair] < 0]
    assert [tuple(pair) for pair in improving_exchanges(effects, gone).tolist()] == better
