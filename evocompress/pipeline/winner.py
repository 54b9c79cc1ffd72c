"""``winner.json`` as it is read back."""

from __future__ import annotations

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


class Winner(BaseModel):
    """The candidate that the search chose.

    `value` is the proxy's; `measured` holds micro-batch, sum and positions of each part of it,
    which older versions did not write; `not_compared` is the number of candidates that front.json
    lacks, as they were not measured on all that the winner was chosen on; `budget` is in absolute
    terms, also where the run file gave none.
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
