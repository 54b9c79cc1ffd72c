"""The contract of a structured criterion: what every entry of `STRUCTURED` must keep.

Each function checks one clause on one kind of sub-layer and raises ``AssertionError`` where it is
broken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor

from evocompress.compression.criteria.base import Statistics
from evocompress.compression.criteria.structure import Cut, Structure, StructuredCriterion, Width
from evocompress.core.errors import LibraryError

OUT, IN, SEQUENCES, LENGTH = 14, 10, 4, 60


@dataclass(frozen=True)
class Shape:
    """A kind of sub-layer.

    Attributes:
        groups: Key-value heads, or 1.
        items: Query heads or channels of each group.
        size: Columns of an item.
        bias: Whether the output matrix has a bias.
    """

    groups: int
    items: int
    size: int
    bias: bool = False

    @property
    def widths(self) -> list[Width]:
        """Every width there is, the full one first."""
        return list(product(range(self.groups, 0, -1), range(self.items, 0, -1)))


SHAPES = {
    "mlp": Shape(1, 40, 1),
    "mlp with bias": Shape(1, 40, 1, bias=True),
    "gqa": Shape(2, 4, 6),
    "gqa with bias": Shape(3, 2, 6, bias=True),
    "mha": Shape(5, 1, 6),
    "mqa": Shape(1, 5, 6),
}
"""Kinds of sub-layers that a criterion must take."""


@dataclass(frozen=True, eq=False)
class Example:
    """A random sub-layer with everything that a criterion may read.

    Attributes:
        structure: The sub-layer, with gradients.
        inputs: What the output matrix reads, (sequences, length, items·size).
    """

    structure: Structure
    inputs: Tensor

    @property
    def statistics(self) -> Statistics:
        """Of the inputs."""
        rows = self.inputs.flatten(0, 1)
        return Statistics(
            gram=rows.T @ rows,
            sequences=len(self.inputs),
            tokens=len(rows),
            sums=rows.sum(0),
            magnitudes=self.inputs.abs().mean(1).norm(dim=0),
        )

    def cut(self, criterion: StructuredCriterion, widths: Sequence[Width]) -> list[Cut]:
        """Cuts of the sub-layer."""
        return criterion.cut(self.structure, self.statistics, widths)


def structured_example(shape: Shape, seed: int = 0) -> Example:
    """A random sub-layer whose inputs are correlated, of different size, and not centred."""
    generator = torch.Generator().manual_seed(seed)

    def random(*sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=generator)

    columns = shape.groups * shape.items * shape.size
    mixing = (torch.eye(columns) + random(columns, columns) / columns**0.5) * random(columns).exp()
    inputs = random(SEQUENCES, LENGTH, columns) @ mixing + random(columns)
    mlp = shape.size == 1
    output = random(OUT, columns)
    rows = tuple(random(columns, IN) for _ in range(2 if mlp else 1))
    shared = tuple(random(shape.groups * shape.size, IN) for _ in range(0 if mlp else 2))
    gradients = tuple(random(*matrix.shape) for matrix in (output, *rows, *shared))
    bias = random(OUT) if shape.bias else None
    structure = Structure(output, shape.size, shape.groups, rows, shared, gradients, bias)
    return Example(structure, inputs)


def reordered(example: Example, order: Tensor) -> Example:
    """The same sub-layer with, at each new place, the item of `order`; groups stay together."""
    structure = example.structure
    groups = order.view(structure.full)[:, 0] // structure.full[1]
    columns, rows = structure.columns(order), structure.columns(groups)
    split = 1 + len(structure.inputs)
    moved = replace(
        structure,
        output=structure.output[:, columns],
        inputs=tuple(matrix[columns] for matrix in structure.inputs),
        shared=tuple(matrix[rows] for matrix in structure.shared),
        gradients=(
            structure.gradients[0][:, columns],
            *(gradient[columns] for gradient in structure.gradients[1:split]),
            *(gradient[rows] for gradient in structure.gradients[split:]),
        ),
    )
    return Example(moved, example.inputs[..., columns])


def silenced(example: Example, items: Sequence[int], groups: Sequence[int] = ()) -> Example:
    """The same sub-layer with items, or whole groups, that do nothing and hear nothing."""
    structure = example.structure
    whole = [item for item in range(structure.items) if item // structure.full[1] in groups]
    columns = structure.columns(torch.tensor([*items, *whole], dtype=torch.int64))
    rows = structure.columns(torch.tensor(groups, dtype=torch.int64))
    quiet = replace(
        structure,
        output=structure.output.index_fill(1, columns, 0),
        inputs=tuple(matrix.index_fill(0, columns, 0) for matrix in structure.inputs),
        shared=tuple(matrix.index_fill(0, rows, 0) for matrix in structure.shared),
    )
    return Example(quiet, example.inputs.index_fill(2, columns, 0))


def check_shapes(criterion: StructuredCriterion, shape: Shape) -> None:
    """Every width keeps its exact counts, in ascending order, and has finite float32 weights."""
    example = structured_example(shape)
    for (groups, items), cut in _by_width(criterion, shape, example).items():
        owners, counts = torch.unique_consecutive(cut.items // shape.items, return_counts=True)
        assert cut.groups.dtype == cut.items.dtype == torch.int64
        assert torch.equal(owners, cut.groups) and len(owners) == groups
        assert bool((counts == items).all()), f"{counts.tolist()} items instead of {items}"
        assert bool((cut.groups.diff() > 0).all()) and bool((cut.items.diff() > 0).all())
        assert cut.weight.shape == (OUT, groups * items * shape.size)
        assert cut.weight.dtype == torch.float32 and bool(cut.weight.isfinite().all())


def check_widths_nest(criterion: StructuredCriterion, shape: Shape) -> None:
    """A smaller width keeps a part of what a larger one keeps."""
    cuts = _by_width(criterion, shape, structured_example(shape))
    for (groups, items), cut in cuts.items():
        for (fewer, less), other in cuts.items():
            if fewer <= groups:
                assert _part(other.groups, cut.groups)
            if less <= items and (fewer == groups or fewer < groups and items == shape.items):
                assert _part(other.items, cut.items), f"{fewer, less} in {groups, items}"


def check_full_width_is_dense(criterion: StructuredCriterion, shape: Shape) -> None:
    """At full width nothing changes, wherever it stands among the widths."""
    example = structured_example(shape)
    structure, widths = example.structure, shape.widths
    for place in (0, len(widths) // 2, len(widths)):
        cut = example.cut(criterion, [*widths[:place], structure.full, *widths[place:]])[place]
        assert torch.equal(cut.items, torch.arange(structure.items))
        assert torch.equal(cut.weight, structure.output)
        assert _same_bias(cut.bias, structure.bias)


def check_bias(criterion: StructuredCriterion, shape: Shape) -> None:
    """A narrow cut has a bias where there was one or the criterion adds one, else none."""
    example = structured_example(shape)
    own = example.structure.bias
    for width, cut in _by_width(criterion, shape, example).items():
        if criterion.adds_bias and width != example.structure.full:
            assert cut.bias is not None and cut.bias.shape == (OUT,)
            assert not _same_bias(cut.bias, own)
        else:
            assert _same_bias(cut.bias, own)


def check_idle_items_go_first(criterion: StructuredCriterion, shape: Shape) -> None:
    """In each group an item that does nothing and reads nothing is the first to go."""
    if shape.items > 1:
        idle = [group * shape.items + group % shape.items for group in range(shape.groups)]
        example = silenced(structured_example(shape), idle)
        (cut,) = example.cut(criterion, [(shape.groups, shape.items - 1)])
        assert not set(idle) & set(cut.items.tolist()), "an idle item was kept"
        kept = example.structure.output[:, example.structure.columns(cut.items)]
        torch.testing.assert_close(cut.weight, kept, rtol=1e-5, atol=1e-5)


def check_idle_groups_go_first(criterion: StructuredCriterion, shape: Shape) -> None:
    """A group that does nothing and reads nothing is the first to go."""
    if shape.groups > 1:
        example = silenced(structured_example(shape), [], groups=[1])
        (cut,) = example.cut(criterion, [(shape.groups - 1, shape.items)])
        assert 1 not in cut.groups.tolist(), "an idle group was kept"


def check_order_does_not_matter(criterion: StructuredCriterion, shape: Shape) -> None:
    """The same items stay, with the same weights, in whatever order they are stored."""
    example = structured_example(shape)
    generator = torch.Generator().manual_seed(1)
    table = torch.arange(example.structure.items).view(shape.groups, shape.items)
    table = table[torch.randperm(shape.groups, generator=generator)]
    order = table[:, torch.randperm(shape.items, generator=generator)].flatten()
    moved = _by_width(criterion, shape, reordered(example, order))
    for width, cut in _by_width(criterion, shape, example).items():
        items, places = order[moved[width].items].sort()
        assert torch.equal(items, cut.items), f"{width}: other items stay"
        weight = moved[width].weight.view(OUT, -1, shape.size)[:, places].flatten(1)
        torch.testing.assert_close(weight, cut.weight, rtol=1e-3, atol=1e-4)


def check_widths_are_independent(criterion: StructuredCriterion, shape: Shape) -> None:
    """A cut does not depend on which other widths are made in the same pass."""
    example = structured_example(shape)
    for width, together in _by_width(criterion, shape, example).items():
        (alone,) = example.cut(criterion, [width])
        assert torch.equal(alone.items, together.items), f"{width}: other items alone"
        torch.testing.assert_close(alone.weight, together.weight, rtol=1e-4, atol=1e-5)


def check_arguments_are_left_alone(criterion: StructuredCriterion, shape: Shape) -> None:
    """Neither the sub-layer nor its statistics are changed."""
    example, twin = structured_example(shape), structured_example(shape)
    statistics = example.statistics
    criterion.cut(example.structure, statistics, shape.widths)
    assert torch.equal(example.structure.output, twin.structure.output)
    for name in ("gram", "sums", "magnitudes"):
        assert torch.equal(getattr(statistics, name), getattr(twin.statistics, name)), name


def check_impossible_widths_are_refused(criterion: StructuredCriterion, shape: Shape) -> None:
    """Nothing kept, or more than there is, is an error in one line."""
    example = structured_example(shape)
    groups, items = example.structure.full
    for width in ((0, items), (groups, 0), (groups + 1, items), (groups, items + 1)):
        assert "is impossible" in _refusal(criterion, example, width), f"{width} was made"


def _refusal(criterion: StructuredCriterion, example: Example, width: Width) -> str:
    try:
        example.cut(criterion, [example.structure.full, width])
    except LibraryError as error:
        return str(error)
    return ""


def _by_width(criterion: StructuredCriterion, shape: Shape, example: Example) -> dict[Width, Cut]:
    return dict(zip(shape.widths, example.cut(criterion, shape.widths), strict=True))


def _part(smaller: Tensor, larger: Tensor) -> bool:
    return bool(torch.isin(smaller, larger).all())


def _same_bias(one: Tensor | None, other: Tensor | None) -> bool:
    return one is other if one is None or other is None else torch.equal(one, other)


STRUCTURED_CHECKS = (
    check_shapes,
    check_widths_nest,
    check_full_width_is_dense,
    check_bias,
    check_idle_items_go_first,
    check_idle_groups_go_first,
    check_order_does_not_matter,
    check_widths_are_independent,
    check_arguments_are_left_alone,
    check_impossible_widths_are_refused,
)
"""The whole contract."""
