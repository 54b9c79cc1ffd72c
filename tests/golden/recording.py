"""What is kept of a search: its journal, winner, front, estimates and checkpoint.

Left out is what depends on the machine or the time: checksums of lines and files.
"""

from __future__ import annotations

import json
import shutil
from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from evocompress import api
from tests.golden.cases import Case

RECORDS = Path(__file__).with_name("records")
SEAL = "xxh3"
PROCESSOR = ("vendor_id", "cpu family", "model", "model name", "stepping")


@dataclass(frozen=True)
class Kept:
    """A search and its result.

    Attributes:
        machine: What the numbers depend on beside the case: processor, instructions, versions.
        journal: Its lines, the header first.
        winner: The best candidate with its values and costs.
        front: The candidates that it was compared with.
        estimates: The files of estimates by name.
        tensors: {name: shape, dtype, sums and digest} of the winner's checkpoint.
    """

    machine: dict[str, Any]
    journal: list[dict[str, Any]]
    winner: dict[str, Any]
    front: list[dict[str, Any]]
    estimates: dict[str, bytes]
    tensors: dict[str, dict[str, Any]]

    @property
    def values(self) -> dict[tuple[str, str, int], float]:
        """Every value of the journal by candidate, treatment and micro-batch."""
        return {
            (line["candidate"], line["treatment"], line["micro_batch"]): sum(line["sums"])
            / sum(line["counts"])
            for line in self.journal
            if line["type"] == "value"
        }

    @property
    def in_any_order(self) -> list[str]:
        """The lines of the journal as text, those of each step after the header sorted."""
        found = [json.dumps(self.journal[0])]
        lines: list[str] = []
        for line in self.journal[1:]:
            lines.append(json.dumps(line))
            if line["type"] == "step":
                found += sorted(lines)
                lines = []
        return found + sorted(lines)


def searched(folder: Path) -> Kept:
    """What there is of a finished search; its checkpoint is read by `materialized`."""
    return Kept(
        _machine(json.loads((folder / "environment.json").read_text())),
        [_plain(json.loads(line)) for line in _lines(folder / "journal.jsonl")],
        _plain(json.loads((folder / "winner.json").read_text())),
        _plain(json.loads((folder / "front.json").read_text())),
        {path.name: path.read_bytes() for path in sorted((folder / "estimates").glob("*"))},
        {},
    )


def materialized(kept: Kept, folder: Path) -> Kept:
    """The same with its winner's checkpoint, which is written now."""
    checkpoint = api.materialize(folder)
    tensors = {
        name: _described(tensor)
        for path in sorted(checkpoint.glob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }
    return replace(kept, tensors=dict(sorted(tensors.items())))


def record(case: Case, home: Path) -> Kept:
    """Searches and materializes in an empty folder."""
    folder = api.search(case.config(home))
    return materialized(searched(folder), folder)


def replay(case: Case, home: Path, known: Kept) -> Kept:
    """Searches once more where a search has ended, answered by what is known alone.

    The known journal is laid beside as one of fewer tokens, so that the run begins anew, takes
    over what it asks for, and writes all of its lines once more. Estimates come back as they are.

    Args:
        case: Of the search.
        home: Its folder, with the run, whose journal is replaced.
        known: What answers.

    Raises:
        AssertionError: The searcher asks for anything else.
    """
    config = case.config(home)
    folder = config.folder
    header, *_ = _lines(folder / "journal.jsonl")
    own = json.dumps({key: value for key, value in json.loads(header).items() if key != SEAL})
    lines = [own, *map(json.dumps, known.journal[1:])]
    (folder / "journal.before-001.jsonl").write_text("".join(f"{line}\n" for line in lines))
    for name in ("journal.jsonl", "winner.json", "front.json"):
        (folder / name).unlink()
    shutil.rmtree(folder / "estimates", ignore_errors=True)
    (folder / "estimates").mkdir()
    for name, content in known.estimates.items():
        (folder / "estimates" / name).write_bytes(content)

    def told(progress: Any) -> None:
        assert not progress.total, f"{case.name}: {progress.total} requests that are not recorded"

    return searched(api.search(config, resume=True, listener=told))


def save(kept: Kept, name: str) -> None:
    """Writes the record of a case, in place of a former one."""
    folder = RECORDS / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    told = asdict(kept)
    told["estimates"] = {
        name: b64encode(content).decode() for name, content in kept.estimates.items()
    }
    for part, lines in ((part, told.pop(part)) for part in ("journal", "front")):
        (folder / f"{part}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows = (f" {json.dumps(key)}: {json.dumps(row)}" for key, row in told.pop("tensors").items())
    (folder / "tensors.json").write_text("{\n" + ",\n".join(rows) + "\n}\n")
    for part, data in told.items():
        (folder / f"{part}.json").write_text(json.dumps(data, indent=1) + "\n")


def load(name: str) -> Kept:
    """The record of a case."""
    folder = RECORDS / name
    machine, winner, tensors, estimates = (
        json.loads((folder / f"{part}.json").read_text())
        for part in ("machine", "winner", "tensors", "estimates")
    )
    journal, front = (
        list(map(json.loads, _lines(folder / f"{part}.jsonl"))) for part in ("journal", "front")
    )
    files = {name: b64decode(content) for name, content in estimates.items()}
    return Kept(machine, journal, winner, front, files, tensors)


def _machine(environment: Mapping[str, Any]) -> dict[str, Any]:
    """What numbers depend on: models of processors often share a name, but not all digits."""
    info = Path("/proc/cpuinfo")
    pairs = (line.partition(":") for line in (_lines(info) if info.exists() else ()))
    facts = {name.strip(): value.strip() for name, _, value in pairs}
    versions = environment["versions"]
    return {
        "processor": {name: facts.get(name, environment["device"]) for name in PROCESSOR},
        "instructions": environment["instructions"],
        "versions": {name: versions[name] for name in versions if name != "evocompress"},
    }


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


def _plain(data: Any) -> Any:
    """JSON without the checksums in it."""
    if isinstance(data, dict):
        return {key: _plain(value) for key, value in data.items() if key != SEAL}
    return [_plain(value) for value in data] if isinstance(data, list) else data


def _described(tensor: np.ndarray) -> dict[str, Any]:
    wide = tensor.astype(np.float64)
    return {
        "shape": list(tensor.shape),
        "dtype": str(tensor.dtype),
        "sum": float(wide.sum()),
        "absolute": float(np.abs(wide).sum()),
        "sha256": sha256(tensor.tobytes()).hexdigest()[:16],
    }
