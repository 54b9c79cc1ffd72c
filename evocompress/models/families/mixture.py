"""Mixtures of experts: every expert with matrices of its own.

transformers keeps the weights of all experts of a layer in two or three tensors. Here every expert
has matrices of its own, which are views of those, so that they are observed, swapped and narrowed
as any other matrix is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from evocompress.models.families.branches import Attributes, Matrix
from evocompress.models.families.uneven import text_config
from evocompress.models.modeling.layers import (
    FLAT,
    Expert,
    Experts,
    gating,
    is_flat,
    projections,
    transposed,
)

FAR = -1e3
"""A logit with which an expert is never chosen and has no weight."""


class ExpertViews(Experts):
    """The experts of one layer, called as transformers calls its own, in views of its tensors.

    Attributes:
        kept: The indices of those that are left.
    """

    def __init__(self, experts: Iterable[Expert]) -> None:
        super().__init__(experts)
        self.kept = tuple(range(len(self)))

    def each(self) -> list[nn.Module]:
        """See `Experts.each`."""
        return [self[index] for index in self.kept]


def expert_matrices(first: str, inner: Iterable[str] = ("gate", "up")) -> tuple[Matrix, ...]:
    """The matrices of the first expert, which is at a path within its block.

    Args:
        first: The path.
        inner: What yields its channels.
    """
    return (
        *(
            Matrix(f"{first}.{one}_proj", "mlp", f"{first}.in", rows=("channel",), expert=first)
            for one in inner
        ),
        Matrix(f"{first}.down_proj", "mlp", f"{first}.out", columns=("channel",), expert=first),
    )


@dataclass(frozen=True)
class Mixture:
    """How a block holds the experts of its MLP.

    Attributes:
        experts: Module path of the experts.
        count: Experts of an MLP.
        active: Experts that a token uses.
        entries: Paths of the tensors of the router with an entry for each expert.
        numbers: (module path, attribute) of what is the number of experts.
        droppable: Whether experts can be dropped.
        silencer: Path of a vector with an entry for each expert, by which one is never chosen, of a
            router that keeps what it has of all; empty where it can choose among fewer.
        groups: The groups of experts that the router ranks first, and how many of them it chooses.
        shared_gate: Module path of the linear module whose one output weighs an expert that every
            token passes, where there is one. Like the router it is in no unit.
        row: Parameters of the router that go with an expert; 0: as many as the residual stream has.
        members: In a compressed model whose router keeps what it has of all, how that numbers the
            experts that are left; empty: one after the other.
        known: Of how many experts such a router has entries; 0: of those there are.
    """

    experts: str
    count: int
    active: int
    entries: tuple[str, ...]
    numbers: tuple[tuple[str, str], ...] = ()
    droppable: bool = True
    silencer: str = ""
    groups: tuple[int, int] = (1, 1)
    shared_gate: str = ""
    row: int = 0
    members: tuple[int, ...] = ()
    known: int = 0

    @property
    def mlp(self) -> str:
        """Module path of the experts and their router; empty where these lie in the block."""
        return self.experts.rpartition(".")[0]

    @property
    def router(self) -> str:
        """Module path of what chooses the experts of each token."""
        return self.entries[0].rpartition(".")[0]

    @property
    def first(self) -> str:
        """Module path of the expert whose matrices stand for those of all."""
        return self.expert_path(0)

    def expert_path(self, index: int) -> str:
        """Module path of an expert within its block."""
        return f"{self.experts}.{index}"

    def prepare(self, model: PreTrainedModel, blocks: Iterable[nn.Module]) -> None:
        """Give every expert of a model's blocks matrices of its own, views of the fused ones.

        What is so already, or was replaced, is left alone. The logits of the routers, which only
        training with an auxiliary loss reads, are not given any more: that loss wants routers of
        one size.
        """
        model.config.output_router_logits = False
        for block in blocks:
            held: Any = dict(block.named_modules()).get(self.experts)
            if isinstance(held, Experts):
                split = isinstance(held, ExpertViews)
                views = held if split else of_checkpoint(held)  # those of a compressed checkpoint
                block.set_submodule(self.experts, views)
            elif held is not None and projections(held):
                block.set_submodule(self.experts, expert_views(held))

    @property
    def whole_router(self) -> bool:
        """Whether the router keeps its numbers of experts that are gone; it never chooses them."""
        return bool(self.silencer)

    def number(self, index: int) -> int:
        """How a router that keeps what it has of all numbers an expert."""
        return self.members[index] if self.members else index

    def group(self, index: int) -> int:
        """The group of experts that the router counts an expert to."""
        return self.number(index) * self.groups[0] // (self.known or self.count)

    def with_experts(self, count: int, members: Sequence[int]) -> Mixture:
        """That of a block of a compressed model with as many experts.

        Args:
            count: The experts that are left.
            members: How a router that keeps what it has of all numbers them; empty: as before.
        """
        if not self.whole_router:
            return replace(self, count=count)
        return replace(self, count=count, members=tuple(members), known=self.count)

    def of_unit(self) -> dict[str, Any]:
        """What the unit of an MLP says of its experts."""
        groups, chosen = self.groups
        return {"active": self.active, "groups": groups, "chosen_groups": chosen}

    def of_architecture(self, model: PreTrainedModel) -> dict[str, Any]:
        """What the cost model must know of the experts."""
        hidden = text_config(model.config).hidden_size
        entries = self.known or self.count
        return {
            "experts": self.count,
            "active_experts": self.active,
            "expert_params": (0, 0) if self.whole_router else (self.row or hidden, hidden),
            "gate": hidden * (bool(self.shared_gate) + entries * self.whole_router),
        }

    def expanded(self, matrices: Sequence[Matrix]) -> tuple[Matrix, ...]:
        """A block's matrices with those of all experts, one after the other, for the first's."""
        routed = [matrix for matrix in matrices if matrix.expert]
        every = [self._of(index, matrix) for index in range(self.count) for matrix in routed]
        first = matrices.index(routed[0])
        return (*matrices[:first], *every, *matrices[first + len(routed) :])

    def routing(self, block: nn.Module, kept: Sequence[int]) -> Attributes:
        """What to set in a block so that its mixture has only the experts `kept`, ascending.

        The router then chooses among these as if there were no others. The former values restore
        the block, which has the modules of its MLP in place.
        """
        if self.silencer:
            owner, _, name = self.silencer.rpartition(".")
            tensor = tensor_of(block, self.silencer)
            values, numbers = torch.full_like(tensor, FAR), list(map(self.number, kept))
            values[numbers] = tensor.detach()[numbers]
            return {
                (owner, name): _like(tensor, values),
                (self.experts, "kept"): tuple(kept),
                (self.experts, "numbers"): tuple(numbers),
            }
        found: Attributes = {place: len(kept) for place in self.numbers}
        for path in self.entries:
            owner, _, name = path.rpartition(".")
            tensor = tensor_of(block, path)
            rows = tensor.detach()
            rows = rows[:, list(kept)] if in_a_row(tensor) else rows[list(kept)]
            found[owner, name] = _like(tensor, rows)
        return found | {(self.experts, "kept"): tuple(kept)}

    def _of(self, index: int, matrix: Matrix) -> Matrix:
        """The first expert's matrix of another expert."""
        own = self.expert_path(index)
        return replace(
            matrix,
            path=matrix.path.replace(self.first, own, 1),
            input=matrix.input.replace(self.first, own, 1),
            expert=own,
        )


def _like(tensor: Tensor, values: Tensor) -> Tensor:
    """Values as a parameter where a tensor is one."""
    is_parameter = isinstance(tensor, nn.Parameter)
    return nn.Parameter(values, requires_grad=False) if is_parameter else values


def in_a_row(tensor: Tensor) -> bool:
    """Whether the entries of experts are in the one row of a matrix."""
    return tensor.ndim == 2 and len(tensor) == 1


def tensor_of(block: nn.Module, path: str) -> Tensor:
    """A parameter or buffer."""
    owner, _, name = path.rpartition(".")
    tensor: Tensor = getattr(block.get_submodule(owner), name)
    return tensor


def expert_views(fused: Any) -> ExpertViews:
    """The experts that a module of transformers holds in a few tensors."""
    whole, gated = projections(fused), gating(fused)
    return ExpertViews(
        Expert(
            {
                name: _linear(w[index], b if b is None else b[index])
                for name, (w, b) in whole.items()
            },
            gated,
        )
        for index in range(len(whole["down"][0]))
    )


def mean_count(mixtures: Iterable[Mixture | None]) -> int:
    """How many experts the MLPs of some blocks have on average; 0 where none is a mixture."""
    counts = [mixture.count for mixture in mixtures if mixture is not None]
    return round(sum(counts) / max(1, len(counts)))


def of_checkpoint(experts: Experts) -> ExpertViews:
    """The experts of a layer of a compressed checkpoint, which have matrices of their own."""
    found = ExpertViews(experts.each())
    found.numbers = experts.numbers
    return found


STORED: Mapping[str, tuple[str, ...]] = {
    "gate_up_proj": ("gate", "up"),
    **{name: (part,) for part, name in FLAT.items()},
}
"""The projections of each expert that a tensor of all holds, where that has another name."""

FUSED = (*STORED, "up_proj", "down_proj")
"""How the matrices of all experts are called."""


def held_in(name: str) -> list[str]:
    """The tensors of each expert, by their names within it, that one of all experts holds.

    Examples:
        >>> held_in("gate_up_proj_bias"), held_in("mlp.w2")
        (['gate_proj.bias', 'up_proj.bias'], ['down_proj.weight'])
    """
    whole = name.rpartition(".")[2].removesuffix("_bias")
    part = "bias" if name.endswith("_bias") else "weight"
    return [f"{own}_proj.{part}" for own in STORED.get(whole, (whole.removesuffix("_proj"),))]


def fused(module: Any, name: str, experts: Sequence[Mapping[str, Tensor]]) -> Tensor:
    """The inverse of `expert_views`: a tensor of a module of transformers from all experts' own.

    Args:
        module: Whose class says how its tensors are laid out.
        name: Of the tensor.
        experts: The tensors of each expert, by their names within it.
    """
    first, *others = ([expert[own] for expert in experts] for own in held_in(name))
    if is_flat(module):
        return torch.cat([one.T if name.endswith(FLAT["down"]) else one for one in first])
    joined = torch.cat if getattr(module, "is_concatenated", True) else _in_turns
    pairs = zip(first, *others, strict=True)
    tensor = torch.stack([joined(pair) if others else pair[0] for pair in pairs])
    return tensor.mT if transposed(module) and not name.endswith("_bias") else tensor


def _in_turns(pair: Sequence[Tensor]) -> Tensor:
    """The rows of two tensors, one of each after the other."""
    return torch.stack([*pair], dim=1).flatten(0, 1)


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A linear module with a weight and a bias that are not copied."""
    module = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    module.weight = nn.Parameter(weight.detach(), requires_grad=False)
    if bias is not None:
        module.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return module
