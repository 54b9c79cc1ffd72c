"""Mixtures of experts: every expert with matrices of its own.

transformers keeps the weights of all experts of a layer in two tensors. Here every expert has
three matrices, which are views of those, so that they are observed, swapped and narrowed as any
other matrix is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from evocompress.models.families.branches import Attributes, Matrix
from evocompress.models.modeling.layers import Gating, gating, of_each, transposed


class ExpertView(nn.Module):
    """One gated MLP, whose matrices are views of those of all experts.

    Args:
        linear: Its gate, up and down projections.
        gated: What it makes of the first two.
    """

    def __init__(self, linear: Iterable[nn.Linear], gated: Gating) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = linear
        self.gated = gated

    def forward(self, hidden_states: Tensor) -> Tensor:
        """What the expert makes of some tokens (n, H)."""
        gated = self.gated(self.gate_proj(hidden_states), self.up_proj(hidden_states))
        result: Tensor = self.down_proj(gated)
        return result


class ExpertViews(nn.ModuleList):
    """The experts of one layer, called as transformers calls its own.

    Attributes:
        kept: For each number that the router knows the index of its expert.
    """

    def __init__(self, experts: Iterable[ExpertView]) -> None:
        super().__init__(experts)
        self.kept = tuple(range(len(self)))

    def forward(
        self, hidden_states: Tensor, chosen: Tensor | None = None, weights: Tensor | None = None
    ) -> Tensor:
        """The weighted sum of what the chosen experts make of all tokens (N, H).

        The router gives the numbers of the experts of each token and their weights, both (N, K);
        or nothing, and each expert has tokens of its own: see `of_each`.
        """
        if chosen is None or weights is None:
            return of_each(hidden_states, [self[index] for index in self.kept])
        total = torch.zeros_like(hidden_states)
        for number, index in enumerate(self.kept):
            tokens, places = torch.where(chosen == number)
            if len(tokens):
                output = self[index](hidden_states[tokens]) * weights[tokens, places, None]
                total.index_add_(0, tokens, output.to(total.dtype))
        return total


def expert_matrices(first: str) -> tuple[Matrix, ...]:
    """The matrices of the first expert, which is at a path within its block."""
    return (
        Matrix(f"{first}.gate_proj", "mlp", f"{first}.in", rows=("channel",), expert=first),
        Matrix(f"{first}.up_proj", "mlp", f"{first}.in", rows=("channel",), expert=first),
        Matrix(f"{first}.down_proj", "mlp", f"{first}.out", columns=("channel",), expert=first),
    )


@dataclass(frozen=True)
class Mixture:
    """How a family's blocks hold the experts of their MLPs.

    Attributes:
        count_key: The setting of the number of experts.
        mlp: Module path of the MLP; its ``gate`` is the router, its ``experts`` the experts.
        stored_mlp: What checkpoints of the model's own class call the MLP.
        stored: What they call the matrices of an expert, where they have other names.
        shared_gate: Module path of the linear module whose one output weighs an expert that every
            token passes, where there is one. Like the router it is in no unit.
    """

    count_key: str
    mlp: str = "mlp"
    stored_mlp: str = "mlp"
    stored: Mapping[str, str] = field(default_factory=dict)
    shared_gate: str = ""

    @property
    def router(self) -> str:
        """Module path of what chooses the experts of each token."""
        return f"{self.mlp}.gate"

    @property
    def droppable(self) -> bool:
        """Whether an MLP can do with fewer experts."""
        return True

    @property
    def first(self) -> str:
        """Module path of the expert whose matrices stand for those of all."""
        return self.expert_path(0)

    def expert_path(self, index: int) -> str:
        """Module path of an expert within its block."""
        return f"{self.mlp}.experts.{index}"

    def stored_name(self, name: str) -> str:
        """How checkpoints of the model's own class name a parameter of a prepared model."""
        return _renamed(name, self.stored).replace(f".{self.mlp}.", f".{self.stored_mlp}.")

    def own_name(self, stored: str) -> str:
        """The inverse of `stored_name`."""
        own = {theirs: ours for ours, theirs in self.stored.items()}
        return _renamed(stored, own).replace(f".{self.stored_mlp}.", f".{self.mlp}.")

    def prepare(self, model: PreTrainedModel, blocks: Iterable[nn.Module]) -> None:
        """Give every expert of a model's blocks matrices of its own, views of the fused ones.

        What is so already, or was replaced, is left alone. The logits of the routers, which only
        training with an auxiliary loss reads, are not given any more: that loss wants routers of
        one size.
        """
        model.config.output_router_logits = False
        for block in blocks:
            fused: Any = getattr(block.get_submodule(self.mlp), "experts", None)
            if fused is not None and not isinstance(fused, nn.ModuleList):
                block.set_submodule(f"{self.mlp}.experts", expert_views(fused))

    def experts(self, model: PreTrainedModel) -> tuple[int, int]:
        """How many experts each MLP has, and how many of them a token uses."""
        config = model.config
        return getattr(config, self.count_key), config.num_experts_per_tok

    def expanded(self, matrices: Sequence[Matrix], model: PreTrainedModel) -> tuple[Matrix, ...]:
        """A block's matrices with those of all experts, one after the other, for the first's."""
        routed = [matrix for matrix in matrices if matrix.expert]
        count = self.experts(model)[0]
        every = [self._of(index, matrix) for index in range(count) for matrix in routed]
        first = matrices.index(routed[0])
        return (*matrices[:first], *every, *matrices[first + len(routed) :])

    def routing(self, block: nn.Module, kept: Sequence[int]) -> Attributes:
        """What to set in a block so that its mixture has only the experts `kept`, ascending.

        The router then chooses among these as if there were no others. The former values restore
        the block, which has the modules of its MLP in place.
        """
        rows = block.get_parameter(f"{self.mlp}.gate.weight").data[list(kept)]
        return {
            (f"{self.mlp}.gate", "weight"): nn.Parameter(rows, requires_grad=False),
            (f"{self.mlp}.experts", "kept"): tuple(kept),
        }

    def _of(self, index: int, matrix: Matrix) -> Matrix:
        """The first expert's matrix of another expert."""
        own = self.expert_path(index)
        return replace(
            matrix,
            path=matrix.path.replace(self.first, own, 1),
            input=matrix.input.replace(self.first, own, 1),
            expert=own,
        )


def _renamed(name: str, words: Mapping[str, str]) -> str:
    """The name of a parameter of an expert with its last but one word exchanged."""
    path, _, part = name.rpartition(".")
    above, _, word = path.rpartition(".")
    within = re.search(r"\.experts\.\d+$", above) is not None
    return f"{above}.{words[word]}.{part}" if within and word in words else name


def expert_views(fused: Any) -> ExpertViews:
    """The experts that a module of transformers holds in two tensors, and perhaps two of biases.

    Its class says whether those are (E, in, out), and whether rows of gate and up projection take
    turns; else all rows of the one come first.
    """
    gated, count = gating(fused), len(fused.down_proj)
    return ExpertViews(ExpertView(_projections(fused, index), gated) for index in range(count))


def _projections(fused: Any, index: int) -> Iterator[nn.Linear]:
    """The gate, up and down projections of one expert."""
    in_turns = not getattr(fused, "is_concatenated", True)
    for name in ("gate_up_proj", "down_proj"):
        weight, bias = getattr(fused, name)[index], getattr(fused, f"{name}_bias", None)
        weight = weight.T if transposed(fused) else weight
        half = len(weight) // 2
        turns = slice(0, None, 2), slice(1, None, 2)
        halves = turns if in_turns else (slice(half), slice(half, None))
        for rows in halves if name == "gate_up_proj" else (slice(None),):
            yield _linear(weight[rows], None if bias is None else bias[index][rows])


def fused(module: Any, name: str, experts: Sequence[Mapping[str, Tensor]]) -> Tensor:
    """The inverse of `expert_views`: a tensor of a module of transformers from all experts' own.

    Args:
        module: Whose class says how its tensors are laid out.
        name: Of the tensor.
        experts: The tensors of each expert, by their names within it.
    """
    whole, of_bias = name.removesuffix("_bias"), name.endswith("_bias")
    part = "bias" if of_bias else "weight"
    if whole == "gate_up_proj":
        pairs = [[expert[f"{half}_proj.{part}"] for half in ("gate", "up")] for expert in experts]
        joined = torch.cat if getattr(module, "is_concatenated", True) else _in_turns
        tensor = torch.stack([joined(pair) for pair in pairs])
    else:
        tensor = torch.stack([expert[f"{whole}.{part}"] for expert in experts])
    turned = getattr(module, "is_transposed", False) and not of_bias
    return tensor.transpose(1, 2) if turned else tensor


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
