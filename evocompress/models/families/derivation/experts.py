"""The mixture of experts in a sub-layer: experts, router and what every token passes, and proof.

transformers holds the weights of all experts in two tensors, whatever the type is called: rows of
gate and up projection (E, 2I, H), or of the latter alone, and the down projection (E, H, I). What
chooses among them has tensors with an entry for each expert.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain

from torch import nn

from evocompress.models.families.branches import Matrix
from evocompress.models.families.derivation.projections import matrices, oriented_shape
from evocompress.models.families.derivation.residual_branch import ResidualBranch
from evocompress.models.families.derivation.routing import (
    close,
    drops_exactly,
    entries_of,
    groups_of,
    modules_in,
    numbers_of,
    row_of,
)
from evocompress.models.families.derivation.structure import Unclear
from evocompress.models.families.derivation.tracing import TracedBlock, replaced
from evocompress.models.families.mixture import Mixture, expert_matrices, expert_views, tensor_of
from evocompress.models.modeling.layers import FLAT, projections

HELD = ({"gate_up_proj", "down_proj"}, {"up_proj", "down_proj"})
"""The tensors of all experts, without those of biases."""


def is_mixture(block: nn.Module, branch: ResidualBranch) -> bool:
    """Whether a sub-layer holds experts in tensors of three dimensions, or in matrices of its own.

    Those are no linear modules, so one that is built so is no MLP whose channels are known.
    """
    return branch.kind == "mlp" and any(_holds(one) for _, one in modules_in(block, branch.cores))


def _holds(module: nn.Module) -> bool:
    """Whether a module has a tensor of three dimensions or several matrices, as no linear one."""
    dimensions = [p.ndim for p in module.parameters(recurse=False)]
    return 3 in dimensions or dimensions.count(2) > 1


def mixture_of(
    example: TracedBlock, branch: ResidualBranch, real: nn.Module
) -> tuple[Mixture, tuple[Matrix, ...]]:
    """The mixture of a sub-layer and its matrices, those of the first expert for all.

    Args:
        example: Of a block of a tiny model.
        branch: Its MLP.
        real: The same block of the real model, on any device: it tells the numbers of experts.

    Raises:
        Unclear: Its experts or its router are built otherwise; the message says how.
    """
    cores = branch.cores
    experts = _experts(example.block, cores)
    fused = example.block.get_submodule(experts)
    count = count_of(fused)
    _check_split(example, experts, fused)
    entries = tuple(entries_of(example.block, cores, experts, count))
    every = numbers_of(example.block, cores, count, "expert")
    numbers = tuple(place for place in every if not f"{place[0]}.".startswith(f"{experts}."))
    found = Mixture(
        experts=experts,
        count=count_of(real.get_submodule(experts)),
        active=_active(example, cores, experts, real),
        entries=entries,
        numbers=numbers,
    )
    gates, beside = _beside(example, branch, experts, count)
    tiny = replace(found, count=count, shared_gate=gates)
    vectors = (path for path in entries if tensor_of(example.block, path).ndim == 1)
    silencer = next(
        (v for v in ("", *vectors) if drops_exactly(example, replace(tiny, silencer=v), cores)),
        None,
    )
    return replace(
        found,
        shared_gate=gates,
        droppable=silencer is not None,
        silencer=silencer or "",
        groups=groups_of(real, cores) if silencer else (1, 1),
        row=row_of(real, entries, found.count),
    ), (
        *beside,
        *expert_matrices(found.first, [one for one in projections(fused) if one != "down"]),
    )


def _experts(block: nn.Module, cores: Sequence[str]) -> str:
    """The path of the module that holds all experts: in a core, or one itself."""
    fused: dict[str, dict[str, tuple[int, ...]]] = {
        path: {name: tuple(p.shape) for name, p in module.named_parameters(recurse=False)}
        for path, module in modules_in(block, cores)
        if _holds(module)
    }
    places = ["experts", *(f"{core}.experts" for core in cores)]
    for path, shapes in fused.items():
        names = {name.removesuffix("_bias") for name in shapes}
        flat = names == {*FLAT.values()} and path.endswith(".mlp")
        if len(fused) == 1 and path in places and names in HELD:
            return path
        if len(fused) == 1 and path.removesuffix(".mlp") in places and flat:
            return path.removesuffix(".mlp")
        if len(fused) == 1 and names in HELD:
            raise Unclear(f"its experts lie in {path}, and the mixture is {cores[0]}")
    several = [path for path in fused if path.rpartition(".")[2] == "experts"]
    if len(several) > 1:
        raise Unclear(f"it has several sets of experts ({', '.join(several)}), and not one")
    held = "; ".join(f"{path}: {', '.join(shapes)}" for path, shapes in fused.items())
    raise Unclear(f"its experts are not held as gate_up_proj and down_proj ({held})")


def count_of(fused: nn.Module) -> int:
    """How many experts a module holds."""
    return len(projections(fused)["down"][0])


def _check_split(example: TracedBlock, experts: str, fused: nn.Module) -> None:
    """Experts with matrices of their own must compute what they do in two tensors."""
    expected = example.run()
    try:
        with replaced(example.block, {experts: expert_views(fused)}):
            found = example.run()
    except (AttributeError, RuntimeError, TypeError) as error:
        raise Unclear(f"{experts} is called or built otherwise than supported ({error})") from None
    if not close(found, expected):
        raise Unclear(f"{experts} computes something else than MLPs")


def _active(example: TracedBlock, cores: Sequence[str], experts: str, real: nn.Module) -> int:
    """How many experts a token uses in the real block."""
    call = example.calls([experts])[experts]
    chosen = [tensor.shape[-1] for tensor in call.tensors if not tensor.is_floating_point()]
    words = ("top_k", "topk", "per_tok")
    counts = range(1, count_of(example.block.get_submodule(experts)) + 1)
    every = (numbers_of(example.block, cores, count, *words) for count in chosen[:1] or counts)
    for path, name in chain.from_iterable(every):
        known = getattr(real.get_submodule(path), name)
        if isinstance(known, int):  # the default config of some types leaves it open
            return known
    for path, module in modules_in(example.block, cores):
        for name, own in vars(getattr(module, "config", None) or {}).items():
            if [own] == chosen[:1] and type(own) is int and any(word in name for word in words):
                return int(getattr(real.get_submodule(path).config, name))
    raise Unclear(f"nothing in {' and '.join(cores)} says how many experts a token uses")


def _beside(
    example: TracedBlock, branch: ResidualBranch, experts: str, count: int
) -> tuple[str, list[Matrix]]:
    """What weighs an expert that every token passes, and the matrices of such experts."""
    gate, first, found = "", "", []
    hidden = example.hidden.shape[-1]
    for matrix in matrices(example, branch):
        rows, columns = oriented_shape(example, matrix)
        if matrix.path.startswith(f"{experts}.") or rows == count:
            continue
        if rows == 1:
            gate = matrix.path
        elif columns == hidden:
            first = first or matrix.input
            word = "mlp_in" if matrix.input == first else matrix.input
            found.append(replace(matrix, rows=("shared",), input=word))
        elif rows == hidden:
            found.append(replace(matrix, columns=("shared",)))
        else:
            raise Unclear(f"{matrix.path} is neither of the experts nor of one that all pass")
    return gate, found
