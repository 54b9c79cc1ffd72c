"""The mixture of experts in a sub-layer: experts, router and what every token passes, and proof.

transformers holds the weights of all experts in two tensors, whatever the type is called: rows of
gate and up projection (E, 2I, H), and the down projection (E, H, I). What chooses among them has
tensors with an entry for each expert.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from evocompress.models.families.branches import Attributes, Matrix
from evocompress.models.families.derivation.projections import matrices, oriented_shape
from evocompress.models.families.derivation.structure import ResidualBranch, Unclear
from evocompress.models.families.derivation.tracing import TracedBlock, replaced
from evocompress.models.families.mixture import Mixture, expert_matrices, expert_views

CLOSE = 1e-5
"""As a share of the largest value: many routers compute in float32."""

GROUPS = ("n_group", "num_group", "n_groups")
"""What modules call the number of groups of experts."""

FAR = -1e3
"""A logit with which an expert is never chosen and has no weight."""


@dataclass(frozen=True)
class DerivedMixture(Mixture):
    """A mixture whose router was found by trying.

    Attributes:
        count: Experts of an MLP.
        active: Experts that a token uses.
        entries: Paths of the tensors of the router with an entry for each expert.
        numbers: (module path, attribute) of what is the number of experts.
        routed: Whether the router can choose among fewer.
    """

    count: int = 0
    active: int = 0
    entries: tuple[str, ...] = ()
    numbers: tuple[tuple[str, str], ...] = ()
    routed: bool = True

    @property
    def router(self) -> str:
        """See `Mixture.router`."""
        return self.entries[0].rpartition(".")[0]

    @property
    def droppable(self) -> bool:
        """See `Mixture.droppable`."""
        return self.routed

    def experts(self, model: PreTrainedModel) -> tuple[int, int]:
        """See `Mixture.experts`."""
        return self.count, self.active

    def routing(self, block: nn.Module, kept: Sequence[int]) -> Attributes:
        """See `Mixture.routing`."""
        found: Attributes = {place: len(kept) for place in self.numbers}
        for path in self.entries:
            owner, _, name = path.rpartition(".")
            tensor = _tensor(block, path)
            rows = tensor.detach()
            rows = rows[:, list(kept)] if _in_a_row(tensor) else rows[list(kept)]
            is_parameter = isinstance(tensor, nn.Parameter)
            found[owner, name] = nn.Parameter(rows, requires_grad=False) if is_parameter else rows
        return found | {(f"{self.mlp}.experts", "kept"): tuple(kept)}


def is_mixture(block: nn.Module, branch: ResidualBranch) -> bool:
    """Whether a sub-layer holds experts in tensors of three dimensions, or in matrices of its own.

    Those are no linear modules, so one that is built so is no MLP whose channels are known.
    """
    core = block.get_submodule(branch.core[0])
    return branch.kind == "mlp" and (any(p.ndim == 3 for p in core.parameters()) or _bare(core))


def _bare(core: nn.Module) -> bool:
    """Whether matrices lie in modules that hold several, as no linear ones do."""
    return any(map(_is_bare, core.modules()))


def _is_bare(module: nn.Module) -> bool:
    return sum(p.ndim == 2 for p in module.parameters(recurse=False)) > 1


def mixture_of(
    example: TracedBlock, branch: ResidualBranch, real: nn.Module
) -> tuple[DerivedMixture, tuple[Matrix, ...]]:
    """The mixture of a sub-layer and its matrices, those of the first expert for all.

    Args:
        example: Of a block of a tiny model.
        branch: Its MLP.
        real: The same block of the real model, on any device: it tells the numbers of experts.

    Raises:
        Unclear: Its experts or its router are built otherwise; the message says how.
    """
    mlp = branch.core[0]
    experts = _experts(example.block, mlp)
    fused: Any = example.block.get_submodule(experts)
    count = len(fused.down_proj)
    _check_split(example, experts, fused)
    entries = tuple(_entries(example.block, mlp, experts, count))
    every = _numbers(example.block, mlp, count, "expert")
    numbers = tuple(place for place in every if place[0] != experts)
    of_real: Any = real.get_submodule(experts)
    found = DerivedMixture(
        count_key="",
        mlp=mlp,
        stored_mlp=mlp,
        count=len(of_real.down_proj),
        active=_active(example, mlp, experts, real),
        entries=entries,
        numbers=numbers,
    )
    gates, beside = _beside(example, branch, experts, count)
    tiny = replace(found, count=count, shared_gate=gates)
    routed = _chooses_among_fewer(example, tiny)
    return replace(found, shared_gate=gates, routed=routed), (
        *beside,
        *expert_matrices(found.first),
    )


def in_groups(real: nn.Module, mlp: str) -> bool:
    """Whether a router chooses groups of experts, and experts of those.

    All groups must keep as many experts, which no unit of one expert can say.
    """
    modules = real.get_submodule(mlp).modules()
    groups = (getattr(module, name, 1) for module in modules for name in GROUPS)
    return any(isinstance(count, int) and count > 1 for count in groups)


def _experts(block: nn.Module, mlp: str) -> str:
    """The path of the module that holds all experts."""
    core = block.get_submodule(mlp)
    fused: dict[str, dict[str, tuple[int, ...]]] = {
        path: {name: tuple(p.shape) for name, p in module.named_parameters(recurse=False)}
        for path, module in core.named_modules(prefix=mlp)
        if any(p.ndim == 3 for p in module.parameters(recurse=False)) or _is_bare(module)
    }
    for path, shapes in fused.items():
        both = {"gate_up_proj", "down_proj"}
        known = set(shapes) in (both, both | {"gate_up_proj_bias", "down_proj_bias"})
        if len(fused) == 1 and known and path == f"{mlp}.experts":
            return path
    held = "; ".join(f"{path}: {', '.join(shapes)}" for path, shapes in fused.items())
    raise Unclear(f"its experts are not held as gate_up_proj and down_proj ({held})")


def _check_split(example: TracedBlock, experts: str, fused: nn.Module) -> None:
    """Experts with matrices of their own must compute what they do in two tensors."""
    expected = example.run()
    try:
        with replaced(example.block, {experts: expert_views(fused)}):
            found = example.run()
    except (AttributeError, RuntimeError, TypeError) as error:
        raise Unclear(f"{experts} is called or built otherwise than supported ({error})") from None
    if not _close(found, expected):
        raise Unclear(f"{experts} computes something else than gated MLPs")


def _entries(block: nn.Module, mlp: str, experts: str, count: int) -> Iterator[str]:
    """The tensors of an MLP with an entry for each expert, but for the experts' own."""
    core = block.get_submodule(mlp)
    every = [*core.named_parameters(prefix=mlp), *core.named_buffers(prefix=mlp)]
    for path, tensor in every:
        entries = tensor.shape[-1 if _in_a_row(tensor) else 0] if tensor.ndim in (1, 2) else 0
        if not path.startswith(f"{experts}.") and entries == count:
            yield path


def _in_a_row(tensor: Tensor) -> bool:
    """Whether the entries of experts are in the one row of a matrix."""
    return tensor.ndim == 2 and len(tensor) == 1


def _numbers(block: nn.Module, mlp: str, value: int, *words: str) -> Iterator[tuple[str, str]]:
    """The attributes of an MLP's modules with a value, whose names have one of some words."""
    for path, module in block.get_submodule(mlp).named_modules(prefix=mlp):
        for name, own in vars(module).items():
            if type(own) is int and own == value and any(word in name for word in words):
                yield path, name


def _active(example: TracedBlock, mlp: str, experts: str, real: nn.Module) -> int:
    """How many experts a token uses in the real block."""
    call = example.calls([experts])[experts]
    chosen = [tensor.shape[-1] for tensor in call.tensors if not tensor.is_floating_point()]
    words = ("top_k", "topk", "per_tok")
    counts = range(1, len(_tensor(example.block, f"{experts}.down_proj")) + 1)
    every = (_numbers(example.block, mlp, count, *words) for count in chosen[:1] or counts)
    for path, name in chain.from_iterable(every):
        known = getattr(real.get_submodule(path), name)
        if isinstance(known, int):  # the default config of some types leaves it open
            return known
    raise Unclear(f"nothing in {mlp} says how many experts a token uses")


def _beside(
    example: TracedBlock, branch: ResidualBranch, experts: str, count: int
) -> tuple[str, list[Matrix]]:
    """What weighs an expert that every token passes, and the matrices of such experts."""
    gate, found = "", []
    hidden = example.hidden.shape[-1]
    for matrix in matrices(example, branch):
        rows, columns = oriented_shape(example, matrix)
        if matrix.path.startswith(f"{experts}.") or rows == count:
            continue
        if rows == 1:
            gate = matrix.path
        elif columns == hidden:
            found.append(replace(matrix, rows=("shared",), input="mlp_in"))
        elif rows == hidden:
            found.append(replace(matrix, columns=("shared",)))
        else:
            raise Unclear(f"{matrix.path} is neither of the experts nor of one that all pass")
    return gate, found


def _chooses_among_fewer(example: TracedBlock, mixture: DerivedMixture) -> bool:
    """Whether a router without some experts does as if those were never chosen."""
    kept = [index for index in range(mixture.count) if index != 1]
    narrow, silent = copy.deepcopy(example.block), copy.deepcopy(example.block)
    paths = mixture.mlp, f"{mixture.mlp}.experts"
    given = [
        next(t for t in call.tensors if t.is_floating_point()).flatten(0, -2).double()
        for call in map(example.calls(paths).get, paths)
        if call
    ]
    # What some classes give the experts are tokens that the router has weighed.
    tokens = given[1] if len(given[1]) == len(given[0]) else given[0]
    for path in mixture.entries:
        tensor = _tensor(silent, path)
        never = torch.linalg.pinv(tokens) @ torch.full((len(tokens),), FAR, dtype=torch.float64)
        if tensor.ndim == 2 and not _in_a_row(tensor):
            tensor.data[1] = never.to(tensor.dtype)
        else:
            tensor.data[..., 1] = FAR
    for block in (narrow, silent):
        experts = f"{mixture.mlp}.experts"
        block.set_submodule(experts, expert_views(block.get_submodule(experts)))
    try:
        for (path, name), value in mixture.routing(narrow, kept).items():
            setattr(narrow.get_submodule(path), name, value)
        found = replace(example, block=narrow).run()
    except (RuntimeError, ValueError, IndexError, TypeError):
        return False
    return _close(found, replace(example, block=silent).run())


def _tensor(block: nn.Module, path: str) -> Tensor:
    """A parameter or buffer."""
    owner, _, name = path.rpartition(".")
    tensor: Tensor = getattr(block.get_submodule(owner), name)
    return tensor


def _close(found: Tensor, expected: Tensor) -> bool:
    scale = CLOSE * max(1.0, expected.abs().max().item())
    return found.shape == expected.shape and bool((found - expected).abs().max() <= scale)
