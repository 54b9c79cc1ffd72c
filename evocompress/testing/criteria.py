"""The contract of a criterion: what every entry of `CRITERIA` must keep.

Each function checks one clause and raises ``AssertionError`` where it is broken.
"""

from __future__ import annotations

import torch
from torch import Tensor

from evocompress.compression.criteria.base import Criterion, Statistics, output_energy
from evocompress.core.types import DENSE, Level

ROWS, COLUMNS, TOKENS = 24, 160, 400
FRACTIONS = (0.1, 0.33, 0.5, 0.77, 0.95)
PATTERNS = ((2, 4), (1, 4), (4, 8))


def example(dead: int = 0, seed: int = 0) -> tuple[Tensor, Statistics]:
    """A random matrix (24, 160) and statistics of correlated inputs, `dead` ones always zero."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(ROWS, COLUMNS, generator=generator)
    mixing = torch.randn(COLUMNS, COLUMNS, generator=generator) / COLUMNS**0.5
    inputs = torch.randn(TOKENS, COLUMNS, generator=generator) @ (torch.eye(COLUMNS) + mixing)
    inputs[:, torch.randperm(COLUMNS, generator=generator)[:dead]] = 0
    known = Statistics(inputs.T @ inputs, sequences=4, tokens=TOKENS, sums=inputs.sum(0))
    return weight, known


def unstructured() -> list[Level]:
    """Levels from few zeros to many, none a multiple of the rows or columns."""
    return [Level(zeros=int(fraction * ROWS * COLUMNS) + 1) for fraction in FRACTIONS]


def patterned() -> list[Level]:
    """One level for each of a few patterns."""
    return [Level(ROWS * COLUMNS * n // m, f"{n}:{m}") for n, m in PATTERNS]


def check_counts_are_exact(criterion: Criterion, dead: int = 0) -> None:
    """Every level has exactly its zeros, from one zero to all, also with dead inputs."""
    weight, statistics = example(dead)
    extremes = [Level(zeros=1), Level(zeros=weight.numel() - 1), Level(zeros=weight.numel())]
    levels = [*unstructured(), *extremes]
    for level, result in zip(levels, criterion.compress(weight, statistics, levels), strict=True):
        assert _zeros(result) == level.zeros, f"{level.key}: {_zeros(result)} zeros"
        assert bool(result.isfinite().all()), f"{level.key}: not finite"


def check_groups_are_exact(criterion: Criterion, dead: int = 0) -> None:
    """A pattern N:M has exactly N zeros in each M consecutive inputs of every row."""
    weight, statistics = example(dead)
    levels = patterned()
    results = criterion.compress(weight, statistics, levels)
    for (zeros, group), result in zip(PATTERNS, results, strict=True):
        found = (result.reshape(ROWS, -1, group) == 0).sum(-1)
        assert bool((found == zeros).all()), f"{zeros}:{group}: a group has another count"


def check_existing_zeros_are_used(criterion: Criterion) -> None:
    """Weights that are zero already count towards the level's zeros."""
    weight, statistics = example()
    weight[torch.rand(weight.shape, generator=torch.Generator().manual_seed(1)) < 0.2] = 0
    level = Level(zeros=weight.numel() // 2)
    (result,) = criterion.compress(weight, statistics, [level])
    assert _zeros(result) == level.zeros, f"{_zeros(result)} zeros instead of {level.zeros}"


def check_shape_and_type(criterion: Criterion) -> None:
    """Results are float32 of the same shape, from bfloat16 weights too; the weight is kept."""
    weight, statistics = example()
    for dense in (weight, weight.bfloat16()):
        before = dense.clone()
        for result in criterion.compress(dense, statistics, [*unstructured(), *patterned()]):
            assert result.shape == dense.shape and result.dtype == torch.float32
        assert torch.equal(dense, before), "the dense weight was changed"


def check_dense_is_unchanged(criterion: Criterion) -> None:
    """The dense level gives the weight itself, wherever it stands among the levels."""
    weight, statistics = example()
    level = unstructured()[0]
    results = criterion.compress(weight, statistics, [level, DENSE, level])
    assert torch.equal(results[1], weight)
    assert torch.equal(results[0], results[2]) and not torch.equal(results[0], weight)


def check_error_grows(criterion: Criterion) -> None:
    """More zeros, more output error on the inputs of the statistics."""
    weight, statistics = example()
    assert statistics.gram is not None
    results = criterion.compress(weight, statistics, unstructured())
    errors = [output_energy(weight - result, statistics.gram) for result in results]
    assert errors == sorted(errors) and errors[0] > 0, f"errors {errors}"


def check_levels_are_independent(criterion: Criterion) -> None:
    """A level's weights do not depend on which other levels are made in the same pass."""
    weight, statistics = example()
    levels = [*unstructured(), *patterned()]
    together = criterion.compress(weight, statistics, levels)
    for level, result in zip(levels, together, strict=True):
        (alone,) = criterion.compress(weight, statistics, [level])
        assert torch.equal(result == 0, alone == 0), f"{level.key}: another mask alone"
        torch.testing.assert_close(result, alone, rtol=1e-5, atol=1e-6)


def check_matrices_are_independent(criterion: Criterion) -> None:
    """A matrix' weights do not depend on which others are compressed with it."""
    weight, statistics = example()
    weights = [weight, weight.flip(0), weight.roll(1, 1)]
    levels = [[*unstructured(), DENSE], patterned(), [*patterned(), unstructured()[2]]]
    together = criterion.compress_all(weights, statistics, levels)
    for one, own, results in zip(weights, levels, together, strict=True):
        for result, expected in zip(results, criterion.compress(one, statistics, own), strict=True):
            assert torch.equal(result == 0, expected == 0), "another mask alone"
            torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-6)


def _zeros(result: Tensor) -> int:
    return int((result == 0).sum())


CHECKS = (
    check_counts_are_exact,
    check_groups_are_exact,
    check_existing_zeros_are_used,
    check_shape_and_type,
    check_dense_is_unchanged,
    check_error_grows,
    check_levels_are_independent,
    check_matrices_are_independent,
)
"""The whole contract."""

CHECKS_WITH_DEAD_INPUTS = (check_counts_are_exact, check_groups_are_exact)
"""Clauses that take a number of dead inputs."""
