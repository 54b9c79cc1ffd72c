"""One kind of block: its sub-layers as they were derived, and what can be done to them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from math import prod

from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from evocompress.core.widths import Widths
from evocompress.models.families.branches import Matrix, SubLayerName
from evocompress.models.families.derivation.block_kind import (
    CountedHeads,
    DerivedPart,
    Kind,
    kv_times,
    module_classes,
    rows_of_query,
)
from evocompress.models.families.derivation.experts import is_mixture, mixture_of
from evocompress.models.families.derivation.obstacles import obstacle
from evocompress.models.families.derivation.projections import (
    followers,
    matrices,
    oriented_shape,
    same,
    with_channels,
    with_heads,
)
from evocompress.models.families.derivation.proof import WidthSettings, forms, narrowed, proven
from evocompress.models.families.derivation.residual_branch import ResidualBranch
from evocompress.models.families.derivation.routing import why_all_stay
from evocompress.models.families.derivation.stream import LINEAR, has_matrix
from evocompress.models.families.derivation.structure import Unclear, structure
from evocompress.models.families.derivation.tracing import TracedBlock, mixes_tokens
from evocompress.models.families.shapes import matrix_shape

CACHES = ("past_key_values", "cache_params")
"""Names under which modules are given a cache."""


def kind_of(
    example: TracedBlock, real: nn.Module, shape: tuple[int, int, int], *, cached: int | None
) -> Kind:
    """What a block is like; see `_kind_of`.

    With the key-value heads that it computes with, where it has no heads by its config.
    """
    found, (heads, kv_heads, size) = _kind_of(example, real, shape, cached=cached), shape
    times = kv_times(example.block, heads, kv_heads) if heads else 1
    if times == 1 or "attention" not in found.parts or found.parts["attention"].settings:
        return found
    other = _kind_of(example, real, (heads, kv_heads * times, size), cached=cached)
    return replace(other, kv_times=times) if other.parts["attention"].settings else found


def _kind_of(
    example: TracedBlock, real: nn.Module, shape: tuple[int, int, int], *, cached: int | None
) -> Kind:
    """What a block is like, and what can be done to its sub-layers.

    Args:
        example: Of a tiny model.
        real: The same block of the real model.
        shape: Query heads, key-value heads and the width of a head of the tiny one.
        cached: How many values are cached of a token; ``None``: keys and values where it has heads.
    """
    found = structure(example)
    rest = found.shared, module_classes(example.block)
    parts = {
        branch.kind: _mixed(example, branch, real)
        if is_mixture(example.block, branch)
        else _part(example, branch, shape, cached)
        for branch in found.branches
    }
    if len(parts) > 1 and _one_input(example, *parts.values()):
        parts["mlp"] = _renamed(parts["mlp"], "mlp_in", "attention_in")
    if "attention" not in parts:
        return Kind(parts, *rest, None, False, found.remainder)
    heads = _heads(example, parts["attention"], shape)
    attends = heads is not None if cached is None else cached > 0
    if heads is not None and cached == shape[0] * heads.width:
        heads = replace(heads, repeated=shape[0] > shape[1])
    elif heads is not None and cached and cached != shape[1] * heads.width:
        parts["attention"], latent = _with_latent(example, parts["attention"], cached)
        heads = replace(heads, latent=latent) if latent else None
    if heads is None and not parts["attention"].settings:  # else only operations are unknown
        parts["attention"] = parts["attention"].whole
    kind = Kind(parts, *rest, heads, attends, found.remainder)
    return replace(kind, mlp_state=_with_state(example, parts["mlp"])) if "mlp" in parts else kind


def _with_state(example: TracedBlock, part: DerivedPart) -> str:
    """Path of the module of a sub-layer that is given a cache; empty where none is."""
    calls = example.calls(part.branch.cores)
    return next((path for path, call in calls.items() if {*CACHES} & {*call.arguments}), "")


def _one_input(example: TracedBlock, first: DerivedPart, second: DerivedPart) -> bool:
    """Whether two sub-layers beside each other read the same."""
    if not (first.matrices and second.matrices):
        return False
    paths = [part.matrices[0].path for part in (first, second)]
    calls = example.calls(path for path in paths if ".experts." not in f".{path}")
    given = [call.tensors[0] for call in calls.values()]
    return len(given) > 1 and same(*given)


def _renamed(part: DerivedPart, word: str, other: str) -> DerivedPart:
    """A part whose matrices have another word for one of their inputs."""
    own = (replace(m, input=other if m.input == word else m.input) for m in part.matrices)
    return replace(part, matrices=tuple(own))


def _with_latent(example: TracedBlock, part: DerivedPart, cached: int) -> tuple[DerivedPart, str]:
    """An attention for which something else than its keys and values is cached.

    Returns:
        It, with the matrices told that make keys and values of that; and the path of the matrix
        that makes what is cached, empty where that is not known.
    """
    latent = next(
        (
            matrix.path
            for matrix in part.matrices
            if not matrix.rows and oriented_shape(example, matrix)[0] == cached
        ),
        "",
    )
    of_cache = (
        replace(m, of_cache=bool(latent and {"key", "value"} & {*m.rows})) for m in part.matrices
    )
    return replace(part, matrices=tuple(of_cache)), latent


def _heads(
    example: TracedBlock, part: DerivedPart, shape: tuple[int, int, int]
) -> CountedHeads | None:
    """How wide heads are, by the operations of a sub-layer beside its matrices; see `Kind`."""
    heads, kv_heads, head_dim = shape
    pairs = 2 * example.hidden.shape[1] ** 2
    whole = _operations(example, part)
    each, rest = divmod(whole, pairs * heads or 1)
    if not part.sublayer.coupled:
        return CountedHeads(each) if not rest and each == 2 * head_dim else None
    dense = Widths(heads, kv_heads, head_dim, 0)
    value = oriented_shape(example, part.sublayer.output)[1] // heads
    rows = rows_of_query(example.block, part.matrices, dense)
    # Queries alone are as wide as a key; with a gate they are as wide as a key and a value.
    known = {rows + value: 1, rows: 2} if rows else {}
    further = bool(rest) or each not in known
    if further:
        each = _saved(example, part, dense, whole) // pairs
    return CountedHeads(each, known[each], further=further) if each in known else None


def _operations(example: TracedBlock, part: DerivedPart) -> int:
    """Those of a sub-layer beside its matrices."""
    calls = example.calls(part.branch.cores)
    with FlopCounterMode(display=False) as counter:
        for path, call in calls.items():
            example.block.get_submodule(path)(**call.arguments)
    tokens = example.hidden.shape[1]
    linear = sum(2 * tokens * prod(matrix_shape(example.block, m)) for m in part.matrices)
    return int(counter.get_total_flops()) - linear


def _saved(example: TracedBlock, part: DerivedPart, dense: Widths, whole: int) -> int:
    """How many of all operations beside the matrices go with a head; 0 where that depends."""
    if part.settings is None:
        return 0
    saved = set()
    branch = part.narrowed or part.branch
    for widths, kept in forms(branch, dense):
        cut = branch, part.matrices, part.followers, part.settings, dense, widths, kept
        with narrowed(example, *cut):
            saved.add(divmod(whole - _operations(example, part), dense.heads - widths.heads))
    ((each, rest),) = saved if len(saved) == 1 else [(0, 0)]
    return 0 if rest else each


def _mixed(example: TracedBlock, branch: ResidualBranch, real: nn.Module) -> DerivedPart:
    """A mixture of experts; one that is built otherwise can be dropped as a whole."""
    try:
        mixture, own = mixture_of(example, branch, real)
    except Unclear as error:
        return DerivedPart(branch, (), reason=str(error))
    reason = ""
    if not mixture.droppable:
        reason = f"experts cannot be dropped: {why_all_stay(real, mixture, branch.cores)}"
    return DerivedPart(branch, own, WidthSettings({}), reason, mixture)


def _part(
    example: TracedBlock,
    branch: ResidualBranch,
    heads_shape: tuple[int, int, int],
    cached: int | None,
) -> DerivedPart:
    linear = matrices(example, branch)
    heads, kv_heads, head_dim = heads_shape
    if branch.kind == "attention":
        if branch.beside and (alone := _alone(example, branch, linear, Widths(*heads_shape, 0))):
            return alone
        axes = with_heads(example, linear, heads, kv_heads, head_dim)
        what = "heads"
    else:
        axes = with_channels(example, linear)
        what = "channels"
    if axes is None:
        reason = obstacle(
            example, branch, linear, Widths(*heads_shape, 0), known=False, cached=cached
        )
        return DerivedPart(branch, tuple(linear), reason=f"{what} cannot be cut: {reason}")
    channels = oriented_shape(example, axes[-1])[1] if branch.kind == "mlp" else 0
    widths = Widths(heads, kv_heads, head_dim, channels)
    also = followers(example, branch, axes[-1], widths) if branch.kind == "attention" else ()
    settings = proven(example, branch, axes, also, widths)
    if settings is None:
        reason = obstacle(example, branch, axes, widths, known=True, cached=cached)
        return DerivedPart(branch, tuple(axes), reason=f"{what} cannot be cut: {reason}")
    return DerivedPart(branch, tuple(axes), settings, followers=also)


def _alone(
    example: TracedBlock, branch: ResidualBranch, linear: Sequence[Matrix], widths: Widths
) -> DerivedPart | None:
    """Several mixers of which one has heads, while the others stay as they are."""
    for each in (replace(branch, beside=()), *branch.beside):
        inside = tuple(f"{core}." for core in each.core)
        own = [matrix for matrix in linear if f"{matrix.path}.".startswith(inside)]
        axes = with_heads(example, own, widths.heads, widths.kv_heads, widths.head_dim)
        if axes is None or not axes[0].rows:
            continue
        also = followers(example, each, axes[-1], widths)
        settings = proven(example, each, axes, also, widths)
        if settings is not None:
            known = {matrix.path: matrix for matrix in axes}
            every = tuple(known.get(matrix.path, matrix) for matrix in linear)
            return DerivedPart(branch, every, settings, followers=also, narrowed=each)
    return None


def common_parts(
    example: TracedBlock, module: str, shape: tuple[int, int, int]
) -> dict[SubLayerName, DerivedPart]:
    """The sub-layers in a module that several blocks share; empty where it is not known which."""
    children = {
        f"{module}.{name}": child
        for name, child in example.block.get_submodule(module).named_children()
        if has_matrix(child)
    }
    found: dict[SubLayerName, DerivedPart] = {}
    for path, call in example.calls(children).items():
        hidden = next(
            name
            for name, one in call.arguments.items()
            if isinstance(one, Tensor) and one.ndim == 3
        )
        mixes = mixes_tokens(children[path], call, hidden)
        kind: SubLayerName = "attention" if mixes else "mlp"
        if kind in found:
            return {}
        part = _part(example, ResidualBranch(kind, (path,)), shape, None)
        found[kind] = _common(example, part)
    return found


def _common(example: TracedBlock, part: DerivedPart) -> DerivedPart:
    """A sub-layer that several blocks share; what only one of them runs stays as it is."""
    known, (core,) = {matrix.path for matrix in part.matrices}, part.branch.core
    modules = example.block.get_submodule(core).named_modules(prefix=core)
    idle = [path for path, one in modules if isinstance(one, LINEAR) and path not in known]
    if part.settings and not idle and not part.followers:
        return part
    alike = {_unnumbered(path) for path in idle}
    matrices = tuple(
        replace(matrix, rows=(), columns=())
        for matrix in part.matrices
        if _unnumbered(matrix.path) not in alike
    )
    what = "heads" if part.branch.kind == "attention" else "channels"
    reason = part.reason
    if idle:
        reason = (
            f"{what} cannot be cut: of the blocks that share {core} one alone runs {idle[0]}, "
            "whose rows would have to be cut with those of all and are in no unit of the first"
        )
    return replace(part, matrices=matrices, settings=None, followers=(), reason=reason)


def _unnumbered(path: str) -> str:
    """A path without its numbers, in which modules of a list are alike."""
    return re.sub(r"\d+", "", path)


def with_fixed_heads(kind: Kind, where: str) -> Kind:
    """A kind of block whose heads cannot be cut, for a reason."""
    parts = dict(kind.parts)
    if "attention" in parts:
        reason = f"heads cannot be cut where {where}"
        parts["attention"] = replace(parts["attention"], settings=None, reason=reason)
    return replace(kind, parts=parts)
