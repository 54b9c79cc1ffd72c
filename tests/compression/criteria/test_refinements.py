"""Repairs without training, against float64 references."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from evocompress.compression.criteria import CRITERIA, Statistics
from evocompress.compression.criteria.base import mean_change, output_energy, relative_errors
from evocompress.compression.criteria.refinements import REFINEMENTS, RIDGE, SWAPS, update
from evocompress.core.errors import ConfigError
from evocompress.core.types import Level
from evocompress.testing.criteria import example

LEVEL = Level(zeros=24 * 160 // 2)


def error(dense: Tensor, found: Tensor, known: Statistics) -> float:
    assert known.gram is not None
    return output_energy(dense - found, known.gram)


def test_an_update_nears_the_least_squares_fit_of_every_row() -> None:
    dense, known = example()
    assert known.gram is not None
    (sparse,) = CRITERIA["wanda"].compress(dense, known, [LEVEL])
    found = update(dense, sparse, known, LEVEL)
    gram = known.gram.double().numpy()
    norms = np.sqrt(np.diagonal(gram))
    ridged = gram / norms / norms[:, None] + RIDGE * np.eye(len(gram))
    best = np.zeros(dense.shape)
    for row, (weights, own) in enumerate(zip(dense.double().numpy() * norms, sparse, strict=True)):
        kept = np.flatnonzero(own.numpy())
        best[row, kept] = np.linalg.solve(ridged[np.ix_(kept, kept)], (weights @ ridged)[kept])
    reference = torch.from_numpy(best / norms).float()
    far = (sparse - reference).norm()
    assert (found - reference).norm() < 0.05 * far
    assert error(dense, found, known) < 0.8 * error(dense, sparse, known)


def swapped_by_hand(dense: Tensor, sparse: Tensor, known: Statistics) -> Tensor:
    """DSnoT row by row, as the method is written down."""
    assert known.sums is not None
    mean, count = known.sums.double() / known.sequences, known.tokens
    squares = known.gram.double().diagonal() / count
    variance = squares - (known.sums.double() / count) ** 2
    norms = (known.gram.double().diagonal() / known.sequences).sqrt()
    out = torch.zeros_like(dense)
    for row in range(len(dense)):
        weight, zero = dense[row].double(), sparse[row] == 0
        c = weight * mean
        e = float(c[zero].sum())
        for _ in range(SWAPS):
            sign = 1.0 if e > 0 else -1.0
            grow = [j for j in range(len(c)) if zero[j] and c[j] * sign > 0]
            go = [j for j in range(len(c)) if not zero[j] and c[j] * sign < 0]
            if abs(e) <= 0.1 or not grow or not go:
                break
            first = max(grow, key=lambda j: float(c[j] * sign / variance[j]))
            second = min(go, key=lambda j: float(weight[j].abs() * norms[j]))
            after = e - float(c[first]) + float(c[second])
            if abs(after) >= abs(e):
                break
            zero[first], zero[second], e = False, True, after
        out[row] = dense[row].masked_fill(zero, 0)
    return out


def test_swaps_are_those_of_the_method() -> None:
    dense, known = example()
    (sparse,) = CRITERIA["wanda"].compress(dense, known, [LEVEL])
    (found,) = CRITERIA["wanda+swaps"].compress(dense, known, [LEVEL])
    assert torch.equal(found, swapped_by_hand(dense, sparse, known))
    assert not torch.equal(found == 0, sparse == 0)
    assert known.sums is not None
    bias = [((dense - one) @ known.sums).abs().sum() for one in (sparse, found)]
    assert bias[1] < 0.5 * bias[0]


def test_refinements_follow_one_another() -> None:
    dense, known = example()
    composed = CRITERIA["wanda+swaps+update"]
    assert (composed.needs, composed.sums) == ("gram", True)
    (swapped,) = CRITERIA["wanda+swaps"].compress(dense, known, [LEVEL])
    (found,) = composed.compress(dense, known, [LEVEL])
    assert torch.equal(found, update(dense, swapped, known, LEVEL))


def test_biases_come_last_and_leave_the_matrices() -> None:
    dense, known = example()
    levels = [LEVEL, Level(zeros=100)]
    for name in ("wanda+bias", "wanda+bias+update", "wanda+update+bias"):
        found, plain = CRITERIA[name], CRITERIA[name.replace("+bias", "")]
        assert found.compensates and found.sums and not plain.compensates
        assert found.needs == plain.needs
        pairs = zip(*(one.compress(dense, known, levels) for one in (found, plain)), strict=True)
        assert all(torch.equal(*pair) for pair in pairs)
    assert CRITERIA["magnitude+bias"].needs == "squares"
    assert CRITERIA["sparsegpt+bias"].together is CRITERIA["sparsegpt"].together


def test_errors_count_what_a_bias_gives_back() -> None:
    dense, known = example()
    assert known.gram is not None and known.sums is not None
    (sparse,) = CRITERIA["wanda"].compress(dense, known, [LEVEL])
    shift = mean_change(dense, sparse, known)
    lost = dense.double() - sparse
    # ‖ΔW·X − s·1ᵀ‖² of inputs of which only the sums and products are known.
    expected = (lost @ known.gram.double() * lost).sum() - 2 * shift.double() @ (
        lost @ known.sums.double()
    )
    expected += known.tokens * shift.double().square().sum()
    energy = (dense.double() @ known.gram.double() * dense).sum()
    given_back = [known.tokens * float(shift.square().sum())]
    (found,) = relative_errors(dense, [sparse], known.gram, given_back)
    assert found == pytest.approx(float(expected / energy), rel=1e-4)
    assert found < relative_errors(dense, [sparse], known.gram)[0]


def test_names_of_which_a_part_is_unknown_are_refused() -> None:
    assert "wanda+swaps" in CRITERIA and "wanda+swap" not in CRITERIA
    assert "wanda+swaps" not in list(CRITERIA)
    for name, said in (("wonda+swaps", "unknown criterion 'wonda'"), ("wanda+swap", "refinement")):
        with pytest.raises(ConfigError, match=f"library.criterion: .*{said}"):
            CRITERIA.check(name, "library.criterion")
    with pytest.raises(ConfigError):
        CRITERIA["wanda+swap"]
    assert set(REFINEMENTS.built_in) == {"swaps", "update", "bias"}
