"""The interface of a structured criterion: heads or channels of a sub-layer go, its width nests.

A sub-layer is attention or an MLP. Its items are query heads or channels; they lie in groups, one
for each key-value head, or a single one. A width says how many groups stay, and how many items in
each of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from evocompress.compression.criteria.base import Statistics
from evocompress.compression.criteria.masks import ranks
from evocompress.core.errors import LibraryError

Width = tuple[int, int]
"""(groups kept, items kept in each of them); for an MLP (1, channels kept)."""

StructuredNeeds = Literal["gram", "squares", "sums", "magnitudes", "gradients"]


@dataclass(frozen=True, eq=False)
class Structure:
    """One sub-layer as a criterion sees it; all tensors float32.

    Attributes:
        output: The matrix that reads the items, (out, items·size).
        size: Its columns for one item: 1 for a channel, the head's dimension for a query head.
        groups: Key-value heads, or 1 for an MLP; each has as many consecutive items.
        inputs: Matrices whose rows belong to items, (items·size, in): gate and up, or query.
        shared: Matrices whose rows belong to groups, (groups·size, in): key and value.
        gradients: Of the loss, of output, inputs and shared in this order; empty where no
            criterion needs them.
        bias: The output matrix's own, (out,).

    Examples:
        >>> Structure(output=torch.ones(4, 6), size=1, groups=1).full
        (1, 6)
    """

    output: Tensor
    size: int
    groups: int
    inputs: tuple[Tensor, ...] = ()
    shared: tuple[Tensor, ...] = ()
    gradients: tuple[Tensor, ...] = ()
    bias: Tensor | None = None

    @property
    def items(self) -> int:
        """Query heads or channels of the sub-layer."""
        return self.output.shape[1] // self.size

    @property
    def full(self) -> Width:
        """The width at which nothing is cut."""
        return self.groups, self.items // self.groups

    def columns(self, items: Tensor) -> Tensor:
        """Columns of the output matrix (n·size,) that belong to items (n,)."""
        within = torch.arange(self.size, device=items.device)
        return (items[:, None] * self.size + within).flatten()

    def keep(self, items: Tensor) -> Cut:
        """The cut that keeps items (n,), ascending, and changes no weight."""
        groups = torch.unique(items // self.full[1])
        return Cut(groups, items, self.output[:, self.columns(items)], self.bias)


@dataclass(frozen=True, eq=False)
class Cut:
    """A sub-layer at one width.

    Attributes:
        groups: Groups kept, int64, ascending.
        items: Items kept, numbered over the whole sub-layer, int64, ascending.
        weight: The output matrix, (out, items kept·size) float32.
        bias: Its bias (out,): the own one and what a criterion adds; ``None`` without either.

    Examples:
        >>> cut = Structure(torch.ones(4, 6), size=1, groups=1).keep(torch.tensor([0, 5]))
        >>> cut.items, tuple(cut.weight.shape)
        (tensor([0, 5]), (4, 2))
    """

    groups: Tensor
    items: Tensor
    weight: Tensor
    bias: Tensor | None


CutAll = Callable[[Structure, Statistics, Sequence[Width]], list[Cut]]


@dataclass(frozen=True)
class StructuredCriterion:
    """One way to choose the heads or channels that stay, and to update the output matrix.

    Attributes:
        needs: What it reads beside the weights: statistics of the output matrix's inputs
            (``squares`` is the diagonal of ``gram``), or gradients.
        adds_bias: Narrow cuts have a bias even where the output matrix has none.
        cut: ``cut(structure, statistics, widths)`` gives one cut for each width, in order, and
            leaves its arguments alone; at full width that is the dense matrix. Widths nest: of
            two, the one with fewer groups keeps some of the other's groups; with as many
            groups, or all items in each, the smaller keeps some of the other's items.

    Examples:
        >>> from evocompress.compression.criteria import STRUCTURED
        >>> STRUCTURED["flap"].adds_bias, sorted(STRUCTURED["flap"].needs)
        (True, ['squares', 'sums'])
    """

    needs: frozenset[StructuredNeeds]
    adds_bias: bool
    cut: CutAll


def check_widths(structure: Structure, widths: Sequence[Width]) -> None:
    """Refuse widths that a sub-layer cannot have.

    Raises:
        LibraryError: A width keeps nothing, or more than there is.
    """
    groups, items = structure.full
    for width in widths:
        if not (1 <= width[0] <= groups and 1 <= width[1] <= items):
            raise LibraryError(
                f"width {width} is impossible for a sub-layer of {groups} groups of {items}: "
                f"keep 1 to {groups} groups and 1 to {items} heads or channels in each"
            )


def cut_by_scores(
    structure: Structure, widths: Sequence[Width], items: Tensor, shared: Tensor | None = None
) -> list[Cut]:
    """Cut to the highest scores and leave the weights that stay alone.

    Groups are ranked by the sum over their items (items,) and the score of what these share
    (groups,); within each group its items are ranked. Of equal scores the later one stays.

    Raises:
        LibraryError: A width is impossible, or a score is not finite.
    """
    check_widths(structure, widths)
    table = items.view(structure.full)
    totals = table.sum(1) if shared is None else table.sum(1) + shared
    if not bool(totals.isfinite().all()):
        raise LibraryError(
            "the scores of a sub-layer are not finite: load the model in bfloat16 or float32"
        )
    group_order, item_order = ranks(totals), ranks(table)

    def kept(width: Width) -> Tensor:
        gone_groups, gone_items = structure.groups - width[0], table.shape[1] - width[1]
        mask = (group_order >= gone_groups)[:, None] & (item_order >= gone_items)
        return mask.flatten().nonzero().flatten()

    return [structure.keep(kept(width)) for width in widths]


def by_part(rows: Sequence[Tensor], parts: int) -> Tensor:
    """Sums over all tensors (parts·n,), each with an n of its own, by part: (parts,)."""
    return torch.stack([row.view(parts, -1).sum(1) for row in rows]).sum(0)
