"""How close `evocompress plan` comes to what a run then takes, and its table for larger models.

Level library, search and healing of SmolLM2-135M are run one after the other, each in a process
of its own, and compared with the plan made before. Memory is what rises above the process with its
libraries loaded, at its peak; disk is what the run's folder holds at most.

Figures: for each stage `planned_…_s` and `…_s`, `planned_…_mib` and `…_mib`; `plan_time_error`,
`plan_memory_error` and `plan_disk_error`, the largest relative error of any stage (aims: 0.25, 0.1
and 0.1).

    python benchmarks/plan.py --calibration text.txt --json plan.json
    python benchmarks/plan.py --table

``--table`` prints what is planned for models of 1, 8 and 70 billion parameters and a mixture of
experts on GPUs, and runs nothing. ``--quick`` runs a tiny random model.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from common import Figure, PeakMemory, emit
from rich.console import Console
from rich.table import Table

from evocompress import api
from evocompress.core.config import RunConfig
from evocompress.core.config_file import dump_config, load_config
from evocompress.core.progress import Reporter
from evocompress.pipeline.planning import DEVICES, make_plan, outline, plan_rows
from evocompress.pipeline.run_folder import RunFolder

STAGES = ("library", "search", "heal")
MIB = 2**20

SIZES: Mapping[str, dict[str, Any]] = {
    "Llama 3.2 1B": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "tie_word_embeddings": True,
    },
    "Llama 3.1 8B": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
    "Llama 3.1 70B": {
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
    },
    "Mixtral 8x7B": {
        "model_type": "mixtral",
        "vocab_size": 32_000,
        "max_position_embeddings": 32_768,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
    },
}
"""As their published configs say."""

VOCABULARY, CONTEXT = 128_256, 131_072

SPACES: Mapping[str, dict[str, Any]] = {
    "50% sparsity": {"sparsity": {"target": 0.5}},
    "70% of the parameters": {
        "width": {"multiple_of": 128},
        "drop": {},
        "budget": {"body_params": 0.7},
    },
}


HEALINGS: Mapping[str, dict[str, Any]] = {
    "heal, blocks again": {"checkpointing": True},
    "heal, blocks again, 8 bits": {"checkpointing": True, "optimizer": "adamw8bit"},
    "heal, adapters": {"checkpointing": True, "train": ("lora", "norms")},
}
"""Healings that need less memory."""


@dataclass(frozen=True)
class Taken:
    """What a stage took: seconds, MiB of memory above the idle process, bytes of files."""

    seconds: float
    mib: float
    disk: int


def main() -> None:
    """Measure, print and write, or print the table."""
    arguments = _arguments()
    if arguments.stage:
        print(json.dumps(_run_stage(arguments.stage, Path(arguments.run))))
        return
    if arguments.table:
        _table()
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        config = _quick(folder) if arguments.quick else _full(folder, arguments.calibration)
        emit("plan", _figures(config, folder), arguments.json)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--calibration", help="text file", default="self")
    parser.add_argument("--json", help="file for the figures")
    parser.add_argument("--table", action="store_true", help="plans of larger models")
    parser.add_argument("--quick", action="store_true", help="a tiny random model")
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    parser.add_argument("--run", help=argparse.SUPPRESS)
    return parser.parse_args()


def _config(folder: Path, source: str, text: str, **changes: Any) -> RunConfig:
    return RunConfig.model_validate(
        {
            "name": "planned",
            "runs": folder,
            "model": {"source": source},
            "calibration": {
                "source": text,
                "library_sequences": 32,
                "search_sequences": 32,
                "heldout_sequences": 2,
                "length": 512,
                "micro_batch": 1,
            },
            "space": {"sparsity": {"target": 0.5}},
            "search": {"name": "auto", "tokens": 60_000},
            "heal": {"steps": 10, "batch": 2, "accumulate": 2, "evaluate_every": 5},
            **changes,
        }
    )


def _full(folder: Path, text: str) -> RunConfig:
    return _config(folder, "demo:smollm2-135m", text)


def _quick(folder: Path) -> RunConfig:
    from evocompress.testing.tiny import tiny_checkpoint

    text = folder / "text.txt"
    text.write_text(" ".join(f"word{number * number % 3989}" for number in range(4000)))
    calibration = {
        "source": str(text),
        "library_sequences": 8,
        "search_sequences": 16,
        "heldout_sequences": 2,
        "length": 32,
        "micro_batch": 1,
    }
    source = str(tiny_checkpoint(folder / "model", "llama"))
    few = {"steps": 2, "evaluate_every": 1, "validation_sequences": 2}
    search = {"name": "auto", "tokens": 4000}
    return _config(folder, source, str(text), calibration=calibration, heal=few, search=search)


def _figures(config: RunConfig, folder: Path) -> dict[str, Figure]:
    """Plans, runs and compares."""
    file = folder / "run.yaml"
    file.write_text(dump_config(config))
    plan = api.plan(config)
    planned = {
        stage.name: Taken(
            plan.seconds(stage),
            (stage.device_bytes + stage.main_bytes) / MIB,
            stage.disk_bytes,
        )
        for stage in plan.stages
    }
    # A checkpoint that is computed in its own dtype is mapped, and no part of what rises.
    mapped = 0 if plan.dtype == "float32" else plan.weights / MIB
    figures: dict[str, Figure] = {"device": plan.device.name, "dtype": plan.dtype}
    errors: dict[str, list[float]] = {"time": [], "memory": [], "disk": []}
    for stage in STAGES:
        taken, foretold = _measured(stage, file), planned[stage]
        taken = replace(taken, mib=taken.mib + mapped)
        figures |= {
            f"planned_{stage}_s": foretold.seconds,
            f"{stage}_s": taken.seconds,
            f"planned_{stage}_mib": foretold.mib,
            f"{stage}_mib": taken.mib,
            f"planned_{stage}_disk_mib": foretold.disk / MIB,
            f"{stage}_disk_mib": taken.disk / MIB,
        }
        errors["time"].append(abs(foretold.seconds / taken.seconds - 1))
        errors["memory"].append(abs(foretold.mib / taken.mib - 1))
        if foretold.disk:
            errors["disk"].append(abs(foretold.disk / taken.disk - 1))
    return figures | {f"plan_{kind}_error": max(found) for kind, found in errors.items()}


def _measured(stage: str, file: Path) -> Taken:
    """A stage in a process of its own."""
    command = [sys.executable, __file__, "--stage", stage, "--run", str(file)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return Taken(**json.loads(done.stdout.splitlines()[-1]))


def _run_stage(stage: str, file: Path) -> dict[str, float]:
    """Runs a stage, and watches it."""
    config = load_config(file, [])
    folder = RunFolder(config.folder)
    if stage == "heal":
        api.materialize(folder.path)
    disk = PeakDisk(folder.path)
    with disk, PeakMemory(interval=0.01) as memory:
        start = time.perf_counter()
        if stage == "library":
            api.build_library(config, reporter=Reporter())
        elif stage == "search":
            api.search(config, reporter=Reporter())
        else:
            api.heal(folder.path, reporter=Reporter())
        seconds = time.perf_counter() - start
    return {"seconds": seconds, "mib": memory.mib, "disk": disk.rise}


class PeakDisk:
    """Watches how much more the files below a folder come to hold, in bytes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._start = _files(folder)
        self.rise = 0

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.05):
            self.rise = max(self.rise, _files(self._folder) - self._start)


def _files(folder: Path) -> int:
    """Bytes of the files below a folder; one that is gone meanwhile counts nothing."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):
            total += path.stat().st_size if path.is_file() else 0
    return total


def _table() -> None:
    """What larger models would take on GPUs."""
    table = Table(title="planned: 64 library sequences of 2048 tokens, 500,000 tokens of search")
    for heading in (
        "model",
        "space",
        "device",
        "stage",
        "time",
        "device mem.",
        "main mem.",
        "disk",
    ):
        table.add_column(heading)
    for model, sizes in SIZES.items():
        for name, space in SPACES.items():
            for device in ("h200", "l40s"):
                for row in _planned(sizes, space, device):
                    table.add_row(model, name, device, *row)
    Console(width=140).print(table)


def _planned(sizes: Mapping[str, Any], space: Mapping[str, Any], device: str) -> list[list[str]]:
    """The rows of one plan; where the model does not fit, with its blocks streamed."""
    from transformers import AutoConfig

    with tempfile.TemporaryDirectory() as folder:
        common = {"vocab_size": VOCABULARY, "max_position_embeddings": CONTEXT, "dtype": "bfloat16"}
        published = {"model_type": "llama"} | common | dict(sizes)
        AutoConfig.for_model(**published).save_pretrained(folder)
        loaded = outline(folder)
        calibration = {
            "library_sequences": 64,
            "search_sequences": 128,
            "length": 2048,
            "micro_batch": 1,
        }
        run = {"space": space, "calibration": calibration, "search": {"tokens": 500_000}}
        config = _config(Path(folder), folder, "self", **run)
        plan = make_plan(config, loaded, DEVICES[device])
        if plan.weights > 0.8 * plan.device.memory:
            half = {"source": folder, "device_memory": plan.device.memory // 2}
            config = _config(Path(folder), folder, "self", **run, model=half)
            plan = make_plan(config, loaded, DEVICES[device])
        rows = plan_rows(plan)[1:]
        for words, heal in HEALINGS.items():
            changed = config.model_copy(update={"heal": config.heal.model_copy(update=heal)})
            (row,) = (
                r for r in plan_rows(make_plan(changed, loaded, DEVICES[device])) if r[0] == "heal"
            )
            rows.append([words, *row[1:]])
    return rows


if __name__ == "__main__":
    main()
