"""The append-only record of a run, and the memory from which a resumed run is answered.

One JSON object per line. A value is keyed by (candidate, treatment, micro-batch); nothing in a
record depends on time, so an interrupted and an undisturbed run write the same lines. Of an
estimate the line keeps the checksum; its array is a file in the folder ``estimates`` beside.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from os import SEEK_END
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from evocompress.errors import RunError
from evocompress.estimate_files import EstimateFiles
from evocompress.files import naming_disk_errors
from evocompress.types import (
    Answer,
    Candidate,
    Estimate,
    Estimation,
    Evaluate,
    MicroBatchValue,
    Request,
    Result,
)

TAIL = 1 << 14
"""Bytes from the end of a journal in which its last step is looked for first."""

STEP = b'{"type":"step"'
"""How the line of a step begins."""

_CandidateKey = tuple[str, str]
_CensorKey = tuple[str, str, tuple[int, ...], float]
_EstimateKey = tuple[str, str, tuple[int, ...]]


@dataclass(frozen=True)
class Step:
    """The state of the run after one ask and tell.

    Attributes:
        step: Number of the step, from 0.
        requested: Tokens asked for so far, repeats included.
        computed: Tokens that were really run so far.
        incumbent: Id of the best candidate, if any.
        value: Its proxy value where it was last compared.
        phase: What the searcher said that the step was for.
    """

    step: int
    requested: int
    computed: int
    incumbent: str | None
    value: float | None
    phase: str = ""


class Journal:
    """Answers by key, every new one appended to the file at once."""

    def __init__(self, path: Path, header: Mapping[str, Any]) -> None:
        """Opens the journal, reading what is there.

        Args:
            path: The file; created if missing. A torn last line is dropped.
            header: What the values depend on (fingerprints, seed, settings).

        Raises:
            RunError: The journal was written under another header, or is damaged.
        """
        self._path = path
        opening = json.loads(json.dumps({"type": "run", **header}))
        self._candidates: dict[str, Candidate] = {}
        self._values: dict[tuple[str, str, int], MicroBatchValue] = {}
        self._failures: dict[_CandidateKey, str] = {}
        self._censored: dict[_CensorKey, tuple[int, ...]] = {}
        self._estimate_files = EstimateFiles(path.with_name("estimates"))
        self._checksums: dict[_EstimateKey, str] = {}
        self._estimate_failures: dict[_EstimateKey, str] = {}
        self._estimations: dict[_EstimateKey, Estimation] = {}
        self._steps: list[Step] = []
        records = _read(path)
        for record in records:
            self._remember(record)
        # Unbuffered: what could not be written is not tried again when the file is closed.
        self._file = path.open("ab", buffering=0)
        if not records:
            self._append(opening)
        elif records[0] != opening:
            self._file.close()
            raise RunError(f"{path} belongs to another run: {_difference(records[0], opening)}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file; the memory stays readable."""
        self._file.close()

    @property
    def candidates(self) -> dict[str, Candidate]:
        """Every candidate with a record, by id, in order of appearance."""
        return dict(self._candidates)

    @property
    def steps(self) -> tuple[Step, ...]:
        """The steps so far."""
        return tuple(self._steps)

    def missing(self, requests: Sequence[Request]) -> list[Request]:
        """What of the requests is not recorded yet, each micro-batch of a candidate once.

        A request that may stop early is handed on whole: where it stops depends on all of
        its micro-batches. So is an estimate.
        """
        planned: set[tuple[str, str, int]] = set()
        needed: list[Request] = []
        for request in requests:
            if self.answer(request) is not None or request in needed:
                continue
            if isinstance(request, Estimate):
                needed.append(request)
                continue
            keys = {m: (request.candidate.id, request.treatment, m) for m in request.micro_batches}
            known = self._values.keys() | planned
            wanted = tuple(m for m, key in keys.items() if key not in known)
            if request.stop_above is not None:
                wanted = request.micro_batches
            if wanted:
                planned.update(keys.values())
                needed.append(replace(request, micro_batches=wanted))
        return needed

    def answer(self, request: Request) -> Answer | None:
        """The recorded answer to a request, or ``None`` where something is missing.

        Raises:
            RunError: The file of an estimate is damaged.
        """
        if isinstance(request, Estimate):
            return self.estimation(request)
        return self.result(request)

    def result(self, request: Evaluate) -> Result | None:
        """The recorded result of an evaluation, or ``None`` where something is missing."""
        owner = (request.candidate.id, request.treatment)
        if owner in self._failures:
            return Result(request, (), failed=self._failures[owner])
        done = self._censored.get(_censor_key(request))
        wanted = request.micro_batches if done is None else done
        values = [self._values.get((*owner, m)) for m in wanted]
        found = tuple(value for value in values if value is not None)
        if len(found) < len(wanted):
            return None
        return Result(request, found, censored=done is not None)

    def estimation(self, request: Estimate) -> Estimation | None:
        """The recorded estimate, or ``None`` where its record or its file is missing.

        Raises:
            RunError: The file is damaged.
        """
        key = _estimate_key(request)
        if key in self._estimate_failures:
            return Estimation(request, (), (), failed=self._estimate_failures[key])
        if key in self._checksums and key not in self._estimations:
            found = self._estimate_files.read(request, self._checksums[key])
            if found is not None:
                self._estimations[key] = found
        return self._estimations.get(key)

    def record(self, answer: Answer) -> None:
        """Appends a new answer, after its candidate where that is new.

        Raises:
            RunError: An estimate whose file was deleted came out otherwise than recorded.
        """
        candidate = answer.request.candidate
        if candidate.id not in self._candidates:
            levels = candidate.to_json()
            self._write({"type": "candidate", "id": candidate.id, "levels": levels})
        if isinstance(answer, Estimation):
            self._record_estimation(answer)
        else:
            self._record_result(answer)

    def _record_estimation(self, estimation: Estimation) -> None:
        """The file first: a kill between file and line leaves a file that is written again."""
        request = estimation.request
        asked = {
            "candidate": request.candidate.id,
            "kind": request.kind,
            "micro_batches": request.micro_batches,
        }
        if estimation.failed is not None:
            self._write({"type": "estimate_failure", **asked, "reason": estimation.failed})
            return
        checksum = self._estimate_files.write(estimation)
        known = self._checksums.get(_estimate_key(request), checksum)
        if known != checksum:
            raise RunError(
                f"{self._estimate_files.path(request)}: computed again, the estimate is another "
                "than the record says; the model, the data or the code has changed since"
            )
        if _estimate_key(request) not in self._checksums:
            self._write({"type": "estimate", **asked, "sha256": checksum})

    def _record_result(self, result: Result) -> None:
        """Values, then failure or censoring."""
        request = result.request
        owner = {"candidate": request.candidate.id, "treatment": request.treatment}
        if result.failed is not None:
            self._write({"type": "failure", **owner, "reason": result.failed})
            return
        for value in result.values:
            if (*owner.values(), value.micro_batch) not in self._values:
                self._write({"type": "value", **owner, **_value_to_json(value)})
        if result.censored:
            asked = {
                "asked": request.micro_batches,
                "stop_above": request.stop_above,
                "done": tuple(value.micro_batch for value in result.values),
            }
            self._write({"type": "censored", **owner, **asked})

    def step(self, step: Step) -> None:
        """Appends a step; while replaying, checks that it is the recorded one.

        Raises:
            RunError: The replay differs from the record.
        """
        if step.step < len(self._steps):
            if self._steps[step.step] != step:
                raise RunError(
                    f"{self._path}: replaying step {step.step} gave another result than the "
                    "record; the model, the data or the code has changed since"
                )
            return
        self._write({"type": "step", **asdict(step)})

    def _write(self, record: dict[str, Any]) -> None:
        self._append(record)
        self._remember(record)

    def _append(self, record: dict[str, Any]) -> None:
        line = json.dumps(record, separators=(",", ":")).encode() + b"\n"
        with naming_disk_errors(self._path):
            while line:
                line = line[self._file.write(line) :]

    def _remember(self, record: Mapping[str, Any]) -> None:
        kind = record["type"]
        if kind == "candidate":
            self._candidates[record["id"]] = Candidate.from_json(record["levels"])
        elif kind == "value":
            value = _value_from_json(record)
            key = (record["candidate"], record["treatment"], value.micro_batch)
            self._values[key] = value
        elif kind == "failure":
            self._failures[record["candidate"], record["treatment"]] = record["reason"]
        elif kind == "censored":
            owner = (record["candidate"], record["treatment"])
            key_of_stop = (*owner, tuple(record["asked"]), record["stop_above"])
            self._censored[key_of_stop] = tuple(record["done"])
        elif kind == "estimate":
            self._checksums[_recorded_key(record)] = record["sha256"]
        elif kind == "estimate_failure":
            self._estimate_failures[_recorded_key(record)] = record["reason"]
        elif kind == "step":
            fields = {name: record[name] for name in Step.__dataclass_fields__}
            self._steps.append(Step(**fields))
        elif kind != "run":
            raise RunError(f"{self._path}: unknown record type '{kind}'")


def read_candidates(path: Path) -> dict[str, Candidate]:
    """The candidates of a journal by id; the file is only read.

    Raises:
        RunError: A record is damaged.
    """
    lines = path.read_bytes().splitlines(keepends=True)
    records = _parse(path, [line for line in lines if line.endswith(b"\n")])
    return {r["id"]: Candidate.from_json(r["levels"]) for r in records if r["type"] == "candidate"}


def last_step(path: Path) -> Step | None:
    """The last step of a journal, found from its end; the file is only read.

    Raises:
        RunError: A record is damaged.
    """
    with path.open("rb") as file:
        size, tail = file.seek(0, SEEK_END), TAIL
        while True:
            file.seek(max(0, size - tail))
            lines = file.read().splitlines(keepends=True)[0 if tail >= size else 1 :]
            whole = [line for line in lines if line.endswith(b"\n") and line.startswith(STEP)]
            if whole:
                fields = _parse(path, whole[-1:])[0]
                return Step(**{name: fields[name] for name in Step.__dataclass_fields__})
            if tail >= size:
                return None
            tail *= 8


def _read(path: Path) -> list[dict[str, Any]]:
    """The records of a file; a torn last line is cut off the file."""
    if not path.exists():
        return []
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        with path.open("r+b") as file:
            file.truncate(len(whole))
    return _parse(path, whole.splitlines())


def _parse(path: Path, lines: Sequence[bytes]) -> list[dict[str, Any]]:
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise RunError(f"{path}, line {number}: damaged record; start a new run") from error
    return records


def _difference(found: Mapping[str, Any], header: Mapping[str, Any]) -> str:
    keys = sorted(key for key in header if found.get(key) != header[key])
    return "; ".join(f"{key} was {found.get(key)}, is {header[key]}" for key in keys)


def _censor_key(request: Evaluate) -> _CensorKey:
    stop = float("inf") if request.stop_above is None else request.stop_above
    return (request.candidate.id, request.treatment, request.micro_batches, stop)


def _estimate_key(request: Estimate) -> _EstimateKey:
    return (request.candidate.id, request.kind, request.micro_batches)


def _recorded_key(record: Mapping[str, Any]) -> _EstimateKey:
    return (record["candidate"], record["kind"], tuple(record["micro_batches"]))


def _value_to_json(value: MicroBatchValue) -> dict[str, Any]:
    return {"micro_batch": value.micro_batch, "sums": value.sums, "counts": value.counts}


def _value_from_json(record: Mapping[str, Any]) -> MicroBatchValue:
    return MicroBatchValue(record["micro_batch"], tuple(record["sums"]), tuple(record["counts"]))
