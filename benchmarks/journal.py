"""What opening a long journal takes, and finding what it lacks.

A journal of a million records is written: candidates of 24 units, each with values of four
sequences on twelve micro-batches, and a step for every 32 of them. A process of its own opens it,
which checks every line, and asks it for new candidates.

Figures: `records`, `file_mib`; `open_s`, the seconds to open it; `peak_mib`, what the process took
at most meanwhile, above what it had with its libraries loaded; `missing_ms`, the time to find what
is missing of 1,024 new requests; `resume_s`, the seconds to open a journal of earlier versions,
whose lines have no checksums and are given them.

    python benchmarks/journal.py --json journal.json

``--quick`` does the same with 20,000 records.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common import Figure, clock, emit

from evocompress.core.checked_lines import sealed
from evocompress.core.requests import Evaluate
from evocompress.core.types import Candidate, Level
from evocompress.pipeline.journal import Journal, Step

UNITS, MICRO_BATCHES, PER_STEP, NEW = 24, 12, 32, 1024
HEADER = {"seed": 0}


def main() -> None:
    """Writes journals, has them opened and prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--json")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--open", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.open:
        print(json.dumps(_open(arguments.open)))
        return
    count = 20_000 if arguments.quick else arguments.records
    with tempfile.TemporaryDirectory() as scratch:
        emit("journal", _figures(Path(scratch), count), arguments.json)


def _figures(folder: Path, count: int) -> dict[str, Figure]:
    new, old = folder / "new.jsonl", folder / "old.jsonl"
    with new.open("wb") as file, old.open("wb") as plain:
        for _, record in zip(range(count), _records(), strict=False):
            file.write(sealed(record))
            plain.write(json.dumps(record, separators=(",", ":")).encode() + b"\n")
    found, earlier = _alone(new), _alone(old)
    return {
        "records": count,
        "file_mib": new.stat().st_size / 2**20,
        "open_s": found["open_s"],
        "peak_mib": found["peak_mib"],
        "missing_ms": found["missing_ms"],
        "resume_s": earlier["open_s"],
    }


def _records() -> Iterator[dict[str, Any]]:
    """Those of a run without an end."""
    yield {"type": "run", **HEADER}
    number = 0
    while True:
        number += 1
        candidate = _candidate(number)
        yield {"type": "candidate", "id": candidate.id, "levels": candidate.to_json()}
        for index in range(MICRO_BATCHES):
            sums = [(number * 7919 + index * 104729 + s * 31) % 65521 / 131.7 for s in range(4)]
            owner = {"candidate": candidate.id, "treatment": "none", "micro_batch": index}
            yield {"type": "value", **owner, "sums": sums, "counts": [511] * 4}
        if number % PER_STEP == 0:
            step = Step(number // PER_STEP - 1, number, number, candidate.id, 1 / number, "search")
            fields = {name: getattr(step, name) for name in Step.__dataclass_fields__}
            yield {"type": "step", **fields}


def _candidate(number: int) -> Candidate:
    levels = (
        (f"model.layers.{unit:02}.mlp.down_proj", Level(zeros=1 + number * (unit + 1)))
        for unit in range(UNITS)
    )
    return Candidate(tuple(levels))


def _alone(path: Path) -> dict[str, float]:
    """What a process of its own finds out."""
    command = [sys.executable, __file__, "--open", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def _open(path: Path) -> dict[str, float]:
    before, start = _peak_mib(), clock()
    with Journal(path, HEADER) as journal:
        opened, after = clock(), _peak_mib()
        requests = [Evaluate(_candidate(10**9 + n), (0, 1)) for n in range(NEW)]
        for request in requests:
            request.candidate.id  # noqa: B018  (its hash is no part of the question)
        asked = clock()
        assert len(journal.missing(requests)) == NEW
        done = clock()
    return {
        "open_s": opened - start,
        "peak_mib": after - before,
        "missing_ms": 1000 * (done - asked),
    }


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
