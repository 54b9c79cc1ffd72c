"""The triangular factor of a damped inverse Hessian, which SparseGPT and its kin sweep with."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from torch import Tensor

from evocompress.core.errors import LibraryError

BLOCK = 256
"""Rows of a factor that are multiplied or solved together."""

ATTEMPTS = 4
"""Dampings tried before giving up, each ten times the one before."""


@dataclass(frozen=True, eq=False)
class Factor:
    """H⁻¹ = UᵀU for a Hessian H with damping.

    Attributes:
        upper: U, upper triangular with a positive diagonal, (in, in).
        dead: Inputs that are always zero, boolean (in,); they are decoupled from the others.
        damping: Fraction of the mean diagonal that was added: more than asked for where the
            Hessian was not positive definite otherwise.
    """

    upper: Tensor
    dead: Tensor
    damping: float

    @property
    def inverse(self) -> Tensor:
        """H⁻¹, (in, in), made anew at each call.

        Summed over blocks of rows of U, whose zeros to the left are left out: a third of the
        work of UᵀU.
        """
        inverse = torch.zeros_like(self.upper)
        for start in range(0, len(inverse), BLOCK):
            rows = self.upper[start : start + BLOCK, start:]
            inverse[start:, start:].addmm_(rows.T, rows)
        return inverse


def scaled_hessian(gram: Tensor, sequences: int) -> Tensor:
    """H = (2 / sequences)·XᵀX of the squared output error, from the Gram matrix (in, in)."""
    return gram * (2.0 / sequences)


def factorise(hessian: Tensor, damping: float) -> Factor:
    """Factor a Hessian as SparseGPT does (2301.00774).

    Inputs with a zero diagonal get 1 there. The damping times the mean diagonal is added to
    the diagonal; where that does not make the matrix positive definite, ten times as much is
    tried, a few times, and a warning is logged.

    The Hessian, symmetric (in, in) float32, is overwritten.

    Raises:
        LibraryError: The Hessian holds infinities or NaN, or no damping helps.
    """
    if not bool(hessian.isfinite().all()):
        raise LibraryError(
            "the input statistics are not finite: load the model in bfloat16 or float32"
        )
    diagonal = hessian.diagonal()
    dead = diagonal == 0
    diagonal[dead] = 1
    plain = diagonal.clone()
    for attempt in range(ATTEMPTS):
        tried = damping * 10**attempt
        diagonal.copy_(plain + tried * plain.mean())
        upper = _inverse_factor(hessian)
        if upper is not None:
            _warn_if_raised(damping, tried)
            return Factor(upper, dead, tried)
    raise LibraryError(
        f"a Hessian is not positive definite even with damping {tried:g}: "
        "raise library.damping or give more calibration sequences"
    )


def _warn_if_raised(damping: float, used: float) -> None:
    if used > damping:
        logging.getLogger(__name__).warning(
            "a Hessian is not positive definite with damping %g: used %g", damping, used
        )


def _inverse_factor(hessian: Tensor) -> Tensor | None:
    """U with H⁻¹ = UᵀU; ``None`` where H is not positive definite.

    With the order of the inputs reversed, a lower factor of H becomes an upper one: H = RRᵀ,
    so U = R⁻¹. One factorisation and one triangular inverse, and H⁻¹ is never formed.
    """
    lower, failure = torch.linalg.cholesky_ex(hessian.flip(0, 1))
    if int(failure):
        return None
    return _inverse(lower.flip(0, 1))


def _inverse(upper: Tensor) -> Tensor:
    """The inverse of an upper triangular matrix.

    [[A, B], [0, C]] has the inverse [[A⁻¹, −A⁻¹BC⁻¹], [0, C⁻¹]]: two thirds of the work of a
    solution for all columns of the identity, which does not know their zeros.
    """
    half = len(upper) // 2
    if len(upper) <= BLOCK:
        identity = torch.eye(len(upper), dtype=upper.dtype, device=upper.device)
        solved: Tensor = torch.linalg.solve_triangular(upper, identity, upper=True)
        return solved
    inverse = torch.zeros_like(upper)
    first = inverse[:half, :half] = _inverse(upper[:half, :half])
    last = inverse[half:, half:] = _inverse(upper[half:, half:])
    torch.mm(first, upper[:half, half:] @ last, out=inverse[:half, half:]).neg_()
    return inverse
