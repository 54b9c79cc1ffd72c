"""SparseGPT's sweep over all levels against a plain float64 version, one level at a time."""

import logging

import pytest
import torch

from evocompress.compression.criteria import Statistics
from evocompress.compression.criteria.base import BLOCK as ENERGY_BLOCK
from evocompress.compression.criteria.base import relative_errors
from evocompress.compression.criteria.factor import BLOCK as FACTOR_BLOCK
from evocompress.compression.criteria.factor import factorise, scaled_hessian
from evocompress.compression.criteria.sparsegpt import compress, compress_together
from evocompress.compression.criteria.sweep import COMPILED, PLAIN, TILE
from evocompress.core.errors import LibraryError
from evocompress.core.types import DENSE, Level
from evocompress.testing.criteria import example, patterned, unstructured

BLOCK = 128


def reference_factor(gram, sequences, damping):
    hessian = gram.double() * 2 / sequences
    dead = hessian.diagonal() == 0
    hessian[dead, dead] = 1
    hessian += damping * hessian.diagonal().mean() * torch.eye(len(hessian), dtype=torch.float64)
    return torch.linalg.cholesky(torch.linalg.inv(hessian), upper=True), dead


def reference(weight, statistics, level):
    """Column by column in float64; every error goes to all later columns at once."""
    factor, dead = reference_factor(statistics.gram, statistics.sequences, statistics.damping)
    work = weight.double().clone()
    rows, columns = work.shape
    mask = torch.zeros(rows, columns, dtype=torch.bool)
    work[:, dead] = 0
    for j in range(columns):
        if level.pattern:
            zeros, group = map(int, level.pattern.split(":"))
            if j % group == 0:
                scores = work[:, j : j + group] ** 2 / factor.diagonal()[j : j + group] ** 2
                chosen = scores.sort(dim=1, stable=True).indices[:, :zeros]
                mask[:, j : j + group] = mask[:, j : j + group].scatter(1, chosen, True)
        elif j % BLOCK == 0:
            end = min(j + BLOCK, columns)
            count = level.zeros * end // columns - level.zeros * j // columns
            scores = work[:, j:end] ** 2 / factor.diagonal()[j:end] ** 2
            chosen = scores.flatten().sort(stable=True).indices[:count]
            mask[:, j:end] = mask[:, j:end].flatten().scatter(0, chosen, True).view(rows, -1)
        error = torch.where(mask[:, j], work[:, j], 0) / factor[j, j]
        work[:, j + 1 :] -= error[:, None] * factor[j, j + 1 :]
        work[mask[:, j], j] = 0
    return work


LEVELS = [*unstructured(), *patterned()]
LARGER = [Level(zeros=20_000), Level(zeros=50_000)]
SWEEPS = [COMPILED, PLAIN]


def larger(rows, columns=300):
    """A matrix of several blocks of inputs and several tiles of outputs."""
    generator = torch.Generator().manual_seed(rows)
    inputs = torch.randn(900, columns, generator=generator)
    inputs += 0.5 * inputs.roll(1, 1)
    weight = torch.randn(rows, columns, generator=generator)
    return weight, Statistics(gram=inputs.T @ inputs, sequences=3, tokens=900)


def assert_as_reference(weight, statistics, levels, results):
    live = statistics.gram.diagonal() > 0
    for level, result in zip(levels, results, strict=True):
        expected = reference(weight, statistics, level)
        assert torch.equal((result == 0)[:, live], (expected == 0)[:, live]), level.key
        difference = (result - expected)[:, live].norm() / expected.norm()
        assert float(difference) < 2e-6, level.key


@pytest.mark.parametrize("sweep", SWEEPS, ids=["compiled", "plain"])
@pytest.mark.parametrize("dead", [0, 9])
def test_one_sweep_equals_one_reference_per_level(sweep, dead):
    weight, statistics = example(dead=dead, seed=3)
    (results,) = compress_together([weight], statistics, [LEVELS], sweep)
    assert_as_reference(weight, statistics, LEVELS, results)


@pytest.mark.parametrize("sweep", SWEEPS, ids=["compiled", "plain"])
@pytest.mark.parametrize("rows", [TILE, TILE + 5])
def test_several_blocks_and_tiles_and_odd_groups_equal_the_reference(sweep, rows):
    weight, statistics = larger(rows)
    count = weight.numel()
    levels = [Level(zeros=count // 3 + 1), Level(zeros=count * 4 // 5)]
    levels += [Level(count * n // m, f"{n}:{m}") for n, m in ((5, 10), (7, 15), (2, 3))]
    (results,) = compress_together([weight], statistics, [levels], sweep)
    assert_as_reference(weight, statistics, levels, results)


@pytest.mark.parametrize("sweep", SWEEPS, ids=["compiled", "plain"])
def test_matrices_in_one_sweep_equal_one_by_one(sweep):
    weight, statistics = example(seed=5)
    weights = [weight, weight.flip(0) * 0.3, weight.roll(7, 1)]
    levels = [LEVELS, [DENSE, LEVELS[1]], LEVELS[::-2]]
    together = compress_together(weights, statistics, levels, sweep)
    for one, own, results in zip(weights, levels, together, strict=True):
        (alone,) = compress_together([one], statistics, [own], sweep)
        for level, found, expected in zip(own, results, alone, strict=True):
            assert torch.equal(found == 0, expected == 0), level.key
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("threads", [1, 3])
def test_the_number_of_threads_changes_nothing_but_rounding(threads):
    weight, statistics = larger(TILE * 2 + 1)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        results = compress(weight, statistics, LARGER)
    finally:
        torch.set_num_threads(before)
    assert_as_reference(weight, statistics, LARGER, results)


def test_compiled_and_plain_sweeps_agree():
    weight, statistics = example(dead=5, seed=4)
    (compiled,) = compress_together([weight], statistics, [LEVELS], COMPILED)
    (plain,) = compress_together([weight], statistics, [LEVELS], PLAIN)
    for level, one, other in zip(LEVELS, compiled, plain, strict=True):
        assert torch.equal(one == 0, other == 0), level.key
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_update_beats_the_same_mask_without_update():
    weight, statistics = example()
    (result,) = compress(weight, statistics, [Level(zeros=weight.numel() // 2)])
    masked = torch.where(result == 0, 0.0, weight)
    with_update, without = relative_errors(weight, [result, masked], statistics.gram)
    assert 0 < with_update < 0.8 * without


def test_relative_error_is_that_of_the_outputs():
    weight, statistics = example()
    inputs = torch.linalg.cholesky(statistics.gram.double()).T
    changed = weight * 0.9
    outputs, other = inputs @ weight.double().T, inputs @ changed.double().T
    expected = float((outputs - other).square().sum() / outputs.square().sum())
    assert relative_errors(weight, [changed], statistics.gram) == [pytest.approx(expected)]
    assert relative_errors(0 * weight, [0 * weight], statistics.gram) == [0.0]


def test_relative_error_of_more_inputs_than_are_multiplied_together():
    weight, statistics = larger(20, columns=2 * ENERGY_BLOCK + 30)
    changed = weight.roll(1, 0)
    gram = statistics.gram.double()
    energies = [
        float((one @ gram * one).sum()) for one in (weight.double(), (weight - changed).double())
    ]
    found = relative_errors(weight, [changed], statistics.gram)
    assert found == [pytest.approx(energies[1] / energies[0], rel=1e-5)]


def test_dead_weights_are_masked_first_and_kept_beyond_the_count():
    weight, statistics = example(dead=150)
    dead = statistics.gram.diagonal() == 0
    few, many = Level(zeros=100), Level(zeros=weight.numel() * 97 // 100)
    little, most = compress(weight, statistics, [few, many])
    assert torch.equal(little[:, ~dead], weight[:, ~dead])
    assert not most[:, dead].any() and int((most == 0).sum()) == many.zeros


def test_factor_is_the_upper_cholesky_factor_of_the_inverse():
    _, statistics = example(dead=2)
    expected, dead = reference_factor(statistics.gram, statistics.sequences, 0.01)
    assert torch.equal(statistics.factor.dead, dead)
    assert statistics.factor.damping == 0.01
    torch.testing.assert_close(statistics.factor.upper.double(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("inputs", [FACTOR_BLOCK + 1, 3 * FACTOR_BLOCK - 7])
def test_factor_of_many_inputs_is_put_together_from_parts(inputs):
    _, statistics = larger(4, columns=inputs)
    expected, _ = reference_factor(statistics.gram, statistics.sequences, 0.01)
    upper = statistics.factor.upper
    assert torch.equal(upper, upper.triu())
    torch.testing.assert_close(upper.double(), expected, rtol=1e-3, atol=1e-5)


def test_factor_is_computed_once_for_all_matrices():
    _, statistics = example()
    assert statistics.factor is statistics.factor


def test_damping_is_raised_where_it_must_and_says_so(caplog):
    indefinite = torch.diag(torch.tensor([1.0, 1.0, -0.05]))
    with caplog.at_level(logging.WARNING):
        factor = factorise(indefinite, 0.01)
    assert factor.damping == pytest.approx(0.1)
    assert "used 0.1" in caplog.text


def test_hopeless_hessians_are_refused():
    with pytest.raises(LibraryError, match="not positive definite even with damping 10"):
        factorise(torch.diag(torch.tensor([1.0, -100.0])), 0.01)
    with pytest.raises(LibraryError, match="not finite"):
        factorise(torch.full((2, 2), torch.nan), 0.01)


def test_statistics_without_gram_are_refused():
    weight, _ = example()
    with pytest.raises(ValueError, match="Gram"):
        compress(weight, Statistics(sequences=1), [Level(zeros=5)])


def test_hessian_has_the_scale_of_the_paper():
    assert scaled_hessian(torch.ones(1, 1), 4).item() == 0.5
