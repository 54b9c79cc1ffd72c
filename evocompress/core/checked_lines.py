"""What a line of a journal is: one JSON object of a known shape, ending in a checksum.

The checksum is XXH3 over the bytes of the line that precede it, so that damage is found without
parsing. Journals of earlier versions have none; in each file either all lines have one or none.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, NotRequired

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict
from xxhash import xxh3_64_hexdigest

from evocompress.core.errors import RunError
from evocompress.core.files import first_problem
from evocompress.core.regular import check_regular
from evocompress.core.types import Candidate

CANDIDATE = b'{"type":"candidate","id":"'
"""How the line of a candidate begins."""

STEP = b'{"type":"step"'
"""How the line of a step begins."""

WRONG_CHECKSUM = "its checksum is wrong or missing"

_ENCODER = json.JSONEncoder(separators=(",", ":"))

_MARK = b',"xxh3":"'
_SEAL = len(_MARK) + 16 + len(b'"}\n')

_Count = Annotated[int, Field(ge=0, lt=2**63)]
_Index = Annotated[int, Field(ge=0, lt=2**31)]


class _Base(TypedDict):
    """What every record may have; a key that is not known is damage."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)  # type: ignore[misc]

    xxh3: NotRequired[str]


class _Header(TypedDict):
    """The first line; what is in it is compared, not read."""

    __pydantic_config__ = ConfigDict(extra="allow", strict=True)  # type: ignore[misc]

    type: Literal["run"]


class _Candidate(_Base):
    type: Literal["candidate"]
    id: str
    levels: dict[str, dict[str, bool | int | str]]


class _Owned(_Base):
    candidate: str
    treatment: str


class _Value(_Owned):
    type: Literal["value"]
    micro_batch: _Index
    sums: list[float]
    counts: list[_Count]


class _Failure(_Owned):
    type: Literal["failure"]
    reason: str


class _Censored(_Owned):
    type: Literal["censored"]
    asked: list[_Index]
    stop_above: float
    done: list[_Index]


class _Estimate(_Base):
    type: Literal["estimate"]
    candidate: str
    kind: str
    micro_batches: list[_Index]
    sha256: str


class _EstimateFailure(_Base):
    type: Literal["estimate_failure"]
    candidate: str
    kind: str
    micro_batches: list[_Index]
    reason: str


class _Healed(_Base):
    type: Literal["healed"]
    candidate: str
    before: float | None
    after: float | None
    reason: str | None


class _Step(_Base):
    type: Literal["step"]
    step: _Index
    requested: _Count
    computed: _Count
    incumbent: str | None
    value: float | None
    phase: NotRequired[str]


class _Forced(_Base):
    type: Literal["forced"]
    step: _Index
    circumstances: dict[str, Any]
    environment: dict[str, Any]


_RECORDS: TypeAdapter[Any] = TypeAdapter(
    Annotated[
        _Header
        | _Candidate
        | _Value
        | _Failure
        | _Censored
        | _Estimate
        | _EstimateFailure
        | _Healed
        | _Step
        | _Forced,
        Field(discriminator="type"),
    ]
)

JournalRecord = Mapping[str, Any]


class Line(NamedTuple):
    """A whole line of a journal whose checksum, where there are any, is right.

    Attributes:
        path: The journal.
        number: From 1; 0 where it was not counted.
        offset: Where it begins in the file.
        content: Its bytes, the line end included.
        sealed: Whether it has a checksum.
    """

    path: Path
    number: int
    offset: int
    content: bytes
    sealed: bool

    def record(self) -> JournalRecord:
        """What the line says.

        Raises:
            RunError: It is no record of a known shape.
        """
        try:
            found: JournalRecord = _RECORDS.validate_json(self.content)
        except ValidationError as error:
            raise self.damaged(first_problem(error)) from error
        if "xxh3" in found and not self.sealed:
            raise self.damaged(WRONG_CHECKSUM)
        return found

    def damaged(self, why: str) -> RunError:
        """The error of this line, which says what can be kept."""
        return _damaged(self.path, self.number or self._count(), why)

    def _count(self) -> int:
        """The number of a line whose place alone is known."""
        with self.path.open("rb") as file:
            return 1 + file.read(self.offset).count(b"\n")


def adds_up(value: JournalRecord) -> bool:
    """Whether the sums and counts of a value fit each other."""
    return len(value["sums"]) == len(value["counts"]) and any(value["counts"])


def sealed(record: JournalRecord) -> bytes:
    """A record as a line with its checksum."""
    return _seal(_ENCODER.encode(record).encode())


def sealed_candidate(candidate: Candidate) -> bytes:
    """The line of a candidate, as `sealed` would write its record."""
    return _seal(CANDIDATE + f'{candidate.id}","levels":{candidate.text}}}'.encode())


def resealed(line: Line) -> bytes:
    """A line that has no checksum yet, with one."""
    return _seal(line.content.rstrip())


def _seal(text: bytes) -> bytes:
    body = text.removesuffix(b"}")
    return body + _MARK + xxh3_64_hexdigest(body).encode() + b'"}\n'


def lines(path: Path) -> Iterator[Line]:
    """The whole lines of a journal; a torn last one, which a kill leaves, is not among them.

    Raises:
        RunError: A line is damaged.
    """
    check_regular(path)
    every: bool | None = None
    offset = 0
    with path.open("rb") as file:
        for number, content in enumerate(file, start=1):
            if not content.endswith(b"\n"):
                if _is_sealed(content[:-1] + b"\n"):
                    raise _damaged(path, number, "its line end has changed")
                return
            is_sealed = _is_sealed(content)
            every = is_sealed if every is None else every
            if is_sealed != every:
                raise _damaged(path, number if every else 1, WRONG_CHECKSUM)
            yield Line(path, number, offset, content, is_sealed)
            offset += len(content)


def line_at(path: Path, offset: int) -> Line:
    """The line that begins at a place of a journal."""
    with path.open("rb") as file:
        file.seek(offset)
        content = file.readline()
    return Line(path, 0, offset, content, _is_sealed(content))


def _is_sealed(content: bytes) -> bool:
    return content[-_SEAL:] == b'%b%b"}\n' % (_MARK, xxh3_64_hexdigest(content[:-_SEAL]).encode())


def _damaged(path: Path, number: int, why: str) -> RunError:
    if number == 1:
        return RunError(
            f"{path}, line 1: damaged record ({why}); without its header nothing can be told of "
            "the other lines: restore the file, or search again with name=..."
        )
    return RunError(
        f"{path}, line {number}: damaged record ({why}); restore the file, or keep only the "
        f"{number - 1} lines before it ('head -n {number - 1}'): the search computes the rest "
        "again with --resume"
    )
