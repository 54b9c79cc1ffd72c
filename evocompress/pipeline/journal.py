"""The append-only record of a run, and the memory from which a resumed run is answered.

One JSON object per line. A value is keyed by (candidate, treatment, micro-batch); nothing in a
record depends on time, so an interrupted and an undisturbed run write the same lines. Of an
estimate the line keeps the checksum; its array is a file in the folder ``estimates`` beside.
"""

from __future__ import annotations

import json
import os
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from time import monotonic
from typing import Any, Self

from evocompress.core.checked_lines import JournalRecord, Line, sealed, sealed_candidate
from evocompress.core.errors import RunError
from evocompress.core.files import naming_disk_errors
from evocompress.core.requests import (
    Answer,
    Estimate,
    Estimation,
    Evaluate,
    MicroBatchValue,
    Request,
    Result,
)
from evocompress.core.types import Candidate
from evocompress.pipeline.estimate_files import EstimateFiles
from evocompress.pipeline.journal_memory import (
    CensorKey,
    EstimateKey,
    Memory,
    ShortHealing,
    Step,
    last_step,
)
from evocompress.pipeline.journal_opening import (
    check_own,
    read_candidates,
    read_header,
    read_known,
    read_own,
)

__all__ = ["Journal", "Step", "last_step", "read_candidates", "read_header"]

SYNC_SECONDS = 1.0
"""How much of a run a power cut may cost: as long, lines stay in the system's cache."""


class Journal:
    """Answers by key, every new one appended to the file at once.

    Examples:
        >>> from evocompress.core.requests import Evaluate
        >>> with Journal(Path("journal.jsonl"), {"seed": 0}) as journal:
        ...     asked = Evaluate(Candidate(), micro_batches=(0,))
        ...     journal.missing([asked]) == [asked]
        True
    """

    def __init__(
        self,
        path: Path,
        header: Mapping[str, Any],
        *,
        may_differ: Sequence[str] = (),
        earlier: Sequence[Path] = (),
    ) -> None:
        """Opens or creates the journal, reading what is there; a torn last line is dropped.

        The header is what the values depend on (fingerprints, seed, settings). Keys of it in
        `may_differ` may be others than the journal was begun with; `mark` is to say so in it.
        `recall` takes over values of `earlier` journals of the same run with fewer tokens.

        Raises:
            RunError: The journal was written under another header, is damaged, or is a link.
        """
        check_own(path)
        self._path = path
        self._estimate_files = EstimateFiles(path.with_name("estimates"))
        self._estimations: dict[EstimateKey, Estimation] = {}
        opening = json.loads(json.dumps({"type": "run", **header}))
        self._memory = read_own(path, opening, may_differ)
        self._earlier = [read_known(known, opening, may_differ) for known in earlier]
        # Unbuffered: what could not be written is not tried again when the file is closed.
        self._file = path.open("ab", buffering=0)
        self._synced = monotonic()
        if not self._memory.count:
            self._write(opening)
            for known in self._earlier:
                for forced in known.forced:
                    self.mark(forced["circumstances"], forced["environment"])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file, once it is on the disk; the memory stays readable."""
        try:
            self._sync()
        finally:
            self._file.close()

    @property
    def candidates(self) -> Mapping[str, Candidate]:
        """Every candidate with a record, by id, in order of appearance."""
        return self._memory.candidates

    @property
    def steps(self) -> tuple[Step, ...]:
        """The steps so far."""
        return tuple(self._memory.steps)

    def mark(self, circumstances: Mapping[str, Any], environment: Mapping[str, Any]) -> None:
        """Appends that the run goes on under other circumstances, unless that was said last."""
        forced, step = self._memory.forced, len(self._memory.steps)
        told = {"circumstances": dict(circumstances), "environment": dict(environment)}
        if not forced or any(forced[-1][key] != told[key] for key in told):
            self._write({"type": "forced", "step": step, **told})

    def recall(self, requests: Sequence[Request]) -> None:
        """Records what earlier journals of the run know of requests; what failed is tried again."""
        for known in self._earlier:
            for request in self.missing(requests):
                found = self._known(request, known)
                if found is not None:
                    self.record(found)

    def _known(self, request: Request, known: Memory) -> Answer | None:
        if isinstance(request, Estimate):
            checksum = known.checksums.get(_estimate_key(request))
            return self._estimate_files.read(request, checksum) if checksum else None
        done = known.censored.get(_censor_key(request))
        wanted = request.micro_batches if done is None else done
        values = _values(known, request, wanted)
        if not values or (request.stop_above is not None and len(values) < len(wanted)):
            return None
        return Result(request, values, censored=done is not None)

    def missing(self, requests: Sequence[Request]) -> list[Request]:
        """What of the requests is not recorded yet, each micro-batch of a candidate once.

        A request that may stop early is handed on whole: where it stops depends on all of
        its micro-batches. So is an estimate.
        """
        planned: set[Hashable] = set()
        needed: list[Request] = []
        for request in requests:
            if self.answer(request) is None:
                needed += self._unplanned(request, planned)
        return needed

    def _unplanned(self, request: Request, planned: set[Hashable]) -> list[Request]:
        """What of a request is neither recorded nor among what is planned, which it joins."""
        if isinstance(request, Estimate) or request.stop_above is not None:
            whole = (
                _estimate_key(request) if isinstance(request, Estimate) else _censor_key(request)
            )
            known = whole in planned
            planned.add(whole)
            return [] if known else [request]
        owner = (request.candidate.id, request.treatment)
        wanted = tuple(
            index
            for index in dict.fromkeys(request.micro_batches)
            if (*owner, index) not in planned and not self._memory.values.has(*owner, index)
        )
        planned.update((*owner, index) for index in wanted)
        return [replace(request, micro_batches=wanted)] if wanted else []

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
        memory = self._memory
        if owner in memory.failures:
            return Result(request, (), failed=memory.failures[owner])
        done = memory.censored.get(_censor_key(request))
        wanted = request.micro_batches if done is None else done
        found = _values(memory, request, wanted)
        if len(found) < len(wanted):
            return None
        return Result(request, found, censored=done is not None)

    def measured(self, candidate: str, treatment: str) -> list[MicroBatchValue]:
        """Every value of a candidate after a treatment, whichever requests it is from."""
        return self._memory.values.of(candidate, treatment)

    def estimation(self, request: Estimate) -> Estimation | None:
        """The recorded estimate, or ``None`` where its record or its file is missing.

        Raises:
            RunError: The file is damaged.
        """
        key = _estimate_key(request)
        memory = self._memory
        if key in memory.estimate_failures:
            return Estimation(request, (), (), failed=memory.estimate_failures[key])
        if key in memory.checksums and key not in self._estimations:
            found = self._estimate_files.read(request, memory.checksums[key])
            if found is not None:
                self._estimations[key] = found
        return self._estimations.get(key)

    def record(self, answer: Answer) -> None:
        """Appends a new answer, after its candidate where that is new.

        Raises:
            RunError: An estimate whose file was deleted came out otherwise than recorded.
        """
        candidate = answer.request.candidate
        new = () if candidate.id in self._memory.candidates else (candidate,)
        if isinstance(answer, Estimation):
            self._write(*new)
            self._record_estimation(answer)
        else:
            self._write(*new, *self._records(answer))

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
        known = self._memory.checksums.get(_estimate_key(request), checksum)
        if known != checksum:
            raise RunError(
                f"{self._estimate_files.path(request)}: computed again, the estimate is another "
                "than the record says; the model, the data or the code has changed since"
            )
        if _estimate_key(request) not in self._memory.checksums:
            self._write({"type": "estimate", **asked, "sha256": checksum})

    def _records(self, result: Result) -> list[JournalRecord]:
        """What is new of a result: values, then failure or censoring."""
        request = result.request
        own = (request.candidate.id, request.treatment)
        owner = dict(zip(("candidate", "treatment"), own, strict=True))
        if result.failed is not None:
            return [{"type": "failure", **owner, "reason": result.failed}]
        new = {v.micro_batch: v for v in result.values}
        records: list[JournalRecord] = [
            {
                "type": "value",
                **owner,
                "micro_batch": value.micro_batch,
                "sums": value.sums,
                "counts": value.counts,
            }
            for value in new.values()
            if not self._memory.values.has(*own, value.micro_batch)
        ]
        if result.censored:
            asked = {
                "asked": request.micro_batches,
                "stop_above": request.stop_above,
                "done": tuple(value.micro_batch for value in result.values),
            }
            records.append({"type": "censored", **owner, **asked})
        return records

    def healed(self, candidate: str) -> ShortHealing | None:
        """What a short healing made of a candidate, by its id; ``None`` where it is not known.

        What earlier journals of the run know is recorded in this one.
        """
        for known in self._earlier:
            if candidate in known.healed and candidate not in self._memory.healed:
                self.record_healed(candidate, known.healed[candidate])
        return self._memory.healed.get(candidate)

    def record_healed(self, candidate: str, healing: ShortHealing) -> None:
        """Appends what a short healing made of a candidate, by its id."""
        self._write({"type": "healed", "candidate": candidate, **asdict(healing)})

    def step(self, step: Step) -> None:
        """Appends a step; while replaying, checks that it is the recorded one.

        Raises:
            RunError: The replay differs from the record.
        """
        steps = self._memory.steps
        if step.step < len(steps):
            if steps[step.step] != step:
                raise RunError(
                    f"{self._path}: replaying step {step.step} gave another result than the "
                    "record; the model, the data or the code has changed since"
                )
            return
        self._write({"type": "step", **asdict(step)})

    def _write(self, *said: JournalRecord | Candidate) -> None:
        """Appends lines, all of them at once."""
        memory, contents = self._memory, list(map(_line, said))
        self._append(b"".join(contents))
        for record, content in zip(said, contents, strict=True):
            line = Line(self._path, memory.count + 1, memory.end, content, sealed=True)
            memory.add(line, None if isinstance(record, Candidate) else record)

    def _append(self, content: bytes) -> None:
        with naming_disk_errors(self._path):
            while content:
                content = content[self._file.write(content) :]
            if monotonic() - self._synced > SYNC_SECONDS:
                self._sync()

    def _sync(self) -> None:
        os.fsync(self._file.fileno())
        self._synced = monotonic()


def _line(said: JournalRecord | Candidate) -> bytes:
    return sealed_candidate(said) if isinstance(said, Candidate) else sealed(said)


def _values(
    memory: Memory, request: Evaluate, micro_batches: Sequence[int]
) -> tuple[MicroBatchValue, ...]:
    """What there is of the values of an evaluation on micro-batches."""
    owner = (request.candidate.id, request.treatment)
    found = (memory.values.get(*owner, index) for index in micro_batches)
    return tuple(value for value in found if value is not None)


def _censor_key(request: Evaluate) -> CensorKey:
    stop = float("inf") if request.stop_above is None else request.stop_above
    return (request.candidate.id, request.treatment, request.micro_batches, stop)


def _estimate_key(request: Estimate) -> EstimateKey:
    return (request.candidate.id, request.kind, request.micro_batches)
