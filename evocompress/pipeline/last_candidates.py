"""The last stage of a search: its best candidates are healed, and the best of them wins.

What a candidate is worth before healing need not tell what it is worth after it (Is Oracle Pruning
the True Oracle?, 2412.00143), so the last candidates are compared after a short training, as
DarwinLM's (2502.07780) are in every selection.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from evocompress.export import materialize
from evocompress.pipeline.context import RunContext
from evocompress.pipeline.journal import Journal
from evocompress.pipeline.short_healing import ShortRecipe
from evocompress.pipeline.winner import HealedCandidate, change_of_order, healed_order
from evocompress.search.base import Incumbent

CHECKPOINT = "checkpoint"
"""The folder of a candidate before its short healing."""


@dataclass(frozen=True)
class LastStage:
    """What the last candidates are healed with and recorded in.

    Attributes:
        context: Of the run.
        journal: Takes every value.
        recipe: The same for all of them.
        force: Go on under other circumstances.
    """

    context: RunContext
    journal: Journal
    recipe: ShortRecipe
    force: bool

    def choose(
        self, best: Incumbent, rows: Sequence[Mapping[str, Any]]
    ) -> tuple[Incumbent, list[dict[str, Any]]]:
        """The winner after short healings, and what these made of each candidate.

        Args:
            best: The winner by the proxy.
            rows: Of front.json: the candidates that were compared with it.

        Returns:
            The winner with its proxy value, and rows of winner.json, in the order of `_last`; those
            are none, and the winner is `best`, where there is nothing to choose from.
        """
        last = self._last(best.candidate.id, rows)
        say = self.context.reporter.say
        if len(last) < 2:
            say(
                "search.heal_last: no second candidate was compared with the winner: none is healed"
            )
            return best, []
        self._heal([row["id"] for row in last])
        table = [self._row(row) for row in last]
        say(change_of_order(table))
        if order := healed_order(table):
            candidate = self.journal.candidates[order[0].id]
            best = replace(best, candidate=candidate, value=order[0].value)
        return best, [asdict(row) for row in table]

    def _last(self, best: str, rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """The winner's row by the proxy, and those of the best other values within the budget.

        Another value may be lower than the winner's, where the search refused that candidate by
        what both were measured on beside.
        """
        settings, space = self.context.config.search.heal_last, self.context.space
        assert settings is not None
        known = self.journal.candidates
        within = [row for row in rows if space.feasible(space.genome(known[row["id"]])[None])[0]]
        order = sorted(within, key=lambda row: (row["id"] != best, row["value"]))
        return order[: settings.candidates]

    def _row(self, row: Mapping[str, Any]) -> HealedCandidate:
        found = self.journal.healed(row["id"])
        assert found is not None
        return HealedCandidate(row["id"], row["value"], **asdict(found))

    def _heal(self, names: Sequence[str]) -> None:
        """Heals those candidates that the journal has no value of, and removes their files."""
        place, context = self.context.folder.last_candidates, self.context
        missing = [name for name in names if self.journal.healed(name) is None]
        students = [self._student(place / name) for name in missing]
        each = context.backend.healing(context)
        found = each(context.loaded, students, self.recipe, self.force) if missing else iter(())
        for name, healing in zip(missing, found, strict=True):
            self.journal.record_healed(name, healing)
            shutil.rmtree(place / name)
        shutil.rmtree(place, ignore_errors=True)

    def _student(self, place: Path) -> Path:
        """The checkpoint of a candidate, named by its folder; written where it is missing."""
        target, context = place / CHECKPOINT, self.context
        if not target.exists():
            candidate = self.journal.candidates[place.name]
            place.mkdir(parents=True, exist_ok=True)
            materialize(context.loaded, context.library, candidate, target)
        return target
