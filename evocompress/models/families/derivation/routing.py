"""What chooses among experts, found by trying: how it does without some of them."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from evocompress.models.families.derivation.stream import LINEAR
from evocompress.models.families.derivation.tracing import TracedBlock
from evocompress.models.families.mixture import FAR, Mixture, expert_views, in_a_row, tensor_of

CLOSE = 1e-5
"""As a share of the largest value: many routers compute in float32."""


GROUPS = ("n_group", "num_group", "n_groups")
"""What modules call the number of groups of experts."""


def why_all_stay(real: nn.Module, mixture: Mixture, cores: Sequence[str]) -> str:
    """Why experts of a mixture, in some modules of a block, cannot be dropped."""
    groups, _ = groups_of(real, cores)
    if groups == 1:
        return f"with fewer, {mixture.mlp or mixture.router} chooses in another way"
    if any(tensor_of(real, path).ndim == 1 for path in mixture.entries):
        return f"with fewer, {mixture.router} ranks its {groups} groups in another way"
    return (
        f"{mixture.router} ranks {groups} groups of as many experts each, and has no bias for each "
        "expert by which one that is left out could stay in its group without being chosen"
    )


def groups_of(real: nn.Module, cores: Iterable[str]) -> tuple[int, int]:
    """The groups of experts that a router ranks first, and how many of them it chooses."""
    for _, module in modules_in(real, cores):
        for name in GROUPS:
            count, chosen = getattr(module, name, None), getattr(module, "topk_group", None)
            if isinstance(count, int) and count > 1:
                return count, chosen if isinstance(chosen, int) else 1
    return 1, 1


def row_of(real: nn.Module, entries: Sequence[str], count: int) -> int:
    """The parameters of a router that go with one of its experts."""
    tensors = (tensor_of(real, path) for path in entries)
    return sum(t.numel() // count for t in tensors if isinstance(t, nn.Parameter))


def modules_in(block: nn.Module, cores: Iterable[str]) -> Iterator[tuple[str, nn.Module]]:
    """Some modules of a block and those within them, by path."""
    for core in cores:
        yield from block.get_submodule(core).named_modules(prefix=core)


def entries_of(block: nn.Module, cores: Iterable[str], experts: str, count: int) -> Iterator[str]:
    """The tensors of an MLP with an entry for each expert, but for the experts' own."""
    for core in cores:
        module = block.get_submodule(core)
        every = [*module.named_parameters(prefix=core), *module.named_buffers(prefix=core)]
        for path, tensor in every:
            entries = tensor.shape[-1 if in_a_row(tensor) else 0] if tensor.ndim in (1, 2) else 0
            if not path.startswith(f"{experts}.") and entries == count:
                yield path


def numbers_of(
    block: nn.Module, cores: Iterable[str], value: int, *words: str
) -> Iterator[tuple[str, str]]:
    """The attributes of an MLP's modules with a value, whose names have one of some words."""
    for path, module in modules_in(block, cores):
        for name, own in vars(module).items():
            if type(own) is int and own == value and any(word in name for word in words):
                yield path, name


def drops_exactly(example: TracedBlock, mixture: Mixture, cores: Sequence[str]) -> bool:
    """Whether a mixture without some experts does as if those were never chosen.

    Where a router that knows all ranks groups, two of each are left, by which it does so.

    Args:
        example: Of a block of a tiny model.
        mixture: How it holds the experts.
        cores: Paths of the modules that these and their router are in.
    """
    groups, gone = groups_of(example.block, cores)[0], [1]
    if mixture.silencer and groups > 1:
        size = mixture.count // groups
        gone = [index for index in range(mixture.count) if 0 < index % size < size - 1]
    kept = [index for index in range(mixture.count) if index not in gone]
    narrow, silent = copy.deepcopy(example.block), copy.deepcopy(example.block)
    for path in mixture.entries:
        tensor = tensor_of(silent, path)
        if tensor.ndim == 2 and not in_a_row(tensor):
            tokens = _tokens(example, mixture, path.rpartition(".")[0])
            never = torch.linalg.pinv(tokens) @ torch.full((len(tokens),), FAR, dtype=torch.float64)
            tensor.data[gone] = never.to(tensor.dtype)
        else:
            tensor.data[..., gone] = FAR
    for block in (narrow, silent):
        views = expert_views(block.get_submodule(mixture.experts))
        block.set_submodule(mixture.experts, views)
    try:
        for (path, name), value in mixture.routing(narrow, kept).items():
            setattr(narrow.get_submodule(path), name, value)
        found = replace(example, block=narrow).run()
    except (RuntimeError, ValueError, IndexError, TypeError):
        return False
    return close(found, replace(example, block=silent).run())


def _tokens(example: TracedBlock, mixture: Mixture, scores: str) -> Tensor:
    """What a router makes scores of (N, H), with a matrix in a module."""
    paths = mixture.mlp, mixture.experts
    if isinstance(example.block.get_submodule(scores), LINEAR):
        paths = scores, scores  # the router may have normed what it is given
    calls = example.calls(paths)
    given = [
        next(t for t in calls[path].tensors if t.is_floating_point()).flatten(0, -2).double()
        for path in paths
        if path in calls
    ]
    # What some classes give the experts are tokens that the router has weighed.
    return given[1] if given[1].shape == given[0].shape else given[0]


def close(found: Tensor, expected: Tensor) -> bool:
    """Whether an output is another, but for rounding."""
    scale = CLOSE * max(1.0, expected.abs().max().item())
    return found.shape == expected.shape and bool((found - expected).abs().max() <= scale)
