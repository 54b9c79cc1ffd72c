"""A level library in memory without any criterion: what it cuts is drawn at random."""

from __future__ import annotations

import zlib

import torch
from torch import Tensor

from evocompress.errors import LibraryError
from evocompress.families.base import matrices_of
from evocompress.families.coupling import Kept, axis_lengths, index_of
from evocompress.models import LoadedModel
from evocompress.types import DENSE, Level


class PlainLibrary:
    """Levels with the dense model's own weights: cut at random, never updated.

    A dense model in which the cut heads or channels are silenced computes the same as the
    narrowed one, and so can be its reference. A level that needs a bias gets a random one.

    Args:
        loaded: The model, dense.
    """

    fingerprint = "0123456789abcdef"

    def __init__(self, loaded: LoadedModel) -> None:
        family, model = loaded.family, loaded.model
        self.units = {unit.name: unit for unit in family.units(model)}
        self.dense = {
            f"{family.layers_path}.{block}.{matrix.path}": module.get_parameter(
                f"{matrix.path}.weight"
            ).data
            for block, module in enumerate(family.blocks(model))
            for matrix in matrices_of(family, model)
        }
        self._architecture = family.architecture(model)
        self._transposed = any(matrix.transposed for matrix in family.matrices)

    def load(self, unit: str, level: Level, width: Level = DENSE) -> dict[str, Tensor]:
        """See `evocompress.library.store.Library.load`."""
        if self.units[unit].kind == "matrix":
            return {"weight": self._sparse(unit, level, width)}
        kept = self.kept(unit, level)
        weight = self._narrow(self.output(unit), kept)
        entry = {"groups": kept.groups, "items": kept.items, "weight": self._stored(weight)}
        if level.bias:
            bias = torch.randn(self._architecture.hidden, generator=_generator(unit, level))
            entry["bias"] = bias.to(weight)
        return entry

    def output(self, unit: str) -> str:
        """Name of the output matrix of a sub-layer unit."""
        return next(u.name for u in self.units.values() if u.parent == unit and u.columns)

    def kept(self, unit: str, level: Level) -> Kept:
        """The heads or channels that stay in a sub-layer unit at a narrow level."""
        lengths = axis_lengths(self._architecture, self.units[unit].block)
        generator = _generator(unit, level)
        if level.channels is not None:
            items = _draw(lengths["channel"], level.channels, generator)
            return Kept(torch.zeros(1, dtype=torch.int64), items)
        size = lengths["query"] // lengths["key"]
        groups = _draw(lengths["key"], level.kv_groups or 0, generator)
        heads = [g * size + _draw(size, level.group_heads or 0, generator) for g in groups]
        return Kept(groups, torch.cat(heads))

    def silenced(self, unit: str, level: Level) -> Tensor:
        """The dense output matrix of a sub-layer unit with zeros for what a level cuts."""
        name = self.output(unit)
        weight = self._oriented(self.dense[name])
        _, columns = self._index(name, self.kept(unit, level))
        zeroed = torch.zeros_like(weight)
        zeroed[:, columns] = weight[:, columns]
        return self._stored(zeroed)

    def _sparse(self, unit: str, level: Level, width: Level) -> Tensor:
        """A matrix of a sub-layer at a width, with zeros at random places."""
        dense = self._oriented(self.dense[unit])
        weight = dense.clone(memory_format=torch.contiguous_format)
        if width.narrow:
            parent = self.units[unit].parent
            assert parent is not None
            weight = self._narrow(unit, self.kept(parent, width))
        if level.dense or level.zeros > dense.numel():
            raise LibraryError(f"the library stores no {level.key} of {unit}")
        zeros = level.zeros * weight.numel() // dense.numel()
        weight.flatten()[_draw(weight.numel(), zeros, _generator(unit, level))] = 0
        return self._stored(weight)

    def _narrow(self, unit: str, kept: Kept) -> Tensor:
        """A copy of what stays of a dense matrix, (out, in)."""
        weight = self._oriented(self.dense[unit])
        rows, columns = self._index(unit, kept)
        return weight[rows][:, columns].clone().contiguous()

    def _index(self, unit: str, kept: Kept) -> tuple[Tensor | slice, Tensor | slice]:
        matrix, head_dim = self.units[unit], self._architecture.head_dim
        lengths = axis_lengths(self._architecture, matrix.block)
        rows = index_of(matrix.rows, kept, lengths, head_dim)
        columns = index_of(matrix.columns, kept, lengths, head_dim)
        return slice(None) if rows is None else rows, slice(None) if columns is None else columns

    def _oriented(self, weight: Tensor) -> Tensor:
        """A module's weight as (out, in)."""
        return weight.T if self._transposed else weight

    def _stored(self, weight: Tensor) -> Tensor:
        """A matrix (out, in) as its module stores it."""
        return self._oriented(weight).contiguous()


def _generator(unit: str, level: Level) -> torch.Generator:
    return torch.Generator().manual_seed(zlib.crc32(f"{unit} {level.key}".encode()))


def _draw(count: int, chosen: int, generator: torch.Generator) -> Tensor:
    """Some of the first `count` integers, ascending."""
    return torch.randperm(count, generator=generator)[:chosen].sort().values
