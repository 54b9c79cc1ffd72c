"""Which genes are about which parts: the sub-layers of a model and the experts in them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from evocompress.core.arrays import Integers
from evocompress.core.types import Unit


def parts_of_genes(owners: Sequence[Integers], count: int) -> tuple[Integers, Integers]:
    """The parts that each gene is about, one gene's after the other, and where they begin."""
    genes = np.stack(owners)
    kind, part = np.nonzero(genes >= 0)
    pairs = np.unique(np.stack([genes[kind, part], part], axis=1), axis=0)
    begins = np.searchsorted(pairs[:, 0], np.arange(count + 1))
    return pairs[:, 1], begins.astype(np.int64)


def inactive_columns(
    parts: Sequence[Unit], members: Sequence[Sequence[Unit]]
) -> tuple[Integers, Integers]:
    """The columns (dropped | in a dropped block | never) that make genes inactive, a run for each.

    A matrix is inactive with its sub-layer or expert, an expert with its sub-layer, a sub-layer
    with its block, a block never.
    """
    places = {part.name: index for index, part in enumerate(parts)}
    count = len(places)
    runs = [
        [
            places[member.owner]
            if member.kind in ("matrix", "expert")
            else count + places.get(member.name, count)
            for member in units
        ]
        for units in members
    ]
    begins = np.cumsum([0, *(len(run) for run in runs[:-1])])
    return np.concatenate(runs).astype(np.int64), begins
