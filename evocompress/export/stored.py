"""Matrices of coarser types on their way into a file, whose tensors may have rows of several."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from evocompress.compression.criteria import Statistics
from evocompress.compression.quantization.gptq import RoundingTask
from evocompress.compression.quantization.quantized import quantize_all
from evocompress.compression.weights import form_of
from evocompress.core.errors import ExportError
from evocompress.core.storage import Lane, StorageType, storage_type
from evocompress.core.types import Candidate
from evocompress.export.weights import LevelWeights, StateDict
from evocompress.models.families.base import block_matrices
from evocompress.models.loading import LoadedModel


@dataclass(frozen=True, eq=False)
class StoredMatrices:
    """The matrices of a candidate that have coarser types.

    Attributes:
        candidate: Theirs.
        state: All of its tensors, by their names in the dense model.
        kinds: The type of each, by the name of the parameter in the dense model.
        parts: What a file holds of them; see
            `evocompress.compression.quantization.quantized.QuantizedMatrix`.
        transposed: Those whose modules store (in, out).

    Examples:
        >>> StoredMatrices(Candidate(), {}, {}, {}).kinds
        {}
    """

    candidate: Candidate
    state: StateDict
    kinds: Mapping[str, StorageType]
    parts: Mapping[str, Mapping[str, Tensor]]
    transposed: frozenset[str] = frozenset()

    @property
    def packed(self) -> dict[str, Tensor]:
        """Of llama.cpp's types the rows (out, bytes), uint8."""
        return {name: parts["packed"] for name, parts in self.parts.items()}

    @property
    def lane(self) -> Lane:
        """Whose types they are."""
        return next(iter(self.kinds.values())).lane

    def numbered(self) -> dict[str, Tensor]:
        """The state in which every row of these matrices, and no other, is full of its number."""
        found = {
            name: torch.zeros_like(tensor, dtype=torch.float32)
            for name, tensor in self.state.items()
        }
        first = 1
        for name, rows in self.packed.items():
            numbers = torch.arange(first, first + len(rows), dtype=torch.float32)
            own = numbers[None] if name in self.transposed else numbers[:, None]
            found[name] = own.expand(self.state[name].shape).contiguous()
            first += len(rows)
        return found

    def rows(self, numbers: Tensor, place: str) -> tuple[StorageType, Tensor] | None:
        """The type and rows of a file's tensor (…, rows, columns); ``None`` if it has no type.

        Args:
            numbers: What became of the tensor of a `numbered` state.
            place: Its name in the file.

        Raises:
            ExportError: Its rows are of several types, or its columns in another order.
        """
        first = numbers[..., :1]
        if not bool(numbers.any()):
            return None
        if not bool((numbers == first).all()):
            raise ExportError(f"{place} has its columns in another order: leave out 'bits' of it")
        names, begins, packed = list(self.parts), self._begins, self.packed
        found = first.flatten().to(torch.int64)
        owners = torch.searchsorted(begins, found, right=True) - 1
        present = sorted(set(owners.tolist()))
        kinds = {self.kinds[names[owner]] for owner in present if owner >= 0}
        if len(kinds) > 1 or present[0] < 0:
            listed = " and ".join(sorted(kind.name for kind in kinds))
            beside = "" if len(kinds) > 1 else " and of the model's own type"
            raise ExportError(
                f"{place} would be of types {listed}{beside}: one tensor has one type there"
            )
        every = torch.cat([packed[names[owner]] for owner in present])
        offsets = torch.zeros(len(names), dtype=torch.int64)
        ends = torch.tensor([len(packed[names[owner]]) for owner in present]).cumsum(0)
        offsets[present[1:]] = ends[:-1]
        return next(iter(kinds)), every[offsets[owners] + found - begins[owners]]

    @property
    def _begins(self) -> Tensor:
        """The number of each matrix's first row."""
        sizes = [len(rows) for rows in self.packed.values()]
        return torch.tensor([1, *sizes]).cumsum(0)[:-1]


def stored_matrices(
    loaded: LoadedModel,
    library: LevelWeights | None,
    candidate: Candidate,
    state: StateDict,
    *,
    healed: bool = False,
) -> StoredMatrices | None:
    """The matrices of coarser types of a candidate; ``None`` where there are none.

    Args:
        loaded: The dense model.
        library: Has their rows.
        candidate: Says their types.
        state: Its tensors by their names in the dense model.
        healed: They are not the library's any more, and are rounded to these types anew.

    Raises:
        LibraryError: The library lacks a level.
    """
    levels, names = candidate.by_name, loaded.family.block_names
    kinds: dict[str, StorageType] = {}
    parts: dict[str, Mapping[str, Tensor]] = {}
    transposed: set[str] = set()
    for index, matrices in enumerate(block_matrices(loaded.family, loaded.model)):
        for matrix in matrices:
            form = form_of(names[index], matrix, levels)
            if not form.level.bits:
                continue
            unit = f"{names[index]}.{matrix.path}"
            transposed |= {f"{unit}.weight"} if matrix.transposed else set()
            kind = kinds[f"{unit}.weight"] = storage_type(form.level.bits)
            if healed:
                weight = state[f"{unit}.weight"]
                parts[f"{unit}.weight"] = _anew(weight.T if matrix.transposed else weight, kind)
            else:
                assert library is not None
                parts[f"{unit}.weight"] = library.parts(unit, form.level, form.width)
    if not kinds:
        return None
    return StoredMatrices(candidate, state, kinds, parts, frozenset(transposed))


def _anew(weight: Tensor, kind: StorageType) -> Mapping[str, Tensor]:
    """The parts of a matrix (out, in) whose inputs nothing is known of."""
    known = Statistics(squares=torch.ones(weight.shape[1]), sequences=1)
    (made,) = quantize_all([RoundingTask(weight.float(), kind)], known, "nearest", weight.dtype)
    return made.parts
