"""Predictions of values from levels, and whether they are believed."""

import numpy as np
import pytest

from evocompress.search.surrogates.surrogate import (
    Surrogate,
    SurrogateGate,
    nonnegative_slope,
    rank_correlation,
    ridge,
    trees,
)

UNITS, LEVELS = 30, 9


def convex(shares, rng):
    """A sum over units."""
    return shares**2 @ rng.uniform(0.1, 1, shares.shape[1])


def pairwise(shares, rng):
    """Convex, and three times as many pairs as units help or harm each other."""
    count = 3 * shares.shape[1]
    first, second = rng.integers(0, shares.shape[1], (2, count))
    return convex(shares, rng) + (shares[:, first] * shares[:, second]) @ rng.normal(size=count)


def steep(shares, rng):
    """What is compressed beyond a threshold costs all at once, and two of them much together."""
    over = (shares > 0.6).astype(np.float64)
    return over @ rng.choice([0.2, 1, 3], shares.shape[1]) + 4 * over[:, 0] * over[:, 1]


def sample(objective, count, seed=0):
    """Random genomes and their true values."""
    rng = np.random.default_rng(seed)
    genomes = rng.integers(0, LEVELS, (count, UNITS))
    return genomes, objective(genomes / (LEVELS - 1), np.random.default_rng(7))


def noisy(values, seed=1):
    return values + np.random.default_rng(seed).normal(scale=0.3 * values.std(), size=values.shape)


class TestSurrogate:
    @pytest.mark.parametrize(
        ("objective", "count", "least"),
        [(convex, 60, 0.8), (pairwise, 200, 0.75), (steep, 200, 0.6)],
    )
    def test_ranks_genomes_that_it_was_not_shown(self, objective, count, least):
        genomes, values = sample(objective, count + 300)
        surrogate = Surrogate.fit(genomes[:count], noisy(values[:count]))
        predicted = surrogate.predict(genomes[count:])
        assert rank_correlation(predicted, values[count:]) > least
        assert abs(rank_correlation(predicted, values[count:]) - surrogate.skill) < 0.2

    def test_trees_are_chosen_for_what_is_no_curve(self):
        genomes, _ = sample(steep, 300)
        values = np.where((genomes[:, 0] > 2) & (genomes[:, 0] < 6), genomes[:, 1] % 3, 0.0)
        assert Surrogate.fit(genomes, values).name == "trees"

    def test_a_ridge_is_kept_where_trees_are_no_better(self):
        for objective in (convex, pairwise):
            genomes, values = sample(objective, 200)
            assert Surrogate.fit(genomes, noisy(values)).name == "ridge"

    def test_an_estimate_helps_where_little_was_measured(self):
        genomes, values = sample(convex, 340)
        weights = np.random.default_rng(3).lognormal(0, 0.7, UNITS)
        estimates = (genomes / (LEVELS - 1)) ** 2 @ weights
        few, others = slice(0, 40), slice(40, 340)
        with_it = Surrogate.fit(genomes[few], noisy(values[few]), estimates[few])
        without = Surrogate.fit(genomes[few], noisy(values[few]))
        skill = rank_correlation(
            with_it.predict(genomes[others], estimates[others]), values[others]
        )
        assert skill > rank_correlation(without.predict(genomes[others]), values[others])
        assert skill > rank_correlation(estimates[others], values[others])

    def test_the_scale_of_the_estimate_does_not_matter(self):
        genomes, values = sample(convex, 60)
        small = Surrogate.fit(genomes, values, noisy(values) / 100)
        large = Surrogate.fit(genomes, values, noisy(values) * 100 + 5)
        expected = small.predict(genomes, noisy(values) / 100)
        np.testing.assert_allclose(large.predict(genomes, noisy(values) * 100 + 5), expected)

    def test_an_estimate_of_the_wrong_sign_is_not_turned_round(self):
        _, values = sample(convex, 60)
        assert nonnegative_slope(values - values.mean(), -values) == 0

    def test_a_perfect_estimate_is_followed(self):
        rng = np.random.default_rng(0)
        genomes, estimates = rng.integers(0, LEVELS, (100, UNITS)), rng.normal(size=100)
        surrogate = Surrogate.fit(genomes, 2 * estimates + 1, estimates)
        np.testing.assert_allclose(surrogate.predict(genomes, estimates), 2 * estimates + 1)

    def test_is_deterministic_and_leaves_global_randomness_alone(self):
        genomes, values = sample(steep, 120)
        state = np.random.get_state()[1].copy()
        first, again = (Surrogate.fit(genomes, noisy(values), seed=5) for _ in range(2))
        assert np.array_equal(first.predict(genomes), again.predict(genomes))
        assert (first.name, first.skill) == (again.name, again.skill)
        assert np.array_equal(np.random.get_state()[1], state)

    def test_failures_are_left_out(self):
        genomes, values = sample(convex, 60)
        spoiled = np.where(np.arange(60) < 20, np.inf, values)
        expected = Surrogate.fit(genomes[20:], values[20:]).predict(genomes)
        assert np.array_equal(Surrogate.fit(genomes, spoiled).predict(genomes), expected)

    @pytest.mark.parametrize("count", [1, 2, 3])
    def test_few_values_give_finite_predictions(self, count):
        genomes, values = sample(convex, 10)
        assert np.isfinite(Surrogate.fit(genomes[:count], values[:count]).predict(genomes)).all()

    def test_nothing_measured_is_refused(self):
        with pytest.raises(ValueError, match="at least one value"):
            Surrogate.fit(np.zeros((2, 3), dtype=np.int64), np.full(2, np.inf))


class TestRegressions:
    def test_ridge_is_the_one_of_the_features_themselves(self):
        """Against the normal equations of the features that the likeness stands for."""
        rng = np.random.default_rng(0)
        features, values = rng.normal(size=(40, 3)), rng.normal(size=40)
        scaled = (features - features.mean(axis=0)) / features.std(axis=0)
        products = (scaled[:, :, None] * scaled[:, None, :]).reshape(40, 9)
        bends = (scaled**2 - 1) / np.sqrt(2)
        design = np.hstack([scaled, bends, products / np.sqrt(6)]) / np.sqrt(3)
        centred = values - values.mean()
        errors, fits = [], []
        for penalty in np.logspace(-4, 3, 15):
            inverse = np.linalg.inv(design.T @ design + penalty * np.eye(design.shape[1]))
            hat = design @ inverse @ design.T
            errors.append((((centred - hat @ centred) / (1 - np.diag(hat))) ** 2).mean())
            fits.append(values.mean() + hat @ centred)
        expected = fits[int(np.argmin(errors))]
        np.testing.assert_allclose(ridge(features, values)(features), expected, atol=1e-8)

    def test_ridge_knows_products(self):
        features = np.random.default_rng(0).choice([-1.0, 1.0], (200, 8))
        values = features[:, 0] * features[:, 1]
        predict = ridge(features[:150], values[:150])
        assert rank_correlation(predict(features[150:]), values[150:]) > 0.8

    @pytest.mark.parametrize("fitting", [ridge, trees(0)])
    def test_what_never_changed_says_nothing(self, fitting):
        rng = np.random.default_rng(0)
        features, values = rng.normal(size=(50, 4)), rng.normal(size=50)
        features[:, 2] = 3
        moved = features.copy()
        moved[:, 2] = 9
        predict = fitting(features, values)
        np.testing.assert_allclose(predict(moved), predict(features))


class TestScreen:
    @staticmethod
    def batch(agreement, rng, offset=0.0):
        measured = rng.normal(size=8)
        return agreement * measured + (1 - agreement) * rng.normal(size=8), measured + offset

    def test_switches_on_off_and_on_again(self):
        rng, screen = np.random.default_rng(0), SurrogateGate(window=32, threshold=0.4)
        trusted = [screen.trusted]
        for agreement in (0.8, 0.0, 0.8):
            for _ in range(6):
                screen = screen.after(*self.batch(agreement, rng))
            trusted.append(screen.trusted)
        assert trusted == [False, True, False, True]

    def test_trusts_nothing_before_a_quarter_of_the_window_is_full(self):
        rng, screen, trusted = np.random.default_rng(0), SurrogateGate(window=64), []
        for _ in range(3):
            screen = screen.after(*self.batch(1.0, rng))
            trusted.append(screen.trusted)
        assert trusted == [False, True, True]

    def test_progress_of_the_search_is_no_merit_of_the_predictions(self):
        rng, screen = np.random.default_rng(0), SurrogateGate(window=64)
        for step in range(8):
            predicted, measured = self.batch(0.0, rng)
            screen = screen.after(predicted - 10 * step, measured - 10 * step)
        assert len(screen.pairs) == 64
        assert not screen.trusted

    def test_noise_is_not_trusted(self):
        for seed in range(20):
            rng, screen = np.random.default_rng(seed), SurrogateGate()
            for _ in range(8):
                screen = screen.after(*self.batch(0.0, rng))
            assert not screen.trusted

    def test_a_surrogate_of_noise_switches_its_screen_off(self):
        rng = np.random.default_rng(0)
        genomes, noise = rng.integers(0, LEVELS, (200, UNITS)), rng.normal(size=200)
        surrogate, screen = Surrogate.fit(genomes[:120], noise[:120]), SurrogateGate()
        assert not screen.after(surrogate.predict(genomes[120:]), noise[120:]).trusted
        shown, truth = sample(convex, 200)
        surrogate = Surrogate.fit(shown[:120], noisy(truth[:120]))
        assert screen.after(surrogate.predict(shown[120:]), noisy(truth[120:])).trusted

    def test_failures_are_left_out(self):
        measured = np.array([1.0, np.inf, 3.0])
        assert SurrogateGate().after(np.arange(3.0), measured).pairs == ((-1.0, -1.0), (1.0, 1.0))
        assert SurrogateGate().after(np.ones(1), np.full(1, np.inf)).pairs == ()


class TestRankCorrelation:
    def test_is_that_of_scipy(self):
        from scipy.stats import spearmanr

        rng = np.random.default_rng(0)
        first, second = rng.integers(0, 6, (2, 50)).astype(np.float64)
        assert rank_correlation(first, second) == pytest.approx(spearmanr(first, second).statistic)

    @pytest.mark.parametrize("length", [0, 1, 5])
    def test_is_zero_where_nothing_is_ordered(self, length):
        assert rank_correlation(np.ones(length), np.arange(length, dtype=np.float64)) == 0
