"""The linear matrices of a sub-layer, and which heads or channels their rows and columns are.

What the rows of an attention's projections are is found by changing them: a query matters to its
own token only; values enter linearly; the rest are keys.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from evocompress.core.types import Axis
from evocompress.core.widths import Widths
from evocompress.models.families.branches import Matrix
from evocompress.models.families.coupling import Follower, ungrouped
from evocompress.models.families.derivation.residual_branch import ResidualBranch
from evocompress.models.families.derivation.stream import LINEAR
from evocompress.models.families.derivation.tracing import (
    TracedBlock,
    moved_positions,
    output_changed,
)

TOKEN = 4
"""A position in the middle of the sequences that are tried."""


def matrices(example: TracedBlock, branch: ResidualBranch) -> list[Matrix]:
    """The linear modules of a sub-layer in the order of computation, without their axes."""
    linear = [
        path
        for core in branch.cores
        for path, module in example.block.get_submodule(core).named_modules(prefix=core)
        if isinstance(module, LINEAR)
    ]
    inputs: list[tuple[Tensor, str]] = []
    found = []
    for path, call in example.calls(linear).items():
        given = call.tensors[0]
        word = next((word for other, word in inputs if same(other, given)), None)
        if word is None:
            word = f"{branch.kind}_in" if not inputs else f"{path}.in"
            inputs.append((given, word))
        stored_otherwise = isinstance(example.block.get_submodule(path), Conv1D)
        found.append(Matrix(path, branch.kind, word, transposed=stored_otherwise))
    return found


def same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are one, or have the same values."""
    return one is other or (one.shape == other.shape and torch.equal(one, other))


def with_channels(example: TracedBlock, found: Sequence[Matrix]) -> list[Matrix] | None:
    """The matrices of an MLP by channel; ``None`` where it is no plain or gated one."""
    if not _two_steps(found):
        return None
    *first, last = found
    channels = oriented_shape(example, last)[1]
    times = [oriented_shape(example, matrix)[0] / channels for matrix in first]
    if any(count not in (1, 2) for count in times):
        return None
    channel: tuple[Axis, ...] = ("channel",)
    rows = [channel * int(count) for count in times]
    return [
        *(replace(matrix, rows=axes) for matrix, axes in zip(first, rows, strict=True)),
        replace(last, columns=("channel",), input="mlp_out"),
    ]


PACKED: tuple[Axis, ...] = ("query", "key", "value")
GROUPED: tuple[Axis, ...] = ("grouped",)


def with_heads(
    example: TracedBlock, found: Sequence[Matrix], heads: int, kv_heads: int, head_dim: int
) -> list[Matrix] | None:
    """The matrices of an attention by head; ``None`` where it is built otherwise."""
    if not heads or len(found) < 2 or oriented_shape(example, found[-1])[1] % heads:
        return None
    *first, last = found
    widths = Widths(heads, kv_heads, head_dim, 0)
    rows = [_rows(example, matrix, last, widths) for matrix in first]
    every = {axis for axes in rows for axis in axes}
    # A single key-value head is never cut, so it may be that of another block.
    lone = kv_heads == 1 and every == {"query"}
    both = "query" in every and bool(every & {"key", "value"})
    if not (both or "grouped" in every or lone):
        return None
    return [
        *(replace(matrix, rows=axes) for matrix, axes in zip(first, rows, strict=True)),
        replace(last, columns=("query",), input="attention_out"),
    ]


def _two_steps(found: Sequence[Matrix]) -> bool:
    """Whether all matrices but the last one read the same."""
    words = [matrix.input for matrix in found]
    return len(words) > 1 and set(words[:-1]) == {words[0]} and words[-1] != words[0]


def _rows(example: TracedBlock, matrix: Matrix, last: Matrix, widths: Widths) -> tuple[Axis, ...]:
    """What the rows of a projection are, one part after the other; empty if that is unclear."""
    size, lengths = widths.head_dim, widths.lengths
    every = oriented_shape(example, matrix)[0]

    def roles(parts: Iterable[Tensor]) -> tuple[Axis, ...]:
        return tuple(role(example, matrix, last, rows.flatten(), widths) for rows in parts)

    if every == size * lengths["grouped"]:
        in_parts = torch.split(torch.arange(every), [size * lengths[axis] for axis in PACKED])
        if roles(in_parts) == PACKED:
            return PACKED
        in_groups = ungrouped(torch.arange(every)[:, None], widths.kv_heads, size)
        if roles(in_groups) == PACKED:
            return GROUPED
    (only,) = roles([torch.arange(every)])
    if size * lengths[only] == every:
        return (only,)
    module = example.block.get_submodule(matrix.path)
    # Where queries share one, what has rows for each query head need not be a query.
    finest = ("query",) if widths.heads > widths.kv_heads else ()
    for axis in dict.fromkeys((*finest, only, *PACKED)):
        first = torch.arange(every) < every // lengths[axis]
        if every % lengths[axis] == 0 and _is_of_first(
            example, last, widths, axis, partial(output_changed, module, partial(grown, first))
        ):
            return (axis,)
    return ()


def followers(
    example: TracedBlock, branch: ResidualBranch, last: Matrix, widths: Widths
) -> tuple[Follower, ...]:
    """The parameters of an attention, beside its matrices, with values for each head."""
    core = branch.core[0]
    linear = [
        f"{path}."
        for path, module in example.block.get_submodule(core).named_modules(prefix=core)
        if isinstance(module, LINEAR)
    ]
    found = []
    for path, parameter in example.block.get_submodule(core).named_parameters(prefix=core):
        for axis in ("query", "key") if not path.startswith(tuple(linear)) else ():
            each, rest = divmod(len(parameter), widths.lengths[axis])
            change = partial(_first_grown, parameter, each)
            if (
                not rest
                and each in (1, widths.head_dim)
                and _is_of_first(example, last, widths, axis, change)
            ):
                found.append(Follower(path, axis))
                break
    return tuple(found)


def _is_of_first(
    example: TracedBlock,
    last: Matrix,
    widths: Widths,
    axis: Axis,
    change: Callable[[], AbstractContextManager[None]],
) -> bool:
    """Whether a change moves what the first head of an axis yields, and only that."""
    with change():
        changed = given_to(example, last)
    plain = given_to(example, last)
    before, after = (one.view(one.shape[1], widths.heads, -1) for one in (plain, changed))
    own = widths.heads // widths.lengths[axis]
    return moved_positions(before, after) == [True] * own + [False] * (widths.heads - own)


def given_to(example: TracedBlock, matrix: Matrix) -> Tensor:
    """What a matrix reads (1, S, C); some classes give it (S, 1, C)."""
    given = example.calls([matrix.path])[matrix.path].tensors[0]
    return given.transpose(0, 1) if given.shape[:2] == example.hidden.shape[1::-1] else given


def grown(rows: Tensor, output: Tensor) -> Tensor:
    """An output (..., R) with other values in some rows."""
    return torch.where(rows, 1.5 * output + 0.5, output)


@contextmanager
def _first_grown(parameter: nn.Parameter, count: int) -> Iterator[None]:
    """A parameter with other first values for a while."""
    former = parameter.data
    parameter.data = former.clone()
    parameter.data[:count] += 0.5
    try:
        yield
    finally:
        parameter.data = former


def role(example: TracedBlock, matrix: Matrix, last: Matrix, rows: Tensor, widths: Widths) -> Axis:
    """Whether some rows of a projection are queries, keys or values, by what they change.

    Values may be normed, and keys may compete with sinks: then both matter at the first token, but
    keys only to how long a head's output is.
    """
    module = example.block.get_submodule(matrix.path)
    ones = torch.ones(oriented_shape(example, matrix)[0], dtype=torch.float64)
    direction = torch.linspace(-0.5, 0.5, len(rows), dtype=torch.float64)

    def after(factor: float, tokens: slice) -> Tensor:
        def scaled(output: Tensor) -> Tensor:
            other = output.clone()
            other[..., tokens, :] *= ones.index_copy(0, rows, 1 + factor * direction)
            return other

        with output_changed(module, scaled):
            return given_to(example, last)

    everywhere, one, first = slice(None), slice(TOKEN, TOKEN + 1), slice(1)
    plain = after(0.0, everywhere)
    if not any(moved_positions(plain, after(1.0, one))[TOKEN + 1 :]):
        return "query"
    steps = after(1.0, everywhere) - plain, plain - after(-1.0, everywhere)
    if torch.allclose(*steps, rtol=1e-6, atol=1e-9):
        return "value"
    if any(moved_positions(plain, after(1.0, slice(-1, None)))[:-1]):
        return "key"  # tokens see those behind them, and no values of those classes are normed
    before, other = (one[0, 0].view(widths.heads, -1) for one in (plain, after(1.0, first)))
    likeness = torch.cosine_similarity(before, other, dim=-1)
    return "key" if torch.allclose(likeness, torch.ones_like(likeness), rtol=1e-9) else "value"


def oriented_shape(example: TracedBlock, matrix: Matrix) -> tuple[int, int]:
    """(out, in) of a matrix, whatever order the module stores."""
    rows, columns = example.block.get_parameter(f"{matrix.path}.weight").shape
    return (columns, rows) if matrix.transposed else (rows, columns)
