"""Narrow sub-layers for timing: the first heads or channels stay, whichever they are."""

from __future__ import annotations

import torch
from torch import Tensor

from evocompress.errors import LibraryError
from evocompress.families.coupling import Kept, axis_lengths, index_of
from evocompress.models import LoadedModel
from evocompress.types import DENSE, Level


class FirstItems:
    """A level library cut from the dense model on demand, as `evocompress.prune` reads one.

    Which heads or channels stay does not matter to the time that a sub-layer takes.

    Args:
        loaded: The model, dense.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        self._family = loaded.family
        self._architecture = loaded.family.architecture(loaded.model)
        self._units = {unit.name: unit for unit in loaded.family.units(loaded.model)}
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
        matrix = self._family.output("attention" if kind == "attention" else "mlp")
        lengths = axis_lengths(self._architecture, block)
        kept = _first(level, lengths["query"] // lengths["key"])
        index = index_of(matrix.columns, kept, lengths, self._architecture.head_dim)
        assert index is not None  # an output matrix has columns
        dense = self._dense[f"{self._family.layers_path}.{block}.{matrix.path}.weight"]
        weight = dense.index_select(0 if matrix.transposed else 1, index.to(dense.device))
        return {"groups": kept.groups, "items": kept.items, "weight": weight}


def _first(level: Level, group_heads: int) -> Kept:
    """The first channels, or the first query heads of the first groups of `group_heads`."""
    if level.kv_groups is None or level.group_heads is None:
        return Kept(torch.zeros(1, dtype=torch.int64), torch.arange(level.channels or 0))
    groups = torch.arange(level.kv_groups)
    items = groups[:, None] * group_heads + torch.arange(level.group_heads)
    return Kept(groups, items.flatten())
