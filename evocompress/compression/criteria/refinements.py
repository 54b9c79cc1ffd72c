"""Repairs of a sparse matrix without training, after any criterion: ``wanda+swaps+update``.

A refinement takes the dense matrix, the compressed one and the statistics of the inputs; what it
gives has as many zeros, under a pattern in every group. Several are applied in their order. The
one called ``bias`` leaves the matrix and comes last wherever it stands: what is then missing of the
mean output goes to the bias of a matrix that has one, b' = b + (W − W')·mean(x), which leaves the
mean of every output as it was (DFQ, 1906.04721, does so for rounded weights).

```yaml
library: {criterion: wanda+swaps+update}
space: {sparsity: {target: 0.5}}
```
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from evocompress.compression.criteria.base import Compress, Criterion, Needs, Statistics
from evocompress.compression.criteria.masks import group_ranks, parse_pattern
from evocompress.core.registry import Registry
from evocompress.core.types import Level

JOINT = "+"
"""Between the names of a criterion and of its refinements."""

SWAPS = 50
"""Most swaps of a row."""

SMALL_ERROR = 0.1
"""A row whose expected error is less is left alone; both as published."""

ITERATIONS = 20
PENALTY = 1.0
RIDGE = 0.1
"""Of the mean diagonal; all three as published."""

Refine = Callable[[Tensor, Tensor, Statistics, Level], Tensor]
"""(dense, compressed, statistics, level) to another compressed matrix, all (out, in) float32."""


@dataclass(frozen=True)
class Refinement:
    """One way to repair what a criterion left.

    Attributes:
        needs: Which statistics it reads beside the criterion.
        sums: Whether it reads the sums of the inputs as well.
        refine: Does it for one level; ``None`` where the matrix stays as it is.
        compensates: Whether the bias gives back what is missing of the mean output.
    """

    needs: Needs
    sums: bool
    refine: Refine | None
    compensates: bool = False

    def after(self, criterion: Criterion) -> Criterion:
        """A criterion that is followed by this."""
        order: tuple[Needs, ...] = ("nothing", "squares", "gram")
        found = replace(
            criterion,
            needs=max(criterion.needs, self.needs, key=order.index),
            sums=criterion.sums or self.sums,
            compensates=criterion.compensates or self.compensates,
        )
        if self.refine is None:
            return found
        return replace(found, compress=_refined(criterion, self.refine), together=None)


def _refined(criterion: Criterion, refine: Refine) -> Compress:
    def compress(weight: Tensor, statistics: Statistics, levels: Sequence[Level]) -> list[Tensor]:
        dense = weight.float()
        found = criterion.compress(weight, statistics, levels)
        return [
            one if level.dense else refine(dense, one, statistics, level)
            for one, level in zip(found, levels, strict=True)
        ]

    return compress


def swaps(dense: Tensor, sparse: Tensor, statistics: Statistics, level: Level) -> Tensor:
    """Other zeros whose expected errors cancel out in every row (DSnoT, 2310.08915).

    With c = w·m, where m is the sum of an input over the tokens of a sequence, the expected error
    of a row is the sum of c over its zeros. While it is more than `SMALL_ERROR`, the masked weight
    with the largest share c/Var(x) of its sign grows back, and the kept one of the other sign goes
    that has the least |w|·‖x‖; under a pattern in the same group. Where a swap would take the error
    past zero and beyond its size, the row is left. Kept weights are the dense ones.
    """
    share = dense * (statistics.means * (statistics.tokens / statistics.sequences))
    per_variance = share / statistics.variances.clamp_min(torch.finfo(torch.float32).tiny)
    salience = dense.abs() * statistics.norms
    group = parse_pattern(level.pattern)[1] if level.pattern else dense.shape[1]
    zeros = _zeros(dense, sparse, salience, group)
    of_group = torch.arange(dense.shape[1], device=dense.device) // group
    error = (share * zeros).sum(1)
    rows = torch.arange(len(dense), device=dense.device)
    open_rows = torch.ones_like(rows, dtype=torch.bool)
    for _ in range(SWAPS):
        sign = error.sign()[:, None]
        helps = zeros & (share * sign > 0)
        grown = torch.where(helps, (per_variance * sign), -torch.inf).argmax(1)
        near = of_group == of_group[grown][:, None]
        goes = ~zeros & near & (share * sign < 0)
        gone = torch.where(goes, salience, torch.inf).argmin(1)
        after = error - share[rows, grown] + share[rows, gone]
        open_rows = open_rows & (error.abs() > SMALL_ERROR) & helps.any(1) & goes.any(1)
        open_rows = open_rows & (after.abs() < error.abs())
        if not open_rows.any():
            break
        zeros[rows[open_rows], grown[open_rows]] = False
        zeros[rows[open_rows], gone[open_rows]] = True
        error = torch.where(open_rows, after, error)
    return dense.masked_fill(zeros, 0.0)


def _zeros(dense: Tensor, sparse: Tensor, salience: Tensor, group: int) -> Tensor:
    """Where a compressed matrix has zeros; weights that were zero before are among them.

    A criterion that updates weights may have kept such a one: another of its group is kept then.
    """
    zeros = sparse == 0
    counts = zeros.view(len(zeros), -1, group).sum(-1).repeat_interleave(group, 1)
    order = torch.where(zeros, salience, torch.inf).masked_fill(dense == 0, -torch.inf)
    return group_ranks(order, group) < counts


def update(dense: Tensor, sparse: Tensor, statistics: Statistics, level: Level) -> Tensor:
    """The weights that are left, fitted to the outputs of the dense matrix (2401.02938).

    min ‖(W − V)·X‖² over matrices V with these zeros, by ADMM: one inverse serves all rows, levels
    and matrices that read the same input. Inputs are scaled to norm 1, and `RIDGE` times the mean
    diagonal is added.
    """
    norms, scaled, inverse = _scaled(statistics)
    wanted = dense * norms
    product = wanted @ scaled
    zeros = sparse == 0
    free, dual = wanted, torch.zeros_like(wanted)
    for _ in range(ITERATIONS):
        masked = (free + dual).masked_fill(zeros, 0.0)
        dual = dual + free - masked
        free = (product + PENALTY * (masked - dual)) @ inverse
    return (free + dual).masked_fill(zeros, 0.0) / norms


@lru_cache(maxsize=1)
def _scaled(statistics: Statistics) -> tuple[Tensor, Tensor, Tensor]:
    """Norms of the inputs (in,), their scaled Gram matrix (in, in), and what ADMM inverts."""
    if statistics.gram is None:
        raise ValueError("an update needs the Gram matrix of the inputs")
    norms = statistics.gram.diagonal().sqrt() + 1e-8
    scaled = statistics.gram / norms / norms[:, None]
    scaled.diagonal().add_(RIDGE * scaled.diagonal().mean())
    ridged = scaled.clone()
    ridged.diagonal().add_(PENALTY)
    return norms, scaled, torch.cholesky_inverse(torch.linalg.cholesky(ridged))


REFINEMENTS: Registry[Refinement] = Registry(
    "refinement",
    "evocompress.refinements",
    {
        "swaps": Refinement("squares", True, swaps),
        "update": Refinement("gram", False, update),
        "bias": Refinement("squares", True, None, compensates=True),
    },
    lambda found: isinstance(found, Refinement),
)


class RefinedCriteria(Registry[Criterion]):
    """Criteria by name, also followed by refinements: ``wanda+swaps``."""

    def __getitem__(self, name: str) -> Criterion:
        first, *others = name.split(JOINT)
        found = super().__getitem__(first)
        for other in others:
            found = REFINEMENTS[other].after(found)
        return found

    def __contains__(self, name: object) -> bool:
        first, *others = str(name).split(JOINT)
        return super().__contains__(first) and all(other in REFINEMENTS for other in others)

    def check(self, name: str, key: str) -> None:
        """Refuses a name of which a part is none; nothing is loaded."""
        first, *others = name.split(JOINT)
        super().check(first, key)
        for other in others:
            REFINEMENTS.check(other, key)

    def packages(self, *names: str | None) -> set[str]:
        """The installed packages that offer members or refinements of them."""
        parts = [name.split(JOINT) for name in names if name]
        own = super().packages(*(first for first, *_ in parts))
        return own | REFINEMENTS.packages(*(other for _, *others in parts for other in others))
