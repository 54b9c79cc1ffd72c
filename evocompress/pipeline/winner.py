"""``winner.json`` as it is read back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from evocompress.core.files import read_as
from evocompress.core.requests import UNTREATED
from evocompress.core.specifications import CandidateLevels
from evocompress.core.types import Candidate, Level


class FrontSummary(BaseModel):
    """The front in short: the costs that span it, hypervolume, knee's id.

    The hypervolume is that between the front and `reference`, costs being shares of the dense
    model's.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    axes: tuple[str, ...]
    reference: dict[str, float]
    hypervolume: float
    knee: str


@dataclass(frozen=True)
class HealedCandidate:
    """One of the last candidates of a search before and after a short healing.

    Attributes:
        id: Of the candidate.
        value: The proxy's, before any healing.
        before: Validation KL (of encoders the distance or error) in nats per position; ``None``
            where it could not be healed.
        after: The same after the short healing.
        reason: Why it could not be healed.

    Examples:
        >>> HealedCandidate("1f", value=0.31, before=0.3, after=0.2).reason
    """

    id: str
    value: float
    before: float | None
    after: float | None
    reason: str | None = None


class Winner(BaseModel):
    """The candidate that the search chose.

    `value` is the proxy's; `measured` holds micro-batch, sum and positions of each part of it,
    which older versions did not write; `not_compared` is the number of candidates that front.json
    lacks, as they were not measured on all that the winner was chosen on; `budget` is in absolute
    terms, also where the run file gave none; `healed_last` are the last candidates, the
    proxy's winner first, where short healings chose among them.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    id: str
    levels: CandidateLevels
    value: float | None = None
    treatment: str = UNTREATED
    measured: tuple[tuple[int, float, int], ...] | None = None
    not_compared: int | None = None
    costs: dict[str, float] = {}
    dense_costs: dict[str, float] = {}
    budget: dict[str, float] = {}
    front: FrontSummary | None = None
    healed_last: tuple[HealedCandidate, ...] = ()

    @property
    def candidate(self) -> Candidate:
        """The candidate itself."""
        return Candidate.from_json(self.levels)

    def by_name(self) -> dict[str, Level]:
        """The levels of the units that are not dense."""
        return self.candidate.by_name


def not_compared_text(count: int) -> str:
    """That `count` candidates are no rows of front.json, and why."""
    were = "candidate was" if count == 1 else "candidates were"
    return f"{count:,} other {were} not measured on all that the winner was chosen on"


def change_of_order(last: Sequence[HealedCandidate]) -> str:
    """Whether short healings made another candidate the winner, or changed the order at all."""
    first, after = last[0], healed_order(last)
    if not after:
        return "None of the last candidates could be healed, so the proxy chose the winner."
    said = f"Short healings of {len(last)} candidates: "
    if after[0].id != first.id:
        return f"{said}{after[0].id} wins, which was number {last.index(after[0]) + 1} before."
    if after == [row for row in last if row.after is not None]:
        return f"{said}the order is as before, and {first.id} wins."
    return f"{said}the order is another, and {first.id} wins as before."


def healed_order(last: Sequence[HealedCandidate]) -> list[HealedCandidate]:
    """Those that could be healed, the best after it first; of equals the better by the proxy."""
    healed = [row for row in last if row.after is not None]
    return sorted(healed, key=lambda row: row.after or 0.0)


def row_names(candidate: str | None, winner: str) -> dict[str, str]:
    """The names of a checkpoint, by its candidate's id, and of the healed one in the comparison."""
    if candidate in (None, winner):
        return {"searched": "searched", "healed": "healed"}
    return {"searched": f"candidate {candidate}", "healed": f"candidate {candidate}, healed"}


def read_winner(path: Path) -> Winner:
    """Reads winner.json.

    Raises:
        RunError: It is missing, damaged or not a winner's.
    """
    return read_as(path, Winner, remedy="have it written anew by 'evocompress search --resume'")
