"""Structured optimal brain surgeon: heads and channels go one by one, the rest makes good.

The method of ZipLM (Kurtic et al. 2023, 2302.04089) as DarwinLM uses it (2502.07780): of the items
S that are left, remove the one whose removal, with the best update of all other columns, changes
the output least; then update the weights and the inverse Hessian, and score again.

All widths come out of one pass with snapshots. Scores need, beside the inverse Hessian K, only the
products WᵀW of the columns of the weights with each other, so these are carried along. Channels are
chosen one by one from rank-one updates of the two diagonals, and the matrices themselves follow a
block of channels at a time.

```yaml
library: {width_criterion: obs_structured}
space: {width: {multiple_of: 32}, budget: {params: 0.8}}
```
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evocompress.compression.criteria.base import Statistics
from evocompress.compression.criteria.structure import Cut, Structure, Width, check_widths
from evocompress.core.errors import LibraryError

BLOCK = 256
"""Channels between two updates of the whole matrices."""


def cut(structure: Structure, statistics: Statistics, widths: Sequence[Width]) -> list[Cut]:
    """Remove groups, then items within those that are left, and update the output matrix.

    Groups go one by one, whole, down to each number asked for. From there one item of each
    group goes in every round, the cheapest first, so that all groups keep as many. Inputs that
    are always zero cost nothing.

    Raises:
        LibraryError: A width is impossible, or the statistics are unusable.
        ValueError: The statistics have no Gram matrix.
    """
    check_widths(structure, widths)
    everything = torch.arange(structure.items, device=structure.output.device)
    cuts = {structure.full: structure.keep(everything)}
    narrow = set(widths) - {structure.full}
    if narrow:
        cuts |= _snapshots(structure, _begin(structure, statistics), narrow)
    return [cuts[width] for width in widths]


@dataclass(frozen=True, eq=False)
class _State:
    """What is left of a sub-layer.

    Attributes:
        columns: Which columns of the dense output matrix, (n,), ascending.
        weight: These, updated, (out, n).
        inverse: K, the inverse Hessian of their inputs, (n, n).
        products: WᵀW, (n, n); zero for inputs that are always zero.
    """

    columns: Tensor
    weight: Tensor
    inverse: Tensor
    products: Tensor

    def without(self, gone: Tensor) -> _State:
        """The state without columns S at positions (s,), the others updated.

        W −= W_S·A, K −= K_S,:ᵀ·A and WᵀW −= AᵀB + BᵀA, where A = K_SS⁻¹·K_S,: and
        B = (WᵀW)_S,: − ½·(WᵀW)_SS·A.
        """
        mask = torch.ones_like(self.columns, dtype=torch.bool)
        mask[gone] = False
        stay = mask.nonzero().flatten()
        rows, products = self.inverse[gone], self.products[gone]
        update = torch.cholesky_solve(rows[:, stay], _lower(rows[:, gone]))
        cross = products[:, stay].addmm_(products[:, gone], update, alpha=-0.5)
        return _State(
            self.columns[stay],
            self.weight[:, stay].addmm_(self.weight[:, gone], update, alpha=-1),
            _square(self.inverse, stay).addmm_(rows[:, stay].T, update, alpha=-1),
            _square(self.products, stay)
            .addmm_(update.T, cross, alpha=-1)
            .addmm_(cross.T, update, alpha=-1),
        )


def _begin(structure: Structure, statistics: Statistics) -> _State:
    factor = statistics.factor
    weight = structure.output
    alive = torch.where(factor.dead, 0.0, weight)
    return _State(
        torch.arange(weight.shape[1], device=weight.device),
        weight,
        factor.inverse,
        alive.T @ alive,
    )


def _square(matrix: Tensor, stay: Tensor) -> Tensor:
    # One index for both dimensions makes no copy in between.
    return matrix[stay[:, None], stay]


def _lower(blocks: Tensor) -> Tensor:
    """Cholesky factors of blocks of the inverse Hessian, (..., s, s)."""
    lower: Tensor
    lower, failures = torch.linalg.cholesky_ex(blocks)
    if bool(failures.any()):
        raise LibraryError(
            "an inverse Hessian lost its positive definiteness by rounding: raise library.damping"
        )
    return lower


def _snapshots(
    structure: Structure, state: _State, widths: set[Width]
) -> Iterator[tuple[Width, Cut]]:
    """Each width with its cut, from many groups to few and from many items to few."""
    for groups in sorted({groups for groups, _ in widths}, reverse=True):
        state = _fewer_groups(state, structure, groups)
        branch = state
        for items in sorted({items for count, items in widths if count == groups}, reverse=True):
            branch = _fewer_items(branch, structure, (groups, items))
            yield (groups, items), _as_cut(branch, structure)


def _as_cut(state: _State, structure: Structure) -> Cut:
    items = _items(state, structure)
    return Cut(torch.unique(_owners(items, structure)), items, state.weight, structure.bias)


def _items(state: _State, structure: Structure) -> Tensor:
    """The items that are left, (items,)."""
    return state.columns[:: structure.size] // structure.size


def _owners(items: Tensor, structure: Structure) -> Tensor:
    """The group of each item."""
    return items // structure.full[1]


def _fewer_groups(state: _State, structure: Structure, groups: int) -> _State:
    size = structure.full[1] * structure.size
    while len(state.columns) > groups * size:
        state = state.without(_span(_losses(state, size).argmin(), size))
    return state


def _fewer_items(state: _State, structure: Structure, width: Width) -> _State:
    target = width[0] * width[1] * structure.size
    while (excess := len(state.columns) - target) > 0:
        if structure.groups == structure.size == 1:
            state = state.without(_cheapest_columns(state, min(BLOCK, excess)))
        else:
            state = _round(state, structure)
    return state


def _round(state: _State, structure: Structure) -> _State:
    """One item of each group goes, the cheapest of all first."""
    waiting = torch.unique(_owners(_items(state, structure), structure))
    while len(waiting):
        owners = _owners(_items(state, structure), structure)
        losses = _losses(state, structure.size)
        losses[~torch.isin(owners, waiting)] = torch.inf
        cheapest = losses.argmin()
        waiting = waiting[waiting != owners[cheapest]]
        state = state.without(_span(cheapest, structure.size))
    return state


def _span(index: Tensor, size: int) -> Tensor:
    """Positions of the columns of an item or group."""
    return index * size + torch.arange(size, device=index.device)


def _losses(state: _State, size: int) -> Tensor:
    """tr(W_S·K_SS⁻¹·W_Sᵀ) of each run of `size` columns, (n/size,)."""
    inverse, products = _diagonal(state.inverse, size), _diagonal(state.products, size)
    solved = torch.cholesky_solve(products, _lower(inverse))
    return solved.diagonal(dim1=1, dim2=2).sum(1)


def _diagonal(matrix: Tensor, size: int) -> Tensor:
    """The blocks on the diagonal, (n/size, size, size)."""
    count = len(matrix) // size
    blocks = matrix.view(count, size, count, size)
    return blocks.diagonal(dim1=0, dim2=2).permute(2, 0, 1)


def _cheapest_columns(state: _State, count: int) -> Tensor:
    """Positions (count,) of the columns that go next if one goes after the other.

    With a = K_j,:/K_jj and b = (WᵀW)_j,: − ½·(WᵀW)_jj·a, removing column j makes
    K − K_jj·aᵀa and WᵀW − aᵀb − bᵀa. Only the diagonals are kept up to date; the row of a
    column is put together when its turn comes.
    """
    inverse, products = state.inverse.diagonal().clone(), state.products.diagonal().clone()
    updates, crosses = inverse.new_empty(2, count, len(inverse))
    pivots, chosen = inverse.new_empty(count), state.columns.new_empty(count)
    losses = torch.empty_like(inverse)
    for step in range(count):
        torch.div(products, inverse, out=losses)
        # Assigned by index, the number would be copied to a GPU, which is waited for.
        losses.index_fill_(0, chosen[:step], torch.inf)
        # A number that is read here would be waited for, channel after channel, by a GPU.
        column = losses.argmin().view(1)
        before, after = updates[:step], crosses[:step]
        ours, theirs = before.index_select(1, column)[:, 0], after.index_select(1, column)[:, 0]
        row = state.inverse.index_select(0, column)[0] - (ours * pivots[:step]) @ before
        cross = state.products.index_select(0, column)[0] - ours @ after - theirs @ before
        pivot, weight = row.index_select(0, column), cross.index_select(0, column)
        chosen[step : step + 1], pivots[step : step + 1] = column, pivot
        update = torch.div(row, pivot, out=updates[step])
        torch.addcmul(cross, update, weight, value=-0.5, out=crosses[step])
        inverse.addcmul_(update, row, value=-1)
        products.addcmul_(update, crosses[step], value=-2)
    return chosen
