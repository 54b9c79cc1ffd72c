"""What of a student has a coarser type: by which names, and how it is stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from evocompress.compression.quantization.gptq import Rounded
from evocompress.compression.quantization.quantized import QuantizedMatrix, scale_type, unpack_parts
from evocompress.core.errors import ConfigError, ModelError
from evocompress.core.storage import storage_type
from evocompress.core.types import Level
from evocompress.export.healed import dense_name_of
from evocompress.export.parts import PARTS_FILE, Parts, read_parts
from evocompress.export.record import CANDIDATE_FILE, read_candidate, read_record
from evocompress.export.stored import as_module, as_rows, typed_levels
from evocompress.healing.rounded import RoundedWeight
from evocompress.healing.trained import Learnt
from evocompress.models.families.base import block_matrices
from evocompress.models.loading import LoadedModel


@dataclass(frozen=True, eq=False)
class TypedParameters:
    """A student's parameters that have a coarser type, by their names in it.

    Attributes:
        path: Its checkpoint.
        stored: Type of the weights of the model's files.
        levels: What the candidate says of each.
        dense: The name of each in the dense model.
        turned: Those whose modules store (in, out).

    Examples:
        >>> TypedParameters(Path("checkpoint"), torch.float32).levels
        {}
    """

    path: Path
    stored: torch.dtype
    levels: Mapping[str, Level] = field(default_factory=dict)
    dense: Mapping[str, str] = field(default_factory=dict)
    turned: frozenset[str] = frozenset()

    def through_rounding(
        self, student: PreTrainedModel, learnt: Mapping[str, Learnt]
    ) -> dict[str, RoundedWeight]:
        """Those that are trained through their rounding.

        Raises:
            ConfigError: The checkpoint does not say how they are stored.
            ModelError: It says something else than its weights.
        """
        if not learnt:
            return {}
        beside, found = read_parts(self.path), {}
        if not beside:
            raise ConfigError(
                f"{self.path} has no {PARTS_FILE}, the integers and scales of its matrices, "
                "without which nothing is trained through their rounding: write it again with "
                f"'evocompress materialize' (its format is '{read_record(self.path).format}'; "
                "those that add zeros have none)"
            )
        for name, what in learnt.items():
            parameter, kind = student.get_parameter(name), storage_type(self.levels[name].bits)
            columns = as_rows(parameter, turned=name in self.turned).shape[1]
            parts = beside.get(self.dense[name])
            first = None if parts is None else unpack_parts(parts, kind, columns)
            if first is None or not torch.equal(self.weight(name, first, parameter), parameter):
                raise ModelError(
                    f"{self.path}: {name} is not what {PARTS_FILE} says: write it again with "
                    "'evocompress materialize', and without --weights, which rounds it once more"
                )
            device, numbers = parameter.device, scale_type(kind, self.stored)
            first = Rounded(*(t.to(device) for t in (first.codes, first.scales, first.minima)))
            found[name] = RoundedWeight(
                first, kind, numbers, weights=what.weights, scales=what.scales
            )
        return found

    def weight(self, name: str, rounded: Rounded, like: Tensor) -> Tensor:
        """What a parameter becomes: what a file in the model's own type gives back."""
        rows = rounded.weight.to(self.stored).to(like.device)
        return as_module(rows, like, turned=name in self.turned)

    def rows(self, name: str, values: Tensor) -> Tensor:
        """A tensor like a parameter as (out, in)."""
        return as_rows(values, turned=name in self.turned)

    def parts(self, trained: Mapping[str, Rounded]) -> Parts:
        """What stands beside a healed checkpoint: of all that has a type, trained or not."""
        made = {
            self.dense[name]: QuantizedMatrix(
                rounded.weight, storage_type(self.levels[name].bits), self.stored, rounded
            ).parts
            for name, rounded in trained.items()
        }
        return {**read_parts(self.path), **made}


class Through:
    """What is between masters and parameters: nothing, or the rounding to a type.

    A parameter that is trained through its rounding has masters of its own names.
    """

    def __init__(
        self,
        typed: TypedParameters | None = None,
        weights: Mapping[str, RoundedWeight] | None = None,
    ) -> None:
        """With `weights` of parameters that are `typed`, by name; without there is nothing."""
        self._typed = typed
        self._weights = weights or {}

    def keys(self, name: str) -> list[str]:
        """The names of a parameter's masters."""
        if (one := self._weights.get(name)) is None:
            return [name]
        return [f"{name}.{part}" for part in one.names]

    def masters(self, name: str, parameter: Tensor) -> dict[str, Tensor]:
        """A parameter's masters, copies."""
        if (one := self._weights.get(name)) is None:
            return {name: parameter.detach().to(torch.float32, copy=True)}
        return dict(zip(self.keys(name), one.masters().values(), strict=True))

    def summed(self, name: str, gradient: Tensor) -> dict[str, Tensor]:
        """What of a parameter's gradient is added up, by names of masters."""
        if (one := self._weights.get(name)) is None or self._typed is None:
            return {name: gradient}
        sums = one.summed(self._typed.rows(name, gradient).contiguous())
        return {f"{name}.{part}": tensor for part, tensor in sums.items()}

    def end_sums(self, name: str, own: Mapping[str, Tensor]) -> None:
        """Gives a parameter's masters their gradients in the place of what was added up."""
        if (one := self._weights.get(name)) is None:
            return
        sums = {
            part: gradient
            for part, key in zip(one.names, self.keys(name), strict=True)
            if (gradient := own[key].grad) is not None
        }
        for part, gradient in one.gradients(sums, self._parts(one, name, own)).items():
            own[f"{name}.{part}"].grad = gradient

    def rounded(self, name: str, own: Mapping[str, Tensor]) -> Rounded | None:
        """How a parameter is to be stored; ``None`` where it has no type."""
        if (one := self._weights.get(name)) is None:
            return None
        return one.rounded(self._parts(one, name, own))

    def value(self, name: str, own: Mapping[str, Tensor], like: Tensor) -> Tensor:
        """What a parameter becomes by its masters."""
        rounded = self.rounded(name, own)
        if rounded is None or self._typed is None:
            return own[name]
        return self._typed.weight(name, rounded, like)

    def _parts(self, one: RoundedWeight, name: str, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return dict(zip(one.names, (own[key] for key in self.keys(name)), strict=True))


def typed_parameters(path: Path, dense: LoadedModel, student: PreTrainedModel) -> TypedParameters:
    """What of a student has a coarser type.

    Args:
        path: Its checkpoint; of one that was not made here nothing has.
        dense: The model that it was made of.
        student: What was read of it.

    Raises:
        ExportError: It has types and is of a format whose parameters are others.
    """
    known = typed_levels(read_candidate(path)) if (path / CANDIDATE_FILE).is_file() else {}
    if not known:
        return TypedParameters(path, dense.stored)
    name_of = dense_name_of(path, dense, student)
    own = {id(parameter): name for name, parameter in student.named_parameters()}
    names = {
        own[id(parameter)]: name_of(other)
        for other, parameter in student.named_parameters(remove_duplicate=False)
        if name_of(other) in known
    }
    turned = {
        f"{dense.family.block_names[index]}.{matrix.path}.weight"
        for index, matrices in enumerate(block_matrices(dense.family, dense.model))
        for matrix in matrices
        if matrix.transposed
    }
    return TypedParameters(
        path,
        dense.stored,
        levels={name: known[there] for name, there in names.items()},
        dense=names,
        turned=frozenset(name for name, there in names.items() if there in turned),
    )
