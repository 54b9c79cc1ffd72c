"""What a journal says, kept small: numbers in arrays, candidates where they are in the file."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from evocompress.core.checked_lines import (
    CANDIDATE,
    STEP,
    JournalRecord,
    Line,
    adds_up,
    line_at,
    lines,
)
from evocompress.core.regular import check_regular
from evocompress.core.requests import MicroBatchValue
from evocompress.core.types import Candidate

CensorKey = tuple[str, str, tuple[int, ...], float]
EstimateKey = tuple[str, str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Step:
    """The state of the run after one ask and tell.

    Attributes:
        step: Number of the step, from 0.
        requested: Tokens asked for so far, repeats included.
        computed: Tokens that were really run so far.
        incumbent: Id of the best candidate, if any.
        value: Its proxy value where it was last compared.
        phase: What the searcher said that the step was for.

    Examples:
        >>> Step(step=0, requested=4096, computed=2048, incumbent=None, value=None).computed
        2048
    """

    step: int
    requested: int
    computed: int
    incumbent: str | None
    value: float | None
    phase: str = ""


@dataclass(frozen=True, slots=True)
class ShortHealing:
    """What a short healing made of a candidate, for the choice of the winner.

    Attributes:
        before: Validation KL of the candidate (of encoders the distance or error), in nats per
            position; ``None`` where it could not be healed.
        after: The same after the healing.
        reason: Why it could not be healed.

    Examples:
        >>> ShortHealing(before=0.5, after=0.2).after
        0.2
    """

    before: float | None
    after: float | None
    reason: str | None = None


class StoredCandidates(Mapping[str, Candidate]):
    """The candidates of a journal by id, in order of appearance, each read when it is used."""

    def __init__(self, path: Path) -> None:
        """None yet."""
        self._path = path
        self._offsets: dict[str, int] = {}

    def add(self, line: Line) -> None:
        """Takes in the line of a candidate."""
        start = len(CANDIDATE)
        if line.sealed and line.content.startswith(CANDIDATE):
            name = line.content[start:].partition(b'"')[0].decode(errors="replace")
        else:
            name = candidate_of(line).id
        if name in self._offsets:
            raise line.damaged(f"candidate {name} is there already")
        self._offsets[name] = line.offset

    def __getitem__(self, name: str) -> Candidate:
        return candidate_of(line_at(self._path, self._offsets[name]))

    def __contains__(self, name: object) -> bool:
        return name in self._offsets

    def __iter__(self) -> Iterator[str]:
        return iter(self._offsets)

    def __len__(self) -> int:
        return len(self._offsets)


def candidate_of(line: Line) -> Candidate:
    """The candidate that a line is about.

    Raises:
        RunError: It is damaged.
    """
    record = line.record()
    try:
        found = Candidate.from_json(record["levels"])
    except (KeyError, TypeError, ValueError) as error:
        raise line.damaged("it is no candidate") from error
    if found.id != record["id"]:
        raise line.damaged("the id is not that of the levels")
    return found


class CandidateValues:
    """The values of candidates by (candidate, treatment) and micro-batch, in arrays."""

    def __init__(self) -> None:
        self._owners: dict[tuple[str, str], int] = {}
        self._most = 0
        self._places: dict[int, int] = {}
        self._ends = array("Q", [0])
        self._sums = array("d")
        self._counts = array("Q")

    def add(self, record: JournalRecord) -> bool:
        """Takes in the record of a value; false where there is one already."""
        owners = self._owners
        owner = owners.setdefault((record["candidate"], record["treatment"]), len(owners))
        place = len(self._ends) - 1
        if self._places.setdefault(owner << 32 | record["micro_batch"], place) != place:
            return False
        self._most = max(self._most, record["micro_batch"])
        self._sums.extend(record["sums"])
        self._counts.extend(record["counts"])
        self._ends.append(len(self._sums))
        return True

    def get(self, candidate: str, treatment: str, micro_batch: int) -> MicroBatchValue | None:
        """The value of a candidate, by its id, after a treatment on a micro-batch, or ``None``."""
        owner = self._owners.get((candidate, treatment))
        place = None if owner is None else self._places.get(_key(owner, micro_batch))
        if place is None:
            return None
        part = slice(self._ends[place], self._ends[place + 1])
        return MicroBatchValue(micro_batch, tuple(self._sums[part]), tuple(self._counts[part]))

    def of(self, candidate: str, treatment: str) -> list[MicroBatchValue]:
        """All values of a candidate after a treatment, by micro-batch."""
        found = (self.get(candidate, treatment, index) for index in range(self._most + 1))
        return [value for value in found if value is not None]

    def has(self, candidate: str, treatment: str, micro_batch: int) -> bool:
        """Whether there is a value of a candidate after a treatment on a micro-batch."""
        owner = self._owners.get((candidate, treatment))
        return owner is not None and _key(owner, micro_batch) in self._places


def _key(owner: int, micro_batch: int) -> int:
    return owner << 32 | micro_batch


class Memory:
    """Everything that the whole lines of a journal say.

    Attributes:
        path: The journal.
        header: Its first line, without what is in every line; empty where there is none.
        sealed: Whether its lines have checksums.
        count: How many whole lines it has.
        end: How many bytes they have.
        candidates: By id.
        values: The values of evaluations.
        failures: Why an evaluation failed, by candidate and treatment.
        censored: The micro-batches at which an evaluation stopped early.
        checksums: Those of the files of estimates.
        estimate_failures: Why an estimate failed.
        healed: What short healings made of the last candidates, by id.
        steps: In order.
        forced: Where the run was made to go on under other circumstances, in order.
    """

    def __init__(self, path: Path) -> None:
        """Reads a journal; the file is only read.

        Raises:
            RunError: A line is damaged.
        """
        self.path = path
        self.header: JournalRecord = {}
        self.sealed = True
        self.count = 0
        self.end = 0
        self.candidates = StoredCandidates(path)
        self.values = CandidateValues()
        self.failures: dict[tuple[str, str], str] = {}
        self.censored: dict[CensorKey, tuple[int, ...]] = {}
        self.checksums: dict[EstimateKey, str] = {}
        self.estimate_failures: dict[EstimateKey, str] = {}
        self.healed: dict[str, ShortHealing] = {}
        self.steps: list[Step] = []
        self.forced: list[JournalRecord] = []
        if path.exists():
            for line in lines(path):
                self.add(line)

    def add(self, line: Line, record: JournalRecord | None = None) -> None:
        """Takes in the next line; where it is known, `record` is what it says.

        Raises:
            RunError: It is damaged, or does not go with those before it.
        """
        self.count, self.sealed = line.number, line.sealed
        self.end = line.offset + len(line.content)
        if line.sealed and line.content.startswith(CANDIDATE):
            self.candidates.add(line)
        else:
            self._remember(line, record or line.record())

    def _remember(self, line: Line, record: JournalRecord) -> None:
        kind = record["type"]
        if (kind == "run") != (line.number == 1):
            raise line.damaged("the header of a run is the first line, and only that")
        if kind == "value":
            if not adds_up(record):
                raise line.damaged("sums and counts do not fit each other")
            if not self.values.add(record):
                raise line.damaged(f"micro-batch {record['micro_batch']} is there already")
        elif kind == "candidate":
            self.candidates.add(line)
        elif kind == "step":
            if record["step"] != len(self.steps):
                raise line.damaged(f"step {record['step']} where {len(self.steps)} is the next")
            self.steps.append(_step(record))
        elif kind == "forced":
            self.forced.append(record)
        else:
            self._remember_rest(kind, record)

    def _remember_rest(self, kind: str, record: JournalRecord) -> None:
        if kind == "run":
            self.header = {name: value for name, value in record.items() if name != "xxh3"}
        elif kind == "failure":
            self.failures[record["candidate"], record["treatment"]] = record["reason"]
        elif kind == "censored":
            owner = (record["candidate"], record["treatment"])
            self.censored[*owner, tuple(record["asked"]), record["stop_above"]] = tuple(
                record["done"]
            )
        elif kind == "estimate":
            self.checksums[_estimate_key(record)] = record["sha256"]
        elif kind == "estimate_failure":
            self.estimate_failures[_estimate_key(record)] = record["reason"]
        elif kind == "healed":
            told = (record[each.name] for each in fields(ShortHealing))
            self.healed[record["candidate"]] = ShortHealing(*told)


def last_step(path: Path, tail: int = 1 << 14) -> Step | None:
    """The last step of a journal, looked for first in its last `tail` bytes; it is only read.

    Raises:
        RunError: Its line is damaged.
    """
    check_regular(path)
    size = path.stat().st_size
    while True:
        start = max(0, size - tail)
        with path.open("rb") as file:
            file.seek(start)
            content = file.read()
        if not start:
            content, start = b"\n" + content, -1
        place = content.rfind(b"\n" + STEP, 0, content.rfind(b"\n") + 1)
        if place >= 0:
            return _step(line_at(path, start + place + 1).record())
        if start < 0:
            return None
        tail *= 8


def _step(record: JournalRecord) -> Step:
    return Step(**{each.name: record[each.name] for each in fields(Step) if each.name in record})


def _estimate_key(record: Mapping[str, Any]) -> EstimateKey:
    return (record["candidate"], record["kind"], tuple(record["micro_batches"]))
