"""Narrow sub-layers for timing: the first heads or channels stay, whichever they are."""

from __future__ import annotations

from torch import Tensor

from evocompress.core.errors import LibraryError
from evocompress.core.types import DENSE, Level
from evocompress.core.widths import dense_widths
from evocompress.models.families.coupling import first_items, index_of
from evocompress.models.loading import LoadedModel


class FirstItems:
    """A level library cut from the dense model on demand, as `compression.weights` reads one.

    Which heads or channels stay does not matter to the time that a sub-layer takes.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        self._family = loaded.family
        self._architecture = loaded.family.architecture(loaded.model)
        self._units = loaded.family.units(loaded.model).by_name
        parameters = dict(loaded.model.named_parameters())
        # The tensors, not the parameters: those will hold others while a candidate is applied.
        self._dense = {name: parameter.data for name, parameter in parameters.items()}

    def load(self, unit: str, level: Level, width: Level = DENSE) -> dict[str, Tensor]:
        """What stays of a sub-layer, and the columns of its output matrix that stay with it.

        Raises:
            LibraryError: The level is not a width, or is asked for within one.
        """
        if not (level.narrow and width.dense):
            raise LibraryError(f"{unit} at {level.key} cannot be timed: only widths can")
        block, kind = self._units[unit].block, self._units[unit].kind
        own = self._family.at(block)
        matrix = own.output("attention" if kind == "attention" else "mlp")
        wide = dense_widths(self._architecture, block)
        kept = first_items(kind, wide.at(level), wide)
        dense = self._dense[f"{self._family.block_names[block]}.{matrix.path}.weight"]
        dim = 0 if matrix.transposed else 1
        index = index_of(matrix.columns, kept, wide.lengths, dense.shape[dim])
        assert index is not None  # an output matrix has columns
        weight = dense.index_select(dim, index.to(dense.device))
        return {"groups": kept.groups, "items": kept.items, "weight": weight}
