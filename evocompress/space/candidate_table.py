"""The canonical candidates of genomes, put together from entries that are made once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from evocompress.core.arrays import Genome, Integers
from evocompress.core.canonical import TYPED
from evocompress.core.types import Candidate, Entry, Level, Unit


@dataclass(frozen=True, eq=False)
class CandidateTable:
    """What genomes say of each of E units that a candidate can name, in the order of their names.

    Attributes:
        sources: Where the index of each unit's level stands: among the states of the P parts, and
            behind them the genes (E,).
        owners: The part without which each unit is not there either (E,): of a matrix its
            sub-layer or expert, of an expert its MLP; P for none.
        drops: For each part the state in which it is dropped, -1 where there is none (P,).
        entries: For each unit what a candidate says of it at each of its levels: nothing at a
            dense one, and last nothing for a unit that is not there.
    """

    sources: Integers
    owners: Integers
    drops: Integers
    entries: tuple[tuple[Entry | None, ...], ...]

    def candidate(self, states: Integers, genome: Genome) -> Candidate:
        """The candidate of a genome (U,), given the states of its parts (P,)."""
        indices = np.concatenate([states, genome])[self.sources]
        gone = np.append(states == self.drops, False)
        indices[gone[self.owners]] = -1
        said = [of[index] for of, index in zip(self.entries, indices.tolist(), strict=True)]
        return Candidate.of(tuple(filter(None, said)))


def candidate_table(
    parts: Iterable[tuple[Unit, Sequence[Level]]],
    drops: Integers,
    members: Sequence[Sequence[Unit]],
    levels: Sequence[Sequence[Level]],
) -> CandidateTable:
    """The table of an `Encoding`.

    Args:
        parts: The P sub-layers and experts, each with its levels.
        drops: For each part the state in which it is dropped, -1 where there is none (P,).
        members: The units of each gene (U,).
        levels: The levels of each gene (U,).
    """
    places: dict[str, int] = {}
    found: list[tuple[str, int, int, tuple[Entry | None, ...]]] = []
    for place, (part, known) in enumerate(parts):
        places[part.name] = place
        # An expert has the widths of its MLP, which is what a candidate says them of.
        expert = part.kind == "expert"
        said = [level for level in known if level.drop] if expert else known
        entries = (None,) * (len(known) - len(said)) + _entries(part, said)
        found.append((part.name, place, places[part.owner] if expert else len(drops), entries))
    for gene, units in enumerate(members):
        for unit in units:
            if unit.kind in TYPED:
                place, owner = len(drops) + gene, places.get(unit.owner, len(drops))
                found.append((unit.name, place, owner, _entries(unit, levels[gene])))
    _, sources, owners, named = zip(*sorted(found, key=lambda each: each[0]), strict=True)
    return CandidateTable(np.array(sources), np.array(owners), drops, named)


def _entries(unit: Unit, levels: Sequence[Level]) -> tuple[Entry | None, ...]:
    return (*(None if level.dense else Entry(unit.name, level) for level in levels), None)
