"""A run folder such as the run loop writes, with made-up numbers: 30 blocks of 7 matrices."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from evocompress.core.config import (
    CalibrationConfig,
    DropSpace,
    EvaluateConfig,
    ModelConfig,
    RunConfig,
    SearchConfig,
    SpaceConfig,
    SparsitySpace,
)
from evocompress.core.config_file import dump_config
from evocompress.core.types import DROP, Candidate, Level, Unit

BLOCKS = 30
MATRICES = {
    "attention": {
        "q_proj": (576, 576),
        "k_proj": (192, 576),
        "v_proj": (192, 576),
        "o_proj": (576, 576),
    },
    "mlp": {"gate_proj": (1536, 576), "up_proj": (1536, 576), "down_proj": (576, 1536)},
}
DENSE_COSTS = {"params": 134_515_008.0, "nonzeros": 134_515_008.0, "flops": 2.62e11}
STEP = 13824  # zeros between two levels
DROPPED = ("model.layers.11.attention", "model.layers.25.mlp")


def units() -> list[Unit]:
    found = []
    for block in range(BLOCKS):
        path = f"model.layers.{block}"
        found.append(Unit(path, "block", None, block, "block"))
        for kind, matrices in MATRICES.items():
            sublayer = f"{path}.{kind}"
            module = "self_attn" if kind == "attention" else "mlp"
            found.append(Unit(sublayer, kind, path, block, kind))
            found += [
                Unit(f"{path}.{module}.{role}", "matrix", sublayer, block, role, shape)
                for role, shape in matrices.items()
            ]
    return found


def candidate(rng: np.random.Generator | None, dropped: Iterable[str] = ()) -> Candidate:
    """Half of each matrix is zero; a generator moves each by up to three levels."""
    gone = set(dropped)
    levels = dict.fromkeys(gone, DROP)
    for unit in units():
        if unit.kind == "matrix" and unit.parent not in gone:
            shift = int(rng.integers(-3, 4)) if rng else 0
            levels[unit.name] = Level(zeros=unit.numel // 2 + shift * STEP)
    return Candidate(tuple(sorted(levels.items())))


def timing(median: float) -> dict[str, float]:
    return {"median": median, "low": 0.97 * median, "high": 1.09 * median}


def ratio(mean: float, reach: float = 0.01) -> dict[str, float]:
    return {"mean": mean, "low": mean * (1 - reach), "high": mean * (1 + reach), "turns": 12}


def row(name: str, share: float, kl: float, perplexity: float, **more: Any) -> dict[str, Any]:
    return {
        "name": name,
        "params": 134_515_008,
        "nonzeros": round(share * 134_515_008),
        "flops": 2.62e11,
        "weight_bytes": 269_030_016,
        "kl": kl,
        "kl_sd": kl / 7,
        "kl_top256": 0.98 * kl,
        "perplexity": perplexity,
        "prefill_ms": timing(812.0),
        "decode_ms_per_token": timing(41.3),
        "prefill_ratio": None if name == "dense" else ratio(1.003),
        "decode_ratio": None if name == "dense" else ratio(0.97),
        "predicted": None,
        **more,
    }


def evaluation(source: str = "self") -> dict[str, Any]:
    kept = round(0.6053 * 134_515_008)
    predicted = {"params": 134_515_008, "nonzeros": kept, "weight_bytes": 270_000_000}
    return {
        "heldout": {"source": source, "self_written": True, "sequences": 16, "length": 512},
        "settings": EvaluateConfig(repeats=9).model_dump(mode="json"),
        "rows": [
            row("dense", 1.0, 0.0, 4.31, kl_sd=0.0, kl_top256=0.0),
            row("uniform", 0.6053, 0.4587, 6.84),
            row("searched", 0.6053, 0.3485, 6.02, predicted=predicted),
            row("healed", 0.6053, 0.2111, 5.27, predicted=predicted),
        ],
    }


def run_folder(
    folder: Path, *, source: str = "HuggingFaceTB/SmolLM2-135M", dropped: Iterable[str] = DROPPED
) -> Path:
    """Writes every file of a finished run into `folder`."""
    rng = np.random.default_rng(0)
    uniform, winner = candidate(None), candidate(rng, dropped)
    (folder / "heal").mkdir(parents=True)
    (folder / "config.yaml").write_text(dump_config(config(source)))
    write_json(folder / "environment.json", environment())
    write_json(folder / "units.json", [vars(unit) for unit in units()])
    write_lines(folder / "journal.jsonl", journal(rng, uniform, winner))
    costs = {**DENSE_COSTS, "nonzeros": 81_426_000.0}
    chosen = {"id": winner.id, "levels": winner.to_json(), "value": 0.3391, "costs": costs}
    write_json(folder / "winner.json", {**chosen, "dense_costs": DENSE_COSTS})
    write_json(folder / "front.json", front(rng, winner))
    write_json(folder / "evaluation.json", evaluation())
    write_lines(folder / "heal" / "heal.jsonl", healing(rng))
    return folder


def config(source: str) -> RunConfig:
    return RunConfig(
        name="smollm2-half",
        model=ModelConfig(source=source),
        calibration=CalibrationConfig(),
        space=SpaceConfig(
            sparsity=SparsitySpace(target=0.5), drop=DropSpace(), budget={"nonzeros": 0.61}
        ),
        search=SearchConfig(name="evopress", tokens=660_000),
    )


def environment() -> dict[str, Any]:
    versions = {"evocompress": "0.1.0", "python": "3.11.2", "torch": "2.13.0", "numpy": "2.4.6"}
    return {
        "versions": versions,
        "device": "cpu: Example 9000",
        "dtype": "bfloat16",
        "threads": 2,
        "git": "v0.1.0-3-g0123456-dirty",
        "platform": "Linux-6.1-x86_64",
        "started": "2026-03-01T09:30:00+00:00",
    }


def journal(
    rng: np.random.Generator, uniform: Candidate, winner: Candidate
) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = [{"type": "run", "fingerprint": "f" * 16, "seed": 0}]
    for known in (uniform, winner):
        lines.append({"type": "candidate", "id": known.id, "levels": known.to_json()})
    for micro_batch in range(4):
        value = {"micro_batch": micro_batch, "sums": [240.0, 220.0], "counts": [500, 500]}
        lines.append({"type": "value", "candidate": uniform.id, "treatment": "none", **value})
        better = {"micro_batch": micro_batch, "sums": [190.0, 160.0], "counts": [500, 500]}
        lines.append({"type": "value", "candidate": winner.id, "treatment": "none", **better})
    lines.append({"type": "failure", "candidate": "0" * 16, "treatment": "none", "reason": "NaN"})
    best = 0.46
    for step in range(120):
        best -= float(rng.random() * 0.002)
        state = {"requested": 5500 * (step + 1), "computed": 5100 * (step + 1)}
        lines.append({"type": "step", "step": step, **state, "incumbent": winner.id, "value": best})
    return lines


def front(rng: np.random.Generator, winner: Candidate) -> list[dict[str, Any]]:
    points = []
    for index in range(60):
        share = float(rng.uniform(0.5, 0.61))
        value = 0.34 + 2.2 * (0.61 - share) + float(rng.exponential(0.06))
        points.append((value, share, f"{index:016x}"))
    points.append((0.3391, 0.6053, winner.id))
    return [
        {
            "id": name,
            "value": value,
            "costs": {**DENSE_COSTS, "nonzeros": share * DENSE_COSTS["nonzeros"]},
            "tokens": 16_384,
            "non_dominated": not any(v < value and s <= share for v, s, _ in points),
        }
        for value, share, name in points
    ]


def healing(rng: np.random.Generator) -> list[dict[str, Any]]:
    return [
        {
            "step": step,
            "train_loss": None if step == 0 else _noisy(0.2 + 0.15 * np.exp(-step / 40), rng),
            "validation_kl": 0.21 + 0.14 * float(np.exp(-step / 35)) if step % 25 == 0 else None,
            "learning_rate": 1e-4,
        }
        for step in range(201)
    ]


def _noisy(value: float, rng: np.random.Generator) -> float:
    return float(value + rng.normal(0, 0.012))


def write_json(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data))


def write_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
