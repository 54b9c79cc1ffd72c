"""The dense model as a library sees it: its matrices, and which are narrowed together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import chain
from math import prod

import torch
from torch import Tensor

from evocompress.compression.criteria import Structure
from evocompress.core.canonical import COSTED
from evocompress.core.errors import LibraryError
from evocompress.core.types import Axis, Level, Unit
from evocompress.core.widths import axis_lengths, per_item
from evocompress.models.families.base import block_matrices
from evocompress.models.families.coupling import Kept, index_of, ungrouped
from evocompress.models.families.outer import EMBEDDING, every_unit
from evocompress.models.loading import LoadedModel, once


@dataclass(frozen=True)
class Linear:
    """A matrix unit with what its family knows of it.

    Attributes:
        unit: The unit.
        input: Name of what the matrix reads; see `evocompress.models.families.Matrix`.
        transposed: The module stores (in, out).
        routed: It is in an expert, which reads only the tokens that are sent to it.
        kernel: Of a convolution, whose module stores (out, in, *kernel).
        part: Under which name a narrowed sub-layer's entry has this matrix; may be empty.
        lookup: It is an embedding alone: what it reads of a token is one row.
    """

    unit: Unit
    input: str
    transposed: bool
    kernel: tuple[int, ...] = ()
    part: str = ""
    routed: bool = False
    lookup: bool = False

    @property
    def name(self) -> str:
        """Name of the unit, which is its module's path."""
        return self.unit.name

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in), whatever order the module stores."""
        assert self.unit.shape is not None
        return self.unit.shape

    def oriented(self, weight: Tensor) -> Tensor:
        """A matrix (out, in) as the module stores it, or one of the module's as (out, in)."""
        if self.kernel:
            if weight.ndim > 2:
                return weight.flatten(1)
            return weight.reshape(len(weight), -1, *self.kernel)
        return weight.T if self.transposed else weight

    def stored_shape(self, shape: tuple[int, int]) -> tuple[int, ...]:
        """The shape in which the module stores a matrix of shape (out, in)."""
        if self.kernel:
            return shape[0], shape[1] // prod(self.kernel), *self.kernel
        return shape[::-1] if self.transposed else shape


@dataclass(frozen=True)
class Coupled:
    """An attention, MLP or expert with the matrices that are narrowed together.

    Attributes:
        unit: The unit.
        matrices: Its matrices, in the order of computation.
        lengths: Heads or channels of each axis.
        axis: Whose channels an MLP's are here; see `links`.
    """

    unit: Unit
    matrices: tuple[Linear, ...]
    lengths: Mapping[Axis, int]
    axis: Axis = "channel"

    @property
    def output(self) -> Linear:
        """The matrix whose inputs belong to the heads or channels."""
        part = "inner" if self.axis == "inner" else "weight"
        return next(linear for linear in self.matrices if linear.part == part)

    @property
    def links(self) -> tuple[Coupled, ...]:
        """The unit as it is narrowed: where it has channels twice, once for each, inner ones first.

        Each chooses its channels on its own, by what the next matrix makes of them.
        """
        if not any("inner" in linear.unit.columns for linear in self.matrices):
            return (self,)
        return replace(self, axis="inner"), self

    @property
    def size(self) -> int:
        """Inputs of the output matrix that belong to one head or channel."""
        return per_item(self.output.unit.columns, self.lengths, self.output.shape[1])

    @property
    def full(self) -> tuple[int, int]:
        """(groups, heads or channels in each of them) of the dense unit; an MLP is one group."""
        if self.unit.kind != "attention":
            return 1, self.lengths["channel"]
        return self.lengths["key"], self.lengths["query"] // self.lengths["key"]

    def width(self, level: Level) -> tuple[int, int]:
        """(groups, heads or channels in each of them) that a narrow level keeps."""
        if self.unit.kind != "attention":
            return 1, level.channels or 0
        return level.kv_groups or 0, level.group_heads or 0

    def kept_ranges(self, level: Level) -> dict[str, tuple[int, int]]:
        """Of the stored ``groups`` and ``items`` of a narrow level (how many, of how many)."""
        (groups, items), (all_groups, all_items) = self.width(level), self.full
        inner = (items, self.lengths["inner"]) if len(self.links) > 1 else (groups, all_groups)
        return {"groups": inner, "items": (groups * items, all_groups * all_items)}

    def inputs_left(self, level: Level) -> int:
        """Inputs of the output matrix at a narrow level."""
        groups, items = self.width(level)
        return groups * items * self.size

    def check(self, level: Level, *, bias: bool) -> None:
        """Refuse a level that the unit cannot have.

        Raises:
            LibraryError: The level drops the unit, has the other kind's width or as much as
                the dense unit, or is wrong about the bias.
        """
        width, full = self.width(level), self.full
        mixed = (level.kv_groups is None) == (level.channels is None)
        inside = all(0 < kept <= dense for kept, dense in zip(width, full, strict=True))
        if mixed or not inside or width == full:
            raise LibraryError(f"{self.unit.name} cannot be narrowed to {level.key}: {self._range}")
        if level.bias != bias:
            raise LibraryError(
                f"{self.unit.name} at {level.key}: the level must "
                f"{'say' if bias else 'not say'} that a bias is added, as library.width_criterion "
                f"{'adds one' if bias else 'adds none'} to this output"
            )

    @property
    def _range(self) -> str:
        groups, items = self.full
        if self.unit.kind != "attention":
            return f"give 1 to {items - 1} channels"
        return f"give 1 to {groups} kv_groups and 1 to {items} group_heads, but not both in full"

    def index(self, linear: Linear, kept: Kept) -> tuple[Tensor | slice, Tensor | slice]:
        """Which (rows, columns) of a matrix (out, in) stay; a slice is all of them."""
        every = zip((linear.unit.rows, linear.unit.columns), linear.shape, strict=True)
        rows, columns = (index_of(axes, kept, self.lengths, whole) for axes, whole in every)
        return slice(None) if rows is None else rows, slice(None) if columns is None else columns

    def structure(
        self,
        weights: Mapping[str, Tensor],
        gradients: Mapping[str, Tensor] | None,
        bias: Tensor | None,
    ) -> Structure:
        """The unit as its criterion sees it, of matrices (out, in) and gradients by their names."""
        inputs, shared = self._parts(weights)
        output, known = self.output.name, gradients or {}
        return Structure(
            output=weights[output],
            size=self.size,
            groups=self.full[0],
            inputs=inputs,
            shared=shared,
            gradients=(known[output], *chain(*self._parts(known))) if known else (),
            bias=bias,
        )

    def _parts(self, tensors: Mapping[str, Tensor]) -> tuple[tuple[Tensor, ...], ...]:
        """The matrices but the output, cut at the borders of their axes: by items, by groups."""
        inputs: list[Tensor] = []
        shared: list[Tensor] = []
        for linear in self.matrices:
            axes = linear.unit.rows
            if self.unit.kind == "mlp" and self.axis not in axes:
                continue
            size = per_item(axes, self.lengths, linear.shape[0])
            lengths = [self.lengths[axis] * size for axis in axes]
            parts = torch.split(tensors[linear.name], lengths) if axes else ()
            for axis, part in zip(axes, parts, strict=True):
                if axis == "grouped":
                    queries, *keys_and_values = ungrouped(part, self.lengths["key"], size)
                    inputs.append(queries)
                    shared.extend(keys_and_values)
                else:
                    (shared if axis in ("key", "value") else inputs).append(part)
        return tuple(inputs), tuple(shared)


class DenseModel:
    """The matrices of a model as they are now, whatever is put into the model later.

    Nothing is copied: the tensors are the model's own.

    Attributes:
        fingerprint: The model's.
        dtype: Of its weights.
        stored: Of the weights of its files.
        device: Where it is run.
        units: Its units by name.
        linears: Its matrix units by name.
        outer: Its embedding and its head by name.
        coupled: Its attention and MLP units by name; in place of an MLP that is a mixture its
            experts.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        family, model = loaded.family, loaded.model
        self.fingerprint = loaded.fingerprint
        self.dtype: torch.dtype = model.dtype
        self.stored = loaded.stored
        self.device = model.device
        self.units = every_unit(family, model).by_name
        self.linears = _linears(loaded, self.units)
        self.coupled = _coupled(loaded, self.units, self.linears)
        tied = family.architecture(model).tied
        self.outer = {
            name: Linear(unit, unit.role, False, lookup=unit.role == EMBEDDING and not tied)
            for name, unit in self.units.items()
            if unit.kind == "outer"
        }
        self.matrices = self.linears | self.outer
        self._blocks = len(family.blocks(model))
        self._weights = {n: model.get_parameter(f"{n}.weight").data for n in self.matrices}
        self._biases = {
            name: model.get_parameter(f"{name}.bias").data
            for name, linear in self.matrices.items()
            if linear.unit.bias
        }

    def place(self, unit: str) -> int:
        """The block of a unit; of the embedding and the head, which are made last, their number."""
        return self._blocks if unit in self.outer else self.units[unit].block

    def weight(self, unit: str) -> Tensor:
        """A matrix as (out, in) float32, on the device."""
        return self.matrices[unit].oriented(self._weights[unit].to(self.device).float())

    def bias(self, unit: str) -> Tensor | None:
        """The bias of a matrix unit (out,) float32, if it has one."""
        return self._biases[unit].to(self.device).float() if unit in self._biases else None


dense_model = once(DenseModel)
"""The matrices of a model that is dense now, or was when this was asked first."""


def _linears(loaded: LoadedModel, units: Mapping[str, Unit]) -> dict[str, Linear]:
    family, found = loaded.family, {}
    for block, matrices in enumerate(block_matrices(family, loaded.model)):
        for matrix in matrices:
            name = f"{family.block_names[block]}.{matrix.path}"
            if name in units:
                found[name] = Linear(
                    units[name],
                    matrix.input,
                    matrix.transposed,
                    matrix.kernel,
                    matrix.part,
                    routed=bool(matrix.expert),
                )
    return found


def _coupled(
    loaded: LoadedModel, units: Mapping[str, Unit], linears: Mapping[str, Linear]
) -> dict[str, Coupled]:
    architecture = loaded.family.architecture(loaded.model)
    within: dict[str | None, list[Linear]] = {}
    for linear in linears.values():
        within.setdefault(linear.unit.parent, []).append(linear)
    return {
        name: Coupled(
            unit,
            tuple(within[name]),
            axis_lengths(architecture, unit.block),
        )
        for name, unit in units.items()
        if unit.kind in COSTED and any(linear.part for linear in within.get(name, ()))
    }
