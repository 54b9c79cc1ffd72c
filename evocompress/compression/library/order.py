"""What is to be made of each block: which levels, from which statistics, and into which file."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby, product

import torch

from evocompress.compression.criteria import CRITERIA, STRUCTURED, Criterion, StructuredCriterion
from evocompress.compression.library.dense import Coupled, DenseModel, Linear
from evocompress.compression.library.files import TensorSpec, TensorSpecs
from evocompress.compression.quantization.quantized import Rounding, needs_of, part_specs
from evocompress.core.errors import LibraryError
from evocompress.core.storage import StorageType, storage_type
from evocompress.core.types import Level

Levels = tuple[Level, ...]

Batch = tuple[tuple[Linear, Levels], ...]
"""Matrices of one shape that read the same input, each with its levels."""

BATCH_WEIGHTS = 2**26
"""Weights, of all levels, that a batch of several matrices may come to."""


@dataclass(frozen=True)
class Methods:
    """How levels are made.

    Attributes:
        criterion: For zeros in matrices; ``None`` where there are none.
        structured: For widths; ``None`` where there are none.
        reconstruct: Refit what is left of a narrowed sub-layer.
        rounding: To the types of `stored`; ``None`` where there are none.
        stored: Coarser types of matrices.
    """

    criterion: Criterion | None
    structured: StructuredCriterion | None
    reconstruct: bool
    rounding: Rounding | None = None
    stored: frozenset[StorageType] = frozenset()

    @property
    def matrix_needs(self) -> frozenset[str]:
        """What is read of the inputs of a matrix with zeros, or of a coarser type."""
        needs: set[str] = set()
        if self.criterion is not None and self.criterion.needs != "nothing":
            needs |= {self.criterion.needs, *(("sums",) if self.criterion.sums else ())}
        if self.rounding is not None:
            needs |= {needs_of(kind, self.rounding) for kind in self.stored} - {"nothing"}
        # The squares are the diagonal of the Gram matrix.
        return frozenset(needs - {"squares"} if "gram" in needs else needs)

    @property
    def width_needs(self) -> frozenset[str]:
        """What is read of the inputs of the output matrix of a narrowed sub-layer."""
        needs = self.structured.needs - {"gradients"} if self.structured else frozenset()
        return needs | ({"gram", "sums"} if self.reconstruct else frozenset())

    @property
    def gradients(self) -> bool:
        """Whether the gradients of the matrices of a narrowed sub-layer are read."""
        return self.structured is not None and "gradients" in self.structured.needs

    def compensates(self, linear: Linear) -> bool:
        """Whether the bias of a matrix gives back what its zeros take from the mean output."""
        return self.criterion is not None and self.criterion.compensates and linear.unit.bias

    def adds_bias(self, coupled: Coupled) -> bool:
        """Whether the output of a narrowed sub-layer gets a bias that it did not have."""
        adds = self.structured is not None and self.structured.adds_bias
        return adds and not coupled.output.unit.bias


def methods_named(
    criterion: str | None,
    width_criterion: str | None,
    reconstruct: bool,
    rounding: Rounding | None = None,
    stored: Collection[str] = (),
) -> Methods:
    """The methods of the given names; ``None`` where none is needed.

    Raises:
        LibraryError: There is no criterion of such a name.
    """
    for name, known, key in (
        (criterion, CRITERIA, "criterion"),
        (width_criterion, STRUCTURED, "width_criterion"),
    ):
        if name is not None and name not in known:
            raise LibraryError(
                f"library.{key}: there is no criterion {name!r}: choose one of {', '.join(known)}"
            )
    return Methods(
        CRITERIA[criterion] if criterion else None,
        STRUCTURED[width_criterion] if width_criterion else None,
        reconstruct,
        rounding if stored else None,
        frozenset(map(storage_type, stored)),
    )


@dataclass(frozen=True)
class BlockOrder:
    """What is to be made of one block.

    Attributes:
        methods: How.
        matrices: Stored levels of each matrix, in the order of computation.
        widths: Stored levels of each sub-layer.
    """

    methods: Methods
    matrices: tuple[tuple[Linear, Levels], ...]
    widths: tuple[tuple[Coupled, Levels], ...]

    @cached_property
    def batches(self) -> tuple[Batch, ...]:
        """The matrices in their order, those together that are compressed in one go.

        Each level of an embedding or a head is alone, as these are large.
        """
        if any(linear.unit.kind == "outer" for linear, _ in self.matrices):
            return tuple(((linear, (level,)),) for linear, own in self.matrices for level in own)
        if self.methods.criterion is not None and self.methods.criterion.together is None:
            return tuple((one,) for one in self.matrices)
        batches: list[Batch] = []
        for _, group in groupby(self.matrices, key=lambda one: (one[0].input, one[0].shape)):
            alike = tuple(group)
            small = sum(linear.unit.numel * len(own) for linear, own in alike) <= BATCH_WEIGHTS
            batches += [alike] if small else [(one,) for one in alike]
        return tuple(batches)

    @cached_property
    def needs(self) -> dict[str, frozenset[str]]:
        """For each input that is observed, what is collected of it."""
        observed = (linear for linear, _ in self.matrices if not linear.lookup)
        needs = {linear.input: self.methods.matrix_needs for linear in observed}
        for link in self._links:
            word = link.output.input
            needs[word] = needs.get(word, frozenset()) | self.methods.width_needs
        # The squares are the diagonal of the Gram matrix.
        return {
            word: kinds - {"squares"} if "gram" in kinds else kinds
            for word, kinds in needs.items()
            if kinds
        }

    @cached_property
    def readers(self) -> dict[str, Linear]:
        """For each input a matrix that reads it."""
        linears = [linear for linear, _ in self.matrices]
        linears += [link.output for link in self._links]
        return {linear.input: linear for linear in reversed(linears)}

    @property
    def _links(self) -> list[Coupled]:
        """Every link of the sub-layers that are narrowed."""
        return [link for coupled, _ in self.widths for link in coupled.links]

    @cached_property
    def kept_inputs(self) -> tuple[str, ...]:
        """Inputs whose statistics are stored, to give zeros to matrices that are narrowed too."""
        narrowed = {coupled.unit.name for coupled, _ in self.widths}
        words = [linear.input for linear, _ in self.matrices if linear.unit.parent in narrowed]
        return tuple(dict.fromkeys(words)) if self.methods.matrix_needs else ()

    @cached_property
    def factored(self) -> frozenset[str]:
        """Inputs whose Hessian a criterion factors."""
        structured = self.methods.structured
        words: set[str] = set()
        if "gram" in self.methods.matrix_needs:
            words |= {linear.input for linear, _ in self.matrices}
        if structured is not None and "gram" in structured.needs:
            words |= {link.output.input for link in self._links}
        return frozenset(words)

    def layout(self, dtype: torch.dtype, stored: torch.dtype) -> TensorSpecs:
        """The tensors of the block's file, of a model of a type whose files have another one.

        Large tensors come first, so that they are aligned.
        """
        return dict(self._specs(dtype, stored))

    def _specs(self, dtype: torch.dtype, stored: torch.dtype) -> Iterator[tuple[str, TensorSpec]]:
        for linear, levels in self.matrices:
            for level in levels:
                yield tensor_key(linear.name, level, "weight"), _spec(linear, linear.shape, dtype)
                yield from _part_specs(linear, level, stored)
        for word in self.kept_inputs:
            features = self.readers[word].shape[1]
            for need in self.methods.matrix_needs:
                shape = (features, features) if need == "gram" else (features,)
                yield statistics_key(word, need), TensorSpec(shape, torch.float32)
        for coupled, levels in self.widths:
            for level, link in product(levels, coupled.links):
                shape = (link.output.shape[0], link.inputs_left(level))
                key = tensor_key(coupled.unit.name, level, link.output.part)
                yield key, _spec(link.output, shape, dtype)
        for linear, levels in self.matrices:
            if self.methods.compensates(linear):
                for level in levels:
                    key = tensor_key(linear.name, level, "bias")
                    yield key, TensorSpec((linear.shape[0],), dtype)
        for coupled, levels in self.widths:
            for level in levels:
                yield from self._small_specs(coupled, level, dtype)

    def _small_specs(
        self, coupled: Coupled, level: Level, dtype: torch.dtype
    ) -> Iterator[tuple[str, TensorSpec]]:
        groups, items = coupled.width(level)
        specs = {
            "groups": TensorSpec((items if len(coupled.links) > 1 else groups,), torch.int64),
            "items": TensorSpec((groups * items,), torch.int64),
        }
        if coupled.output.unit.bias or self.methods.adds_bias(coupled):
            specs["bias"] = TensorSpec((coupled.output.shape[0],), dtype)
        for part, spec in specs.items():
            yield tensor_key(coupled.unit.name, level, part), spec


def block_orders(
    dense: DenseModel, wanted: Mapping[str, Sequence[Level]], methods: Methods
) -> dict[int, BlockOrder]:
    """What is to be made of each block that has a wanted unit, and outside of them."""
    stored = {
        name: tuple(level for level in levels if not level.dense) for name, levels in wanted.items()
    }
    blocks = sorted({dense.place(name) for name in wanted})
    matrices = [(linear, stored[n]) for n, linear in dense.matrices.items() if stored.get(n)]
    widths = [(coupled, stored[n]) for n, coupled in dense.coupled.items() if stored.get(n)]
    return {
        block: BlockOrder(
            methods,
            tuple(each for each in matrices if dense.place(each[0].name) == block),
            tuple(each for each in widths if each[0].unit.block == block),
        )
        for block in blocks
    }


def _spec(linear: Linear, shape: tuple[int, int], dtype: torch.dtype) -> TensorSpec:
    """Of a matrix (out, in), as the module of `linear` stores it."""
    return TensorSpec(linear.stored_shape(shape), dtype)


def _part_specs(
    linear: Linear, level: Level, stored: torch.dtype
) -> Iterator[tuple[str, TensorSpec]]:
    """Of what a file holds of a matrix of a coarser type."""
    if level.bits:
        specs = part_specs(storage_type(level.bits), linear.shape, stored)
        for part, (shape, kind) in specs.items():
            yield tensor_key(linear.name, level, part), TensorSpec(shape, kind)


def tensor_key(unit: str, level: Level, part: str) -> str:
    """Name of a tensor of a unit at a level within the block file."""
    return f"{unit}::{level.key}::{part}"


def statistics_key(word: str, need: str) -> str:
    """Name of a statistic of an input within the block file."""
    return f"statistics::{word}::{need}"
