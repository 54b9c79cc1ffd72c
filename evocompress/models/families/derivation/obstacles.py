"""Why a sub-layer cannot be made narrower, as far as that is seen in how its class computes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial

import torch
from torch import Tensor
from torch.nn.modules.conv import _ConvNd

from evocompress.core.types import Axis
from evocompress.core.widths import Widths
from evocompress.models.families.branches import Matrix
from evocompress.models.families.coupling import Kept, index_of
from evocompress.models.families.derivation.projections import (
    given_to,
    grown,
    oriented_shape,
    role,
    same,
)
from evocompress.models.families.derivation.residual_branch import ResidualBranch
from evocompress.models.families.derivation.stream import is_norm
from evocompress.models.families.derivation.tracing import (
    TracedBlock,
    moved_positions,
    output_changed,
)

NAMES: Mapping[Axis, str] = {"query": "queries", "key": "keys", "value": "values"}


def obstacle(
    example: TracedBlock,
    branch: ResidualBranch,
    linear: Sequence[Matrix],
    widths: Widths,
    *,
    known: bool,
    cached: int | None,
) -> str:
    """What may be the reason that a narrower sub-layer is not the silenced one.

    Args:
        example: With the sub-layer.
        branch: The sub-layer.
        linear: Its matrices.
        widths: Its heads, if it is an attention.
        known: Whether the matrices are known by head or channel.
        cached: How many values are cached of a token; ``None`` where that is not told.
    """
    core = branch.core[0]
    if branch.kind == "mlp":
        channels = oriented_shape(example, linear[-1])[1] if linear else 0
        reasons = _joint_norms(example, branch, linear, (channels,), "channels")
    else:
        reasons = _of_attention(example, branch, linear, widths, known=known, cached=cached)
    if reason := next(reasons, ""):
        return reason
    if known:
        return f"a narrower {core} is not the silenced one"
    return f"{', '.join(matrix.path for matrix in linear)} are built otherwise than supported"


def _of_attention(
    example: TracedBlock,
    branch: ResidualBranch,
    linear: Sequence[Matrix],
    widths: Widths,
    *,
    known: bool,
    cached: int | None,
) -> Iterator[str]:
    """The reasons why heads cannot be cut."""
    core, size = branch.core[0], widths.head_dim
    every = (widths.heads * size, widths.kv_heads * size)
    yield from _joint_norms(example, branch, linear, every, "heads")
    for name, value in example.calls([core])[core].arguments.items():
        if isinstance(value, Tensor) and widths.heads in value.shape[:-1]:
            yield f"{core} is given {name}, which has values for each head and is made for all"
    if known:
        between = [matrix.path for matrix in linear[:-1] if matrix.input != linear[0].input]
        through = f", through {', '.join(between)}" if between else ""
        if _depends_on_others(example, linear, widths):
            yield f"what a head of {core} yields depends on the other heads{through}"
    elif cached == 0:
        yield f"{core} keeps a state of its own, and no keys and values of heads"
    if branch.beside:
        others = ", ".join(other.core[0] for other in branch.beside)
        yield f"{core} mixes tokens in other ways beside {others}, and both read the same"
    for path, module in example.block.get_submodule(core).named_modules(prefix=core):
        shapes = [one.shape for one in module.parameters(recurse=False)] if not known else []
        if shapes and isinstance(module, _ConvNd):
            yield f"{path} mixes tokens by a convolution"
        elif any(len(shape) == 3 for shape in shapes):
            yield f"{path} holds a matrix of each expert, which makes queries of its own tokens"
    packed = widths.lengths["grouped"] * size
    for matrix in linear if not known else ():
        if oriented_shape(example, matrix)[0] == packed:
            yield _packed_otherwise(example, matrix, linear[-1], widths)


def _packed_otherwise(example: TracedBlock, matrix: Matrix, last: Matrix, widths: Widths) -> str:
    """How a matrix holds queries, keys and values that are neither all together nor by head."""
    rows = torch.arange(oriented_shape(example, matrix)[0])
    for count in range(2, widths.heads + 1) if widths.heads == widths.kv_heads else ():
        if widths.heads % count:
            continue
        in_parts = rows.view(count, 3, -1).unbind(1)
        words = [role(example, matrix, last, part.flatten(), widths) for part in in_parts]
        if len({*words}) == len(words):
            order = " before ".join(NAMES[word] for word in words)
            return (
                f"{matrix.path} holds {count} parts, in each {order} of as many heads: its class "
                "splits it by their number, so that a head could only go with one of every other "
                "part, and widths are of single heads"
            )
    where = "neither one after the other nor head by head"
    return f"{matrix.path} holds queries, keys and values {where}"


def _joint_norms(
    example: TracedBlock,
    branch: ResidualBranch,
    linear: Sequence[Matrix],
    sizes: Sequence[int],
    what: str,
) -> Iterator[str]:
    """The norms between the matrices with as many weights as all heads or channels have."""
    core = branch.core[0]
    for path, module in example.block.get_submodule(core).named_modules(prefix=core):
        own = [tuple(one.shape) for one in module.parameters()] if is_norm(module) else []
        if own and own[0] in ((size,) for size in sizes):
            calls = example.calls([path, linear[0].path])
            read = calls[linear[0].path].tensors[0]
            if path not in calls or not same(calls[path].first, read):
                yield f"{path}.weight norms all {what} together"


def _depends_on_others(example: TracedBlock, known: Sequence[Matrix], widths: Widths) -> bool:
    """Whether other queries, keys and values of the last group change what other groups yield."""
    each = widths.heads // widths.kv_heads
    last = Kept(torch.tensor([widths.kv_heads - 1]), torch.arange(widths.heads)[-each:])
    plain = given_to(example, known[-1])
    with ExitStack() as stack:
        for matrix in known[:-1]:
            whole = oriented_shape(example, matrix)[0]
            rows = index_of(matrix.rows, last, widths.lengths, whole)
            if rows is not None:
                mask = torch.zeros(whole, dtype=torch.bool).index_fill(0, rows, True)
                module = example.block.get_submodule(matrix.path)
                stack.enter_context(output_changed(module, partial(grown, mask)))
        changed = given_to(example, known[-1])
    before, after = (one.reshape(one.shape[1], widths.heads, -1) for one in (plain, changed))
    return any(moved_positions(before, after)[:-each])
