"""The matrices that a candidate keeps: what the estimates of allocation heuristics look at."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from evocompress.compression.live_model import LiveModel
from evocompress.core.types import DROP, Candidate
from evocompress.models.families import Matrix
from evocompress.models.families.base import block_matrices


@dataclass(frozen=True, eq=False)
class KeptMatrix:
    """One linear matrix that is in the model.

    Attributes:
        name: Of its unit.
        block: Of the unit of its block.
        module: What holds it.
        matrix: What its family says of it.
    """

    name: str
    block: str
    module: nn.Module
    matrix: Matrix

    @property
    def sublayer(self) -> str:
        """The unit of its sub-layer."""
        return f"{self.block}.{self.matrix.sublayer}"

    @property
    def parameter(self) -> nn.Parameter:
        """The weight as the module stores it."""
        return self.module.get_parameter("weight")

    @property
    def weight(self) -> Tensor:
        """The weight (out, in)."""
        return self.parameter.data.T if self.matrix.transposed else self.parameter.data.flatten(1)


def kept_matrices(live: LiveModel, candidate: Candidate) -> Iterator[KeptMatrix]:
    """Makes the model the candidate and gives every matrix that is left, in model order."""
    live.apply(candidate)
    family = live.loaded.family
    matrices = block_matrices(family, live.loaded.model)
    for index, block in enumerate(family.blocks(live.loaded.model)):
        name = family.block_names[index]
        for matrix in matrices[index]:
            own = f"{name}.{matrix.path}"
            owners = {f"{name}.{matrix.sublayer}", f"{name}.{matrix.owner}"}
            if own in live.units and DROP not in map(candidate.by_name.get, owners):
                module = block.get_submodule(matrix.path)
                yield KeptMatrix(own, name, module, matrix)


def part_ends(count: int, points: int) -> Tensor:
    """Of `count` sorted values the last one of each of `points` equal parts: indices, int64."""
    parts = torch.arange(1, points + 1, dtype=torch.int64)
    return (parts * count + points - 1) // points - 1
