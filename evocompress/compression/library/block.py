"""Making the file of one block: its matrices with zeros, its sub-layers at their widths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from evocompress.compression.criteria import Cut, Statistics, Structure, reconstructed
from evocompress.compression.criteria.base import mean_change, output_energy, relative_errors
from evocompress.compression.library.dense import Coupled, DenseModel
from evocompress.compression.library.files import TensorWriter, durable_file
from evocompress.compression.library.manifest import BlockRecord, InputRecord
from evocompress.compression.library.matrix_levels import make_levels
from evocompress.compression.library.order import (
    Batch,
    BlockOrder,
    Levels,
    statistics_key,
    tensor_key,
)
from evocompress.core.errors import LibraryError

Errors = dict[str, tuple[float, ...]]


@dataclass(frozen=True, eq=False)
class BlockMaker:
    """Makes the file of one block.

    Attributes:
        order: What is to be made.
        dense: The dense matrices.
        statistics: Of each input that the order needs.
        gradients: Of each matrix (out, in), where the order needs them.
    """

    order: BlockOrder
    dense: DenseModel
    statistics: Mapping[str, Statistics]
    gradients: Mapping[str, Tensor]

    def write(self, path: Path) -> BlockRecord:
        """Write the file, one batch of matrices after the other.

        Raises:
            LibraryError: A weight is not finite, or a level is impossible.
        """
        errors: Errors = {}
        small: dict[str, Tensor] = {}
        with durable_file(path) as file:
            writer = TensorWriter(file, self.order.layout(self.dense.dtype, self.dense.stored))
            for batch in self.order.batches:
                found, biases = self._write_matrices(writer, batch)
                errors |= {name: errors.get(name, ()) + own for name, own in found.items()}
                small |= biases
            self._write_statistics(writer)
            for coupled, levels in self.order.widths:
                cuts = [self._cuts(link, levels) for link in coupled.links]
                small |= _write_weights(writer, coupled, levels, [found for _, found in cuts])
                errors |= self._width_errors(coupled, cuts)
            for key, tensor in small.items():
                writer.add(key, tensor)
        inputs = self._input_records()
        return BlockRecord(path.name, writer.bytes, writer.sha256, inputs, errors, writer.xxh3)

    def _write_matrices(
        self, writer: TensorWriter, batch: Batch
    ) -> tuple[Errors, dict[str, Tensor]]:
        """Write all levels of a batch.

        Returns:
            Their errors where they can be measured, and their biases for later.
        """
        methods, stored = self.order.methods, self.dense.stored
        weights = [self._weight(linear.name) for linear, _ in batch]
        known, rounding = self.statistics.get(batch[0][0].input, Statistics()), methods.rounding
        if batch[0][0].lookup:
            known, rounding = _of_rows(batch[0][0].shape[1], self.dense.device), "nearest"
        levels_of = [own for _, own in batch]
        found = make_levels(weights, known, levels_of, methods.criterion, rounding, stored)
        errors: Errors = {}
        biases: dict[str, Tensor] = {}
        for (linear, levels), weight, made in zip(batch, weights, found, strict=True):
            for level, one in zip(levels, made, strict=True):
                writer.add(tensor_key(linear.name, level, "weight"), linear.oriented(one.weight))
                for part, tensor in one.stored.parts.items() if one.stored else ():
                    writer.add(tensor_key(linear.name, level, part), tensor)
            results = [one.weight for one in made]
            shifts = None
            if methods.compensates(linear):
                own = self.dense.bias(linear.name)
                assert own is not None
                shifts = [mean_change(weight, one, known) for one in results]
                for level, shift in zip(levels, shifts, strict=True):
                    biases[tensor_key(linear.name, level, "bias")] = own + shift
            if known.gram is not None:
                errors[linear.name] = tuple(_matrix_errors(weight, results, known, shifts))
        return errors, biases

    def _write_statistics(self, writer: TensorWriter) -> None:
        for word in self.order.kept_inputs:
            known = self.statistics[word]
            for need in self.order.methods.matrix_needs:
                squares = known.squares if known.gram is None else known.gram.diagonal()
                value = {"gram": known.gram, "squares": squares, "sums": known.sums}[need]
                assert value is not None
                writer.add(statistics_key(word, need), value)

    def _cuts(self, coupled: Coupled, levels: Levels) -> tuple[Structure, list[Cut]]:
        """The dense sub-layer, and the same at each level."""
        methods = self.order.methods
        assert methods.structured is not None
        structure = coupled.structure(
            {linear.name: self._weight(linear.name) for linear in coupled.matrices},
            self.gradients if methods.gradients else None,
            self.dense.bias(coupled.output.name),
        )
        known = self._of(coupled)
        cuts = methods.structured.cut(structure, known, [coupled.width(one) for one in levels])
        return structure, reconstructed(structure, known, cuts) if methods.reconstruct else cuts

    def _width_errors(
        self, coupled: Coupled, found: Sequence[tuple[Structure, Sequence[Cut]]]
    ) -> Errors:
        """Of each level, summed over the links of the sub-layer."""
        known = [self._of(link) for link in coupled.links]
        if any(one.gram is None for one in known):
            return {}
        each = [width_errors(*pair, one) for pair, one in zip(found, known, strict=True)]
        return {coupled.unit.name: tuple(map(sum, zip(*each, strict=True)))}

    def _weight(self, unit: str) -> Tensor:
        """A dense matrix (out, in), which can be ranked."""
        weight = self.dense.weight(unit)
        if not bool(weight.isfinite().all()):
            raise LibraryError(
                f"{unit} has weights that are not finite: load the model in bfloat16 or float32 "
                "with model.dtype=..., or mend the checkpoint"
            )
        return weight

    def _of(self, coupled: Coupled) -> Statistics:
        """Statistics of what the output matrix of a sub-layer reads."""
        return self.statistics.get(coupled.output.input, Statistics())

    def _input_records(self) -> dict[str, InputRecord]:
        """What the manifest keeps of the statistics."""
        return {
            word: InputRecord(
                trace=_trace(known),
                damping=known.factor.damping if word in self.order.factored else None,
                tokens=known.tokens * known.seen if self.order.readers[word].routed else None,
            )
            for word, known in self.statistics.items()
        }


def _of_rows(columns: int, device: torch.device) -> Statistics:
    """Of an embedding: what rounds a row is not seen by others, and all of its values count."""
    return Statistics(gram=torch.eye(columns, device=device), sequences=1, tokens=1)


def _matrix_errors(
    weight: Tensor, results: Sequence[Tensor], known: Statistics, shifts: Sequence[Tensor] | None
) -> list[float]:
    """Output errors of a matrix at its levels, with what each adds to the bias."""
    assert known.gram is not None
    if shifts is None:
        return relative_errors(weight, results, known.gram)
    given_back = [known.tokens * float(shift.square().sum()) for shift in shifts]
    return relative_errors(weight, results, known.gram, given_back)


def _write_weights(
    writer: TensorWriter, coupled: Coupled, levels: Levels, found: Sequence[Sequence[Cut]]
) -> dict[str, Tensor]:
    """Write the output matrices of a sub-layer; returns the smaller tensors for later.

    There is a cut for each link and level. The items that the inner link keeps are what the last
    one has no use for, its groups.
    """
    unit = coupled.unit.name
    small: dict[str, Tensor] = {}
    for level, *cuts in zip(levels, *found, strict=True):
        for link, one in zip(coupled.links, cuts, strict=True):
            key = tensor_key(unit, level, link.output.part)
            writer.add(key, link.output.oriented(one.weight))
        cut = cuts[-1]
        small[tensor_key(unit, level, "groups")] = cut.groups if len(cuts) == 1 else cuts[0].items
        small[tensor_key(unit, level, "items")] = cut.items
        if cut.bias is not None:
            small[tensor_key(unit, level, "bias")] = cut.bias
    return small


def width_errors(structure: Structure, cuts: Sequence[Cut], known: Statistics) -> list[float]:
    """Output error ‖W·x + b − W'·x' − b'‖² / ‖W·x‖² of each cut, summed over the tokens.

    W' reads the inputs x' that are left. A bias counts where the sums are known as well.
    """
    assert known.gram is not None
    energy = output_energy(structure.output, known.gram)
    return [_lost_energy(structure, cut, known) / energy if energy else 0.0 for cut in cuts]


def _lost_energy(structure: Structure, cut: Cut, known: Statistics) -> float:
    assert known.gram is not None
    change = structure.output.clone()
    change[:, structure.columns(cut.items)] -= cut.weight
    lost = output_energy(change, known.gram)
    if cut.bias is None or known.sums is None:
        return lost
    shift = cut.bias.double() if structure.bias is None else (cut.bias - structure.bias).double()
    mean_effect = float(shift @ (change @ known.sums).double())
    return lost - 2 * mean_effect + known.tokens * float(shift.square().sum())


def _trace(known: Statistics) -> float | None:
    """Sum of the squares of an input over tokens and features, where it was collected."""
    if known.gram is not None:
        return float(known.gram.trace())
    return None if known.squares is None else float(known.squares.sum())
