"""The interface of a criterion: a dense matrix and what it reads become compressed matrices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from evocompress.compression.criteria.factor import Factor, factorise, scaled_hessian
from evocompress.compression.criteria.masks import parse_pattern
from evocompress.core.errors import LibraryError
from evocompress.core.types import Level

Needs = Literal["nothing", "squares", "gram"]

BLOCK = 256
"""Inputs that are multiplied together where only a half of a symmetric matrix is needed."""


@dataclass(frozen=True, eq=False)
class Statistics:
    """Statistics of the inputs of a matrix; matrices with the same input share them.

    Attributes:
        gram: XᵀX summed over the tokens, (in, in) float32, or ``None`` where not collected.
        squares: Its diagonal, (in,) float32, where `gram` is ``None``.
        sequences: Sequences that were summed over.
        tokens: Tokens that were summed over.
        damping: Fraction of the mean diagonal added to a Hessian.
        sums: Σ x over the tokens, (in,) float32.
        magnitudes: Norm over the sequences of the mean |x| of each, (in,) float32 (Minitron).
        seen: Whether any token was summed over; see `unseen`.

    Examples:
        >>> Statistics(squares=torch.tensor([4.0, 16.0]), sequences=1).norms
        tensor([2., 4.])
    """

    gram: Tensor | None = None
    squares: Tensor | None = None
    sequences: int = 0
    tokens: int = 0
    damping: float = 0.01
    sums: Tensor | None = None
    magnitudes: Tensor | None = None
    seen: bool = True

    @cached_property
    def factor(self) -> Factor:
        """The factor of the damped inverse Hessian, computed once for all matrices."""
        if self.gram is None:
            raise ValueError("this criterion needs the Gram matrix of the inputs")
        return factorise(scaled_hessian(self.gram, self.sequences), self.damping)

    @property
    def norms(self) -> Tensor:
        """Norm of each input over the tokens, (in,), as root mean square over sequences."""
        return (self._squares / self.sequences).sqrt()

    @property
    def means(self) -> Tensor:
        """Mean of each input over the tokens, (in,)."""
        if self.sums is None:
            raise ValueError("this criterion needs the sums of the inputs")
        return self.sums / self.tokens

    @property
    def variances(self) -> Tensor:
        """Variance of each input over the tokens, (in,)."""
        squares = self._squares.double() / self.tokens
        return (squares - self.means.double().square()).clamp_min(0).float()

    @property
    def _squares(self) -> Tensor:
        squares = self.squares if self.gram is None else self.gram.diagonal()
        if squares is None:
            raise ValueError("this criterion needs the squared norms of the inputs")
        return squares


def unseen(features: int, device: torch.device, damping: float) -> Statistics:
    """Statistics of a matrix with a number of inputs, `features`, that no token passed through.

    All inputs are taken to be of the same size and independent of each other, so that weights are
    ranked by themselves alone.
    """
    ones = torch.ones(features, device=device)
    return Statistics(
        gram=torch.eye(features, device=device),
        sequences=1,
        tokens=1,
        damping=damping,
        sums=torch.zeros(features, device=device),
        magnitudes=ones,
        seen=False,
    )


Compress = Callable[[Tensor, Statistics, Sequence[Level]], list[Tensor]]

CompressTogether = Callable[
    [Sequence[Tensor], Statistics, Sequence[Sequence[Level]]], list[list[Tensor]]
]


@dataclass(frozen=True)
class Criterion:
    """One way to choose and update the weights that stay.

    Attributes:
        needs: Which statistics it reads; ``squares`` is the diagonal of ``gram``.
        compress: ``compress(weight, statistics, levels)`` gives one float32 matrix (out, in)
            for each level, in order. `weight` (out, in) is left alone, and a dense level
            returns it. Unstructured levels mask exactly ``level.zeros`` weights, a pattern
            ``"N:M"`` exactly N of each M consecutive inputs of a row; weights that happen to
            be zero already are masked first.
        together: ``together(weights, statistics, levels)`` does that for several matrices of one
            shape that read the same input, each with its own levels; ``None`` where one by one
            is as fast.
        sums: Whether it reads the sums of the inputs as well.
        compensates: Whether the bias of a matrix that has one gives back what the compressed
            matrix lacks of the mean output; see `mean_change`.

    Examples:
        >>> from evocompress.compression.criteria import CRITERIA
        >>> weight, known = torch.tensor([[1.0, -3.0, 2.0]]), Statistics()
        >>> CRITERIA["magnitude"].compress(weight, known, [Level(zeros=1)])
        [tensor([[ 0., -3.,  2.]])]
    """

    needs: Needs
    compress: Compress
    together: CompressTogether | None = None
    sums: bool = False
    compensates: bool = False

    def compress_all(
        self, weights: Sequence[Tensor], statistics: Statistics, levels: Sequence[Sequence[Level]]
    ) -> list[list[Tensor]]:
        """`compress` of each matrix to its own levels; of several, they must have one shape."""
        if self.together is not None and len(weights) > 1:
            return self.together(weights, statistics, levels)
        return [
            self.compress(weight, statistics, own)
            for weight, own in zip(weights, levels, strict=True)
        ]


def check_levels(weight: Tensor, levels: Sequence[Level]) -> None:
    """Refuse levels that cannot be had from a matrix.

    Raises:
        LibraryError: A level drops the unit, has too many zeros, or its pattern does not
            divide the inputs or contradicts its number of zeros.
    """
    for level in levels:
        if level.drop or not 0 <= level.zeros <= weight.numel():
            raise LibraryError(
                f"level {level.key} is impossible for a matrix of shape {tuple(weight.shape)}: "
                f"give 0 to {weight.numel()} zeros"
            )
        if level.pattern:
            _check_pattern(weight, level)


def _check_pattern(weight: Tensor, level: Level) -> None:
    zeros, group = parse_pattern(level.pattern)
    if weight.shape[1] % group:
        raise LibraryError(
            f"pattern {level.pattern} does not divide the {weight.shape[1]} inputs of a matrix: "
            "choose another pattern or leave the matrix out"
        )
    if level.zeros * group != weight.numel() * zeros:
        raise LibraryError(
            f"pattern {level.pattern} makes {weight.numel() * zeros // group} zeros, "
            f"not the {level.zeros} of the level: change the level's zeros"
        )


def mean_change(dense: Tensor, compressed: Tensor, statistics: Statistics) -> Tensor:
    """What a compressed matrix lacks of the mean output of the dense one, (out,)."""
    return (dense - compressed) @ statistics.means


def relative_errors(
    weight: Tensor,
    compressed: Sequence[Tensor],
    gram: Tensor,
    given_back: Sequence[float] | None = None,
) -> list[float]:
    """Output error tr(ΔW·G·ΔWᵀ) / tr(W·G·Wᵀ) of each compressed matrix (EvoPress, 2410.14649).

    It is 0 where the dense output is zero. `given_back` is what a bias of each takes off ‖ΔW·X‖².
    """
    energy = output_energy(weight, gram)
    if not energy:
        return [0.0] * len(compressed)
    lost = [output_energy(weight - one, gram) for one in compressed]
    if given_back is not None:
        lost = [max(0.0, one - less) for one, less in zip(lost, given_back, strict=True)]
    return [one / energy for one in lost]


def output_energy(weight: Tensor, gram: Tensor) -> float:
    """Squared norm of a matrix's outputs over all tokens, tr(W·G·Wᵀ): W (out, in), G (in, in).

    As G is symmetric, only its blocks on and left of the diagonal are multiplied.
    """
    energy = torch.zeros((), dtype=torch.float64, device=weight.device)
    for start in range(0, len(gram), BLOCK):
        inside = slice(start, start + BLOCK)
        now, earlier = weight[:, inside], weight[:, :start]
        energy += (now @ gram[inside, inside]).mul_(now).sum(dtype=torch.float64)
        energy += 2 * (earlier @ gram[:start, inside]).mul_(now).sum(dtype=torch.float64)
    return float(energy)
