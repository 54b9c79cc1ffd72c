"""Matrices of coarser types on their way into a file, whose tensors may have rows of several."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from evocompress.compression.criteria import Statistics
from evocompress.compression.quantization.ggml import dequantized
from evocompress.compression.quantization.gptq import RoundingTask
from evocompress.compression.quantization.quantized import (
    QuantizedMatrix,
    quantize_all,
    read_back,
)
from evocompress.compression.weights import Form, form_of
from evocompress.core.errors import ExportError
from evocompress.core.storage import Lane, StorageType, rounds_inputs, storage_type
from evocompress.core.types import DENSE, Candidate, Level
from evocompress.export.parts import Parts
from evocompress.export.weights import LevelWeights, StateDict
from evocompress.models.families.base import block_matrices
from evocompress.models.families.outer import every_unit, other_names
from evocompress.models.loading import LoadedModel

LOG = logging.getLogger("evocompress")

CHANGED = (
    "has not only its rows in another order than the matrices that it is made of: leave these out "
    "of space.bits.match"
)

EXACT = 2**24
"""Float32 holds all whole numbers up to it."""

NEAR = 2**-7
"""How far what is read back may be from the model's weights, as a share of the largest: theirs
have eight bits."""


@dataclass(frozen=True, eq=False)
class TypedRows:
    """A tensor of a file that is stored already.

    Attributes:
        kind: Its type.
        rows: (rows of all matrices that it has, bytes), uint8.
    """

    kind: StorageType
    rows: Tensor


@dataclass(frozen=True)
class TypeRules:
    """What a format says of the types of matrices, by the names of their units.

    Attributes:
        tied: {matrix: a word that all have which must be of one type}.
        untyped: The matrices that keep the model's own type.
    """

    tied: Mapping[str, str] = field(default_factory=dict)
    untyped: frozenset[str] = frozenset()

    def also(self, other: TypeRules) -> TypeRules:
        """What both of two say."""
        return TypeRules({**self.tied, **other.tied}, self.untyped | other.untyped)


def _check_read_back(rows: Tensor, kind: StorageType, values: Tensor, place: str) -> None:
    """Refuses rows that are read back as other values than those that are to be written.

    Columns in another order, and multipliers, are seen so.
    """
    read = dequantized(rows, kind).view(values.shape)
    wanted = values.detach().float().cpu()
    if not bool((read - wanted).abs().max() <= NEAR * wanted.abs().max()):
        raise ExportError(f"{place} {CHANGED}")


@dataclass(frozen=True, eq=False)
class StoredMatrices:
    """The matrices of a candidate that have coarser types.

    Attributes:
        candidate: Theirs.
        state: All of its tensors, by their names in the dense model, as they are read back.
        kinds: The type of each, by the name of the parameter in the dense model.
        parts: What a file holds of them; see
            `evocompress.compression.quantization.quantized.QuantizedMatrix`.
        transposed: Those whose modules store (in, out).
        again: {another name of a parameter: its name}, of an embedding that is the head as well.

    Examples:
        >>> StoredMatrices(Candidate(), {}, {}, {}).kinds
        {}
    """

    candidate: Candidate
    state: StateDict
    kinds: Mapping[str, StorageType]
    parts: Mapping[str, Mapping[str, Tensor]]
    transposed: frozenset[str] = frozenset()
    again: Mapping[str, str] = field(default_factory=dict)

    @property
    def packed(self) -> dict[str, Tensor]:
        """Of llama.cpp's types the rows (out, bytes), uint8."""
        return {name: parts["packed"] for name, parts in self.parts.items()}

    def numbered(self) -> dict[str, Tensor]:
        """The state in which every row of these matrices, and no other, is full of its number.

        In main memory, where a row takes one number as long as it is not moved. The greatest number
        is less than twice the least, so that rows which are multiplied have none of another row.
        """
        dtype = torch.float32 if 2 * self.row_count < EXACT else torch.float64
        found = {
            name: torch.zeros(1, dtype=dtype).expand(tensor.shape)
            for name, tensor in self.state.items()
        }
        for (name, parts), first in zip(self.parts.items(), self._begins.tolist(), strict=True):
            numbers = torch.arange(first, first + len(parts["packed"]), dtype=dtype)
            own = numbers[None] if name in self.transposed else numbers[:, None]
            found[name] = own.expand(self.state[name].shape)
        return found | {other: found[name] for other, name in self.again.items()}

    def rows(self, numbers: Tensor, values: Tensor, place: str) -> TypedRows | None:
        """The type and rows of a file's tensor (…, rows, columns); ``None`` if it has no type.

        Args:
            numbers: What became of the tensor of a `numbered` state.
            values: What became of the tensor itself.
            place: Its name in the file.

        Raises:
            ExportError: Its rows are of several types, or more is done to them than to put them
                in another order.
        """
        if not bool((numbers > 0).any()):
            return None
        names, begins, packed = list(self.parts), self._begins, self.packed
        found = self._found(numbers)
        if found is None:
            raise ExportError(f"{place} {CHANGED}")
        owners = torch.searchsorted(begins, found, right=True) - 1
        present = sorted(set(owners.tolist()))
        kinds = {self.kinds[names[owner]] for owner in present if owner >= 0}
        if len(kinds) > 1 or present[0] < 0:
            listed = " and ".join(sorted(kind.name for kind in kinds))
            beside = "" if len(kinds) > 1 else " and of the model's own type"
            raise ExportError(
                f"{place} would be of types {listed}{beside}: one tensor has one type there; "
                "search with this format as space.fits"
            )
        every = torch.cat([packed[names[owner]] for owner in present])
        offsets = torch.zeros(len(names), dtype=torch.int64)
        ends = torch.tensor([len(packed[names[owner]]) for owner in present]).cumsum(0)
        offsets[present[1:]] = ends[:-1]
        kind = next(iter(kinds))
        rows = every[offsets[owners] + found - begins[owners]]
        _check_read_back(rows, kind, values, place)
        return TypedRows(kind, rows)

    def rules(self, numbers: Mapping[str, Tensor]) -> TypeRules:
        """Which of these matrices can be stored so, and which as one.

        Args:
            numbers: What became of the tensors of a `numbered` state, by their names in a file.
        """
        names = [name.removesuffix(".weight") for name in self.parts]
        tied: dict[str, str] = {}
        missing = dict(zip(names, map(len, self.packed.values()), strict=True))
        for place, tensor in numbers.items():
            owners = self.owners(tensor)
            for owner, count in owners.items():
                missing[owner] -= count
                if len(owners) > 1:
                    tied[owner] = place
        return TypeRules(tied, frozenset(name for name, rows in missing.items() if rows > 0))

    def owners(self, numbers: Tensor) -> dict[str, int]:
        """How many rows of which of these matrices a file's tensor is made of, if of nothing else.

        Args:
            numbers: What became of the tensor of a `numbered` state.
        """
        found = self._found(numbers) if numbers.dim() > 1 and bool((numbers > 0).any()) else None
        if found is None or not bool((found > 0).all()):
            return {}
        counts = (torch.searchsorted(self._begins, found, right=True) - 1).bincount().tolist()
        names = [name.removesuffix(".weight") for name in self.parts]
        return {names[owner]: count for owner, count in enumerate(counts) if count}

    def _found(self, numbers: Tensor) -> Tensor | None:
        """The number of each row (rows,); ``None`` where more was done than to move rows."""
        found = numbers[..., 0].flatten().to(torch.int64)
        whole = bool((numbers == found.view(*numbers.shape[:-1], 1)).all())
        ours = (found > self.row_count) & (found <= 2 * self.row_count)
        return found if whole and bool((ours | (found == 0)).all()) else None

    @property
    def _begins(self) -> Tensor:
        """The number of each matrix's first row."""
        sizes = [len(rows) for rows in self.packed.values()]
        return torch.tensor([self.row_count + 1, *sizes]).cumsum(0)[:-1]

    @property
    def row_count(self) -> int:
        """Of all these matrices."""
        return sum(map(len, self.packed.values()))


def lane_of(candidate: Candidate) -> Lane | None:
    """Whose types the matrices of a candidate have; ``None`` where none has a coarser one."""
    return next((storage_type(lv.bits).lane for _, lv in candidate.levels if lv.bits), None)


def typed_levels(candidate: Candidate) -> dict[str, Level]:
    """The levels of all that has a coarser type, by names of parameters in the dense model.

    Examples:
        >>> typed_levels(Candidate.from_json({"layers.3.mlp.up": {"bits": "q4_0"}})).keys()
        dict_keys(['layers.3.mlp.up.weight'])
    """
    return {f"{name}.weight": level for name, level in candidate.levels if level.bits}


def rounding_inputs(candidate: Candidate) -> frozenset[str]:
    """Weights whose types round what they are multiplied with, by names in the dense model."""
    return frozenset(
        name for name, level in typed_levels(candidate).items() if rounds_inputs(level.bits)
    )


def stored_matrices(
    loaded: LoadedModel,
    library: LevelWeights | None,
    candidate: Candidate,
    state: StateDict,
    beside: Parts | None = None,
) -> StoredMatrices:
    """The matrices of coarser types of a candidate.

    Args:
        loaded: The dense model.
        library: Has their rows.
        candidate: Says their types.
        state: Its tensors by their names in the dense model. Matrices that are not the library's,
            as some may be that were healed elsewhere, are rounded to their types anew.
        beside: Has the rows of those that a healing trained.

    Raises:
        LibraryError: The library lacks a level.
    """
    parts = known_parts(loaded, library, candidate, state, beside)
    kinds = {}
    transposed: set[str] = set()
    anew: dict[str, Tensor] = {}
    for unit, form, turned in _forms(loaded, candidate):
        if not form.level.bits:
            continue
        name = f"{unit}.weight"
        transposed |= {name} if turned else set()
        kind, weight = storage_type(form.level.bits), state[name]
        kinds[name] = kind
        if name not in parts:
            made = _anew(as_rows(weight, turned=turned), kind, loaded.stored)
            parts[name] = made.parts
            anew[name] = as_module(made.weight, weight, turned=turned)
    if anew:
        LOG.warning(
            "%s of %s matrices are not as in the level library, and were rounded to their types "
            "anew, each weight to the nearest value",
            *(len(anew), len(kinds)),
        )
    again = _other_names(loaded)
    anew |= {other: anew[name] for other, name in again.items() if name in anew}
    ordered = {name: parts[name] for name in kinds}
    turned_ones = frozenset(transposed)
    return StoredMatrices(candidate, {**state, **anew}, kinds, ordered, turned_ones, again)


def known_parts(
    loaded: LoadedModel,
    library: LevelWeights | None,
    candidate: Candidate,
    state: StateDict,
    beside: Parts | None = None,
) -> dict[str, Mapping[str, Tensor]]:
    """What a file holds of the matrices of coarser types whose weights are just what it gives.

    The arguments are those of `stored_matrices`.
    """
    found: dict[str, Mapping[str, Tensor]] = {}
    for unit, form, turned in _forms(loaded, candidate):
        if not form.level.bits:
            continue
        name = f"{unit}.weight"
        weight, own = state[name], (beside or {}).get(name)
        if own is not None:
            kind, columns = storage_type(form.level.bits), as_rows(weight, turned=turned).shape[1]
            read = as_module(read_back(own, kind, columns), weight, turned=turned)
            if _same(weight, read, loaded.stored):
                found[name] = own
                continue
        known = None if library is None else library.load(unit, form.level, form.width)
        if library is not None and known and _same(weight, known["weight"], loaded.stored):
            found[name] = library.parts(unit, form.level, form.width)
    return found


def _forms(loaded: LoadedModel, candidate: Candidate) -> Iterator[tuple[str, Form, bool]]:
    """The name and form of every matrix, and whether its module stores (in, out)."""
    levels, names = candidate.by_name, loaded.family.block_names
    for index, matrices in enumerate(block_matrices(loaded.family, loaded.model)):
        for matrix in matrices:
            form = form_of(names[index], matrix, levels)
            yield f"{names[index]}.{matrix.path}", form, matrix.transposed
    for unit in every_unit(loaded.family, loaded.model):
        if unit.kind == "outer":
            yield unit.name, Form(levels.get(unit.name, DENSE)), False


def _other_names(loaded: LoadedModel) -> dict[str, str]:
    """{another name of the embedding's weights: their name}."""
    units = every_unit(loaded.family, loaded.model)
    names = [f"{unit.name}.weight" for unit in units if unit.kind == "outer"]
    return {other: name for name in names for other in other_names(loaded.model, name)}


def as_rows(weight: Tensor, *, turned: bool) -> Tensor:
    """A module's weight as (out, in); it may store (in, out)."""
    return weight.T if turned else weight.flatten(1)


def as_module(rows: Tensor, like: Tensor, *, turned: bool) -> Tensor:
    """A matrix (out, in) in shape and type of a module's weight."""
    return (rows.T if turned else rows).reshape(like.shape).to(like)


def _same(weight: Tensor, other: Tensor, stored: torch.dtype) -> bool:
    """Whether two weights are one in the type of a model's files."""
    return torch.equal(weight.cpu().to(stored), other.cpu().to(stored))


def _anew(weight: Tensor, kind: StorageType, stored: torch.dtype) -> QuantizedMatrix:
    """A matrix (out, in) whose inputs nothing is known of; its zeros stay."""
    known = Statistics(squares=torch.ones(weight.shape[1]), sequences=1)
    zeros = weight == 0 if kind.has_zero else None
    (made,) = quantize_all([RoundingTask(weight.float(), kind, zeros)], known, "nearest", stored)
    return made


def every_matrix(loaded: LoadedModel) -> StoredMatrices:
    """All matrices of a dense model as if they had a type, to see what becomes of their rows."""
    units = every_unit(loaded.family, loaded.model).by_name
    named = [(n, turned) for n, _, turned in _forms(loaded, Candidate()) if n in units]
    return StoredMatrices(
        Candidate(),
        loaded.model.state_dict(),
        {},
        {
            f"{name}.weight": {"packed": torch.empty((units[name].shape or (0, 0))[0], 0)}
            for name, _ in named
        },
        frozenset(f"{name}.weight" for name, transposed in named if transposed),
        _other_names(loaded),
    )
