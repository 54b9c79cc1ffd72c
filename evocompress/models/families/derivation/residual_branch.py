"""What is added to the residual stream at one place of a block, and what stands in for it."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from evocompress.models.families.branches import SubLayerName
from evocompress.models.families.stand_ins import among_others
from evocompress.models.modeling.modeling_derived import Passing


class Zero(nn.Module):
    """Yields a zero like its first input, or what it is given to add its output to.

    Args:
        among: Of how many things its output is the first; 0 where it is all.
        residual: The place and the name of the argument that a core adds its output to.
    """

    def __init__(self, among: int, residual: tuple[int, str] | None = None) -> None:
        super().__init__()
        self.among = among
        self.residual = residual

    def forward(self, *given: Any, **named: Any) -> Any:
        """The output, and ``None`` for each other thing."""
        if self.residual:
            place, name = self.residual
            return among_others(named[name] if name in named else given[place], self.among)
        first = next(x for x in (*given, *named.values()) if isinstance(x, Tensor))
        # Some blocks add to what a part yields, in its place.
        return among_others(torch.zeros_like(first), self.among)


@dataclass(frozen=True)
class ResidualBranch:
    """What is added to the residual stream at one place of a block.

    Attributes:
        kind: ``attention`` where tokens are mixed, ``mlp`` otherwise.
        core: Paths of the modules with the matrices, and of what lies between them, in order.
        before: Norms of what the core reads.
        after: Norms of what it yields.
        among: Of how many things that the core returns its output is the first; 0 for a tensor.
        residual: The place and the name of an argument that it adds its output to itself.
        beside: Others of the same kind that are removed with it: several mixers of tokens, or MLPs
            that read the same state, as experts and what chooses them may beside a dense MLP.
        norm_after: Norm of the sum of what it yields and the residual stream; empty without one.
        first_of_many: Path of a module of the core before the last one that returns `among` things,
            or is given several; empty where the last one does.
        norm_within: Path of the same norm where it lies in the core; empty without one.
    """

    kind: SubLayerName
    core: tuple[str, ...]
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    among: int = 0
    residual: tuple[int, str] | None = None
    beside: tuple[ResidualBranch, ...] = ()
    norm_after: str = ""
    first_of_many: str = ""
    norm_within: str = ""

    @property
    def cores(self) -> tuple[str, ...]:
        """The paths of all of its modules with matrices, those beside its core among them."""
        return (*self.core, *(path for other in self.beside for path in other.core))

    @property
    def zero(self) -> str:
        """The module that yields zero where the branch is removed."""
        return self.first_of_many or self.core[-1]

    @property
    def identities(self) -> tuple[str, ...]:
        """What becomes the identity where the branch is removed."""
        core = tuple(path for path in self.core if path != self.zero)
        last = (self.norm_after,) if self.norm_after else ()
        return (*self.before, *core, *self.after, *last)

    def removal(self, block: nn.Module) -> dict[str, nn.Module]:
        """What to put where in a block so that the branch adds nothing."""
        identities: dict[str, nn.Module] = {
            path: Passing(block.get_submodule(path)) for path in self.identities
        }
        others = (other.removal(block).items() for other in self.beside)
        own = {self.zero: Zero(self.among, self.residual)}
        return identities | own | dict(chain.from_iterable(others))
