"""What it takes to verify what is read back, and to have what is written reach the disk.

Block files of a level library are written and verified as when it is opened: by xxh3, and by
SHA-256 as libraries of older versions are. Once they come out of the disk's cache in memory, and
once from the disk, where the system drops them from memory when it is asked to.

Figures: `gb` of the files; `verify_s_per_gb` and `verify_sha256_s_per_gb`, seconds per 10^9 bytes
out of memory; `from_disk_s_per_gb`, the same by xxh3 from the disk; `write_json_ms`, the median
time to write a small file of JSON that has reached the disk.

    python benchmarks/integrity.py --folder . --json integrity.json

``--quick`` does the same with smaller files.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from common import Figure, emit

from evocompress.compression.library.files import TensorSpec, TensorWriter, durable_file
from evocompress.compression.library.manifest import BlockRecord, LibraryRecipe, Manifest
from evocompress.compression.library.store import verify_files
from evocompress.core.files import write_json

BLOCKS, WRITES = 4, 50
RECIPE = LibraryRecipe("model", "calibration", None, None, None, "dense", 0.01, {}, {})


def main() -> None:
    """Writes files, verifies them and prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="on the disk that is measured")
    parser.add_argument("--json")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    values = 1_000_000 if arguments.quick else 125_000_000
    with tempfile.TemporaryDirectory(dir=arguments.folder) as scratch:
        emit("integrity", _figures(Path(scratch), values), arguments.json)


def _figures(folder: Path, values: int) -> dict[str, Figure]:
    """Of blocks of so many bfloat16 numbers each."""
    new = Manifest(RECIPE, {}, 0, 0, {}, dict(enumerate(_written(folder, values))))
    blocks = {index: replace(record, xxh3=None) for index, record in new.blocks.items()}
    old = replace(new, blocks=blocks)
    gb = sum(record.bytes for record in new.blocks.values()) / 1e9
    verify_files(folder, new)  # into memory
    return {
        "gb": gb,
        "verify_s_per_gb": _seconds(lambda: verify_files(folder, new)) / gb,
        "verify_sha256_s_per_gb": _seconds(lambda: verify_files(folder, old)) / gb,
        "from_disk_s_per_gb": _seconds(lambda: verify_files(folder, new), _dropped(folder)) / gb,
        "write_json_ms": 1000 * _write_seconds(folder),
    }


def _written(folder: Path, values: int) -> list[BlockRecord]:
    layout = {"weight": TensorSpec((values,), torch.bfloat16)}
    records = []
    for index in range(BLOCKS):
        path = folder / f"block-{index:04d}.safetensors"
        with durable_file(path) as file:
            writer = TensorWriter(file, layout)
            writer.add("weight", torch.full((values,), 1.5 + index, dtype=torch.bfloat16))
        record = BlockRecord(path.name, writer.bytes, writer.sha256, {}, {}, writer.xxh3)
        records.append(record)
    return records


def _dropped(folder: Path) -> Callable[[], None]:
    """Has the files leave the memory."""

    def drop() -> None:
        for path in folder.glob("*.safetensors"):
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    return drop


def _seconds(work: Callable[[], None], before: Callable[[], None] = lambda: None) -> float:
    """The median of three times."""
    times = []
    for _ in range(3):
        before()
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def _write_seconds(folder: Path) -> float:
    times = []
    for count in range(WRITES):
        started = time.perf_counter()
        write_json(folder / "small.json", {"count": count})
        times.append(time.perf_counter() - started)
    return statistics.median(times)


if __name__ == "__main__":
    main()
