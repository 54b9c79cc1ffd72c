"""The mixtures of experts that a candidate keeps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from evocompress.compression.live_model import LiveModel
from evocompress.core.errors import ConfigError
from evocompress.core.types import DROP, Candidate
from evocompress.models.families.branches import Attributes
from evocompress.models.families.mixture import Mixture


@dataclass(frozen=True, eq=False)
class Mixed:
    """One MLP that is a mixture.

    Attributes:
        mixture: How its block holds it.
        block: The block.
        active: Experts that a token uses.
        indices: Of the experts that are left, ascending.
        kept: Names of their units.
    """

    mixture: Mixture
    block: nn.Module
    active: int
    indices: tuple[int, ...]
    kept: tuple[str, ...]

    @property
    def alone(self) -> bool:
        """Whether no module holds both router and experts but the block itself."""
        return not self.mixture.mlp

    @property
    def core(self) -> nn.Module:
        """The MLP; the experts, where they are `alone`."""
        return self.experts if self.alone else self.block.get_submodule(self.mixture.mlp)

    def choice(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """The experts that the router chooses for tokens (N, H), and their weights, both (N, K)."""
        told = self.router.forward(tokens)
        chosen = next(one for one in told if not one.is_floating_point())
        weights = [one for one in told if one.is_floating_point() and one.shape == chosen.shape]
        return chosen, weights[-1]

    @property
    def experts(self) -> nn.Module:
        """What the chosen experts are in; a shared one is beside it."""
        return self.block.get_submodule(self.mixture.experts)

    def routed(self, given: tuple[Tensor, ...], made: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Which experts tokens were sent to (N, K), with their weights, and what became of each.

        The experts are counted from the first one that is left.

        Some classes give each expert its own tokens, weighed already (see `of_each`); the weight of
        one is then its length.

        Args:
            given: What the experts were called with.
            made: What they returned.
        """
        if len(given) > 1:
            numbers = given[1].new_tensor(self.numbers)
            return torch.searchsorted(numbers, given[1]), given[2], made
        experts: Any = self.experts
        parts = len(experts.kept), -1, made.shape[-1]
        weights, chosen = given[0].view(parts).norm(dim=-1).T.topk(self.active)
        return chosen, weights, made.view(parts).sum(0)

    @property
    def numbers(self) -> Sequence[int]:
        """How the router numbers the experts that are left."""
        if self.mixture.whole_router:
            return list(map(self.mixture.number, self.indices))
        return range(len(self.indices))

    def routing(self, left: Sequence[int]) -> Attributes:
        """What to set in the block so that some of the experts that are left are alone.

        Args:
            left: Which, counted from the first one that is left.
        """
        own = [self.indices[i] for i in left]
        # A router that keeps what it has of all knows the indices, others have forgotten the rest.
        attributes = self.mixture.routing(self.block, own if self.mixture.whole_router else left)
        attributes[self.mixture.experts, "kept"] = tuple(own)
        return attributes

    @property
    def router(self) -> nn.Module:
        """What chooses the experts of each token."""
        return self.block.get_submodule(self.mixture.router)


def mixtures(live: LiveModel, candidate: Candidate) -> Iterator[Mixed]:
    """The mixtures that a candidate keeps, in model order; the live model must be the candidate.

    Raises:
        ConfigError: The model is no mixture of experts.
    """
    family, model = live.loaded.family, live.loaded.model
    if family.mixture is None:
        raise ConfigError(
            f"{live.loaded.source} is no mixture of experts, so no estimate of experts can be made"
        )
    for index, block in enumerate(family.blocks(model)):
        name, mixture = family.block_names[index], family.at(index).mixture
        if mixture is None or candidate.by_name.get(f"{name}.mlp") == DROP:
            continue
        names = {i: f"{name}.{mixture.expert_path(i)}" for i in range(mixture.count)}
        kept = {i: own for i, own in names.items() if candidate.by_name.get(own) != DROP}
        yield Mixed(mixture, block, mixture.active, tuple(kept), tuple(kept.values()))
