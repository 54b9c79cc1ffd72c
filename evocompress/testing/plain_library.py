"""A level library in memory without any criterion: what it cuts is drawn at random."""

from __future__ import annotations

import zlib
from dataclasses import replace

import torch
from torch import Tensor

from evocompress.core.canonical import MATRICES
from evocompress.core.errors import LibraryError
from evocompress.core.types import DENSE, Level, Unit
from evocompress.core.widths import axis_lengths
from evocompress.models.families.base import block_matrices
from evocompress.models.families.coupling import Kept, index_of
from evocompress.models.families.outer import every_unit
from evocompress.models.loading import LoadedModel


class PlainLibrary:
    """Levels with the dense model's own weights: cut at random, never updated.

    A dense model in which the cut heads or channels are silenced computes the same as the narrowed
    one, and so can be its reference. A level that needs a bias gets a random one. A type of an
    embedding or a head adds a little noise.
    """

    fingerprint = "0123456789abcdef"

    def __init__(self, loaded: LoadedModel) -> None:
        family, model = loaded.family, loaded.model
        self.units = every_unit(family, model).by_name
        self.dense = {
            name: model.get_parameter(f"{name}.weight").data
            for name, unit in self.units.items()
            if unit.kind in MATRICES
        }
        self._architecture = family.architecture(model)
        self._transposed = any(matrix.transposed for matrix in family.matrices)
        self._inner = any("inner" in matrix.columns for matrix in family.matrices)
        self._kernels = {
            f"{family.block_names[block]}.{matrix.path}": matrix.kernel
            for block, own in enumerate(block_matrices(family, model))
            for matrix in own
        }

    def load(self, unit: str, level: Level, width: Level = DENSE) -> dict[str, Tensor]:
        """See `evocompress.compression.library.store.Library.load`."""
        if self.units[unit].kind == "outer":
            noise = torch.randn(self.dense[unit].shape, generator=_generator(unit, level))
            return {"weight": self.dense[unit] + 0.01 * noise.to(self.dense[unit])}
        if self.units[unit].kind == "matrix":
            return {"weight": self._sparse(unit, level, width)}
        kept = self.kept(unit, level)
        weight = self._narrow(self.output(unit), kept)
        name = self.output(unit)
        entry = {"groups": kept.groups, "items": kept.items, "weight": self._stored(name, weight)}
        if self._inner and level.channels is not None:
            name = self.inner(unit)
            every = replace(
                kept, items=torch.arange(self._architecture.channels[self.units[unit].block])
            )
            entry["inner"] = self._stored(name, self._narrow(name, every))
        if level.bias:
            bias = torch.randn(len(weight), generator=_generator(unit, level))
            entry["bias"] = bias.to(weight)
        return entry

    def parts(self, unit: str, level: Level, width: Level = DENSE) -> dict[str, Tensor]:
        """No matrix has a coarser type."""
        return {}

    def output(self, unit: str) -> str:
        """Name of the output matrix of a sub-layer unit."""
        return next(u.name for u in self._readers(unit) if "inner" not in u.columns)

    def inner(self, unit: str) -> str:
        """Name of the matrix of a sub-layer unit that reads its inner channels."""
        return next(u.name for u in self._readers(unit) if "inner" in u.columns)

    def _readers(self, unit: str) -> list[Unit]:
        """The matrices of a sub-layer unit that read heads or channels."""
        return [u for u in self.units.values() if u.parent == unit and u.columns]

    def kept(self, unit: str, level: Level) -> Kept:
        """The heads or channels that stay in a sub-layer unit at a narrow level."""
        lengths = axis_lengths(self._architecture, self.units[unit].block)
        generator = _generator(unit, level)
        if level.channels is not None:
            items = _draw(lengths["channel"], level.channels, generator)
            if self._inner:
                return Kept(_draw(lengths["inner"], level.channels, generator), items)
            return Kept(torch.zeros(1, dtype=torch.int64), items)
        size = lengths["query"] // lengths["key"]
        groups = _draw(lengths["key"], level.kv_groups or 0, generator)
        heads = [g * size + _draw(size, level.group_heads or 0, generator) for g in groups]
        return Kept(groups, torch.cat(heads))

    def silenced(self, unit: str, level: Level) -> dict[str, Tensor]:
        """The dense matrices that read a sub-layer's channels, with zeros for what a level cuts."""
        found = {}
        for reader in self._readers(unit):
            weight = self._oriented(self.dense[reader.name])
            _, columns = self._index(reader.name, self.kept(unit, level))
            zeroed = torch.zeros_like(weight)
            zeroed[:, columns] = weight[:, columns]
            found[reader.name] = self._stored(reader.name, zeroed)
        return found

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
        return self._stored(unit, weight)

    def _narrow(self, unit: str, kept: Kept) -> Tensor:
        """A copy of what stays of a dense matrix, (out, in)."""
        weight = self._oriented(self.dense[unit])
        rows, columns = self._index(unit, kept)
        return weight[rows][:, columns].clone().contiguous()

    def _index(self, unit: str, kept: Kept) -> tuple[Tensor | slice, Tensor | slice]:
        matrix = self.units[unit]
        assert matrix.shape is not None
        lengths = axis_lengths(self._architecture, matrix.block)
        every = zip((matrix.rows, matrix.columns), matrix.shape, strict=True)
        rows, columns = (index_of(axes, kept, lengths, whole) for axes, whole in every)
        return slice(None) if rows is None else rows, slice(None) if columns is None else columns

    def _oriented(self, weight: Tensor) -> Tensor:
        """A module's weight as (out, in)."""
        return weight.T if self._transposed else weight.flatten(1)

    def _stored(self, name: str, weight: Tensor) -> Tensor:
        """A matrix (out, in) as its module stores it."""
        if self._kernels[name]:
            return weight.reshape(len(weight), -1, *self._kernels[name])
        return self._oriented(weight).contiguous()


def _generator(unit: str, level: Level) -> torch.Generator:
    return torch.Generator().manual_seed(zlib.crc32(f"{unit} {level.key}".encode()))


def _draw(count: int, chosen: int, generator: torch.Generator) -> Tensor:
    """Some of the first `count` integers, ascending."""
    return torch.randperm(count, generator=generator)[:chosen].sort().values
