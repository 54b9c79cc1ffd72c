"""The weights that each level changes, all at the dense model's width.

A narrowed sub-layer computes the same as a wide one in whose output matrix the columns of the cut
heads or channels are zero, and a dropped one the same as one whose output matrix is zero. So every
level is a value of matrices of one shape, gradients by which tell what a change to it does; also
what it does to restore what was cut. A type that rounds what a matrix reads, or what an attention
caches, is a value of a further parameter, 1, which is 0 at other levels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from evocompress.compression.live_model import LiveModel
from evocompress.compression.rounded_inputs import ROUNDING, InputRounding
from evocompress.core.storage import rounds_inputs
from evocompress.core.types import DENSE, Candidate, Level, Unit
from evocompress.core.widths import narrowable
from evocompress.models.device_copy import to_device
from evocompress.models.families import Matrix, SubLayerName
from evocompress.models.families.base import block_matrices
from evocompress.models.families.coupling import Kept, index_of


@dataclass(frozen=True, eq=False)
class Value:
    """A parameter at one level; zero in the rows or columns that are not kept.

    Attributes:
        tensor: What is kept.
        axis: Which axis `kept` is about.
        kept: Indices that are kept; ``None`` means all.
    """

    tensor: Tensor
    axis: int = 0
    kept: Tensor | None = None

    def dot(self, gradient: Tensor) -> Tensor:
        """The inner product with a gradient of the whole parameter, taken in float32; float64.

        It is left to the caller when to wait for a GPU.
        """
        device, kept = gradient.device, self.kept
        part = gradient if kept is None else gradient.index_select(self.axis, kept.to(device))
        value = to_device(self.tensor, device)
        return torch.dot(part.flatten().float(), value.flatten().float()).double()

    def whole(self, like: Tensor) -> Tensor:
        """The parameter at its full shape, with the dtype and device of a tensor `like` it."""
        if self.kept is None:
            return self.tensor
        return torch.zeros_like(like).index_copy_(self.axis, self.kept, self.tensor.to(like))


ParameterValues = Mapping[str, Value]
"""{parameter name: its value}; a parameter that is not named is zero."""


_STACKED_BYTES = 2**28


def dots(values: Sequence[Value], gradient: Tensor) -> Tensor:
    """The inner products (N,) of several values of one parameter with its gradient, float64.

    On a GPU those at full size are taken together, as each alone takes longer to begin than to do.
    """
    if not gradient.is_cuda or any(value.kept is not None for value in values):
        return torch.stack([value.dot(gradient) for value in values])
    flat, count = gradient.flatten().float(), max(1, _STACKED_BYTES // (4 * gradient.numel()))
    parts = [values[begin : begin + count] for begin in range(0, len(values), count)]
    stacked = (torch.stack([to_device(v.tensor, gradient.device) for v in p]) for p in parts)
    return torch.cat([part.flatten(1).float() @ flat for part in stacked]).double()


class Wide:
    """The levels of a model's units as values of its parameters at full width.

    The candidate that the model is says which inputs of an output matrix are cut.
    """

    def __init__(self, live: LiveModel, candidate: Candidate) -> None:
        self._live = live
        self._family = live.loaded.family
        self._levels = candidate.by_name
        self._matrices = block_matrices(self._family, live.loaded.model)

    def values(self, unit: Unit, level: Level) -> ParameterValues:
        """The parameters of a unit at a level."""
        if unit.kind == "outer":
            return {n: Value(t) for n, t in self._live.tensors(unit.name, level).items()}
        if unit.kind == "matrix":
            return self._matrix(unit, level) | self._rounding(unit, level)
        if unit.kind == "cache":
            names = self._live.caches.names(unit.name)
            shares = torch.tensor([float(name == level.cache) for name in names])
            return {self._live.caches.parameter(unit.name): Value(shares)}
        found: dict[str, Value] = {}
        for sublayer in self._sublayers(unit):
            gate = self._gate(unit, sublayer)
            if not level.drop:
                found |= self._cut(unit, sublayer, level) | gate
            elif gate:
                # Its norm alone says that nothing is added, so the matrices stay as they are.
                found |= self._cut(unit, sublayer, self.current(unit.name))
        return found

    def _rounding(self, unit: Unit, level: Level) -> dict[str, Value]:
        """That the inputs of a matrix are rounded, at a level whose type does so."""
        if not rounds_inputs(level.bits):
            return {}
        dense = self._live.dense[f"{unit.name}.weight"]
        return {f"{unit.name}.{ROUNDING}": Value(dense.new_ones(1))}

    def _cut(self, unit: Unit, sublayer: SubLayerName, level: Level) -> dict[str, Value]:
        """The matrices of a sub-layer or expert that read heads or channels."""
        found: dict[str, Value] = {}
        if unit.kind == "expert":
            level = self.current(unit.owner)
        for name, matrix in self._readers(unit):
            if matrix.sublayer != sublayer:
                continue
            if level.narrow and not matrix.fixed:
                found |= self._narrow(unit, name, matrix, level)
            else:
                found |= {key: Value(self._live.dense[key]) for key in self._tensor_names(name)}
        return found

    def _gate(self, unit: Unit, sublayer: SubLayerName) -> dict[str, Value]:
        """The parameters of the norm behind a sub-layer's output matrix, if there is one."""
        family = self._family.at(unit.block)
        branch = family.mlp if sublayer == "mlp" else family.attention
        if not branch.gate:
            return {}
        path = f"{self._family.block_names[unit.block]}.{branch.gate}"
        norm = self._live.loaded.model.get_submodule(path)
        return {f"{path}.{name}": Value(p.data) for name, p in norm.named_parameters()}

    def current(self, name: str) -> Level:
        """The level that a unit has now."""
        return self._levels.get(name, DENSE)

    def dropped(self, unit: Unit) -> bool:
        """Whether a unit, or one that it is in, is dropped now."""
        units = (unit, *self._live.tree.above(unit))
        return any(self.current(each.name).drop for each in units)

    def padded(self, unit: Unit) -> dict[str, Tensor]:
        """The matrices that read what is cut of a sub-layer as it is now, at full width."""
        level, values = self._levels[unit.name], dict[str, Value]()
        for name, matrix in self._readers(unit):
            if matrix.fixed:
                continue
            values |= self._narrow(unit, name, matrix, level)
            if not self.current(name).dense:
                values |= self._sparse(unit, name, matrix, level)
        dense = self._live.dense
        return {key: value.whole(dense.get(key, value.tensor)) for key, value in values.items()}

    def _sparse(self, unit: Unit, name: str, matrix: Matrix, level: Level) -> dict[str, Value]:
        """A matrix of a narrowed sub-layer that reads its heads or channels, with zeros in it."""
        assert self._live.library is not None
        axis, kept = self._kept(unit, matrix, level)
        made = self._live.library.load(name, self.current(name), level)
        tensor, bias = made["weight"], made.get("bias")
        found = {}
        if bias is not None and not matrix.rows:
            device = self._live.dense[f"{name}.weight"].device
            found[f"{name}.bias"] = Value(to_device(bias, device))
        if matrix.rows:
            # Rows that are gone are not read, whatever stands there.
            entry = self._live.library.load(self._owner(unit, matrix), level)
            shape = (self._live.dense[f"{name}.weight"].shape[0], *tensor.shape[1:])
            tensor = tensor.new_zeros(shape).index_copy_(0, entry["items"], tensor)
        return found | {f"{name}.weight": Value(tensor, axis, kept)}

    def no_bias(self, unit: Unit) -> dict[str, Tensor]:
        """A zero bias of the output matrix of a sub-layer."""
        found = {}
        for name, matrix in self._readers(unit):
            if matrix.part != "weight":
                continue
            weight = self._live.dense[f"{name}.weight"]
            rows = weight.shape[1 if matrix.transposed else 0]
            found[f"{name}.bias"] = weight.new_zeros(rows)
        return found

    @contextmanager
    def rounding(self, levels: Mapping[str, Sequence[Level]]) -> Iterator[None]:
        """Gives modules the parameter that says whether their inputs are rounded, for a while.

        Those with a level, of those asked about, whose type does so. Inputs that are cut now have
        no part in how the others are rounded.
        """
        with ExitStack() as stack:
            for name in levels.keys() | self._levels.keys():
                unit, options = self._live.units[name], levels.get(name, ())
                asked = any(rounds_inputs(level.bits) for level in options)
                rounding = self._live.input_rounding(name)
                if not (asked or rounding) or self.dropped(unit):
                    continue
                module = self._live.loaded.model.get_submodule(name)
                share = self._live.dense[f"{name}.weight"].new_full((1,), bool(rounding))
                if rounding is None:
                    rounding = InputRounding(on=False)
                    stack.callback(module.register_forward_pre_hook(rounding).remove)
                rounding.kept = cut[1] if (cut := self._cut_inputs(unit)) else None
                module.register_parameter(ROUNDING, nn.Parameter(share, requires_grad=False))
                stack.callback(delattr, module, ROUNDING)
            yield

    def _sublayers(self, unit: Unit) -> tuple[SubLayerName, ...]:
        """The sub-layers that a unit is, or that are in it, or that it is in."""
        kinds = self._family.at(unit.block).sublayers
        kind = "mlp" if unit.kind == "expert" else unit.kind
        if kind == "block":
            return tuple(s for s in kinds if f"{unit.name}.{s}" in self._live.units)
        return tuple(s for s in kinds if s == kind)

    def _readers(self, unit: Unit) -> list[tuple[str, Matrix]]:
        """The matrices of a unit's sub-layers or experts that read heads or channels, by name."""
        block = self._family.block_names[unit.block]
        return [
            (f"{block}.{matrix.path}", matrix)
            for matrix in self._matrices[unit.block]
            if matrix.columns
            and f"{block}.{matrix.path}" in self._live.units
            and unit.name in (block, f"{block}.{matrix.sublayer}", f"{block}.{matrix.owner}")
        ]

    def _owner(self, unit: Unit, matrix: Matrix) -> str:
        """The unit of the library that has the widths of a matrix of a unit's block."""
        return f"{self._family.block_names[unit.block]}.{matrix.owner}"

    def _tensor_names(self, matrix: str) -> list[str]:
        names = [f"{matrix}.weight", f"{matrix}.bias"]
        return [name for name in names if name in self._live.dense]

    def _matrix(self, unit: Unit, level: Level) -> dict[str, Value]:
        """A matrix with zeros and its bias, or without the inputs that are cut now."""
        tensors = self._live.tensors(unit.name, level)
        weight = f"{unit.name}.weight"
        if (cut := self._cut_inputs(unit)) is None:
            return {name: Value(tensor) for name, tensor in tensors.items()}
        axis, kept = cut
        # The bias is as the width left it, whatever the zeros.
        return {weight: Value(tensors[weight].index_select(axis, kept), axis, kept)}

    def _cut_inputs(self, unit: Unit) -> tuple[int, Tensor] | None:
        """What `_kept` gives of a matrix some of whose inputs are cut now."""
        width = self.current(self._live.tree.sublayer(unit).name)
        if not (narrowable(unit.columns) and width.narrow):
            return None
        owner = self._live.units[unit.owner]
        matrix = next(matrix for name, matrix in self._readers(owner) if name == unit.name)
        return self._kept(owner, matrix, width)

    def _narrow(self, unit: Unit, name: str, matrix: Matrix, level: Level) -> dict[str, Value]:
        """The output matrix of a narrowed sub-layer, and its bias where it has one."""
        assert self._live.library is not None
        entry = self._live.library.load(self._owner(unit, matrix), level)
        axis, kept = self._kept(unit, matrix, level)
        device = self._live.dense[f"{name}.weight"].device
        found = {f"{name}.weight": Value(to_device(entry[matrix.part], device), axis, kept)}
        if matrix.part != "weight":
            return found
        bias = entry.get("bias", self._live.dense.get(f"{name}.bias"))
        if bias is not None:
            found[f"{name}.bias"] = Value(bias.to(device))
        return found

    def _kept(self, unit: Unit, matrix: Matrix, level: Level) -> tuple[int, Tensor]:
        """The axis of a stored output matrix that its inputs are on, and those that stay."""
        assert self._live.library is not None
        entry = self._live.library.load(self._owner(unit, matrix), level)
        widths = self._live.widths(unit.block)
        kept = Kept(entry["groups"], entry["items"])
        block, axis = self._family.block_names[unit.block], 0 if matrix.transposed else 1
        dense = self._live.dense[f"{block}.{matrix.path}.weight"]
        index = index_of(matrix.columns, kept, widths.lengths, dense.shape[axis])
        assert index is not None
        return axis, index.to(dense.device)


@contextmanager
def wide_form(
    live: LiveModel, candidate: Candidate, levels: Mapping[str, Sequence[Level]]
) -> Iterator[Wide]:
    """Makes the model a candidate with its narrowed sub-layers at full width, for a while.

    It computes the same; what is dropped stays dropped. Afterwards the model is dense. A bias that
    one of the levels asked about, {unit: levels}, adds is there from the beginning, as zero.
    """
    wide = Wide(live, candidate)
    plain = tuple((name, level) for name, level in candidate.levels if not level.narrow)
    live.apply(Candidate(plain))
    tensors: dict[str, Tensor] = {}
    for name, options in levels.items():
        if any(level.bias for level in options) and not wide.current(name).drop:
            tensors |= wide.no_bias(live.units[name])
    for name, level in candidate.levels:
        if level.narrow:
            tensors |= wide.padded(live.units[name])
    former = _put(live, tensors)
    caches = [name for name in levels if live.units[name].kind == "cache"]
    for name in caches:
        now = wide.current(name)
        types = dict.fromkeys(lv.cache for lv in (now, *levels[name]) if lv.cache)
        live.caches.put(name, now.cache, tuple(types))
    try:
        with wide.rounding(levels):
            yield wide
    finally:
        for name in caches:
            live.caches.put(name, "")
        _put(live, former)
        live.restore()


def _put(live: LiveModel, tensors: Mapping[str, Tensor | None]) -> dict[str, Tensor | None]:
    """Gives parameters other tensors, or none; returns the former ones."""
    former: dict[str, Tensor | None] = {}
    for name, tensor in tensors.items():
        path, _, part = name.rpartition(".")
        module = live.loaded.model.get_submodule(path)
        parameter = getattr(module, part)
        former[name] = None if parameter is None else parameter.data
        if parameter is not None and tensor is not None:
            parameter.data = tensor
        else:
            new = None if tensor is None else nn.Parameter(tensor, requires_grad=False)
            module.register_parameter(part, new)
    return former
